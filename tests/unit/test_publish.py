"""What a run leaves in the tracked files: outputs and stamp, records, and the generated parts of README.md."""

import json
from dataclasses import asdict

import nbformat
import pytest

from asrlib import AsrlibError
from asrlib.course import claims, records, registry, sentences
from asrlib.io import files
from tools import publish

ROOT = files.repository()
NAME = "01_one"
README = """\
<!-- picture -->
<!-- end of picture -->
<!-- chapters -->
| typed by hand |
<!-- end of chapters -->
<!-- verdicts -->
<!-- end of verdicts -->
Below.
"""
FOUND = [
    sentences.Finding("Said at the end only.", "paired", {}),
    sentences.Finding("Of 3 comparisons with one, 2 show a difference (Holm's correction): a, b. More.", "table", {}),
]


@pytest.fixture
def root(course_folder):
    """A course of one notebook, which has finished in the reference profile, and the claims of the real one."""
    root = course_folder.root
    path = course_folder.add(NAME, '"a value"')
    (root / "README.md").write_text(README)
    (root / "notebooks" / "stale.txt").write_text(f"# comment\n{NAME}\n")
    (root / "data" / "claims.yaml").write_bytes((ROOT / "data" / "claims.yaml").read_bytes())
    folder = course_folder.folder(NAME, "reference")
    record = records.Record(NAME, "reference", {"SEED": 1}, folder, root)
    record.add("wer_percent", 8.4, unit="%", interval=(7.1, 9.9), utterances=4, words=512, corpus="telephone")
    for finding, main in zip(FOUND, (False, True), strict=True):
        record.finding(finding, main=main)
    content = json.loads(record.save().read_text())
    content["run"]["seconds"] = 150.0
    (folder / "record.json").write_text(json.dumps(content))
    executed = nbformat.read(path, 4)
    shown = next(cell for cell in executed.cells if cell.source == '"a value"')
    shown.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "'a value'"}, execution_count=7)]
    alt = {"image/png": {"alt": "a curve that falls"}}
    shown.outputs.append(nbformat.v4.new_output("display_data", {"image/png": "aGk="}, metadata=alt))
    table = root / "notebooks" / "notebooks.toml"
    table.write_text(table.read_text().replace('picture = "p"', f'picture = "{shown.id}"'))
    executed.metadata["papermill"] = {"duration": 1}
    nbformat.write(executed, folder / "notebook.ipynb")
    outcome = registry.Outcome(NAME, "finished", peak_rss_mib=2560.0)
    (folder / "result.json").write_text(json.dumps(asdict(outcome)))
    return root


def run_of(root):
    return registry.run_folder(root, "reference", NAME)


def test_publishing_writes_outputs_results_stamp_and_readme_and_the_stamp_notices_a_change(root):
    publish.publish(root, [NAME])
    path = root / "notebooks" / f"{NAME}.ipynb"
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert code[2].outputs[0].execution_count == 3 and "'a value'" in str(code[2].outputs)
    assert "papermill" not in notebook.metadata
    assert {item.name for item in (root / "results" / NAME).iterdir()} == {
        "record.json", "predictions.jsonl", "result.json"
    }  # fmt: skip
    assert publish.stale(root) == set()
    text = (root / "README.md").read_text()
    row = "| [01 t](notebooks/01_one.ipynb) | an article on `one` | Of 3 comparisons with one, 2 show a difference (Holm's correction). | 2 minutes |"
    assert row in text
    assert "![a curve that falls](docs/_static/picture.png)" in text
    assert (root / publish.PICTURE).read_bytes() == b"hi"
    assert f"| **all {len(claims.load())}** |" in text and "typed by hand" not in text and text.endswith("Below.\n")
    publish.publish(root, [NAME])
    assert (root / "README.md").read_text() == text
    book = registry.read(root)[NAME]
    assert notebook.metadata["asrlib"] == {"profile": "reference", "stamp": registry.stamp(root, book, "reference")}
    path.write_text(path.read_text().replace("a value", "another"))
    assert notebook.metadata["asrlib"]["stamp"] != registry.stamp(root, book, "reference")


@pytest.mark.parametrize(
    ("place", "old", "new", "message"),
    [
        ("run/notebook.ipynb", "'a value'", "'in /mnt/disk/x'", "01_one, cell 3 shows the path /mnt/disk/x"),
        ("notebooks/01_one.ipynb", "a value", "another", "code of 01_one was changed while it ran"),
        ("run/result.json", "finished", "failed", "01_one did not finish"),
    ],
)
def test_what_must_not_be_published_is_named_and_nothing_is_written(root, place, old, new, message):
    path = run_of(root) / place[4:] if place.startswith("run/") else root / place
    path.write_text(path.read_text().replace(old, new))
    before = (root / "notebooks" / f"{NAME}.ipynb").read_text()
    with pytest.raises(AsrlibError, match=message):
        publish.publish(root, [NAME])
    assert (root / "notebooks" / f"{NAME}.ipynb").read_text() == before
    assert not (root / "results").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (nbformat.v4.new_output("error", ename="E", evalue="x", traceback=[]), "shows an error"),
        (
            nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}}),
            "shows a widget",
        ),
        (nbformat.v4.new_output("stream", text="in /mnt/disk/x"), "shows the path /mnt/disk/x"),
    ],
)
def test_an_output_that_must_not_be_published_is_named(tmp_path, output, message):
    with pytest.raises(AsrlibError, match=f"01, cell 2 {message}"):
        publish._normalise(output, "01, cell 2", tmp_path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("saved to /home/ann/x.json, /Users/ann and /private/a", ["/home/ann/x.json,", "/Users/ann", "/private/a"]),
        ("C:\\Users\\ann\\x", ["C:\\Users\\ann\\x"]),
        ("https://example.org/home/page, build/runs/tmp/x and 3/4 of ../home/x", []),
    ],
)
def test_absolute_paths_are_found(text, found):
    assert publish.absolute_paths(text) == found


def test_a_finding_that_the_record_does_not_have_is_named(root):
    table = root / "notebooks" / "notebooks.toml"
    table.write_text(table.read_text().replace("finding = 1", "finding = 2"))
    with pytest.raises(AsrlibError, match=r"notebooks\.toml, 01_one: finding is 2, but its record has 1"):
        publish.publish(root, [NAME])


def test_the_readme_of_the_course_is_the_generated_one():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == publish.readme(ROOT)


def test_the_command_explains_itself_and_names_a_notebook_that_is_not_there(capsys, root, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        publish.main(["--help"])
    assert ended.value.code == 0
    assert "[NN ...]" in capsys.readouterr().out
    monkeypatch.chdir(root)
    with pytest.raises(SystemExit, match="asrlib: There is no notebook '77'"):
        publish.main(["77"])

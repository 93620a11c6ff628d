import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import nbformat
import pytest

from asrlib.course import claims, records, registry, sentences
from asrlib.io import files
from tools import site

ROOT = files.repository()
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
HOSTILE = '<script>alert(1)</script> {{evil}} {% evil %} ```{raw} html\n<img src=x onerror=alert(1)> "quoted" & $x$'
CLAIM = {
    "id": "AA-01",
    "method": "a method",
    "statement": f"A statement. {HOSTILE}",
    "source": "https://example.org/?a=1&b=2",
    "check": "B",
    "needs": "a run",
    "published": [{"name": HOSTILE, "value": 8.5, "unit": "%"}],
    "evidence": {"notebook": "01_one", "metric": "wer_percent"},
    "rule": {"kind": "within_interval"},
}
ARITHMETIC = {
    **{key: CLAIM[key] for key in ("method", "source", "check", "needs")},
    "id": "AA-02",
    "statement": "Two is three.",
    "published": [{"name": "a", "value": 2}, {"name": "b", "value": 3}],
    "rule": {"kind": "arithmetic", "expression": "a == b"},
}
TABLES = {
    "corpora.toml": '[folder]\ntitle = "Yours"\nhome = "a folder"\nlicence = "yours"\nattribution = "you"\nspeakers = "1"\n',
    "checkpoints.toml": '["openai/one"]\nrevision = "0123456789abcdef"\n',
    "paths.toml": "path = []",
    "README.md": "<!-- tables -->\n| a | b |\n|---|---|\n| 1 | 2 |\n<!-- end of tables -->\n",
}


def leave(folder, root, value=8.4):
    """Leave a run in which every text that others can write is hostile."""
    run = records.Record("01_one", "reference", {"TEXT": HOSTILE}, folder, root)
    run.add("wer_percent", value, unit="%", interval=(7.6, 9.3), utterances=4, words=12, model=HOSTILE)
    run.protocol(decoding=HOSTILE)
    run.finding(sentences.Finding(f"One is better. {HOSTILE}", "paired", {}), main=True)
    run.input("corpus", HOSTILE, utterances=4, seconds=90.0)
    counts = {"substitutions": 1, "deletions": 0, "insertions": 2, "words": 3}
    path = run.save([{"id": "a", "hypothesis": HOSTILE, "system": "s", **counts}])
    content = json.loads(path.read_text())
    content["environment"]["hardware"]["cpu"] = HOSTILE
    content["run"]["dirty"] = False
    path.write_text(json.dumps(content))


@pytest.fixture
def made(course_folder):
    """A course of one notebook, published, with two claims."""
    course_folder.add("01_one", "1 + 1")
    root = course_folder.root
    shutil.copytree(ROOT / "docs" / "_fragments", root / "docs" / "_fragments")
    (root / "data" / "claims.yaml").write_text(json.dumps([CLAIM, ARITHMETIC]))  # JSON is YAML
    for name, text in TABLES.items():
        (root / "data" / name).write_text(text)
    leave(root / "results" / "01_one", root)
    return root


def own_run(root, value):
    folder = registry.run_folder(root, "reference", "01_one")
    leave(folder, root, value)
    outcome = {"notebook": "01_one", "status": "finished", "peak_rss_mib": 2560.0}
    (folder / "result.json").write_text(json.dumps(outcome))


class Seen(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.mark.parametrize("name", ["findings", "ledger", "records", "review", "timings"])
def test_hostile_texts_are_shown_and_do_nothing(made, name):
    seen = Seen(site.write(made) / f"{name}.html")
    assert not seen.all("script") and not seen.all("img")
    assert not [key for _, attributes in seen.elements for key in attributes if key.startswith("on")]
    assert "<script>alert(1)</script> {{evil}} {% evil %}" in seen.text


@pytest.mark.slow
def test_sphinx_builds_harmless_pages_that_ask_no_other_host(made):
    shutil.copytree(ROOT / "docs", made / "docs", dirs_exist_ok=True, ignore=shutil.ignore_patterns("_generated"))
    (made / "asrlib").mkdir()
    (made / "asrlib" / "audio.py").touch()  # a page for this module alone
    site.write(made)
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", "build/site"]
    nowhere = "http://127.0.0.1:9"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "http_proxy": nowhere, "https_proxy": nowhere}
    done = subprocess.run(build, cwd=made, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.stem: Seen(path) for path in (made / "build" / "site").rglob("*.html")}
    assert {"index", "ledger", "records", "review", "corpora", "glossary", "api", "contribute", "01_one"} <= set(pages)
    assert "{{evil}}" in pages["ledger"].text and "{{evil}}" in pages["01_one"].text
    for page in pages.values():
        loaded = [item.get("src") or "" for tag in ("script", "img", "iframe") for item in page.all(tag)]
        loaded += [item["href"] for item in page.all("link")]
        assert not [address for address in loaded if address.startswith(("http", "//"))]
        assert not [attributes for attributes in page.all("img") if "onerror" in attributes]
    assert "alert(1)</script>" not in (made / "build" / "site" / "ledger.html").read_text()


def test_the_scoreboard_counts_every_claim_once(made):
    seen = Seen(site.write(made) / "scoreboard.html")
    assert [attributes["href"] for attributes in seen.all("a")] == [
        "ledger.html#topic=words&verdict=holds",
        "ledger.html#topic=words",
        "ledger.html#topic=arithmetic&verdict=arithmetic+fails",
        "ledger.html#topic=arithmetic",
        "ledger.html#verdict=holds",
        "ledger.html#verdict=arithmetic+fails",
        "ledger.html",
    ]


def test_the_ledger_has_a_body_with_keys_for_each_claim(made):
    first, second = Seen(site.write(made) / "ledger.html").all("tbody")
    shown = [first[key] for key in ("id", "data-verdict", "data-published", "data-here")]
    assert shown == ["AA-01", "holds", "8.5", "8.4"]
    assert (second["id"], second["data-verdict"], "data-here" in second) == ("AA-02", "arithmetic fails", False)


def test_ones_own_run_is_shown_and_compared_with_the_published_one(made):
    assert site.chapters(made)[0].changes == []
    own_run(made, 12.0)
    (chapter,) = site.chapters(made)
    assert [(change.kind, change.before, change.after) for change in chapter.changes] == [("moved", 8.4, 12.0)]
    folder = site.write(made)
    assert "1 moved out of their interval" in Seen(folder / "review.html").text
    assert "2.5" in Seen(folder / "map.html").text
    shown = json.loads((folder / "extra" / "results" / "01_one" / "record.json").read_text())
    assert shown["metrics"][0]["value"] == 12.0
    path = registry.run_folder(made, "reference", "01_one") / "result.json"
    path.write_text(path.read_text().replace("finished", "failed"))
    assert site.chapters(made)[0].record["metrics"][0]["value"] == 8.4
    assert site.chapters(made)[0].warnings == []
    with open(made / "results" / "01_one" / "predictions.jsonl", "a") as stream:
        stream.write("\n")
    notebook = made / "notebooks" / "01_one.ipynb"
    notebook.write_text(notebook.read_text().replace("1 + 1", "1 + 2"))
    assert [text.split()[1] for text in site.chapters(made)[0].warnings] == ["notebook's", "transcripts"]


def test_a_notebook_without_a_record_has_its_pages(made):
    shutil.rmtree(made / "results")
    folder = site.write(made)
    assert "no record yet" in Seen(folder / "records.html").text
    assert "no record yet" in Seen(folder / "review.html").text
    assert "not run" in Seen(folder / "map.html").text
    assert not (folder / "extra" / "results").exists()


def test_a_claim_without_evidence_goes_with_its_method_and_without_a_method_stays_in_the_ledger(made):
    assert [verdict.id for verdict in site.chapters(made)[0].verdicts] == ["AA-01", "AA-02"]
    (made / "data" / "claims.yaml").write_text(json.dumps([CLAIM, ARITHMETIC | {"method": "another"}]))
    assert [verdict.id for verdict in site.chapters(made)[0].verdicts] == ["AA-01"]
    assert len(Seen(site.write(made) / "ledger.html").all("tbody")) == 2


def rendered(root):
    return nbformat.read(site.write(root) / "notebooks" / "01_one.ipynb", as_version=4)


def test_a_figure_keeps_its_alternative_text_and_links_become_links_to_pages_or_names(made):
    path = made / "notebooks" / "01_one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    alt = {"image/png": {"alt": "a curve that falls"}}
    cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": "aGk="}, metadata=alt)]
    cell.id = "p"  # the picture of the registry
    notebook.cells[0].source += "\n[tables](../data/README.md), [code](../asrlib/text.py), [next](02_two.ipynb)"
    nbformat.write(notebook, path)
    assert "[tables](../../corpora.md), `asrlib/text.py`, [next](02_two.ipynb)" in rendered(made).cells[0].source
    found = next(cell for cell in rendered(made).cells if cell.cell_type == "code")
    assert found.metadata.mystnb.image.alt == "a curve that falls"
    (picture,) = Seen(made / "docs" / "_generated" / "findings.html").all("img")
    assert (picture["src"], picture["alt"]) == ("pictures/01.png", "a curve that falls")
    assert (made / "docs" / "_generated" / "extra" / "pictures" / "01.png").read_bytes() == b"hi"
    project = made / "pyproject.toml"
    project.write_text(project.read_text() + '\n[project.urls]\nRepository = "https://github.com/a/b/"\n')
    source = rendered(made).cells[0].source
    assert "[code](https://github.com/a/b/blob/v" in source
    assert "https://colab.research.google.com/github/a/b/blob/v" in source


def test_the_course_itself_can_be_written(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("asrlib", "data", "notebooks", "results", "README.md", "pyproject.toml", "docs/_fragments"):
        (tmp_path / name).symlink_to(ROOT / name)
    folder = site.write(tmp_path)
    shown = {attributes["id"] for attributes in Seen(folder / "ledger.html").all("tbody")}
    assert shown == {claim["id"] for claim in claims.load()}
    assert not [chapter.title for chapter in site.chapters(tmp_path) if not chapter.stale and not chapter.picture]


def test_the_page_of_the_library_names_every_module():
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert [path.stem for path in (ROOT / "asrlib").rglob("[a-z]*.py") if f"`{path.stem}`" not in page] == []


# ------------------------------------------------------------------------------------------------------- with a browser
@pytest.fixture
def tab(made):
    """Return a function that opens a fragment from disk, with the site's script; console errors end the test."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    folder, script, errors = site.write(made), (ROOT / "docs" / "_static" / "course.js").as_uri(), []
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("dialog", lambda dialog: errors.append(f"a hostile text opened a dialog: {dialog.message}"))

        def go(name, fragment=""):
            page = folder / f"page_{name}.html"
            page.write_text(
                f'<!doctype html>{(folder / name).with_suffix(".html").read_text()}<script src="{script}"></script>'
            )
            opened.goto(page.as_uri() + fragment)
            return opened

        yield go
        browser.close()
    assert errors == []


def shown(page):
    return [body.get_attribute("id") for body in page.locator("tbody").all() if body.is_visible()]


@pytest.mark.slow
def test_the_ledger_is_filtered_searched_and_sorted_from_disk(tab):
    page = tab("ledger")
    assert shown(page) == ["AA-01", "AA-02"]
    page.get_by_label("verdict").select_option("arithmetic fails")
    assert shown(page) == ["AA-02"]
    page.get_by_label("verdict").select_option("")
    page.get_by_label("search").fill("STATEMENT onerror")
    assert shown(page) == ["AA-01"]
    assert page.locator("output").inner_text() == "1 of 2 claims"
    page.get_by_label("search").fill("")
    page.get_by_role("button", name="published").click()
    assert shown(page) == ["AA-02", "AA-01"]
    page.get_by_role("button", name="published").click()
    assert shown(page) == ["AA-01", "AA-02"]
    page.get_by_role("button", name="here").click()  # what was not measured comes last, whichever way
    page.get_by_role("button", name="here").click()
    assert shown(page) == ["AA-01", "AA-02"]
    assert shown(tab("ledger", "#topic=words&verdict=holds")) == ["AA-01"]  # as a number of the scoreboard leads here

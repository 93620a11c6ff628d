import nbformat
import pytest

from asrlib import AsrlibError
from asrlib.course import registry

PAIR = ("01_one", "02_two")


@pytest.fixture
def two(course_folder):
    course_folder.add("01_one", "1 + 1")
    course_folder.add("02_two", "2 + 2", needs=("01_one",))
    return course_folder


def book(folder, name="01_one"):
    return registry.read(folder.root)[name]


def key(folder, needed=(), **values):
    return registry.key(folder.root, book(folder), "smoke", values, needed)


def test_the_registry_reads_every_field(two):
    found = book(two, "02_two")
    assert (found.needs, found.writes, found.path.name) == (
        ("01_one",),
        ("record.json", "predictions.jsonl"),
        "02_two.ipynb",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("title", "titel"), "titel, title is missing or unknown"),
        (('needs = ["01_one"]', 'needs = ["09_nine"]'), "needs 09_nine, which is not registered before"),
        (('title = "t"', 'title = "t'), "not valid TOML"),
    ],
)
def test_a_wrong_registry_is_one_sentence(two, change, message):
    path = two.root / "notebooks" / "notebooks.toml"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(AsrlibError, match=message):
        registry.read(two.root)


def test_notebooks_are_chosen_by_number_or_name(two):
    assert [found.name for found in registry.select(two.root)] == [*PAIR]
    for choice in ("2", "02", "02_two"):
        assert [found.name for found in registry.select(two.root, [choice])] == ["02_two"]
    with pytest.raises(AsrlibError, match="no notebook '7'"):
        registry.select(two.root, ["7"])
    path = two.root / "notebooks" / "notebooks.toml"
    text = path.read_text().replace("checkpoints = []", 'checkpoints = ["a/b"]')
    path.write_text(text.replace("corpora = []", 'corpora = ["telephone/en", "audiobook"]'))
    assert registry.inputs(two.root) == (["a/b"], [("telephone", "en"), ("audiobook", "")])


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        *(("N_CLIPS", "12", 12), ("LANGUAGE", "no", "no"), ("LANGUAGE", "007", "007"), ("LANGUAGE", '"fr"', "fr")),
        *(("N_CLIPS", text, "must be of type int") for text in ("many", "1.5", "true")),
        *(("CLIPS", "1", "has no parameter CLIPS"), ("PROFILE", "smoke", "with --profile")),
    ],
)
def test_a_parameter_text_becomes_a_value_of_the_stated_type_or_one_sentence(two, name, text, value):
    if isinstance(value, str) and " " in value:
        with pytest.raises(AsrlibError, match=value):
            registry.check_parameters(book(two), {name: text})
    else:
        assert registry.check_parameters(book(two), {name: text}) == {name: value}


@pytest.mark.parametrize("line", ["N = 1  # help", "N: int = 1", "N: int = len('a')  # help", "print(1)  # help"])
def test_a_parameter_line_of_another_form_is_named(two, line):
    notebook = nbformat.read(book(two).path, 4)
    notebook.cells[2].source += f"\n{line}"
    nbformat.write(notebook, book(two).path)
    with pytest.raises(AsrlibError, match="parameter cell, line 5"):
        registry.parameters(book(two).path)


def lock(two, old, new):
    path = two.root / "requirements.lock"
    path.write_text(path.read_text().replace(old, new))


CHANGES = {
    "code": lambda two: two.add("01_one", "1 + 2"),
    "profile": lambda two: two.profiles({"smoke": 3}),
    "lock": lambda two: lock(two, "torch==2.13.0", "torch==2.14.0"),
    "data": lambda two: (two.root / "data" / "table.toml").write_text("a = 1"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_what_results_depend_on_changes_the_key(two, change):
    before = key(two)
    assert key(two) == before
    change(two)
    assert key(two) != before


def test_parameters_and_the_needed_runs_change_the_key(two):
    assert len({key(two), key(two, N_CLIPS=3), key(two, needed=["a"]), key(two, needed=["b"])}) == 4


def test_prose_and_another_notebook_do_not_change_the_key(two):
    before = key(two)
    notebook = nbformat.read(book(two).path, 4)
    notebook.cells[0].source = "# Better words"
    nbformat.write(notebook, book(two).path)
    two.add("02_two", "2 + 3", needs=("01_one",))
    (two.root / "data" / "README.md").write_text("prose")
    assert key(two) == before


def test_only_versions_that_make_numbers_count(two):
    assert registry.versions(two.root, book(two)) == {"torch": "2.13.0", "peft": "0.17.0"}
    before = key(two)
    lock(two, "gradio==6.17.3", "gradio==6.18.0")
    lock(two, "openvino==2026.1", "openvino==2026.2")
    assert key(two) == before
    two.add("01_one", "def f():\n    from openvino import Core", "import gradio.themes")
    assert set(registry.versions(two.root, book(two))) == {"gradio", "openvino", "peft", "torch"}

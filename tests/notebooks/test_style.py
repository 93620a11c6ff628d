"""The house style of the notebooks, as far as a machine can judge it."""

import ast
import re
import statistics

import nbformat
import pytest

from asrlib.course import records, registry
from asrlib.io import files
from tools import colab, publish

ROOT = files.repository()
BOOKS = registry.read(ROOT)
MAX_BYTES = 300_000
ENDING = ["Published, here, why they differ", "Exercises", "References"]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(params=BOOKS)
def book(request):
    return BOOKS[request.param]


@pytest.fixture
def notebook(book):
    return nbformat.read(book.path, as_version=nbformat.NO_CONVERT)


@pytest.fixture
def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture
def prose(notebook):
    return [FENCE.sub("", cell.source) for cell in notebook.cells if cell.cell_type == "markdown"]


def outputs(code):
    return [(number, output) for number, cell in enumerate(code, 1) for output in cell.outputs]


def texts(output):
    shown = output.get("data", {})
    return [str(value) for kind, value in shown.items() if not kind.startswith("image/")] + [output.get("text", "")]


def python(cell):
    """Return a cell's Python, without its magics."""
    return "\n".join(line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!")))


def test_registry_and_files_correspond():
    assert sorted(BOOKS) == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_every_profile_entry_belongs_to_a_notebook():
    table = files.read_toml(ROOT / "notebooks" / "profiles.toml")
    assert not {name for profile in table.values() for name in profile} - set(BOOKS)


def test_it_is_a_valid_small_notebook_of_format_4_5(book, notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert book.path.stat().st_size < MAX_BYTES


def test_it_ran_from_the_top(code):
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def test_no_output_is_an_error_a_widget_or_a_warning_on_stderr(notebook, code):
    assert "widgets" not in notebook.metadata
    assert not [number for number, output in outputs(code) if output.output_type == "error"]
    assert not [number for number, output in outputs(code) if any("widget" in kind for kind in output.get("data", {}))]
    assert not [number for number, output in outputs(code) if output.get("name") == "stderr"]


def test_nothing_of_papermill_is_left(notebook):
    assert "papermill" not in notebook.metadata
    assert not [cell for cell in notebook.cells if {"papermill", "execution"} & set(cell.metadata)]
    assert not [cell for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", ())]


def test_it_opens_with_its_only_title(notebook, prose):
    assert notebook.cells[0].source.startswith("# ")
    assert sum(len(re.findall(r"^# ", text, re.MULTILINE)) for text in prose) == 1


def test_sections_begin_with_the_setup_and_end_with_published_exercises_references(prose):
    sections = [title.strip() for text in prose for title in re.findall(r"^## (.+)$", text, re.MULTILINE)]
    assert sections[0] == "Setup"
    assert sections[-3:] == ENDING


def numbered(text):
    """Return the numbers of the items of a list that is not inside another one."""
    return [int(number) for number in re.findall(r"^(\d+)\. ", text, re.MULTILINE)]


def test_what_you_learned_answers_what_you_will_learn(prose):
    promised = prose[0].partition("You will learn to")[2]
    kept = "\n".join(prose).partition("**What you learned.**")[2].partition("\n## ")[0].partition("**Limits.**")[0]
    assert numbered(promised) == numbered(kept) == list(range(1, len(numbered(promised)) + 1))


def test_every_exercise_has_an_answer_to_unfold(prose):
    exercises = "\n".join(prose).partition("## Exercises")[2].partition("\n## ")[0]
    items = re.split(r"^\d+\. ", exercises, flags=re.MULTILINE)[1:]
    assert 3 <= len(items) <= 5
    assert [item for item in items if "<details><summary>Answer</summary>" not in item] == []


def test_a_checkpoint_question_is_followed_by_its_cell_and_its_reason(book, notebook):
    asked = [number for number, cell in enumerate(notebook.cells) if "**Checkpoint.**" in cell.source]
    assert asked
    for number in asked:
        cell, following, *_ = rest = notebook.cells[number + 1 :]
        assert re.match(r"answer = None  # your answer: \w+", cell.source)
        # What the notebook expects is folded away, so that nobody reads it before the question.
        assert following.source.startswith("exercises.check(answer, ")
        assert following.metadata.jupyter.source_hidden
        assert "hide-input" in following.metadata.tags
        assert rest[2].source.startswith("<details><summary>Why</summary>")


def test_the_first_cell_tells_what_the_published_run_found_and_took(book, notebook):
    first = notebook.cells[0].source
    assert "<!-- result -->" in first
    assert publish.opening(first, ROOT / "results" / book.name) == first


def test_the_colab_cell_is_the_generated_one(book, code):
    assert code[0].metadata == colab.FOLDED
    assert code[0].source == colab.colab_text(ROOT, book.extras)


def test_parameters_are_literals_with_type_and_help(book):
    found = registry.parameters(book.path)
    assert found["PROFILE"].default == ""
    assert all(parameter.help for parameter in found.values())


def test_a_finished_chapter_is_short_and_says_what_it_found(book, notebook, prose):
    assert len(notebook.cells) <= 70
    assert sum(len(text.split()) for text in prose) <= 2200
    assert len(numbered(prose[0].partition("You will learn to")[2])) <= 5
    findings = records.load(ROOT / "results" / book.name / "record.json")["findings"]
    assert len(findings) >= 3
    assert [item for item in findings if item["main"]]


def test_a_finished_chapter_starts_with_its_result_and_tells_how_to_use_ones_own_recordings(book, prose):
    assert prose[0].index("<!-- result -->") < prose[0].index("You will learn to")
    assert {"`colab`", "`reference`"} <= set(re.findall(r"`\w+`", prose[0]))
    assert "## With your own recordings" in "\n".join(prose)


def test_a_chapter_starts_and_ends_with_one_line(book, code):
    sources = [cell.source for cell in code if "colab" not in cell.metadata.get("tags", ())]
    assert f'run = chapter.start("{book.name}")' in sources
    assert re.search(r"^run\.close\(", sources[-1], re.MULTILINE)


def test_code_cells_are_short(code):
    lengths = {number: len(cell.source.splitlines()) for number, cell in enumerate(code, 1)}
    long = [number for number, cell in enumerate(code, 1) if "long-ok" in cell.metadata.get("tags", ())]
    assert statistics.median(lengths.values()) <= 9  # a cell also records what it measures, and says what it found
    assert [number for number, lines in lengths.items() if lines > 30 and number not in long] == []
    assert len(long) <= 1


def test_prose_and_code_are_in_balance(code, prose):
    words = sum(len(re.sub(r"\]\([^)]*\)", "]", text).split()) for text in prose)
    shown = [
        cell for cell in code if not cell.metadata.get("jupyter", {}).get("source_hidden")
    ]  # Colab's set-up is hidden
    lines = sum(len([line for line in cell.source.splitlines() if line.strip()]) for cell in shown)
    assert 6 <= words / lines <= 20


def test_prose_does_not_hurry_the_reader(prose):
    assert [
        found for text in prose for found in re.findall(r"\b(?:simply|just|easily|obviously)\b", text, re.IGNORECASE)
    ] == []


def test_every_figure_has_an_alternative_text(code):
    lacking = [
        number
        for number, output in outputs(code)
        for kind in output.get("data", {})
        if kind.startswith("image/") and not output.metadata.get(kind, {}).get("alt", "").strip()
    ]
    assert lacking == []


def test_no_path_of_a_machine_shows_in_sources_or_outputs(notebook, code):
    shown = [cell.source for cell in notebook.cells] + [text for _, output in outputs(code) for text in texts(output)]
    assert [path for text in shown for path in publish.absolute_paths(text)] == []


def test_relative_links_resolve(book, prose):
    links = [link for text in prose for link in re.findall(r"\]\(([^)#\s]+)", text)]
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (book.path.parent / link).exists()] == []


def test_the_method_is_in_plain_sight(book, code):
    nodes = [node for cell in code for node in ast.walk(ast.parse(python(cell)))]
    kinds = {ast.Name: "id", ast.Attribute: "attr", ast.keyword: "arg"}
    names = {getattr(node, kinds[type(node)]) for node in nodes if type(node) in kinds}
    assert set(book.required_api) <= names


def test_no_trailing_semicolon_and_no_magic_but_the_doors_outside_the_colab_cell(code):
    plain = [cell for cell in code if "colab" not in cell.metadata.get("tags", ())]
    door = re.compile(r"(^%load_ext asrlib\.models\.optimum_env$\n)|(\A%%optimum[ \w]*$\n)", re.MULTILINE)
    assert [cell.source for cell in code if cell.source.rstrip().endswith(";")] == []
    assert [cell.source for cell in plain if python(cell) != door.sub("", cell.source)] == []


def test_predictions_hold_no_reference_text(book):
    listing = ROOT / "results" / book.name / "predictions.jsonl"
    keys = {key for row in (files.read_jsonl(listing) if listing.exists() else ()) for key in row}
    assert not keys & records.FORBIDDEN

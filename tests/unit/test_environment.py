import sys

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from asrlib import AsrlibError, corpora, environment, files, records

ROOT = files.repository()


@pytest.fixture(scope="module")
def pins():
    return environment.pins((ROOT / "requirements.lock").read_text())


def test_every_direct_dependency_is_pinned_within_its_range(pins):
    for line in environment.direct_dependencies(ROOT):
        wanted = Requirement(line)
        assert wanted.specifier.contains(pins[wanted.name.lower()]), line


def test_transformers_stays_where_optimum_onnx_can_use_it(pins):
    assert SpecifierSet(">=4.57,<4.58").contains(pins["transformers"])


def test_the_conda_file_is_the_generated_one():
    assert (ROOT / "environment.yml").read_text() == environment.conda_text()


def test_the_lock_pins_exactly_sorted_without_local_tags_hashes_or_addresses(pins):
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert lines == [f"{name}=={version}" for name, version in sorted(pins.items())]
    assert not [line for line in lines if "+" in line or "/" in line or line.startswith(("nvidia", "triton"))]


def test_the_lock_can_be_made_again_from_this_environment(pins):
    made = environment.pins(environment.lock_text(ROOT))
    assert made.keys() == pins.keys()


def test_a_package_that_is_not_installed_is_named(tmp_path):
    extras = "".join(f"{extra} = []\n" for extra in environment.EXTRAS)
    text = f'[project]\ndependencies = ["no-such-package-here"]\n[project.optional-dependencies]\n{extras}'
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(AsrlibError, match="no-such-package-here is not installed"):
        environment.lock_text(tmp_path)
    (tmp_path / "pyproject.toml").write_text(text + "other = []\n")
    with pytest.raises(AsrlibError, match="EXTRAS"):
        environment.direct_dependencies(tmp_path)


def test_the_makefile_installs_every_extra():
    assert f"[{','.join(environment.EXTRAS)}]" in (ROOT / "Makefile").read_text()


@pytest.fixture
def machine(monkeypatch, course_folder):
    """A course without inputs and a Hub that is never asked."""
    course_folder.add("01_one")
    monkeypatch.setattr(environment, "_hub", lambda: environment.Finding("NOTE", "no Hub"))
    return course_folder.root


def findings(root):
    return {str(finding) for finding in environment.diagnose(root)}


def test_the_doctor_names_a_package_that_differs_or_is_missing(machine):
    (machine / "requirements.lock").write_text("pytest==1.0\nno-such-package-here==2.0\n")
    mend = f"  ->  {sys.executable} -m pip install -r requirements.lock"
    found = findings(machine)
    assert f"MISSING  package no-such-package-here 2.0{mend}" in found
    assert any(line.startswith("DIFFERS  package pytest") and line.endswith(f"tested with 1.0{mend}") for line in found)


def test_the_doctor_names_missing_speech_and_weights_and_the_command_that_mends_it(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    table = machine / "notebooks" / "notebooks.toml"
    table.write_text(table.read_text().replace("checkpoints = []", 'checkpoints = ["openai/whisper-base"]'))
    assert "MISSING  checkpoint openai/whisper-base  ->  make fetch" in findings(machine)


def test_the_doctor_names_the_languages_of_a_corpus_that_are_there_and_that_are_missing(machine, monkeypatch):
    table = machine / "notebooks" / "notebooks.toml"
    table.write_text(
        table.read_text().replace("corpora = []", 'corpora = ["telephone/en", "telephone/it", "audiobook/"]')
    )
    monkeypatch.setattr(corpora, "available", lambda name, language: language != "en")
    wanted = {
        "MISSING  corpus telephone en  ->  make fetch",
        "OK       corpus telephone it",
        "OK       corpus audiobook",
    }
    assert wanted <= findings(machine)


def test_a_full_disk_is_named(machine, monkeypatch):
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**30})())
    assert any(line.startswith("MISSING  disk: 1.0 GiB free") for line in findings(machine))


def test_without_a_checkout_the_doctor_still_speaks(monkeypatch):
    monkeypatch.setattr(environment, "_hub", lambda: environment.Finding("NOTE", "no Hub"))
    assert any("installed without the course" in line for line in findings(None))


def test_a_hub_that_does_not_answer_is_a_note(monkeypatch):
    monkeypatch.setattr(environment, "HUB", "http://127.0.0.1:9/")
    found = environment._hub()
    assert found.state == "NOTE"
    assert "only profile paper needs it" in found.what


def colab_cell(root, address, extras=()):
    urls = f'urls = {{Repository = "{address}"}}\n' if address else ""
    (root / "pyproject.toml").write_text(f'[project]\nname = "asrlib"\n{urls}')
    return environment.colab_text(root, extras)


def colab(source, monkeypatch, on_colab):
    """Run a Colab cell in IPython, and return the commands that it would have given to the system."""
    from IPython.core.interactiveshell import InteractiveShell

    shell, given = InteractiveShell(), []
    monkeypatch.setattr(shell, "system", given.append)
    monkeypatch.setattr(shell, "run_line_magic", lambda name, line, **_: given.append(f"{name} {line}"))
    monkeypatch.setitem(sys.modules, "google.colab", sys) if on_colab else None
    shell.user_global_ns["get_ipython"] = lambda: shell
    outcome = shell.run_cell(source)
    return given, outcome.error_in_exec or outcome.error_before_exec


def test_the_colab_cell_installs_this_release_with_the_notebooks_extras_and_leaves_torch_alone(tmp_path, monkeypatch):
    cell = colab_cell(tmp_path, "https://github.com/OWNER/NAME", ["methods", "peers"])
    given, error = colab(cell, monkeypatch, on_colab=True)
    assert error is None
    assert given[0].startswith("pip freeze | grep -E '^(torch|torchvision|torchaudio|numpy|")
    release = f'"asrlib[methods,peers] @ git+https://github.com/OWNER/NAME@v{environment.__version__}"'
    assert given[1:] == [f"pip install -q -c kept.txt {release}"]


@pytest.mark.parametrize("address", ["", "https://github.com/OWNER/NAME"])
def test_elsewhere_the_colab_cell_does_nothing(tmp_path, monkeypatch, address):
    assert colab(colab_cell(tmp_path, address), monkeypatch, on_colab=False) == ([], None)


def test_without_an_address_the_colab_cell_says_so(tmp_path, monkeypatch):
    given, error = colab(colab_cell(tmp_path, ""), monkeypatch, on_colab=True)
    assert given == []
    assert "no public address" in str(error)


def test_writing_colab_cells_twice_changes_nothing_and_keeps_code_and_outputs(course_folder):
    path = course_folder.add("01_one", "1 + 1")
    before = records.notebook_code(path)
    environment.write_colab(course_folder.root)
    once = path.read_text()
    environment.write_colab(course_folder.root)
    assert path.read_text() == once
    assert records.notebook_code(path) == before
    first = next(cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    assert (first.metadata.tags, first.execution_count) == (["colab"], 1)

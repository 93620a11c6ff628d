"""The first cell of a notebook on Colab, here with a stand-in for Colab's own module."""

import itertools
import os
import subprocess
import sys
import textwrap
import types
from importlib import metadata
from pathlib import Path

import nbformat
import pytest

from asrlib import AsrlibError, __version__
from asrlib.course import colab as on_colab
from asrlib.course import records
from asrlib.io import files
from tools import colab

ROOT = files.repository()
ADDRESS = "https://github.com/OWNER/NAME"


# ------------------------------------------------------------------------------------------------------ the cell by itself
def made(root, address, extras=()):
    urls = f'urls = {{Repository = "{address}"}}\n' if address else ""
    (root / "pyproject.toml").write_text(f'[project]\nname = "asrlib"\n{urls}')
    return colab.colab_text(root, extras)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that runs a cell as on Colab, and gives what it asked of pip, of Colab and of asrlib."""
    from IPython.core.interactiveshell import InteractiveShell

    content = tmp_path / "content"
    content.mkdir()
    asked = []
    standin = types.ModuleType("google.colab")
    standin.drive = types.SimpleNamespace(mount=lambda path: asked.append(f"mount {path}"))
    standin.files = types.SimpleNamespace(upload=lambda: asked.append("upload") or run.upload)

    def run(cell, answer="no", colab=True):
        if colab:
            monkeypatch.setitem(sys.modules, "google.colab", standin)
        monkeypatch.setattr("builtins.input", lambda question: answer)
        monkeypatch.setattr(on_colab, "set_up", lambda *arguments: asked.append(arguments))
        shell = InteractiveShell()
        monkeypatch.setattr(
            shell, "run_line_magic", lambda name, line, **_: asked.append(f"{name} {line}".format(**shell.user_ns))
        )
        shell.user_global_ns["get_ipython"] = lambda: shell
        shell.run_cell(cell.replace("/content", str(content))).raise_error()
        return [one.replace(str(content), "/content") if isinstance(one, str) else one[1:] for one in asked]

    run.content, run.upload = content, {"asrlib-course (1).zip": b"zip"}
    return run


def test_with_an_address_the_cell_installs_the_tagged_release(tmp_path, machine):
    cell = made(tmp_path, ADDRESS, ["methods", "peers"])
    pip = f'pip install -q --no-deps "asrlib @ git+{ADDRESS}@v{__version__}"'
    assert machine(cell) == [pip, ("methods", "peers")]


@pytest.mark.parametrize("place", ["asrlib-course.zip", "drive/MyDrive/asrlib-course.zip"])
def test_without_one_it_takes_the_archive_that_lies_there(tmp_path, machine, place):
    (machine.content / place).parent.mkdir(parents=True, exist_ok=True)
    (machine.content / place).touch()
    assert machine(made(tmp_path, "")) == [f"pip install -q --no-deps /content/{place}", ()]


@pytest.mark.filterwarnings("ignore:To exit")  # IPython, of SystemExit
def test_where_none_lies_it_is_uploaded_and_without_one_there_is_one_sentence(tmp_path, machine):
    cell = made(tmp_path, "")
    assert machine(cell, colab=False) == []
    with pytest.raises(SystemExit, match=r"asrlib-course\.zip is missing"):
        machine(cell, answer="yes")  # it is not in Google Drive
    assert machine(cell)[1:] == ["upload", "pip install -q --no-deps /content/asrlib-course.zip", ()]
    assert (machine.content / "asrlib-course.zip").read_bytes() == b"zip"


def test_writing_the_cells_twice_changes_nothing_and_keeps_code_and_outputs(course_folder):
    path = course_folder.add("01_one", "1 + 1")
    before = records.notebook_code(path)
    colab.write_cells(course_folder.root)
    once = path.read_text()
    colab.write_cells(course_folder.root)
    assert path.read_text() == once
    assert records.notebook_code(path) == before
    first = next(cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    assert (first.metadata, first.execution_count, first.id) == (colab.FOLDED, 1, "colab")


# --------------------------------------------------------------------------------------------------- what asrlib does there
@pytest.fixture
def pip(monkeypatch):
    """Return the calls of pip, each the requirements and what is kept; it says what ``pip.says`` holds, in turn."""
    calls = []

    class Pip(list):
        says = itertools.repeat("")

    calls = Pip()
    monkeypatch.setattr(on_colab, "_pip", lambda lines, kept: calls.append((lines, kept)) or next(calls.says))
    monkeypatch.setattr(on_colab, "_loaded", {})
    monkeypatch.setattr(
        on_colab.metadata,
        "requires",
        lambda name: ["numpy>=2", "ipykernel>=6.29", 'peft>=1; extra == "methods"', 'jax; extra == "other"'],
    )
    return calls


def test_pip_gets_the_needed_extras_and_keeps_what_is_built_in_or_imported(pip):
    import jiwer  # noqa: F401

    on_colab._install(["methods"])
    ((lines, kept),) = pip
    assert lines == ["numpy>=2", "peft>=1"]
    assert {name: kept[name] for name in ("torch", "numpy", "jiwer")} == {
        name: metadata.version(name) for name in ("torch", "numpy", "jiwer")
    }
    assert "asrlib" not in kept


def test_only_where_nothing_fits_may_what_is_imported_change_and_then_the_kernel_must_restart(pip, monkeypatch):
    import jiwer  # noqa: F401

    pip.says = iter(["ResolutionImpossible", ""])
    before = on_colab.version
    versions = {"jiwer": "99"}
    monkeypatch.setattr(on_colab, "version", lambda name: versions.get(name) if len(pip) == 2 else before(name))
    versions |= {name: before(name) for name in on_colab._imported() if name != "jiwer"}
    with pytest.raises(AsrlibError, match="former version of jiwer: choose Runtime > Restart session"):
        on_colab._install([])
    assert "jiwer" in pip[0][1] and "jiwer" not in pip[1][1] and {"torch", "ipykernel", "tornado"} <= set(pip[1][1])
    pip.says = iter([""])
    monkeypatch.setattr(on_colab, "_imported", lambda: {"jiwer": "99"})
    monkeypatch.setattr(on_colab, "version", lambda name: versions.get(name, before(name)))
    with pytest.raises(AsrlibError, match="Restart session"):  # run again in the same kernel, it says so again
        on_colab._install([])
    pip.says = iter(["first", "second", "no versions fit"])
    with pytest.raises(AsrlibError, match="no versions fit"):
        on_colab._install([])


@pytest.mark.parametrize(("found", "removed"), [("0.10.0", True), ("0.16.0", False), ("", False)])
def test_what_peft_refuses_is_removed(pip, monkeypatch, found, removed):
    before, asked = on_colab.version, []
    monkeypatch.setattr(on_colab, "version", lambda name: found if name == "torchao" else before(name))
    monkeypatch.setattr(on_colab.subprocess, "run", lambda command, **_: asked.append(command[2:]))
    on_colab._install([])
    assert asked == ([["pip", "uninstall", "--quiet", "--yes", "torchao"]] if removed else [])


@pytest.mark.parametrize(("given", "wanted"), [(None, "colab"), ("smoke", "smoke")])
def test_the_profile_is_colab_unless_one_is_chosen(pip, monkeypatch, tmp_path, given, wanted):
    monkeypatch.setenv("ASRLIB_PROFILE", given or "")
    if given is None:
        monkeypatch.delenv("ASRLIB_PROFILE")
    monkeypatch.setattr(on_colab.files, "repository", lambda: None)
    (tmp_path / "course" / "notebooks").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    on_colab.set_up(str(tmp_path / "course"))
    assert os.environ["ASRLIB_PROFILE"] == wanted
    assert Path.cwd() == tmp_path / "course" / "notebooks"


# -------------------------------------------------------------------------------------------------------- from the zip alone
CHECKS = """
import os
from pathlib import Path

import asrlib
from asrlib import corpora
from asrlib.course import claims, parameters, registry
from asrlib.io import files

assert asrlib.__file__.startswith(os.environ["VENV"]), asrlib.__file__
assert files.repository() is None
root = Path.cwd().parent
assert root == Path(os.environ["CONTENT"]) / "asrlib-course"
assert "telephone" in corpora.names() and claims.load()
table = files.read_toml(root / "notebooks" / "profiles.toml")
for name, book in registry.read(root).items():
    assert registry.parameters(book.path)
    assert parameters.profile_values(table, name, "smoke") is not None
    assert registry.versions(root, book)["transformers"]
assert (root / "results" / "01_zero_shot_whisper" / "record.json").is_file()
print("profile", os.environ["ASRLIB_PROFILE"])
"""
STANDIN = 'from pathlib import Path\n\ndef upload():\n    return {"asrlib-course.zip": Path(ARCHIVE).read_bytes()}\n'


@pytest.mark.slow
def test_from_the_archive_alone_a_fresh_environment_has_asrlib_and_the_course(tmp_path):
    """pip builds asrlib from the zip, without any index; the packages it needs are those of the running environment."""
    archive, venv, content = colab.write_archive(ROOT, tmp_path), tmp_path / "venv", tmp_path / "content"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "behind.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    package = packages / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "drive.py").touch()
    (package / "files.py").write_text(f"ARCHIVE = {str(archive)!r}\n{STANDIN}")
    content.mkdir()
    cell = colab.colab_text(ROOT, ["methods"]).replace("/content", str(content))
    script = f"""
        import builtins
        import google.colab
        from IPython.core.interactiveshell import InteractiveShell

        builtins.input = lambda question: "no"
        shell = InteractiveShell.instance()
        shell.run_cell({cell!r}).raise_error()
        shell.run_cell({CHECKS!r}).raise_error()
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ASRLIB_", "PYTHON"))}
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "VENV": str(venv), "CONTENT": str(content)}
    done = subprocess.run(
        [venv / "bin" / "python", "-c", textwrap.dedent(script)],
        cwd=content, env=kept | offline, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "profile colab"

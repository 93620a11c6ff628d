import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import wheels
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from asrlib import AsrlibError, corpora
from asrlib.cli import doctor
from asrlib.io import environment, files
from tools import lock

ROOT = files.repository()
MAIN = (ROOT / "requirements.lock").read_text("utf-8")
OPTIMUM = (ROOT / "environments" / "optimum.lock").read_text("utf-8")
PROJECT = files.read_toml(ROOT / "pyproject.toml")
EXTRAS = PROJECT["project"]["optional-dependencies"]
MACHINES = [
    default_environment() | {"python_version": version, "python_full_version": f"{version}.7", "extra": ""} | system
    for version, system in itertools.product(
        ("3.11", "3.12", "3.13"),
        (
            {"sys_platform": "linux", "os_name": "posix", "platform_machine": "x86_64"},
            {"sys_platform": "darwin", "os_name": "posix", "platform_machine": "arm64"},
        ),
    )
]


def lines(text):
    return [line for line in text.splitlines() if not line.startswith("#")]


def locked(text, machine):
    """Return the requirements of a lock that apply on a machine, by name: never two of one name."""
    found = [one for one in map(Requirement, lines(text)) if one.marker is None or one.marker.evaluate(machine)]
    assert len({canonicalize_name(one.name) for one in found}) == len(found)
    return {canonicalize_name(one.name): next(iter(one.specifier)).version for one in found}


@pytest.mark.parametrize(
    "machine", MACHINES, ids=lambda machine: f"{machine['python_version']}-{machine['sys_platform']}"
)
def test_every_direct_dependency_is_locked_within_its_range_on_every_machine(machine):
    main = locked(MAIN, machine)
    optimum = main | locked(OPTIMUM, machine)
    wanted = [*PROJECT["project"]["dependencies"], *itertools.chain.from_iterable(EXTRAS.values())]
    wanted = [one for one in map(Requirement, wanted) if one.name != "asrlib"]
    for pins, needed in ((main, wanted), (optimum, map(Requirement, PROJECT["dependency-groups"]["optimum"]))):
        for one in needed:
            assert one.specifier.contains(pins[canonicalize_name(one.name)]), str(one)


@pytest.mark.parametrize("text", [MAIN, OPTIMUM], ids=["main", "optimum"])
def test_a_lock_pins_exactly_without_local_tags_hashes_addresses_or_what_torch_chooses(text):
    for line in lines(text):
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; .+)?", line), line
        assert not line.startswith(("nvidia-", "cuda-"))


def test_the_lock_of_optimum_onnx_has_only_what_differs_and_a_transformers_that_it_accepts():
    main, optimum = environment.pins(MAIN), environment.pins(OPTIMUM)
    assert {name for name in optimum if name not in main} == {"optimum-onnx"}
    assert not [name for name, version in optimum.items() if main.get(name) == version]
    assert Requirement("transformers<4.58").specifier.contains(optimum["transformers"])
    assert Requirement("transformers>=5").specifier.contains(main["transformers"])


def test_the_conda_file_is_the_generated_one_and_installs_what_make_installs():
    assert (ROOT / "environment.yml").read_text() == lock.CONDA
    make = (ROOT / "Makefile").read_text()
    assert "-r requirements.lock" in make and '-e ".[all]"' in make
    assert "-r requirements.lock" in lock.CONDA and "-e .[all]" in lock.CONDA
    assert Requirement(EXTRAS["all"][0]).extras == set(EXTRAS) - {"all"}


def test_make_and_the_doctor_know_the_same_pythons():
    first, last = doctor.PYTHONS
    assert f"{first} <= sys.version_info[:2] <= {last}" in (ROOT / "Makefile").read_text()
    assert PROJECT["project"]["requires-python"] == f">={first[0]}.{first[1]}"


def test_pins_are_the_lines_that_apply_here():
    text = f"""# a comment
Some_Name==1.0
here==2.0 ; python_version >= '3'
nowhere==3.0 ; python_version < '3'
two==1 ; sys_platform != '{sys.platform}'
two==2 ; sys_platform == '{sys.platform}'
"""
    assert environment.pins(text) == {"some-name": "1.0", "here": "2.0", "two": "2"}


def test_what_torch_chooses_is_left_out_of_the_lock_and_the_rest_is_resolved_again_from_it(monkeypatch):
    """uv is not asked here: it would need an index."""
    asked = []

    def resolved(command, **options):
        output = Path(command[command.index("--output-file") + 1])
        asked.append(output.read_text())
        output.write_text("cuda-y==2\nnvidia-x==1 ; sys_platform == 'linux'\ntorch==2.13.0\n")

    monkeypatch.setattr(lock.subprocess, "run", resolved)
    assert lock.resolve(["torch==2.13.0"], "pyproject.toml") == ["torch==2.13.0"]
    assert asked == ["torch==2.13.0"]


# ------------------------------------------------------------------------------------------------------------ optimum-onnx
@pytest.fixture
def beside(tmp_path, monkeypatch):
    """Let the environment of optimum-onnx be made in a temporary folder, from a lock of one package: an old jiwer."""
    monkeypatch.setattr(environment.sys, "prefix", str(tmp_path))
    monkeypatch.delenv("ASRLIB_OPTIMUM_PYTHON", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    pins = tmp_path / "optimum.lock"
    pins.write_text(f"jiwer @ {wheels.build(tmp_path, 'jiwer', '0.1', {'jiwer.py': 'OLD = True'}).as_uri()}")
    monkeypatch.setattr(environment, "lock_file", lambda name: pins)
    monkeypatch.setattr(doctor, "lock_file", lambda name: pins)
    return pins


@pytest.mark.slow
def test_the_environment_of_optimum_onnx_has_its_own_packages_before_those_of_the_running_one(beside):
    beside_lock = beside.read_text()
    beside.write_text("no-such-package-here==1")
    with pytest.raises(AsrlibError, match="pip could not install"):
        environment.set_up_optimum()
    beside.write_text(beside_lock)
    for _ in range(2):  # made anew, it does not take the packages behind it for its own
        python = environment.set_up_optimum()
    assert python == environment.optimum_python()
    code = "import jiwer, numpy; print(jiwer.OLD, numpy.__file__)"
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    import numpy

    assert said == ["True", numpy.__file__]


def test_the_doctor_compares_the_environment_of_optimum_onnx_with_its_lock(beside):
    missing = [str(finding) for finding in doctor._optimum()]
    assert len(missing) == 1
    assert re.fullmatch(r"MISSING .*transformers below 4.58.* -> .* -m asrlib.io.environment", missing[0])
    environment.set_up_optimum()
    beside.write_text("jiwer==0.1")
    assert [str(finding) for finding in doctor._optimum()] == ["OK       1 packages have the versions of optimum.lock"]
    beside.write_text("jiwer==0.2\nno-such-package-here==1")
    assert [str(finding) for finding in doctor._optimum()] == [
        f"DIFFERS  package jiwer 0.1, tested with 0.2  ->  {environment.SET_UP}",
        f"MISSING  package no-such-package-here 1  ->  {environment.SET_UP}",
    ]


# ------------------------------------------------------------------------------------------------------------------ doctor
@pytest.fixture
def machine(monkeypatch, course_folder):
    """A course without inputs, and a Hub and another environment that are never asked."""
    course_folder.add("01_one")
    monkeypatch.setattr(doctor, "_hub", lambda: doctor.Finding("NOTE", "no Hub"))
    monkeypatch.setattr(doctor, "_optimum", lambda: iter([]))
    return course_folder.root


def findings(root):
    return {str(finding) for finding in doctor.diagnose(root)}


def test_the_doctor_names_a_package_that_differs_or_is_missing(machine):
    (machine / "requirements.lock").write_text("pytest==1.0\nno-such-package-here==2.0\n")
    mend = f"  ->  {sys.executable} -m pip install -r requirements.lock"
    found = findings(machine)
    assert f"MISSING  package no-such-package-here 2.0{mend}" in found
    assert any(line.startswith("DIFFERS  package pytest") and line.endswith(f"tested with 1.0{mend}") for line in found)


def test_the_doctor_names_weights_and_languages_of_a_corpus_that_are_there_or_missing(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    table = machine / "notebooks" / "notebooks.toml"
    text = table.read_text().replace("corpora = []", 'corpora = ["telephone/en", "telephone/it", "audiobook/"]')
    table.write_text(text.replace("checkpoints = []", 'checkpoints = ["openai/whisper-base"]'))
    monkeypatch.setattr(corpora, "available", lambda name, language: language != "en")
    assert {
        "MISSING  checkpoint openai/whisper-base  ->  make fetch",
        "MISSING  corpus telephone en  ->  make fetch",
        "OK       corpus telephone it",
        "OK       corpus audiobook",
    } <= findings(machine)


def test_a_hub_that_does_not_answer_is_a_note(monkeypatch):
    monkeypatch.setattr(doctor, "HUB", "http://127.0.0.1:9/")
    found = doctor._hub()
    assert found.state == "NOTE"
    assert "only profiles colab and paper need it" in found.what

"""What several test modules use, and how processes share the tests (pytest-xdist)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # they share the processor; before anything computes
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

REPOSITORY = Path(__file__).resolve().parent.parent
PARAMETERS = (
    'PROFILE: str = ""  # profile\nN_CLIPS: int = 4  # clips\nLANGUAGE: str = "en"  # code\nSEED: int = 1  # seed'
)
SETTINGS = """
from asrlib.course import chapter
run = chapter.start("{name}")
print(N_CLIPS, "clips")
"""
PROJECT = """
[project]
name = "made"
dependencies = ["torch>=2"]
optional-dependencies = {methods = ["peft>=0.1"], demo = ["gradio"], runtimes = ["openvino"]}
"""
SAVE = """
run.add("wer_percent", 8.4, unit="%", interval=(7.1, 9.9), utterances=N_CLIPS, words=512,
           model="openai/whisper-base", corpus="telephone", language=LANGUAGE)
run.save([{"id": "a", "hypothesis": "hello"}]).name
"""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Let ``--dist loadscope`` keep together what shares a kernel, a server or a run of a notebook, and no more."""
    from xdist.scheduler import LoadScopeScheduling

    from asrlib.course import registry

    books = registry.read(REPOSITORY)

    def begins(name: str) -> str:
        """Return the notebook whose run another one goes on from, such as 06 for 07: they take turns in one process."""
        return begins(books[name].needs[0]) if name in books and len(books[name].needs) == 1 else name

    class ByNotebook(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            if file.endswith(".ipynb"):
                return begins(Path(file).stem)
            return test.partition("[")[2] if file.endswith("test_smoke.py") else file

    return ByNotebook(config, log) if config.getvalue("dist") == "loadscope" else None


class Course:
    """A checkout of its own: notebooks, profiles, lock, data."""

    def __init__(self, root: Path):
        self.root = root
        self.entries: dict[str, list[str]] = {}
        (root / "notebooks").mkdir(parents=True)
        (root / "data").mkdir()
        (root / "requirements.lock").write_text("gradio==6.17.3\nopenvino==2026.1\npeft==0.17.0\ntorch==2.13.0\n")
        (root / "pyproject.toml").write_text(PROJECT)
        self.profiles({"smoke": 2})

    def profiles(self, clips: dict[str, int]) -> None:
        names = self.entries or {"01_one": []}
        tables = [f"[{profile}.{name}]\nN_CLIPS = {n}\n" for profile, n in clips.items() for name in names]
        (self.root / "notebooks" / "profiles.toml").write_text("".join(tables))

    def add(self, name: str, *cells: str, needs: tuple[str, ...] = (), save: bool = True) -> Path:
        """Write a notebook: title, parameters, settings, the given code cells each under a heading, and the saving."""
        new = nbformat.v4
        sources = [PARAMETERS, SETTINGS.format(name=name).strip(), *cells, *([SAVE.strip()] if save else [])]
        body = [new.new_markdown_cell(f"# {name}")]
        for number, source in enumerate(sources):
            body += [new.new_markdown_cell(f"## Part {number}"), new.new_code_cell(source)]
        body[2].metadata["tags"] = ["parameters"]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        path = self.root / "notebooks" / f"{name}.ipynb"
        nbformat.write(new.new_notebook(cells=body, metadata=kernel), path)
        self.entries[name] = [*needs]
        self._register(save)
        self.profiles({"smoke": 2})
        return path

    def _register(self, save: bool) -> None:
        writes = ["record.json", "predictions.jsonl"] if save else []
        entries = [
            f'[{name}]\ntitle = "t"\nneeds = {json.dumps(needs)}\ncheckpoints = []\ncorpora = []\n'
            f'writes = {json.dumps(writes)}\nrequired_api = ["Record"]\nextras = []\nheadlines = []\n'
            for name, needs in self.entries.items()
        ]
        (self.root / "notebooks" / "notebooks.toml").write_text("".join(entries))

    def folder(self, name: str, profile: str = "smoke") -> Path:
        return self.root / "build" / "runs" / profile / name


@pytest.fixture(scope="session")
def make_course():
    """Return the class `Course`, for tests that share one among them."""
    return Course


@pytest.fixture
def course_folder(tmp_path, monkeypatch):
    """Return an empty `Course`; the present folder is its root."""
    made = Course(tmp_path / "a {course} folder")
    monkeypatch.chdir(made.root)
    for name in ("ASRLIB_PROFILE", "ASRLIB_OUTPUT"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture
def start():
    """Return a function that starts Python code in a process of its own, ended with the test."""
    started = []

    def go(code: str, *arguments: str, cwd: Path | None = None) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=cwd,
            stdin=subprocess.PIPE,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield go
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def without_heads():
    """Return a function that takes heads out of an attention module for good."""
    import torch
    from transformers.pytorch_utils import prune_linear_layer

    def cut(attend, heads: set[int]) -> None:
        rows = torch.arange(attend.num_heads).repeat_interleave(attend.head_dim)
        kept = (~torch.isin(rows, torch.tensor(sorted(heads)))).nonzero().flatten()
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(attend, name, prune_linear_layer(getattr(attend, name), kept, dim=0))
        attend.out_proj = prune_linear_layer(attend.out_proj, kept, dim=1)
        attend.num_heads -= len(heads)

    return cut


@pytest.fixture
def hub_at(tmp_path, monkeypatch):
    """Return a function that makes a played Hub the one of its client here, for empty caches of the client and of asrlib."""
    from huggingface_hub import constants

    def ask(hub) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))

    return ask


@pytest.fixture(scope="session")
def optimum():
    """Skip the test where the environment of optimum-onnx is missing, which `make` sets up."""
    from asrlib.io import environment

    if not (python := environment.optimum_python()).exists():
        pytest.skip(f"there is no environment of optimum-onnx at {python}: run `make`")


@pytest.fixture
def echo(monkeypatch):
    """A model that writes "hello" for every clip; what it was given: ids, and the options of the call."""
    from types import SimpleNamespace

    from asrlib.decoding import transcription
    from asrlib.decoding.batching import Hypothesis
    from asrlib.models import checkpoints

    seen = {}
    model = SimpleNamespace(
        generation_config=SimpleNamespace(is_multilingual=True), config=SimpleNamespace(max_source_positions=1500)
    )

    def transcribe(model, processor, clips, **options):
        seen.update(options, ids=[])
        for clip in clips:
            seen["ids"].append(clip["id"])
            seconds = len(clip["audio"]) / 16_000
            yield Hypothesis(clip["id"], "hello", options["language"] or "en", seconds, 0.5, ((0.0, seconds, "hello"),))

    monkeypatch.setattr(transcription, "load", lambda path: (model, None))
    monkeypatch.setattr(transcription, "transcribe", transcribe)
    monkeypatch.setattr(checkpoints, "fetch", lambda path: path)
    monkeypatch.setattr(checkpoints, "provenance", lambda path: {"model": path})
    return seen

"""What several test modules use, and how processes share the tests (pytest-xdist)."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from asrlib.io import files

files.import_jsonschema()  # before nbformat
import nbformat  # noqa: E402

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # they share the processor; before anything computes
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

# A shell's job in the background ignores Ctrl-C, and so would all programs that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("asrlib", deadline=None)  # nothing judges by the clock
settings.load_profile("asrlib")

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
            f'[{name}]\ntitle = "t"\nreproduces = "an article on `one`"\nneeds = {json.dumps(needs)}\ncheckpoints = []\ncorpora = []\n'
            f'writes = {json.dumps(writes)}\nrequired_api = ["Record"]\nextras = []\nfinding = 1\npicture = "p"\n'
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


@pytest.fixture(scope="session")
def tiny_en():
    """Return whisper-tiny.en in float32 and its processor, to be read only."""
    import torch

    from asrlib.models import loading

    return loading.load("openai/whisper-tiny.en", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def base():
    """Return whisper-base in float32 and its processor, to be read only."""
    import torch

    from asrlib.models import loading

    return loading.load("openai/whisper-base", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def random_whisper():
    """Return a function that saves a small Whisper with random weights and a tokenizer of single bytes; it needs no weights."""
    import torch
    from transformers import (
        AddedToken,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    names = [
        "startoftranscript",
        "en",
        "de",
        "translate",
        "transcribe",
        "startoflm",
        "startofprev",
        "nospeech",
        "notimestamps",
    ]

    def save(folder: Path, **changes) -> Path:
        tokenizer = WhisperTokenizer(vocab={text: n for n, text in enumerate(bytes_to_unicode().values())}, merges=[])
        special = [f"<|{name}|>" for name in names]
        tokenizer.add_special_tokens({"extra_special_tokens": special, "pad_token": "<|endoftext|>"})
        tokenizer.add_tokens([AddedToken(f"<|{step * 0.02:.2f}|>", special=False) for step in range(1501)])
        sizes = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
        tokens = {f"{name}_token_id": 256 for name in ("pad", "bos", "eos")} | {"decoder_start_token_id": 257}
        config = WhisperConfig(
            vocab_size=len(tokenizer), d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, init_std=0.5,
            suppress_tokens=None, begin_suppress_tokens=None, **sizes, **tokens,
        )  # fmt: skip
        config.update(changes)
        torch.manual_seed(0)
        WhisperForConditionalGeneration(config).save_pretrained(folder)
        WhisperProcessor(WhisperFeatureExtractor(config.num_mel_bins), tokenizer).save_pretrained(folder)
        settings = {
            "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256, "decoder_start_token_id": 257,
            "no_timestamps_token_id": 265, "prev_sot_token_id": 263, "is_multilingual": True, "max_length": 24,
            "lang_to_id": {"<|en|>": 258, "<|de|>": 259}, "task_to_id": {"translate": 260, "transcribe": 261},
            "suppress_tokens": [258, 259, 260, 261, 262, 263, 264], "begin_suppress_tokens": [256],
        }  # fmt: skip
        (folder / "generation_config.json").write_text(json.dumps(settings))
        return folder

    return save


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return where checkpoints lie in a cache of this test's own."""
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache für größte Modelle"))
    return tmp_path / "cache für größte Modelle" / "checkpoints"


@pytest.fixture
def small(tmp_path):
    """A local checkpoint of a few thousand random numbers."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {
        f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads", "ffn_dim")
    }
    config = WhisperConfig(vocab_size=60, d_model=4, pad_token_id=1, bos_token_id=1, eos_token_id=1, **sizes)
    WhisperForConditionalGeneration(config).save_pretrained(tmp_path / "small")
    return tmp_path / "small"


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


@pytest.fixture(scope="session")
def speech():
    """Return clips of several lengths: real speech, an eighth of the telephone test set."""
    from asrlib import corpora

    return corpora.load("telephone", "en", "test").select(range(0, 96, 4))


@pytest.fixture
def random_model():
    """Return a model of random weights, which end a transcript at random places: some clips early, others late."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=100, max_target_positions=120, num_mel_bins=80,
        pad_token_id=0, bos_token_id=1, eos_token_id=29, decoder_start_token_id=1, init_std=0.6,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(
        decoder_start_token_id=1, eos_token_id=29, pad_token_id=29, bos_token_id=1, suppress_tokens=[5, 6],
        begin_suppress_tokens=[29, 7], is_multilingual=False, no_timestamps_token_id=63, max_length=120, return_timestamps=False,
    )  # fmt: skip
    return model


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

    processor = SimpleNamespace(tokenizer=lambda text, **_: SimpleNamespace(input_ids=text.split()))
    monkeypatch.setattr(transcription, "load", lambda path, **options: seen.update(options) or (model, processor))
    monkeypatch.setattr(transcription, "transcribe", transcribe)
    monkeypatch.setattr(checkpoints, "fetch", lambda path: path)
    monkeypatch.setattr(checkpoints, "provenance", lambda path: {"model": path})
    return seen

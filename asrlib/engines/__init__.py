"""Other runtimes behind one interface: the same weights, clips and search, whoever does the multiplying.

A runtime answers `asrlib.decoding.batching.run` with the methods of `asrlib.decoding.transcription.TorchEngine`; reading, batching, order and
timing are the same for all. Each adapter takes away the defaults that would make it search differently from the others:
beams, temperature fallback, text of the window before, leaving out what may be silence, timestamps in short clips. What
remains different is said in its docstring. All take as many threads as PyTorch does.

A runtime's package is imported when the runtime is loaded, so none is needed but the one that is used.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import copy
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from asrlib import AsrlibError, audio, hardware, whisper
from asrlib.decoding import batching, features, transcription
from asrlib.decoding.batching import Clip, Hypothesis
from asrlib.io import files
from asrlib.models import checkpoints
from asrlib.text import language_code

__all__ = ["ENGINES", "Runtime", "fastest", "load"]

Result = tuple[str, str, tuple]  # text, language, ((start seconds, end seconds, text), ...)
MULTILINGUAL = 51_865  # tokens of the smallest vocabulary with languages; an English-only one has one less
NODE_VERSION = 20  # the oldest that is still mended
NPM_VERSION = "4.3.2"  # of @huggingface/transformers
NPM_BYTES = 485_000_000  # of it and all that it needs; most of them are ONNX Runtime for every system
EXTRAS = {
    "whisper": "peers", "faster_whisper": "peers", "ctranslate2": "peers", "pywhispercpp": "peers",
    "openvino": "toolkits", "nncf": "toolkits", "onnxruntime": "methods",
}  # fmt: skip
CONTENDERS = ("asrlib", "ctranslate2", "faster-whisper", "onnxruntime", "openvino")  # for the fastest, as each comes


def load(name: str, checkpoint: str | Path = "openai/whisper-base", *, precision: str = "", beams: int = 1) -> Runtime:
    """Load a checkpoint into a runtime, converting it first where that has not been done.

    Args:
        name: one of `ENGINES`.
        checkpoint: Hub id, or folder of a transformers checkpoint.
        precision: one of the runtime's ``precisions``; default: the first of them.
        beams: of the search; 1 is greedy.

    Raises:
        AsrlibError: unknown runtime or precision, a runtime that is not installed or has no beam search, or a checkpoint
            that cannot be had.
    """
    if name not in ENGINES:
        raise AsrlibError(f"There is no engine {name!r}: choose one of {', '.join(ENGINES)}.")
    kind = ENGINES[name]
    if precision and precision not in kind.precisions:
        raise AsrlibError(f"{name} has no precision {precision!r}: choose one of {', '.join(kind.precisions)}.")
    if beams > 1 and not kind.searches:
        raise AsrlibError(f"{name} decodes greedily here: leave beams at 1, or choose another engine.")
    try:
        return kind(str(checkpoint), precision or kind.precisions[0], beams)
    except ImportError as error:
        extra = next((extra for package, extra in EXTRAS.items() if package in str(error)), None)
        if extra is None:
            raise
        raise AsrlibError(f"{name} is not installed: pip install 'asrlib[{extra}]' first.") from None


def fastest(
    checkpoint: str | Path, sounds: Sequence[np.ndarray], *, language: str | None = None, timestamps: bool = False
) -> tuple[Runtime, dict[str, float]]:
    """Let the runtimes that may be fastest hear some sounds, and return the one that was, loaded, and the seconds of each.

    Which precision a processor is fast in, and how well a runtime uses it, no name tells; most of them compute in int8, and
    may hear a few words otherwise than the model in full precision.

    Args:
        checkpoint: as in `load`.
        sounds: at 16 kHz, like those to come; a minute of them is enough. Each is heard twice: the first time warms up.
        language, timestamps: as in `Runtime.transcribe`.

    Raises:
        AsrlibError: what `asrlib.decoding.transcription` refuses. A runtime that is not installed, or cannot hear such sounds, is left out.
    """
    best, seconds = None, {}
    for name in CONTENDERS:
        try:
            runtime = load(name, checkpoint)
            for _ in range(2):
                started = time.perf_counter()
                list(runtime.transcribe(sounds, language=language, timestamps=timestamps))
        except AsrlibError:
            if name == "asrlib":
                raise
            continue
        seconds[name] = time.perf_counter() - started
        if seconds[name] == min(seconds.values()):
            best = runtime
    return best, seconds


class Runtime:
    """A loaded runtime.

    Attributes:
        precisions: what it can compute in; the first is the default.
        searches: whether it has a beam search.
        batch_size: clips that it decodes together; may be set.
        files: what it reads from disk, a file or a folder.
    """

    precisions: ClassVar[tuple[str, ...]] = ("float32",)
    searches: ClassVar[bool] = True
    batch_size: int = 1
    files: Path
    language: str | None = None
    timestamps: bool = False

    def __init__(self, checkpoint: str, precision: str, beams: int) -> None:
        import torch

        self.checkpoint, self.precision, self.beams = checkpoint, precision, beams
        self.threads = torch.get_num_threads()
        config = files.read_json(checkpoints.fetch(checkpoint) / "config.json")
        self.multilingual = config["vocab_size"] >= MULTILINGUAL
        self.mels = config["num_mel_bins"]
        self._load()

    def _load(self) -> None:
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Return the size of its weights on disk."""
        found = [self.files] if self.files.is_file() else self.files.iterdir()
        kinds = (".safetensors", ".bin", ".pt", ".onnx", ".onnx_data")
        return sum(path.stat().st_size for path in found if path.suffix in kinds)

    def transcribe(
        self, clips: Iterable[Any], *, language: str | None = None, timestamps: bool = False, label: str = ""
    ) -> Iterator[Hypothesis]:
        """Transcribe clips in order, as `asrlib.decoding.transcription.transcribe` does.

        Raises:
            AsrlibError: unknown language, another language than English for an English-only model, or audio of more than
                30 s or wanted times with a runtime that knows one window only.
        """
        call = copy.copy(self)  # the weights are shared, what is asked this time is not
        call.language, call.timestamps = language and language_code(language), timestamps
        if not self.multilingual and call.language not in (None, "en"):
            raise AsrlibError(
                "An English-only model transcribes English: choose a multilingual one for other languages."
            )
        return batching.run(call, clips, batch_size=self.batch_size, label=label)

    def fits(self, clip: Clip) -> bool:
        """Say whether a clip is heard in one window."""
        return len(clip.samples) <= whisper.POSITIONS * whisper.SAMPLES_PER_POSITION

    def width(self, clip: Clip) -> int:
        """Return the encoder positions that a clip takes: all of a window, whatever its length."""
        return whisper.POSITIONS

    def features(self, clips: Sequence[Clip]) -> Any:
        """Return nothing: most runtimes compute log-mel features themselves."""
        return None

    def decode(self, clips: Sequence[Clip], features: Any) -> list[Result]:
        """Return (text, language, segments) of each clip."""
        return [self._hear(clip.samples, self.timestamps or not self.fits(clip)) for clip in clips]

    def _hear(self, samples: np.ndarray, times: bool) -> Result:
        raise NotImplementedError

    @property
    def _told(self) -> str | None:
        """Return the language where it is known without listening."""
        return self.language if self.multilingual else "en"


class Asrlib(Runtime):
    """`asrlib.decoding.transcription`: PyTorch, batches of like length, a loop without copies."""

    precisions = ("auto", "float32", "bfloat16", "float16")
    searches = False
    batch_size = 16

    def _load(self) -> None:
        import torch

        dtype = None if self.precision == "auto" else getattr(torch, self.precision)
        self.files = checkpoints.fetch(self.checkpoint)
        self.model, self.processor = transcription.load(self.files, device="cpu", dtype=dtype)

    def transcribe(
        self, clips: Iterable[Any], *, language: str | None = None, timestamps: bool = False, label: str = ""
    ) -> Iterator[Hypothesis]:
        """Transcribe clips in order."""
        engine = self._engine(self.model, self.processor, language and language_code(language), timestamps)
        return batching.run(engine, clips, batch_size=self.batch_size, label=label)

    def _engine(self, model: Any, processor: Any, language: str | None, timestamps: bool) -> transcription.TorchEngine:
        return transcription.TorchEngine(model, processor, language, timestamps=timestamps, strict=True)


class Onnx(Asrlib):
    """ONNX Runtime, with the graphs that Optimum exports; decoded as `Asrlib` does."""

    precisions = ("int8", "float32")
    batch_size = 8

    def _load(self) -> None:
        import onnxruntime  # noqa: F401

        self.files = checkpoints.fetch(self.checkpoint, format="onnx" if self.precision == "float32" else "onnx-int8")
        self.model, self.processor = transcription.load(self.files)


class TransformersJs(Runtime):
    """Transformers.js, ONNX Runtime driven from JavaScript: what a page in a browser runs, here under Node.js on the CPU.

    It decodes greedily, clip by clip. It cannot find the language. A long recording is cut every 20 s into pieces of 30 s,
    whose texts are joined where they overlap; the others go from window to window.
    """

    precisions = ("int8", "float32")
    searches = False

    def _load(self) -> None:
        node, packages = _node(), _packages()
        self.files = checkpoints.fetch(self.checkpoint, format="onnx" if self.precision == "float32" else "onnx-int8")
        self.script = _Script(node, packages)
        self.script.ask(model=str(self.files), threads=self.threads)

    def transcribe(
        self, clips: Iterable[Any], *, language: str | None = None, timestamps: bool = False, label: str = ""
    ) -> Iterator[Hypothesis]:
        """Transcribe clips in order.

        Raises:
            AsrlibError: as every runtime, and where a multilingual model is not told the language.
        """
        if self.multilingual and not language:
            raise AsrlibError("Transformers.js cannot find the language: name it, or choose another engine.")
        return super().transcribe(clips, language=language, timestamps=timestamps, label=label)

    def _hear(self, samples: np.ndarray, times: bool) -> Result:
        options = {"language": self._told, "task": "transcribe"} if self.multilingual else {}
        if times:
            options |= {"return_timestamps": True, "chunk_length_s": 30}
        with tempfile.TemporaryDirectory() as folder:  # a line of JSON would hold a long recording four times
            sound = Path(folder, "sound.f32")
            samples.astype("<f4", copy=False).tofile(sound)
            heard = self.script.ask(sound=str(sound), options=options)
        segments = _segments((*part["timestamp"], part["text"]) for part in heard.get("chunks", ()))
        return heard["text"].strip(), self._told, segments


class _Script:
    """``transformers_js.mjs`` in a process of Node.js, which holds the model and ends with this object."""

    def __init__(self, node: str, packages: Path) -> None:
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        command = [node, str(Path(__file__).with_name("transformers_js.mjs")), str(packages)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.complaints}
        # A session of its own: Ctrl-C at the terminal interrupts the notebook's clip, not the model.
        self.process = subprocess.Popen(command, **pipes, text=True, encoding="utf-8", start_new_session=True)
        weakref.finalize(self, _end, self.process)
        self.number = 0

    def ask(self, **question: Any) -> dict[str, Any]:
        """Return the answer to a question, both as the script describes them."""
        self.number += 1
        with contextlib.suppress(BrokenPipeError):  # it has died, and gives no answer
            self.process.stdin.write(json.dumps({"number": self.number, **question}) + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            answer = json.loads(line)
            if answer["number"] < self.number:  # the asker was interrupted while it waited for this one
                continue
            if "error" not in answer:
                return answer
            raise AsrlibError(f"Transformers.js failed ({answer['error']}): choose another engine for this.")
        self.complaints.seek(0)
        said = self.complaints.read().decode(errors="replace").strip() or "it said nothing"
        raise AsrlibError(f"Node.js ended before it answered ({said.splitlines()[-1]}): load the engine again.")


def _end(process: subprocess.Popen) -> None:
    """Stop a process and take leave of it."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # a question that nobody read
            pipe.close()


def _node() -> str:
    """Return the path of Node.js."""
    path = shutil.which("node")
    said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout if path else ""
    version = re.match(r"v(\d+)", said)
    if not version or int(version[1]) < NODE_VERSION:
        raise AsrlibError(
            f"Transformers.js needs Node.js {NODE_VERSION} or newer: install it, or choose another engine."
        )
    return path


def _packages() -> Path:
    """Return the folder in asrlib's cache that holds Transformers.js and what it needs."""
    return files.prepared(files.cache_dir() / "npm" / f"transformers-{NPM_VERSION}", _fill_npm)


def _fill_npm(folder: Path) -> None:
    """Let npm, with the user's own settings, install Transformers.js into a folder; no package may run a script."""
    npm = shutil.which("npm")
    if npm is None:
        raise AsrlibError("Transformers.js comes through npm, which is not installed: install it beside Node.js.")
    pins = {"private": True, "dependencies": {"@huggingface/transformers": NPM_VERSION}}
    (folder / "package.json").write_text(json.dumps(pins))
    command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    code, said = files.run(command, folder, "installing Transformers.js with npm", NPM_BYTES, cwd=folder)
    if code:
        reason = re.search(r"^npm (?:error|ERR!) (.+)", said, re.MULTILINE)
        raise AsrlibError(
            f"Transformers.js could not be had through npm ({reason[1] if reason else f'exit code {code}'}): check the network "
            "and `npm ping`, then try again."
        )


class OpenVino(Asrlib):
    """OpenVINO's encoder before PyTorch's decoder, which decodes as `Asrlib` does; int8 rounds the encoder's weights only."""

    precisions = ("auto", "bfloat16", "float32", "int8")
    batch_size = 8

    def _load(self) -> None:
        import torch

        os.environ.setdefault("CI", "true")  # or OpenVINO and NNCF send usage statistics, without asking
        import openvino

        native = hardware.best_dtype("cpu") == torch.bfloat16
        self.files = checkpoints.fetch(self.checkpoint)
        self.model, self.processor = transcription.load(self.files, device="cpu", dtype=torch.float32)
        encoder = self.model.model.encoder
        graph = self._traced(encoder)
        hint = "bf16" if self.precision == "bfloat16" or (self.precision != "float32" and native) else "f32"
        options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": self.threads}
        self.compiled = openvino.compile_model(graph, "CPU", options)
        del graph
        encoder.layers = torch.nn.ModuleList()  # not needed twice
        if native and self.precision != "float32":
            self.model.to(torch.bfloat16)

    def _traced(self, encoder: Any) -> Any:
        """Return the encoder as OpenVINO's graph; what tracer and tools remark on it was looked at and changes nothing."""
        import openvino
        import torch

        example = torch.zeros(1, self.mels, 2 * whisper.POSITIONS)
        with warnings.catch_warnings(), _hushed():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            graph = openvino.convert_model(_States(encoder), example_input=example, input=[[-1, *example.shape[1:]]])
        if self.precision != "int8":
            return graph
        import nncf
        import rich

        nncf.set_log_level(logging.ERROR)
        rich.reconfigure(quiet=True, force_jupyter=False)  # its progress bars
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)

    def _engine(self, model: Any, processor: Any, language: str | None, timestamps: bool) -> transcription.TorchEngine:
        engine = _WithEncoder(model, processor, language, "transcribe", "full", timestamps)
        engine.compiled = self.compiled
        return engine


class _WithEncoder(transcription.TorchEngine):
    """The usual engine, with OpenVINO's encoder."""

    compiled: Any

    def encode(self, features: Any, lengths: Sequence[int] | None = None) -> tuple[Any, Any]:
        import torch

        states = torch.from_numpy(self.compiled(features.float().numpy())[0])
        return states.to(self.model.dtype), None


def _States(encoder: Any) -> Any:
    """Return a module that gives an encoder's states alone."""
    import torch

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.encoder(features).last_hidden_state

    return States().eval()


class Transformers(Runtime):
    """The library's pipeline, clip by clip, as the original notebooks call it."""

    precisions = ("float32", "bfloat16")

    def _load(self) -> None:
        import torch
        from transformers import pipeline

        self.files = checkpoints.fetch(self.checkpoint)
        model, processor = transcription.load(self.files, device="cpu", dtype=getattr(torch, self.precision))
        self.processor = processor
        parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
        with _hushed():  # of the device that it was told
            self.pipeline = pipeline("automatic-speech-recognition", model=model, dtype=model.dtype, **parts)

    def _hear(self, samples: np.ndarray, times: bool) -> Result:
        language = self._told or self._detected(samples)
        options = {"language": language, "task": "transcribe"} if self.multilingual else {}
        with _hushed():  # of an argument that the pipeline itself passes to the feature extractor
            heard = self.pipeline(
                {"raw": samples, "sampling_rate": audio.SAMPLING_RATE},
                return_timestamps=times,
                generate_kwargs=options | {"num_beams": self.beams},
            )
        return heard["text"].strip(), language, _segments(
            (*part["timestamp"], part["text"]) for part in heard.get("chunks", ())
        )  # fmt: skip

    def _detected(self, samples: np.ndarray) -> str:
        first = samples[: whisper.POSITIONS * whisper.SAMPLES_PER_POSITION]
        inputs = self.processor(first, sampling_rate=audio.SAMPLING_RATE, return_tensors="pt").input_features
        model = self.pipeline.model
        token = model.detect_language(input_features=inputs.to(model.dtype)).item()
        return self.processor.tokenizer.decode(token).strip("<|>")


class OpenAi(Runtime):
    """openai-whisper, the original code."""

    def _load(self) -> None:
        import whisper

        self.files = checkpoints.fetch(self.checkpoint, format="openai")
        self.model = whisper.load_model(str(self.files), device="cpu")

    def _hear(self, samples: np.ndarray, times: bool) -> Result:
        heard = self.model.transcribe(
            samples,
            language=self._told,
            fp16=False,
            temperature=0.0,
            beam_size=self.beams if self.beams > 1 else None,
            condition_on_previous_text=False,
            no_speech_threshold=None,  # nothing is left out as silence
            without_timestamps=not times,
        )
        segments = _segments((part["start"], part["end"], part["text"]) for part in heard["segments"])
        return heard["text"].strip(), heard["language"], segments if times else ()


class FasterWhisper(Runtime):
    """faster-whisper, window after window."""

    precisions = ("int8", "float32")

    def _load(self) -> None:
        from faster_whisper import WhisperModel

        logging.getLogger("faster_whisper").setLevel(logging.ERROR)
        self.files = checkpoints.fetch(self.checkpoint, format="ctranslate2")
        options = {"device": "cpu", "compute_type": self.precision, "cpu_threads": self.threads}
        self.model = WhisperModel(str(self.files), **options)

    def _hear(self, samples: np.ndarray, times: bool) -> Result:
        return self._joined(
            self.model.transcribe(
                samples,
                language=self._told,
                beam_size=self.beams,
                temperature=0.0,
                condition_on_previous_text=False,
                no_speech_threshold=None,  # nothing is left out as silence
                without_timestamps=not times,
            ),
            times,
        )

    @staticmethod
    def _joined(answer: tuple[Iterable[Any], Any], times: bool) -> Result:
        parts, about = answer
        found = [(part.start, part.end, part.text) for part in parts]
        return "".join(text for *_, text in found).strip(), about.language, _segments(found) if times else ()


class FasterWhisperBatched(FasterWhisper):
    """faster-whisper's batched pipeline: a recording is cut at pauses by a voice detector, eight pieces are decoded together.

    A short clip is one piece, so the batch pays on long recordings only.
    """

    pieces = 8

    def _load(self) -> None:
        super()._load()
        from faster_whisper import BatchedInferencePipeline

        self.batched = BatchedInferencePipeline(self.model)

    def _hear(self, samples: np.ndarray, times: bool) -> Result:
        options = {"beam_size": self.beams, "temperature": 0.0, "without_timestamps": not times}
        return self._joined(
            self.batched.transcribe(samples, language=self._told, batch_size=self.pieces, **options), times
        )


class CTranslate2(Runtime):
    """CTranslate2 called directly, the engine under faster-whisper, with batches of clips of one window each."""

    precisions = ("int8", "float32")
    batch_size = 8

    def _load(self) -> None:
        import ctranslate2
        from transformers import WhisperProcessor

        self.files = checkpoints.fetch(self.checkpoint, format="ctranslate2")
        options = {"device": "cpu", "compute_type": self.precision, "intra_threads": self.threads}
        self.model = ctranslate2.models.Whisper(str(self.files), **options)
        self.processor = WhisperProcessor.from_pretrained(checkpoints.fetch(self.checkpoint))

    def fits(self, clip: Clip) -> bool:
        """Refuse what does not fit one window."""
        if self.timestamps or not super().fits(clip):
            raise AsrlibError(
                f"{clip.id}: CTranslate2 called directly knows one window of 30 s and no times: choose the engine faster-whisper."
            )
        return True

    def features(self, clips: Sequence[Clip]) -> np.ndarray:
        """Return log-mel features, (clips, mel bins, 3000)."""
        return features.log_mel(self.processor, [clip.samples for clip in clips]).numpy()

    def decode(self, clips: Sequence[Clip], features: np.ndarray) -> list[Result]:
        """Return (text, language, segments) of each clip."""
        import ctranslate2

        states = self.model.encode(ctranslate2.StorageView.from_array(features), to_cpu=False)
        languages = [self._told] * len(clips) if self._told else self._detected(states)
        tokens = self.processor.tokenizer.convert_tokens_to_ids
        prompts = [
            tokens([
                "<|startoftranscript|>",
                *([f"<|{language}|>", "<|transcribe|>"] if self.multilingual else []),
                "<|notimestamps|>",
            ])
            for language in languages
        ]  # fmt: skip
        found = self.model.generate(states, prompts, beam_size=self.beams, max_length=448)
        texts = self.processor.batch_decode([one.sequences_ids[0] for one in found], skip_special_tokens=True)
        return [(text.strip(), language, ()) for text, language in zip(texts, languages, strict=True)]

    def _detected(self, states: Any) -> list[str]:
        return [ranked[0][0].strip("<|>") for ranked in self.model.detect_language(states)]


class WhisperCpp(Runtime):
    """whisper.cpp through pywhispercpp, with a ggml file written from the same weights."""

    precisions = ("float16", "q8_0", "q5_0")

    def _load(self) -> None:
        import _pywhispercpp
        from pywhispercpp.model import Model

        _pywhispercpp.whisper_log_set(_silent)
        atexit.register(_pywhispercpp.whisper_log_set, None)  # C must not call Python when Python is gone
        form = "ggml" if self.precision == "float16" else f"ggml-{self.precision}"
        self.files = checkpoints.fetch(self.checkpoint, format=form)
        self.model = Model(
            str(self.files),
            params_sampling_strategy=int(self.beams > 1),
            n_threads=self.threads,
            print_progress=False,
            temperature_inc=0.0,
            no_context=True,  # no text of an earlier call, ...
            n_max_text_ctx=0,  # ... nor of the window before
            no_speech_thold=1.0,  # nothing is left out as silence
            suppress_nst=True,
            greedy={"best_of": 1},
            beam_search={"beam_size": self.beams, "patience": -1.0},
        )
        atexit.register(_close, weakref.ref(self.model))

    def _hear(self, samples: np.ndarray, times: bool) -> Result:
        import _pywhispercpp as cpp

        self.model.transcribe(samples, language=self._told or "auto", no_timestamps=not times, single_segment=not times)
        context = self.model._ctx
        language = self._told or cpp.whisper_lang_str(cpp.whisper_full_lang_id(context))
        # The wrapper's own texts have lost their spaces, and a letter whose bytes two segments share.
        letters = codecs.getincrementaldecoder("utf-8")("replace")
        parts = [
            (
                cpp.whisper_full_get_segment_t0(context, number) / 100,
                cpp.whisper_full_get_segment_t1(context, number) / 100,
                letters.decode(cpp.whisper_full_get_segment_text(context, number)),
            )
            for number in range(cpp.whisper_full_n_segments(context))
        ]
        return "".join(text for *_, text in parts).strip(), language, _segments(parts) if times else ()


ENGINES: dict[str, type[Runtime]] = {
    "asrlib": Asrlib,
    "transformers": Transformers,
    "openai-whisper": OpenAi,
    "faster-whisper": FasterWhisper,
    "faster-whisper-batched": FasterWhisperBatched,
    "ctranslate2": CTranslate2,
    "whisper.cpp": WhisperCpp,
    "onnxruntime": Onnx,
    "transformers.js": TransformersJs,
    "openvino": OpenVino,
}


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Let transformers report errors only."""
    from transformers.utils import logging as messages

    before = messages.get_verbosity()
    messages.set_verbosity_error()
    try:
        yield
    finally:
        messages.set_verbosity(before)


def _silent(level: int, text: str) -> None:
    """Take the place of whisper.cpp's log, which goes to the error stream of C, past Python."""


def _close(known: weakref.ref[Any]) -> None:
    """Free a model of whisper.cpp while there is a Python: its own way, at the very end, finds parts of it gone."""
    if (model := known()) is not None:
        model.__del__()
        model._ctx = None


def _segments(parts: Iterable[tuple[float | None, float | None, str]]) -> tuple[tuple[float, float, str], ...]:
    """Return segments as plain numbers and texts; a time that a runtime left open is the last one before it."""
    found, last = [], 0.0
    for start, end, text in parts:
        begin = last if start is None else float(start)
        last = begin if end is None else float(end)
        if text.strip():
            found.append((begin, last, text.strip()))
    return tuple(found)

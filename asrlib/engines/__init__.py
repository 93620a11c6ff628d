"""Other runtimes behind one interface: the same weights, clips and search, whoever does the multiplying.

One module a runtime, imported when the runtime is loaded. A strict call has no beams, temperature fallback, text of the window
before, skipped silence, or timestamps in short clips; what remains different is said in the runtime's docstring.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asrlib import AsrlibError, hardware

if TYPE_CHECKING:
    import numpy as np

    from asrlib.engines.runtime import Runtime

__all__ = ["ENGINES", "fastest", "load"]

ENGINES = {  # name: module and class
    "asrlib": "pytorch:PyTorch",
    "transformers": "transformers:Transformers",
    "openai-whisper": "openai_whisper:OpenAiWhisper",
    "faster-whisper": "faster_whisper:FasterWhisper",
    "faster-whisper-batched": "faster_whisper:FasterWhisperBatched",
    "ctranslate2": "ctranslate2:CTranslate2",
    "whisper.cpp": "whisper_cpp:WhisperCpp",
    "onnxruntime": "onnxruntime:OnnxRuntime",
    "transformers.js": "transformers_js:TransformersJs",
    "openvino": "openvino:OpenVino",
}
GREEDY = ("asrlib", "onnxruntime", "transformers.js", "openvino")  # have no beam search
EXTRAS = {
    "whisper": "peers", "faster_whisper": "peers", "ctranslate2": "peers", "pywhispercpp": "peers", "_pywhispercpp": "peers",
    "openvino": "toolkits", "nncf": "toolkits",
}  # fmt: skip
CONTENDERS = (  # for the fastest: as each comes, or in a precision
    "asrlib", "asrlib int8", "ctranslate2", "faster-whisper", "onnxruntime", "openvino",
)  # fmt: skip


def load(
    name: str,
    checkpoint: str | Path = "openai/whisper-base",
    *,
    precision: str = "",
    beams: int = 1,
    device: str = "cpu",
) -> Runtime:
    """Load a checkpoint into a runtime, converting it first where that has not been done.

    Args:
        name: one of `ENGINES`.
        checkpoint: Hub id, or folder of a transformers checkpoint.
        precision: one of the runtime's ``precisions``; default: the first of them.
        beams: of the search; 1 is greedy.
        device: ``cpu``, a GPU as PyTorch calls it, for the runtimes that have code for one, or ``best``: the GPU where there is one and
            the runtime has code for it, but the CPU for a checkpoint that was exported to ONNX.

    Raises:
        AsrlibError: unknown runtime or precision, a runtime that is not installed, has no beam search or no code for the
            device, or a checkpoint that cannot be had.
    """
    if name not in ENGINES:
        raise AsrlibError(f"There is no engine {name!r}: choose one of {', '.join(ENGINES)}.")
    if beams > 1 and name in GREEDY:
        others = ", ".join(other for other in ENGINES if other not in GREEDY)
        raise AsrlibError(f"{name} decodes greedily: leave beams at 1, or choose one of {others}.")
    module, kind = ENGINES[name].split(":")
    try:
        runtime: type[Runtime] = getattr(importlib.import_module(f"asrlib.engines.{module}"), kind)
        if precision and precision not in runtime.precisions:
            raise AsrlibError(f"{name} has no precision {precision!r}: choose one of {', '.join(runtime.precisions)}.")
        if device == "best":
            device = hardware.best_device() if runtime.on_gpu and not _exported(checkpoint) else "cpu"
        if device != "cpu" and not runtime.on_gpu:
            raise AsrlibError(
                f"{name} computes on the processor here: leave device at 'cpu', or choose another engine."
            )
        return runtime(str(checkpoint), precision or runtime.precisions[0], beams, device)
    except ImportError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise AsrlibError(f"{name} is not installed: pip install 'asrlib[{extra}]' first.") from None


def _exported(checkpoint: str | Path) -> bool:
    """Say whether a checkpoint was exported to ONNX, which runs on the processor."""
    from asrlib.models import checkpoints, folders

    return folders.exported(checkpoints.fetch(str(checkpoint)))


def fastest(
    checkpoint: str | Path, sounds: Sequence[np.ndarray], *, language: str | None = None, timestamps: bool = False
) -> tuple[Runtime, dict[str, float]]:
    """Let the runtimes that may be fastest transcribe some sounds; return the fastest, loaded, and the seconds of each.

    Which precision a processor is fast in, and how well a runtime uses it, must be tried. Most of the contenders compute in
    int8, so a few words may differ from those of the model in full precision. Each takes sound of any length, and tests what it
    wrote.

    Args:
        checkpoint: as in `load`.
        sounds: at 16 kHz, like those to come; a minute of them is enough. Each is transcribed twice: the first time warms up.
        language, timestamps: as in `Runtime.transcribe`.

    Raises:
        AsrlibError: what `asrlib.decoding.transcription` refuses. A runtime that is not installed, or cannot transcribe such
            sounds, is left out.
    """
    best, seconds = None, {}
    for entry in CONTENDERS:
        name, _, precision = entry.partition(" ")
        try:
            runtime = load(name, checkpoint, precision=precision, device="best")
            for _ in range(2):
                started = time.perf_counter()
                list(runtime.transcribe(sounds, language=language, timestamps=timestamps, strict=False))
        except AsrlibError:
            if entry == "asrlib":
                raise
            continue
        seconds[entry] = time.perf_counter() - started
        if seconds[entry] == min(seconds.values()):
            best = runtime
    return best, seconds

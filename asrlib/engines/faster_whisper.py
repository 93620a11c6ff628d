"""faster-whisper: CTranslate2, window after window or in batches."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from faster_whisper import BatchedInferencePipeline, WhisperModel

from asrlib import AsrlibError
from asrlib.decoding.batching import Result
from asrlib.engines.runtime import Runtime, segments
from asrlib.models import checkpoints

__all__ = ["FasterWhisper", "FasterWhisperBatched"]

CUBLAS = "libcublas.so.12"


class FasterWhisper(Runtime):
    """faster-whisper, window after window."""

    precisions = ("int8", "float32", "float16", "int8_float16")
    on_gpu = True

    def _load(self) -> None:
        logging.getLogger("faster_whisper").setLevel(logging.ERROR)
        self.files = checkpoints.fetch(self.checkpoint, format="ctranslate2")
        kind, _, number = self.device.partition(":")
        able = ctranslate2.get_supported_compute_types(kind)
        if self.precision not in able:
            others = ", ".join(name for name in self.precisions if name in able)
            raise AsrlibError(f"CTranslate2 cannot compute in {self.precision} here: choose one of {others}.")
        if kind != "cpu":
            _find_cublas()
        options = {"device": kind, "device_index": int(number or 0), "compute_type": self.precision}
        options["cpu_threads"] = self.threads
        self.model = WhisperModel(str(self.files), **options)

    def _transcribe(self, samples: np.ndarray, times: bool) -> Result:
        options = {"language": self.known_language, "beam_size": self.beams, "condition_on_previous_text": False}
        if self.strict:
            options |= {"temperature": 0.0, "no_speech_threshold": None}  # nothing is skipped as silence
        return self._joined(self.model.transcribe(samples, **options, without_timestamps=not times), times)

    @staticmethod
    def _joined(answer: tuple[Iterable[Any], Any], times: bool) -> Result:
        parts, about = answer
        found = [(part.start, part.end, part.text) for part in parts]
        return "".join(text for *_, text in found).strip(), about.language, segments(found) if times else ()


def _find_cublas() -> None:
    """Load the cuBLAS of CUDA 12, which CTranslate2 opens by this name when it first multiplies; torch may bring a later one."""
    places = importlib.import_module("nvidia").__path__ if importlib.util.find_spec("nvidia") else ()
    for place in (CUBLAS, *(str(Path(folder, "cublas", "lib", CUBLAS)) for folder in places)):
        with contextlib.suppress(OSError):
            ctypes.CDLL(place, mode=ctypes.RTLD_GLOBAL)
            return
    raise AsrlibError(f"CTranslate2 needs {CUBLAS} on a GPU: pip install nvidia-cublas-cu12.")


class FasterWhisperBatched(FasterWhisper):
    """faster-whisper's batched pipeline: a recording is cut at pauses by a voice detector, eight pieces are decoded together.

    A short clip is one piece, so the batch pays on long recordings only. The detector is its test for silence, in every call.
    """

    pieces = 8

    def _load(self) -> None:
        super()._load()
        self.batched = BatchedInferencePipeline(self.model)

    def _transcribe(self, samples: np.ndarray, times: bool) -> Result:
        options = {"beam_size": self.beams, "temperature": 0.0, "without_timestamps": not times}
        return self._joined(
            self.batched.transcribe(samples, language=self.known_language, batch_size=self.pieces, **options), times
        )

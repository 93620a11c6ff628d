"""PyTorch, by `asrlib.decoding.transcription`: batches of like length, a decoding loop without copies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from asrlib.decoding import batching, transcription
from asrlib.decoding.batching import Hypothesis
from asrlib.engines.runtime import Runtime

__all__ = ["PyTorch"]


class PyTorch(Runtime):
    """The library's own decoding, on the CPU, with its tests (`asrlib.decoding.guards`) where a call is not strict."""

    precisions = ("auto", "float32", "bfloat16", "float16")
    beam_search = False
    batch_size = 16

    def _load(self) -> None:
        dtype = None if self.precision == "auto" else getattr(torch, self.precision)
        self.files = self.folder
        self.model, self.processor = transcription.load(self.files, device="cpu", dtype=dtype)

    def transcribe(
        self,
        clips: Iterable[Any],
        *,
        language: str | None = None,
        timestamps: bool = False,
        strict: bool = True,
        label: str = "",
    ) -> Iterator[Hypothesis]:
        """Transcribe clips in order; arguments as for every runtime."""
        asked = {"language": language, "timestamps": timestamps, "strict": strict}
        return batching.run(
            transcription.TorchEngine(self.model, self.processor, **asked),
            clips,
            batch_size=self.batch_size,
            label=label,
        )

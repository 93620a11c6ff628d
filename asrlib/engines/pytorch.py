"""PyTorch, by `asrlib.decoding.transcription`: batches of like length, a decoding loop without copies."""

from __future__ import annotations

import torch

from asrlib.decoding import transcription
from asrlib.engines.runtime import Runtime

__all__ = ["PyTorch"]


class PyTorch(Runtime):
    """The library's own decoding, with its tests (`asrlib.decoding.guards`) where a call is not strict."""

    precisions = ("auto", "float32", "bfloat16", "float16", "int8")
    on_gpu = True
    batch_size = 16

    def _load(self) -> None:
        dtype = None if self.precision == "auto" else getattr(torch, self.precision)
        self.files = self.folder
        self.model, self.processor = transcription.load(self.files, device=self.device, dtype=dtype)

    def _engine(self) -> transcription.TorchEngine:
        options = {"timestamps": self.timestamps, "strict": self.strict}
        return transcription.TorchEngine(self.model, self.processor, self.language, **options)

"""ONNX Runtime, with the graphs that Optimum exports; decoded as `asrlib.engines.pytorch` does."""

from __future__ import annotations

from asrlib.decoding import transcription
from asrlib.engines.pytorch import PyTorch
from asrlib.models import checkpoints

__all__ = ["OnnxRuntime"]


class OnnxRuntime(PyTorch):
    """Both graphs on the CPU."""

    precisions = ("int8", "float32")
    on_gpu = False
    batch_size = 8

    def _load(self) -> None:
        self.files = checkpoints.fetch(self.checkpoint, format="onnx" if self.precision == "float32" else "onnx-int8")
        self.model, self.processor = transcription.load(self.files)

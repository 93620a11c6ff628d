"""OpenVINO's encoder before PyTorch's decoder, which decodes as `asrlib.engines.pytorch` does.

In int8 only the encoder's weights are rounded.
"""

from __future__ import annotations

import os

import torch

os.environ.setdefault("CI", "true")  # or OpenVINO and NNCF send usage statistics, without asking
import openvino

from asrlib import hardware
from asrlib.decoding import transcription
from asrlib.engines.pytorch import PyTorch
from asrlib.engines.runtime import quiet
from asrlib.models import openvino_graphs

__all__ = ["OpenVino"]


class OpenVino(PyTorch):
    """The encoder as OpenVINO's graph, compiled for the CPU."""

    precisions = ("auto", "bfloat16", "float32", "int8")
    on_gpu = False
    batch_size = 8

    def _load(self) -> None:
        native = hardware.best_dtype("cpu") == torch.bfloat16
        self.files = self.folder
        self.model, self.processor = transcription.load(self.files, device="cpu", dtype=torch.float32)
        encoder = self.model.model.encoder
        graph = self._graph()
        hint = "bf16" if self.precision == "bfloat16" or (self.precision != "float32" and native) else "f32"
        options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": self.threads}
        self.compiled = openvino.compile_model(graph, "CPU", options)
        del graph
        encoder.layers = torch.nn.ModuleList()  # not needed twice
        self.model.encode = self._encode
        if native and self.precision != "float32":
            self.model.to(torch.bfloat16)

    def _graph(self) -> openvino.Model:
        """Return the encoder as OpenVINO's graph."""
        with quiet():
            graph = openvino_graphs.encoder(self.model)
        if self.precision != "int8":
            return graph
        import nncf

        openvino_graphs.quiet_nncf()
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)

    def _encode(self, features: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.compiled(features.float().numpy())[0]).to(self.model.dtype)

"""Linear layers in 8 bits, for processors: weights are rounded once by rows, inputs position by position while the model runs.

This is the vector-wise quantization of LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339, section 3.1) without its part in 16 bits.
Embeddings, convolutions, norms and attention stay in float32.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from asrlib import AsrlibError

__all__ = ["Int8Linear", "rounded"]

TOP = 127  # largest integer of a weight
LEAST = 1e-30  # a row of zeros has no scale of its own


class Int8Linear(torch.nn.Module):
    """A linear layer from (..., in) to (..., out) that multiplies integers and returns float32; no gradient flows.

    A position's result depends on that position alone, so that words do not depend on their batch.
    """

    def __init__(self, layer: torch.nn.Linear) -> None:
        """Round the weights of a layer, each row to -127 to 127 times a scale of its own."""
        super().__init__()
        weight = layer.weight.detach().float()
        self.scales = weight.abs().amax(dim=1).clamp(min=LEAST) / TOP
        integers = (weight / self.scales[:, None]).round().to(torch.int8)
        self.zeros = torch.zeros(len(integers), dtype=torch.int)
        self.weight = torch.ops.onednn.qlinear_prepack(integers, None)
        self.bias = torch.zeros(len(integers)) if layer.bias is None else layer.bias.detach().float()
        self.top = top()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's result for x (..., in)."""
        rows = x.reshape(-1, x.shape[-1])
        reach = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True).clamp(min=LEAST)
        middle = self.top + 1
        integers = (rows * (self.top / reach)).add_(middle + 0.5).to(torch.uint8)  # cut off: rounds to the nearest
        y = torch.ops.onednn.qlinear_pointwise(
            integers, 1 / self.top, middle, self.weight, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )  # fmt: skip
        return torch.addcmul(self.bias, y, reach).view(*x.shape[:-1], -1)


@functools.cache
def top() -> int:
    """Return the largest integer of an input: 127, or 63 where the processor adds two products in 16 bits, which would overflow."""
    weight = torch.ops.onednn.qlinear_prepack(torch.full((64, 64), TOP, dtype=torch.int8), None)
    scales, zeros = torch.ones(64), torch.zeros(64, dtype=torch.int)
    inputs = torch.full((64, 64), 255, dtype=torch.uint8)
    found = torch.ops.onednn.qlinear_pointwise(
        inputs, 1.0, 0, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return 127 if bool((found == 64 * 255 * TOP).all()) else 63


def rounded(model: Any) -> Any:
    """Give a ``WhisperForConditionalGeneration`` on the CPU linear layers in 8 bits, in place, and return it.

    Raises:
        AsrlibError: this PyTorch has no oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        raise AsrlibError(
            "This PyTorch cannot multiply in 8 bits, because it has no oneDNN: leave the model in float32."
        )
    for part in (model.model.encoder.layers, model.model.decoder.layers):
        for module in list(part.modules()):
            for name, layer in list(module.named_children()):
                if type(layer) is torch.nn.Linear:
                    setattr(module, name, Int8Linear(layer))
    model.proj_out = Int8Linear(model.proj_out)  # the token table stays in float32, to look tokens up
    return model

"""Linear layers in 8 bits, for processors: weights are rounded once by rows, inputs position by position while the model runs.

This is the vector-wise quantization of LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339, section 3.1) without its part in 16 bits.
Embeddings, convolutions, norms and the products of attention stay in float32.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from asrlib import AsrlibError

__all__ = ["Int8Linear", "rounded"]

LARGEST = 127  # integer of a weight
TOGETHER = 1500  # positions: larger tensors are not reused by the allocator, and new memory costs more than the product
LEAST = 1e-30  # a row of zeros has no scale of its own


class Int8Linear(torch.nn.Module):
    """A linear layer from (..., in) to (..., out) that multiplies integers and returns float32; no gradient flows.

    A position's result depends on that position alone, so that words do not depend on their batch. The weights are laid out for this
    processor and not in ``state_dict``: such a model cannot be trained, saved or moved.
    """

    def __init__(self, layer: torch.nn.Linear) -> None:
        """Round the weights of a layer, each row to -127 to 127 times a scale of its own."""
        super().__init__()
        weight = layer.weight.detach().float()
        self.scales = weight.abs().amax(dim=1).clamp(min=LEAST) / LARGEST
        self.zeros = torch.zeros(len(weight), dtype=torch.int)
        integers = (weight / self.scales[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(integers, None)
        self.bias = torch.zeros(len(integers)) if layer.bias is None else layer.bias.detach().float()
        self.top = top()
        self.middle = torch.tensor(self.top + 1.5)  # what is cut off then is rounded to the nearest

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's result for x (..., in)."""
        parts = [self._rows(part) for part in x.detach().reshape(-1, x.shape[-1]).split(TOGETHER)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts)
        return y.view(*x.shape[:-1], len(self.bias))

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        reach = x.abs().amax(dim=1, keepdim=True).clamp(min=LEAST)
        integers = torch.addcmul(self.middle, x, self.top / reach).to(torch.uint8)
        y = _product(integers, self.packed, self.scales, self.zeros, self.top)
        return torch.addcmul(self.bias, y, reach, out=y)


def _product(
    integers: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, top: int
) -> torch.Tensor:
    """Multiply inputs from -1 to 1, given as ``top`` times so much plus ``top + 1`` (positions, in), by weights."""
    return torch.ops.onednn.qlinear_pointwise(
        integers, 1 / top, top + 1, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


@functools.cache
def top() -> int:
    """Return the largest integer of an input: 127, or 63 where the processor adds two products in 16 bits, which would overflow."""
    packed = torch.ops.onednn.qlinear_prepack(torch.full((64, 64), LARGEST, dtype=torch.int8), None)
    scales, zeros = torch.full((64,), 1 / LARGEST), torch.zeros(64, dtype=torch.int)
    found = [  # of one position and of many, which may be other kernels
        _product(torch.full((rows, 64), 255, dtype=torch.uint8), packed, scales, zeros, 127) for rows in (1, 64)
    ]
    return 127 if all(torch.allclose(product, torch.tensor(64.0)) for product in found) else 63


def rounded(model: Any) -> Any:
    """Give a ``WhisperForConditionalGeneration`` on the CPU linear layers in 8 bits, in place, and return it.

    Raises:
        AsrlibError: the model is quantized already, or this PyTorch cannot multiply in 8 bits here.
    """
    if hasattr(model.config, "quantization_config"):
        raise AsrlibError("This model is quantized already: leave out int8.")
    try:
        top()
    except (AttributeError, RuntimeError):
        raise AsrlibError("This PyTorch cannot multiply in 8 bits on this processor: leave out int8.") from None
    for part in (model.model.encoder.layers, model.model.decoder.layers):
        for module in list(part.modules()):
            for name, layer in list(module.named_children()):
                if type(layer) is torch.nn.Linear:
                    setattr(module, name, Int8Linear(layer))
    model.proj_out = Int8Linear(model.proj_out)  # the token table stays in float32, to look tokens up
    return model

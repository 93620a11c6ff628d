"""Linear layers and attention the way this processor multiplies them best, as ``torch.compile`` does with frozen weights.

oneDNN multiplies by blocks of rows: a weight that is laid out in blocks once is read straight through. Nothing tells of every
change of a weight (``.data``, ``AdamW(fused=True)``), so these copies live no longer than a block `laid_out`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.functional import gelu, pad, scaled_dot_product_attention

from asrlib import hardware

__all__ = ["attention", "laid_out", "linear"]

CACHED = 1500**2  # scores that are computed at once: those of one head over a whole window, 4.5 MB in bfloat16
_blocks: ContextVar[dict[Any, torch.Tensor] | None] = ContextVar("_blocks", default=None)  # of each layer


@contextlib.contextmanager
def laid_out(blocks: dict[Any, torch.Tensor] | None = None) -> Iterator[None]:
    """Let `linear` lay out each weight once within this block, in which no weight may change.

    A block inside another one uses the outer one's copies, unless it is given its own.

    Args:
        blocks: keeps the copies for a later block, over which the weights stay the same too; empty at first.
    """
    known = _blocks.get() if blocks is None else blocks
    token = _blocks.set({} if known is None else known)
    try:
        yield
    finally:
        _blocks.reset(token)


def linear(layer: Any, x: torch.Tensor, activation: str = "none") -> torch.Tensor:
    """Apply a linear layer, and GELU after it if wanted; the numbers are the layer's own, up to rounding.

    A layer is called as it is outside of `laid_out`, off the CPU, in a precision that this processor does not multiply, and if it is
    more than a plain ``torch.nn.Linear`` (quantized, pruned by a mask, with an adapter, with hooks).

    Args:
        layer: a module from (..., in) to (..., out).
        x: (..., in), in the layer's precision; in `laid_out` no gradient flows.
        activation: ``"none"`` or ``"gelu"``.
    """
    blocks = _blocks.get()
    if blocks is None or not _usable(layer, x):
        y = layer(x)
        return gelu(y) if activation == "gelu" else y
    if layer not in blocks:
        blocks[layer] = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
    exact = "none" if activation == "gelu" else ""  # GELU by the error function, as Whisper's
    return torch.ops.mkldnn._linear_pointwise(x, blocks[layer], layer.bias, activation, [], exact)


def _usable(layer: Any, x: torch.Tensor) -> bool:
    return (
        type(layer) is torch.nn.Linear
        and not (layer._forward_pre_hooks or layer._forward_hooks or "forward" in vars(layer))
        and type(layer.weight) is torch.nn.Parameter  # a quantized one is a class of its own
        and x.device.type == layer.weight.device.type == "cpu"
        and x.dtype == layer.weight.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_grad_enabled()
        and hardware.multiplies(x.dtype)
    )


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Attend with many queries to many keys; the numbers are those of ``scaled_dot_product_attention``, up to rounding.

    In bfloat16 without AMX, PyTorch's small tiles reach a third of the rate of a matrix product; a head's scores as one
    product that fits the cache reach half of it.

    Args:
        query, key, value: (clips, heads, positions, size of a head); no gradient flows.
        bias: (clips, 1, 1, positions), added to the scores of all queries; or None.

    Returns:
        (clips, heads, positions, size of a head).
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or _amx() or not hardware.multiplies(query.dtype):
        return scaled_dot_product_attention(query, key, value, bias)
    heads, size = query.shape[1], query.shape[3]
    query, value = query * size**-0.5, value.contiguous()
    if bias is not None:  # q k + 1 b is one product too; of two columns, for bfloat16 is multiplied in pairs
        column = pad(bias.transpose(2, 3), (0, 1)).expand(-1, heads, -1, -1)
        query, key = pad(query, (0, 2), value=1.0), torch.cat([key, column], dim=3)
    query, key = query.contiguous(), key.contiguous().transpose(2, 3)
    together = max(1, CACHED // (query.shape[2] * key.shape[3]))
    heard = value.new_empty(*query.shape[:3], size)
    for clip in range(len(query)):
        for first in range(0, heads, together):
            part = (clip, slice(first, first + together))
            torch.bmm(torch.bmm(query[part], key[part]).softmax(dim=-1), value[part], out=heard[part])
    return heard


@functools.cache
def _amx() -> bool:
    """Say whether the processor multiplies tiles of bfloat16, for which the fused kernel was made."""
    return "amx_bf16" in hardware.cpu_features()

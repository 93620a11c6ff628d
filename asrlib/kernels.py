"""Linear layers and attention the way this processor multiplies them best.

``torch.nn.Linear`` gives oneDNN its weight as PyTorch stores it, row after row, at every call. oneDNN multiplies by blocks of
rows; laid out in blocks once, a weight is read straight through, and what follows the product can be done while its result is
still in the cache. Both are what ``torch.compile`` does with frozen weights, without its minutes of compilation.

It costs the memory of a second copy of the weights that are used.

PyTorch's fused attention computes small tiles. In bfloat16, on a processor without AMX, it reaches a third of the rate of a
matrix product; a head's scores as one product, small enough for the cache, come to half of it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from asrlib import hardware

if TYPE_CHECKING:
    import torch

__all__ = ["attention", "linear"]

CACHED = 1500**2  # scores that are computed at once: those of one head over a whole window, 4.5 MB in bfloat16
_laid_out: WeakKeyDictionary[Any, tuple[tuple[int, int], torch.Tensor]] = WeakKeyDictionary()


def linear(layer: Any, x: torch.Tensor, activation: str = "none") -> torch.Tensor:
    """Apply a linear layer, and GELU after it if wanted; the numbers are the layer's own, up to rounding.

    A layer that is more than a plain ``torch.nn.Linear`` (quantized, with an adapter, with hooks), and every layer off the CPU,
    is called as it is. A weight that has changed since, by training, say, is laid out again.

    Args:
        layer: a module from (..., in) to (..., out).
        x: (..., in), in the layer's precision; no gradient flows.
        activation: ``"none"`` or ``"gelu"``.
    """
    import torch

    weight = _blocks(layer, x)
    if weight is None:
        y = layer(x)
        return torch.nn.functional.gelu(y) if activation == "gelu" else y
    exact = "none" if activation == "gelu" else ""  # GELU by the error function, as Whisper's
    return torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, activation, [], exact)


def _blocks(layer: Any, x: torch.Tensor) -> torch.Tensor | None:
    """Return a layer's weight in oneDNN's layout, None where that is not its way."""
    import torch

    plain = type(layer) is torch.nn.Linear and not (layer._forward_pre_hooks or layer._forward_hooks)
    if not plain or not _usable(layer.weight, x):
        return None
    version = (layer.weight.data_ptr(), layer.weight._version)
    known = _laid_out.get(layer)
    if known is None or known[0] != version:
        known = _laid_out[layer] = version, torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
    return known[1]


def _usable(weight: torch.Tensor, x: torch.Tensor) -> bool:
    import torch

    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_grad_enabled()
        and not weight.is_inference()  # such a tensor does not count its changes
        and torch.backends.mkldnn.is_available()
    )


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Attend with many queries to many keys; the numbers are those of ``scaled_dot_product_attention``, up to rounding.

    Args:
        query, key, value: (clips, heads, positions, size of a head); no gradient flows.
        bias: (clips, 1, 1, positions), added to the scores of all queries; or None.

    Returns:
        (clips, heads, positions, size of a head).
    """
    import torch

    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or _amx():
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, bias)
    heads, size = query.shape[1], query.shape[3]
    query, value = query * size**-0.5, value.contiguous()
    if bias is not None:  # q k + 1 b is one product too; of two columns, for bfloat16 is multiplied in pairs
        column = torch.nn.functional.pad(bias.transpose(2, 3), (0, 1)).expand(-1, heads, -1, -1)
        query, key = torch.nn.functional.pad(query, (0, 2), value=1.0), torch.cat([key, column], dim=3)
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

"""Linear layers the way this processor multiplies them best.

``torch.nn.Linear`` gives oneDNN its weight as PyTorch stores it, row after row, at every call. oneDNN multiplies by blocks of
rows; laid out in blocks once, a weight is read straight through, and what follows the product can be done while its result is
still in the cache. Both are what ``torch.compile`` does with frozen weights, without its minutes of compilation.

It costs the memory of a second copy of the weights that are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import torch

__all__ = ["linear"]

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

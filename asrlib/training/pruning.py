"""Bookkeeping of pruning: which weights a sparsity counts, masks that outlive a copy, zeros counted.

What is pruned, and by which rule, is said by `torch.nn.utils.prune` in the notebook. Its masks live in hooks: a layer with one
holds ``weight_orig`` and ``weight_mask``, and multiplies them before each forward pass. Such a model trains with its zeros
kept, but cannot be copied after a backward pass or saved for others; `make_permanent` makes an ordinary model of it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError
from asrlib.whisper import POSITIONS_PER_SECOND

if TYPE_CHECKING:
    import torch

__all__ = ["head_importance", "linear_layers", "make_permanent", "masks", "part", "with_masks", "zeros"]


def linear_layers(model: Any) -> dict[str, torch.nn.Linear]:
    """Return a Whisper's linear layers by name, in the order of the model, without the head.

    The head ``proj_out`` is the embedding, one table with two uses. `torch.nn.utils.prune` on either of its modules would
    make two tables of it; whoever prunes it must do so in place.

    Raises:
        AsrlibError: a model without layers of PyTorch, such as one that was exported to ONNX.
    """
    import torch

    if not hasattr(model, "proj_out"):
        raise AsrlibError(
            f"A {type(model).__name__} has no head proj_out: give a WhisperForConditionalGeneration, not an exported or wrapped one."
        )
    linear = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear))
    return {name: layer for name, layer in linear if layer is not model.proj_out}


def part(name: str) -> str:
    """Return which part of a Whisper a module of one of its layers belongs to.

    >>> part("model.decoder.layers.3.encoder_attn.k_proj"), part("model.encoder.layers.0.fc1")
    ('decoder cross-attention', 'encoder feed-forward')
    """
    _, stack, _, _, module = name.split(".")[:5]
    what = {"self_attn": "self-attention", "encoder_attn": "cross-attention"}.get(module, "feed-forward")
    return f"{stack} {what}"


def head_importance(model: Any, batches: Iterable[Mapping[str, Any]], seconds: int) -> dict[str, torch.Tensor]:
    """Return how much the loss depends on each attention head: Michel et al. 2019, section 2.3, equation 2.

    A gate of 1 stands where a head's output enters ``out_proj``; the score is the mean size of the loss's slope by that gate.

    Args:
        model: a ``WhisperForConditionalGeneration``; it stays as it is.
        batches: its arguments, ``input_features`` of the whole window and ``labels``; best one clip each.
        seconds: of the window that the encoder reads, more than the longest clip lasts: the rest is silence.

    Returns:
        Scores by the name of the attention, (heads,), on the CPU.
    """
    import torch
    from transformers.models.whisper.modeling_whisper import WhisperAttention

    from asrlib.training import context

    found = {name: module for name, module in model.named_modules() if isinstance(module, WhisperAttention)}
    gates = {name: torch.ones(each.num_heads, device=model.device, requires_grad=True) for name, each in found.items()}
    hooks = [
        each.out_proj.register_forward_pre_hook(functools.partial(_gated, gates[name])) for name, each in found.items()
    ]
    sums, count = {name: torch.zeros(len(gate)) for name, gate in gates.items()}, 0
    frames = 2 * min(model.config.max_source_positions, POSITIONS_PER_SECOND * seconds)
    try:
        with context.reading(model, frames):
            for batch in batches:
                sound = batch["input_features"][..., :frames].to(model.device, model.dtype)
                loss = model(input_features=sound, labels=batch["labels"].to(model.device)).loss
                for name, slope in zip(gates, torch.autograd.grad(loss, [*gates.values()]), strict=True):
                    sums[name] += slope.abs().cpu()
                count += 1
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / max(count, 1) for name, total in sums.items()}


def _gated(gate: torch.Tensor, module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
    """Multiply each head's share of what enters ``out_proj`` by its gate."""
    return ((inputs[0].unflatten(-1, (len(gate), -1)) * gate[:, None]).flatten(-2),)


def masks(model: Any) -> dict[str, torch.Tensor]:
    """Return a copy of each mask by the name of its layer: 1 where a weight is kept, 0 where not, (outputs, inputs)."""
    layers = linear_layers(model)
    return {name: layer.weight_mask.clone() for name, layer in layers.items() if hasattr(layer, "weight_mask")}


def with_masks(model: Any, masks: Mapping[str, torch.Tensor]) -> Any:
    """Return a copy of an ordinary model with masks on its layers, by `torch.nn.utils.prune.custom_from_mask`.

    Args:
        model: without masks of its own; it stays as it is.
        masks: by name, as `masks` returns them; layers that are not named stay dense.

    Raises:
        AsrlibError: a mask for a layer that is not there, or of another shape than its weight.
    """
    from torch.nn.utils import prune

    masked = copy.deepcopy(model)
    layers = linear_layers(masked)
    for name, mask in masks.items():
        if name not in layers or mask.shape != layers[name].weight.shape:
            raise AsrlibError(
                f"The mask for {name} fits no layer of this model: take masks of a model of the same shape."
            )
        prune.custom_from_mask(layers[name], "weight", mask.to(layers[name].weight.device))
    return masked


def make_permanent(model: Any) -> Any:
    """Make masks permanent, in place: zeros become part of the weights, hooks and masks go. Returns the same model."""
    from torch.nn.utils import prune

    for layer in linear_layers(model).values():
        if prune.is_pruned(layer):
            prune.remove(layer, "weight")
    return model


def zeros(model: Any) -> float:
    """Return how many of the weights in the linear layers are zero, in percent; masks count."""
    layers = linear_layers(model).values()
    dead = sum(int((_effective(layer) == 0).sum()) for layer in layers)
    return 100 * dead / sum(layer.weight.numel() for layer in layers)


def _effective(layer: torch.nn.Linear) -> torch.Tensor:
    """Return what a layer computes with. Its ``weight`` is of the last forward pass, older than an optimiser's step."""
    return layer.weight_orig * layer.weight_mask if hasattr(layer, "weight_mask") else layer.weight

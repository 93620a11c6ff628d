"""Encoder and decoder of Whisper, by the model's own layers, for many clips and without gradients.

Other than in its ``forward``, caches stay in place, attention of few queries is two plain products, and few positions may stand
for the silence that pads a clip (proportional attention, Bolya et al. 2022, arXiv:2210.09461, section 3, applied to padding).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import gelu, pad
from torch.nn.modules import module
from torch.nn.utils.rnn import pad_sequence

from asrlib import AsrlibError
from asrlib.decoding.kernels import attention, laid_out, linear
from asrlib.models import graphs
from asrlib.whisper import SAMPLES_PER_POSITION

__all__ = ["Decoder", "decoder", "encode", "merge_padding", "merged_width"]

MARGIN = 100  # positions of padding kept one by one after the clip: two seconds
MERGE = 8  # further positions of padding that one position stands for
STEP = 64  # positions: a batch is as wide as a multiple of it, for kernels of each width are made anew and kept


def merged_width(samples: int, positions: int) -> int:
    """Return the positions that a clip of so many samples takes with its padding merged."""
    return merge_padding([samples], positions)[0].shape[1]


def merge_padding(lengths: Sequence[int], positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which encoder positions represent each clip, and how many each stands for; both (clips, kept).

    Speech and `MARGIN` positions after it stand for themselves, each further group of `MERGE` for one. Rows are filled up
    with weight 0. A clip's choice depends on its own length only, so its words do not depend on its batch.
    """
    kept, weights = [], []
    for length in lengths:
        speech = min(positions, math.ceil(length / SAMPLES_PER_POSITION) + MARGIN)
        first = torch.arange(speech, positions, MERGE)
        last = torch.clamp(first + MERGE, max=positions)
        kept.append(torch.cat([torch.arange(speech), (first + last) // 2]))
        weights.append(torch.cat([torch.ones(speech), (last - first).float()]))
    return pad_sequence(kept, batch_first=True), pad_sequence(weights, batch_first=True)


def _heads(x: torch.Tensor, attend: Any) -> torch.Tensor:
    """View (batch, time, width) as (batch, heads, time, size of a head); each layer of a pruned model has heads of its own."""
    return x.unflatten(2, (attend.num_heads, attend.head_dim)).transpose(1, 2)


def _pair(attend: Any, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys and values of an attention module for states (batch, time, width), each split into heads."""
    return _heads(linear(attend.k_proj, states), attend), _heads(linear(attend.v_proj, states), attend)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Attend with few queries to many keys, all (batch, heads, time, size of a head).

    Two plain matrix products: for a single query they are five times faster on a CPU than the fused kernel, which is made
    for many.
    """
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
    precision = torch.promote_types(query.dtype, torch.float32)
    weights = (scores if bias is None else scores + bias).softmax(dim=-1, dtype=precision).to(query.dtype)
    return (weights @ value).transpose(1, 2).flatten(2)


def _refuse_watchers() -> None:
    """Refuse hooks on all modules: those of attention and of whole layers would never be called."""
    if module._global_forward_hooks or module._global_forward_pre_hooks:
        raise AsrlibError(
            "Something watches every module (Quanto's Calibration does so), and asrlib's decoder calls single layers only: "
            "let model.generate transcribe here."
        )


@laid_out()
def encode(model: Any, features: torch.Tensor, lengths: Sequence[int] | None = None) -> tuple[torch.Tensor, Any]:
    """Run the encoder.

    Args:
        model: a ``WhisperForConditionalGeneration``, or an `asrlib.models.graphs.ExportedWhisper`.
        features: log-mel, (clips, mel bins, twice the model's positions: 3000), in the model's precision and on its device.
        lengths: samples of each clip, to merge the padding after it; None keeps all positions, as an exported model must.

    Returns:
        (states, bias): states (clips, positions, width); bias (clips, 1, 1, positions) is added to every attention logit over
        these positions, the logarithm of how many positions each stands for, minus infinity where a clip is only filled up;
        or None.

    Raises:
        AsrlibError: there are hooks on all modules, as while Quanto calibrates.
    """
    _refuse_watchers()
    if hasattr(model, "encode"):  # a graph, of the whole model or of its encoder
        return model.encode(features), None
    encoder = model.model.encoder
    with torch.inference_mode():
        states = gelu(encoder.conv2(gelu(encoder.conv1(features)))).transpose(1, 2) + encoder.embed_positions.weight
        bias = None
        if lengths is not None:
            kept, weights = merge_padding(lengths, states.shape[1])
            filling = (0, -kept.shape[1] % STEP)
            kept, weights = (pad(x, filling).to(states.device) for x in (kept, weights))
            states = states.gather(1, kept[:, :, None].expand(-1, -1, states.shape[2]))
            bias = weights.log().to(states.dtype)[:, None, None, :]
        states = states.contiguous()
        for layer in encoder.layers:
            normed, attend = layer.self_attn_layer_norm(states), layer.self_attn
            parts = (attend.q_proj, attend.k_proj, attend.v_proj)
            query, key, value = (_heads(linear(part, normed), attend) for part in parts)
            heard = attention(query, key, value, bias)
            states = states + linear(attend.out_proj, heard.transpose(1, 2).flatten(2))
            states = states + linear(layer.fc2, linear(layer.fc1, layer.final_layer_norm(states), "gelu"))
        return encoder.layer_norm(states), bias


class _Cache:
    """Keys and values of a decoder for a batch, (clips, heads, positions, size of a head) in each layer.

    Those of self-attention grow in place; those of cross-attention are computed once.
    """

    def __init__(self, model: Any, states: torch.Tensor, room: int) -> None:
        layers, clips = model.model.decoder.layers, len(states)
        self.cross = [tuple(x.contiguous() for x in _pair(layer.encoder_attn, states)) for layer in layers]
        attends = [layer.self_attn for layer in layers]
        shapes = [(clips, attend.num_heads, room, attend.head_dim) for attend in attends]
        self.own = [(states.new_empty(shape), states.new_empty(shape)) for shape in shapes]

    def append(self, index: int, at: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Store new keys and values of a layer at a position; return all up to them."""
        end = at + key.shape[2]
        if end > self.own[index][0].shape[2]:  # double the room: most clips never need it
            self.own[index] = tuple(torch.cat([x, torch.empty_like(x)], dim=2) for x in self.own[index])
        for store, new in zip(self.own[index], (key, value), strict=True):
            store[:, :, at:end] = new
        return tuple(store[:, :, :end] for store in self.own[index])

    def keep(self, rows: torch.Tensor) -> None:
        """Drop the clips that are finished."""
        self.cross = [tuple(x[rows] for x in pair) for pair in self.cross]
        self.own = [tuple(x[rows] for x in pair) for pair in self.own]


class Decoder:
    """A decoder of PyTorch's layers that has read nothing yet, for a batch.

    Attributes:
        at: how many tokens it has read; set to less, and it has forgotten those after them.
        output: the layer from hidden states to logits, the model's own by default.
    """

    def __init__(self, model: Any, states: torch.Tensor, bias: torch.Tensor | None, room: int) -> None:
        _refuse_watchers()
        self.model, self.bias, self.at, self.output = model, bias, 0, model.proj_out
        self.cache = _Cache(model, states, room)

    def step(self, tokens: torch.Tensor, places: int | list[int] = -1) -> torch.Tensor:
        """Read tokens (clips, new), the prompt first; return the last logits, (clips, vocabulary), or those at some places
        among the new tokens, (clips, places, vocabulary).
        """
        decoder, cache, new = self.model.model.decoder, self.cache, tokens.shape[1]
        states = decoder.embed_tokens(tokens) + decoder.embed_positions.weight[self.at : self.at + new]
        # Of several tokens at once (a prompt, drafts to be checked) none may see what follows it.
        causal = states.new_full((new, self.at + new), -float("inf")).triu(self.at + 1) if new > 1 else None
        for index, layer in enumerate(decoder.layers):
            normed, attend = layer.self_attn_layer_norm(states), layer.self_attn
            key, value = cache.append(index, self.at, *_pair(attend, normed))
            query = _heads(linear(attend.q_proj, normed), attend)
            states = states + linear(attend.out_proj, _attend(query, key, value, causal))
            normed, attend = layer.encoder_attn_layer_norm(states), layer.encoder_attn
            query = _heads(linear(attend.q_proj, normed), attend)
            states = states + linear(attend.out_proj, _attend(query, *cache.cross[index], self.bias))
            states = states + linear(layer.fc2, linear(layer.fc1, layer.final_layer_norm(states), "gelu"))
        self.at += new
        return linear(self.output, decoder.layer_norm(states[:, places]))

    def keep(self, rows: torch.Tensor) -> None:
        """Drop the clips that are finished."""
        self.cache.keep(rows)
        self.bias = self.bias if self.bias is None else self.bias[rows]


def decoder(model: Any, states: torch.Tensor, bias: torch.Tensor | None, room: int) -> Decoder | graphs.GraphDecoder:
    """Return what reads tokens and gives logits: ``step`` and ``keep`` of layers or of a graph."""
    if isinstance(model, graphs.ExportedWhisper):
        return model.decoder(states)
    return Decoder(model, states, bias, room)

"""Whisper as OpenVINO's graphs: the encoder, and a decoder that keeps its keys and values inside, as OpenVINO GenAI runs them.

Inputs, outputs and files are called as by ``optimum-cli export openvino``, whose optimum-intel asks for an older transformers. So
is the way to a decoder with a state (``optimum/exporters/openvino/stateful.py``): keys and values of the tokens grow from step to
step; those of the encoder's states are computed in the first step and kept.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

os.environ.setdefault("CI", "true")  # or OpenVINO and NNCF send usage statistics, without asking
import openvino
from openvino import opset13
from openvino._offline_transformations import apply_make_stateful_transformation

from asrlib import whisper

__all__ = ["PLAIN", "decoder", "encoder", "quiet_nncf", "samples", "save"]

# float32 throughout: by default keys and values are kept in 8 bits, and where the processor can, products are in bfloat16.
PLAIN = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


def encoder(model: Any) -> openvino.Model:
    """Return the encoder of a ``WhisperForConditionalGeneration`` on the CPU: log-mel (clips, mel bins, frames) to its states."""
    example = torch.zeros(1, model.config.num_mel_bins, 2 * whisper.POSITIONS)
    graph = _traced(_Encoder(model), (example,), input=[[-1, *example.shape[1:]]])
    _name(graph.inputs, ["input_features"])
    _name(graph.outputs, ["last_hidden_state"])
    return graph


def decoder(model: Any) -> openvino.Model:
    """Return the decoder: ``input_ids`` (clips, new), ``encoder_hidden_states`` and ``beam_idx`` (clips: 0, 1, ...) to ``logits``.

    A request of the compiled graph reads the prompt first, then token by token; ``reset_state()`` begins another text.
    """
    config = model.config
    heads, count = config.decoder_attention_heads, 2 * config.decoder_layers
    size = config.d_model // heads
    tokens, states = torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, whisper.POSITIONS, config.d_model)
    past = torch.zeros(count, 2, heads, 4, size).unbind()
    graph = _traced(_Decoder(model), (tokens, states, torch.arange(2, dtype=torch.int32), *past))
    before, after = ([f"{name}.{place}" for place in range(count)] for name in ("past", "present"))
    _name(graph.inputs, ["input_ids", "encoder_hidden_states", "beam_idx", *before])
    _name(graph.outputs, ["logits", *after])
    for name in before:
        graph.input(name).get_node().set_partial_shape(openvino.PartialShape([-1, heads, -1, size]))
    graph.validate_nodes_and_infer_types()
    crossing = _only_from(graph, "encoder_hidden_states")
    _grow(graph, dict(zip(before, after, strict=True)), heads, size)
    for node in crossing:
        _keep(graph, node)
    return graph


def samples(model: Any, features: torch.Tensor, **options: Any) -> dict[str, list[dict[str, np.ndarray]]]:
    """Return what both graphs read when windows are transcribed, for NNCF to calibrate with, by part.

    Args:
        model: a ``WhisperForConditionalGeneration`` on the CPU.
        features: log-mel of the windows, (windows, mel bins, frames).
        options: of its ``generate``, such as ``language``.
    """
    found: dict[str, list[dict[str, np.ndarray]]] = {"encoder": [], "decoder": []}
    mask = torch.ones(1, features.shape[2], dtype=torch.long)
    for window in features.split(1):
        with torch.inference_mode():
            states = model.model.encoder(window).last_hidden_state
            # whole: by itself generate leaves out the prompt, whose activations the ranges must cover too
            tokens = model.generate(window, attention_mask=mask, force_unique_generate_call=True, **options)
        read = {"input_ids": tokens, "encoder_hidden_states": states, "beam_idx": torch.zeros(1, dtype=torch.int32)}
        found["encoder"].append({"input_features": window.numpy()})
        found["decoder"].append({name: tensor.numpy() for name, tensor in read.items()})
    return found


def quiet_nncf() -> None:
    """Let NNCF report errors only, and draw no progress bars."""
    import nncf
    import rich

    nncf.set_log_level(logging.ERROR)
    rich.reconfigure(quiet=True, force_jupyter=False)


def save(folder: Path, graphs: dict[str, openvino.Model], source: Path, processor: Any) -> None:
    """Write ``encoder`` and ``decoder``, tokenizer and settings as OpenVINO GenAI's ``WhisperPipeline`` reads them.

    Numbers of 32 bits are written in 16, which is OpenVINO's default.

    Args:
        folder: to be made.
        graphs: by part.
        source: folder of the transformers checkpoint.
        processor: its ``WhisperProcessor``.
    """
    import openvino_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    for part, graph in graphs.items():
        openvino.save_model(graph, folder / f"openvino_{part}_model.xml")
    pair = openvino_tokenizers.convert_tokenizer(processor.tokenizer, with_detokenizer=True)
    for name, graph in zip(("tokenizer", "detokenizer"), pair, strict=True):
        openvino.save_model(graph, folder / f"openvino_{name}.xml")
    processor.feature_extractor.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(source / name, folder / name)


def _traced(module: torch.nn.Module, example: tuple[torch.Tensor, ...], **options: Any) -> openvino.Model:
    """Return a module as a graph, without the harmless warnings of the tracer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return openvino.convert_model(module.eval(), example_input=example, **options)


def _name(ends: Any, names: list[str]) -> None:
    for end, name in zip(ends, names, strict=True):
        end.get_tensor().set_names({name})


class _Encoder(torch.nn.Module):
    """An encoder that returns its states alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.model.encoder

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.encoder(features).last_hidden_state


class _Decoder(torch.nn.Module):
    """A decoder whose caches come in and go out, two tensors (clips, heads, positions, size of a head) a layer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder, self.proj_out = model.model.decoder, model.proj_out

    def forward(self, tokens: torch.Tensor, heard: torch.Tensor, rows: torch.Tensor, *past: Any) -> tuple[Any, ...]:
        past = [one.index_select(0, rows) for one in past]
        new, at = tokens.shape[1], past[0].shape[2]
        states = self.decoder.embed_tokens(tokens) + self.decoder.embed_positions.weight[at : at + new]
        causal = torch.full((new, at + new), -1e9).triu(at + 1)
        present = []
        for place, layer in enumerate(self.decoder.layers):
            normed, attend = layer.self_attn_layer_norm(states), layer.self_attn
            old, own = past[2 * place : 2 * place + 2], _pair(attend, normed)
            own = [torch.cat(both, dim=2) for both in zip(old, own, strict=True)]
            present += own
            states = states + _attended(attend, normed, own, causal)
            normed, attend = layer.encoder_attn_layer_norm(states), layer.encoder_attn
            states = states + _attended(attend, normed, _pair(attend, heard), None)
            states = states + layer.fc2(functional.gelu(layer.fc1(layer.final_layer_norm(states))))
        return self.proj_out(self.decoder.layer_norm(states)), *present


def _heads(x: torch.Tensor, attend: Any) -> torch.Tensor:
    return x.unflatten(2, (attend.num_heads, attend.head_dim)).transpose(1, 2)


def _pair(attend: Any, states: torch.Tensor) -> list[torch.Tensor]:
    return [_heads(part(states), attend) for part in (attend.k_proj, attend.v_proj)]


def _attended(attend: Any, states: torch.Tensor, pair: list[torch.Tensor], mask: torch.Tensor | None) -> torch.Tensor:
    query = _heads(attend.q_proj(states), attend)
    return attend.out_proj(functional.scaled_dot_product_attention(query, *pair, mask).transpose(1, 2).flatten(2))


# --------------------------------------------------------------------------------------------------------- states in a graph
def _following(graph: openvino.Model, nodes: Any) -> set[Any]:
    """Return some nodes and all that is computed from them."""
    found = set(nodes)
    for node in graph.get_ordered_ops():
        if {value.get_node() for value in node.input_values()} & found:
            found.add(node)
    return found


def _only_from(graph: openvino.Model, name: str) -> list[Any]:
    """Return the last nodes that are computed from one input, and from no other one."""
    own = graph.input(name).get_node()
    shapes = [node for node in graph.get_ops() if node.get_type_name() == "ShapeOf"]
    others = _following(graph, [put.get_node() for put in graph.inputs if put.get_node() != own] + shapes)
    return [node for node in _following(graph, [own]) - others if _readers(node) & others]


def _readers(node: Any) -> set[Any]:
    return {put.get_node() for end in node.outputs() for put in end.get_target_inputs()}


def _grow(graph: openvino.Model, pairs: dict[str, str], heads: int, size: int) -> None:
    """Turn pairs of input and output into states, which begin without a position."""
    apply_make_stateful_transformation(graph, pairs)
    clips = opset13.gather(opset13.shape_of(graph.input("input_ids")), opset13.constant([0]), opset13.constant(0))
    shape = opset13.concat([clips, opset13.constant(np.array([heads, 0, size]))], axis=0)
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([opset13.broadcast(opset13.constant(np.float32(0)), shape)])
    graph.validate_nodes_and_infer_types()


def _keep(graph: openvino.Model, node: Any) -> None:
    """Let a node be computed once a text: a state that begins with its value, and stays."""
    name, readers = node.get_friendly_name(), node.output(0).get_target_inputs()
    state = opset13.read_value(node.output(0), name)
    for put in readers:
        put.replace_source_output(state.output(0))
    graph.add_sinks([opset13.assign(state, name)])

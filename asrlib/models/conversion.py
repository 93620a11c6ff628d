"""One set of weights, four formats: how CTranslate2, transformers, openai-whisper and ONNX store a Whisper model.

CTranslate2's ``model.bin`` (what faster-whisper reads) is read here byte by byte, because transformers has a converter to
it but none from it. Values are never changed, only their names and where they lie.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asrlib import AsrlibError, hardware, whisper
from asrlib.io import files
from asrlib.models import architectures, optimum_env

if TYPE_CHECKING:
    from transformers import WhisperConfig

__all__ = ["openai_name", "read_model_bin", "renamed", "to_ctranslate2", "to_onnx", "to_openai", "to_transformers"]

DTYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")  # by number in the file; 5, bfloat16, numpy cannot hold


class _Fields:
    """The fields of a binary file, one after the other; `ValueError` where it ends within one."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.offset = data, 0

    def bytes(self, count: int) -> np.ndarray:
        self.offset += count
        if self.offset > len(self.data):
            raise ValueError("its end is missing")
        return self.data[self.offset - count : self.offset]

    def numbers(self, format: str) -> tuple[int, ...]:
        return struct.unpack(format, self.bytes(struct.calcsize(format)))

    def name(self) -> str:
        return self.bytes(*self.numbers("<H")).tobytes().removesuffix(b"\0").decode("ascii")

    def array(self) -> np.ndarray:
        shape = self.numbers("<{}I".format(*self.numbers("<B")))
        kind, size = self.numbers("<BI")
        return self.bytes(size).view(DTYPES[kind]).reshape(shape)


def read_model_bin(path: str | Path) -> dict[str, np.ndarray]:
    """Read the weights of a CTranslate2 Whisper model.

    The layout is that of ``ctranslate2.specs.ModelSpec`` (binary version 6): version, name and revision of the
    specification, then each variable's name, rank, shape, type, size and bytes, then aliases.

    Args:
        path: the file ``model.bin``; it is mapped, not read into memory.

    Returns:
        Read-only arrays by name; an alias gives the very array that it names.

    Raises:
        AsrlibError: no such file, another kind of file, or one that is truncated or forged.
    """
    try:
        fields = _Fields(np.memmap(path, np.uint8, mode="r"))
        if (kind := (*fields.numbers("<I"), fields.name())) != (6, "WhisperSpec"):
            raise ValueError(f"it holds {kind[1]!r} in version {kind[0]}, not a Whisper model in version 6")
        arrays = {}
        _, count = fields.numbers("<II")
        for _ in range(count):
            name = fields.name()
            arrays[name] = fields.array()
        for _ in range(*fields.numbers("<I")):
            name = fields.name()
            arrays[name] = arrays[fields.name()]
        if fields.offset != len(fields.data):
            raise ValueError("there are bytes after its end")
    except FileNotFoundError:
        raise AsrlibError(f"{path} is missing: fetch the checkpoint again.") from None
    except (ValueError, LookupError) as error:
        raise AsrlibError(f"{path} is no valid CTranslate2 file ({error}): delete it and fetch it again.") from None
    return arrays


# What CTranslate2 calls a part of a layer, and the parts of transformers that lie in it, row after row.
LAYER_PARTS = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
    "ffn/layer_norm": ("final_layer_norm",),
}
OTHER_PARTS = {
    **{name: (name,) for name in ("conv1", "conv2", "layer_norm")},
    "embeddings": ("embed_tokens",),
    "position_encodings": ("embed_positions",),
}
LEAVES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}
PROJECTION, EMBEDDINGS = "decoder/projection/weight", "decoder/embeddings/weight"  # tied in every Whisper

OPENAI_NAMES = (  # transformers -> openai-whisper, replaced in this order
    ("model.", ""),
    ("embed_tokens", "token_embedding"),
    ("embed_positions.weight", "positional_embedding"),
    (".layers.", ".blocks."),
    ("self_attn_layer_norm", "attn_ln"),
    ("encoder_attn_layer_norm", "cross_attn_ln"),
    ("final_layer_norm", "mlp_ln"),
    ("encoder.layer_norm", "encoder.ln_post"),
    ("decoder.layer_norm", "decoder.ln"),
    ("self_attn", "attn"),
    ("encoder_attn", "cross_attn"),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("out_proj", "out"),
    ("fc1", "mlp.0"),
    ("fc2", "mlp.2"),
)


def renamed(variables: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of a CTranslate2 model under their names in transformers.

    The key projections have no bias in Whisper; CTranslate2 stores zeros for it, which are checked and left out.
    """
    for name, array in variables.items():
        if array.ndim == 0 or (name == PROJECTION and array is variables.get(EMBEDDINGS)):
            continue  # flags such as num_heads; the tied projection
        match = re.fullmatch(r"(encoder|decoder)/(?:layer_(\d+)/)?([\w/]+)/(\w+)", name)
        side, layer, part, leaf = match.groups() if match else ("", None, "", "")
        parts = (LAYER_PARTS if layer else OTHER_PARTS).get(part, ())
        if not parts or leaf not in LEAVES or len(array) % len(parts):
            raise AsrlibError(f"The CTranslate2 model has the variable {name}, which no Whisper has: fetch it again.")
        prefix = f"model.{side}.layers.{layer}." if layer else f"model.{side}."
        for key, piece in zip(parts, array.reshape(len(parts), -1, *array.shape[1:]), strict=True):
            if key.endswith("k_proj") and LEAVES[leaf] == "bias":
                if piece.any():
                    raise AsrlibError(
                        f"The CTranslate2 model has a bias in {name} where Whisper has none: fetch it again."
                    )
                continue
            yield f"{prefix}{key}.{LEAVES[leaf]}", piece


def to_transformers(source: Path, folder: Path, model_id: str) -> None:
    """Write a transformers checkpoint with the very numbers of a CTranslate2 folder."""
    from safetensors.numpy import save

    config = architectures.config(model_id)
    tensors = dict(renamed(read_model_bin(source / "model.bin")))
    expected = {name: tuple(tensor.shape) for name, tensor in architectures.architecture(model_id).state_dict().items()}
    del expected["proj_out.weight"]  # tied to the embeddings, stored once
    if wrong := set(expected.items()) ^ {(name, tensor.shape) for name, tensor in tensors.items()}:
        raise AsrlibError(
            f"{source} does not hold {model_id}: {min(wrong)[0]} is missing, left over or of another shape."
        )
    files.write_atomic(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    config.dtype = "float32"  # as on the Hub: from_pretrained computes in what it names, whatever the file holds
    config.save_pretrained(folder)
    original = files.read_json(source / "config.json")
    special = architectures.special_tokens(config.vocab_size)
    generation = architectures.generation(special, config.max_target_positions) | {
        "alignment_heads": original["alignment_heads"],
        "suppress_tokens": original["suppress_ids"],
        "begin_suppress_tokens": original["suppress_ids_begin"],
    }
    files.write_atomic(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    _write_processor(source / "tokenizer.json", config, folder)


def _write_processor(tokenizer_json: Path, config: WhisperConfig, folder: Path) -> None:
    """Write feature extractor and tokenizer as on the Hub: with timestamp tokens and the English spelling table.

    Part by part, in the form of the originals: the processor's own ``save_pretrained`` of transformers 5 writes other files, names the
    special tokens in a way that release 4 stumbles over, and leaves out the spelling table of the tokenizer's ``normalize``.
    """
    from transformers import AddedToken, WhisperFeatureExtractor, WhisperTokenizer

    tokenizer = WhisperTokenizer(tokenizer_file=str(tokenizer_json))
    special = sorted(tokenizer.added_tokens_decoder.items())
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [token for _, token in special[1:]], "pad_token": special[0][1]}
    )
    tokenizer.add_tokens([AddedToken(f"<|{step * 0.02:.2f}|>", special=False) for step in range(whisper.POSITIONS + 1)])
    if len(tokenizer) != config.vocab_size:
        raise AsrlibError(
            f"{tokenizer_json} has {len(tokenizer)} tokens, the model {config.vocab_size}: fetch it again."
        )
    WhisperFeatureExtractor(config.num_mel_bins).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = files.read_json(folder / "tokenizer_config.json")
    settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    files.write_atomic(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
    shutil.copyfile(files.data_file("english_spelling.json"), folder / "normalizer.json")


def to_ctranslate2(source: Path, folder: Path) -> None:
    """Convert a transformers folder with CTranslate2's own converter; the precision stays as it is."""
    from transformers import WhisperProcessor

    if not any((source / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise AsrlibError(
            f"{source} has a model but no processor: call processor.save_pretrained({str(source)!r}), then again."
        )
    try:
        from ctranslate2.converters import TransformersConverter
    except ImportError:
        raise AsrlibError("format='ctranslate2' needs the package ctranslate2: pip install faster-whisper.") from None
    TransformersConverter(str(source)).convert(str(folder), force=True)
    processor = WhisperProcessor.from_pretrained(source)
    processor.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    processor.feature_extractor.save_pretrained(folder)


def openai_name(name: str) -> str:
    """Return what openai-whisper calls a tensor of transformers."""
    for old, new in OPENAI_NAMES:
        name = name.replace(old, new)
    return name


def to_openai(source: Path, folder: Path) -> None:
    """Write the one file that ``whisper.load_model(path)`` opens; it holds tensors and numbers only."""
    import torch
    from safetensors.torch import load_file
    from transformers import WhisperConfig

    config = WhisperConfig.from_pretrained(source)
    parts = [load_file(path) for path in source.glob("*.safetensors")]
    tensors = {openai_name(name): tensor for part in parts for name, tensor in part.items()}
    tensors.pop("proj_out.weight", None)  # tied to the embeddings
    dims = {
        "n_mels": config.num_mel_bins,
        "n_audio_ctx": config.max_source_positions,
        "n_audio_state": config.d_model,
        "n_audio_head": config.encoder_attention_heads,
        "n_audio_layer": config.encoder_layers,
        "n_vocab": config.vocab_size,
        "n_text_ctx": config.max_target_positions,
        "n_text_state": config.d_model,
        "n_text_head": config.decoder_attention_heads,
        "n_text_layer": config.decoder_layers,
    }
    with open(folder / "model.pt", "wb") as stream:  # of a path, torch would not say that the disk is full
        torch.save({"dims": dims, "model_state_dict": tensors}, stream)


def to_onnx(source: Path, folder: Path, precision: str) -> None:
    """Export encoder and merged decoder to ONNX with Optimum, in its own environment, as notebook 05 does step by step.

    ``precision`` is ``float32``, or ``int8``: quantized dynamically with the operators that also shrink the embedding.
    """
    from transformers import WhisperProcessor

    plain = folder / "float32" if precision == "int8" else folder
    with optimum_env.Session() as optimum:
        optimum.run("from asrlib.models import optimum_export")
        optimum.run("optimum_export.export(source, folder)", {"source": source, "folder": plain})
        if precision == "int8":
            preset, options = int8_preset()
            given = {"plain": plain, "folder": folder, "preset": preset, "options": options}
            optimum.run("optimum_export.quantize(plain, folder, preset, options)", given)
            shutil.rmtree(plain)
    processor = WhisperProcessor.from_pretrained(source)
    for part in (processor.feature_extractor, processor.tokenizer):  # in two files, which Transformers.js reads
        part.save_pretrained(folder)
    shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")


def int8_preset() -> tuple[str, dict[str, Any]]:
    """Return Optimum's preset for this processor, and its options."""
    options = {"is_static": False, "per_channel": False, "operators_to_quantize": ["MatMul", "Gather", "Transpose"]}
    if platform.machine() in ("arm64", "aarch64"):
        return "arm64", options
    if "avx512_vnni" in hardware.cpu_features():
        return "avx512_vnni", options
    return "avx2", options | {"reduce_range": True}  # without VNNI, sums of 8-bit products would saturate at full range

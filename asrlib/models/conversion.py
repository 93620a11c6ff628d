"""One set of weights, three formats: how CTranslate2, transformers and openai-whisper store a Whisper model.

CTranslate2's ``model.bin`` (what faster-whisper reads) is read here byte by byte, because transformers has a converter to
it but none from it. Values are never changed, only their names and where they lie.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError, hardware, whisper
from asrlib.io import files
from asrlib.models import architectures, optimum_env

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import WhisperConfig

__all__ = [
    "openai_name",
    "read_model_bin",
    "renamed",
    "save_processor",
    "to_ctranslate2",
    "to_onnx",
    "to_openai",
    "to_transformers",
]


MODEL_BIN_VERSION = 6
DTYPES = ("float32", "int8", "int16", "int32", "float16")  # by number in the file; 5, bfloat16, numpy cannot hold


class _Cursor:
    """Read a binary file by fields; every length is checked against what is left before anything is made of it."""

    def __init__(self, path: Path) -> None:
        import numpy as np

        self.path, self.offset = path, 0
        self.data = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)

    def wrong(self, what: str) -> AsrlibError:
        return AsrlibError(
            f"{self.path} is no valid CTranslate2 file: {what} at byte {self.offset:,}; delete it and fetch it again."
        )

    def skip(self, size: int) -> int:
        """Step over ``size`` bytes and return where they begin."""
        if size > len(self.data) - self.offset:
            raise self.wrong(f"it ends within a field of {size:,} bytes")
        self.offset += size
        return self.offset - size

    def unpack(self, format: str) -> tuple[int, ...]:
        return struct.unpack_from(format, self.data, self.skip(struct.calcsize(format)))

    def string(self) -> str:
        (size,) = self.unpack("<H")
        start = self.skip(size)
        raw = self.data[start : self.offset].tobytes()
        try:
            text = raw.removesuffix(b"\0").decode("ascii")
        except UnicodeDecodeError:
            text = ""
        if not text.isprintable() or not text or not raw.endswith(b"\0"):
            raise self.wrong("a name is not text")
        return text

    def array(self) -> np.ndarray:
        import numpy as np

        (rank,) = self.unpack("<B")
        shape = self.unpack(f"<{rank}I")
        kind, size = self.unpack("<BI")
        if rank > 4 or 0 in shape or kind >= len(DTYPES):
            raise self.wrong(f"an array has the shape {shape} and the data type {kind}")
        dtype = np.dtype(DTYPES[kind]).newbyteorder("<")
        if math.prod(shape) * dtype.itemsize != size:
            raise self.wrong(f"an array of shape {shape} has {size:,} bytes")
        start = self.skip(size)
        return self.data[start : self.offset].view(dtype).reshape(shape)


def read_model_bin(path: str | Path) -> dict[str, np.ndarray]:
    """Read the weights of a CTranslate2 Whisper model.

    The layout is that of ``ctranslate2.specs.ModelSpec`` (binary version 6): version, name and revision of the
    specification, then each variable's name, rank, shape, type, size and bytes, then aliases.

    Args:
        path: the file ``model.bin``; it is mapped, not read into memory.

    Returns:
        Read-only arrays by name; an alias gives the very array that it names.

    Raises:
        AsrlibError: no such file, another kind of file, or one that is truncated or forged in any length.
    """
    path = Path(path)
    if not path.is_file():
        raise AsrlibError(f"{path} is missing: fetch the checkpoint again.")
    cursor = _Cursor(path)
    version = cursor.unpack("<I")
    name = cursor.string()
    if version != (MODEL_BIN_VERSION,) or name != "WhisperSpec":
        raise cursor.wrong(
            f"it holds {name!r} in version {version[0]}, not a Whisper model in version {MODEL_BIN_VERSION}"
        )
    _, count = cursor.unpack("<II")
    arrays: dict[str, np.ndarray] = {}
    for _ in range(count):
        _add(arrays, cursor, cursor.string(), cursor.array)
    (count,) = cursor.unpack("<I")
    for _ in range(count):
        _add(arrays, cursor, cursor.string(), lambda: arrays.get(cursor.string()))
    if cursor.offset != len(cursor.data):
        raise cursor.wrong("there are bytes after the end")
    return arrays


def _add(arrays: dict[str, np.ndarray], cursor: _Cursor, name: str, read: Callable[[], Any]) -> None:
    if name in arrays:
        raise cursor.wrong(f"{name} occurs twice")
    value = read()
    if value is None:
        raise cursor.wrong(f"{name} stands for a variable that is not there")
    arrays[name] = value


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
    "conv1": "conv1",
    "conv2": "conv2",
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
    "layer_norm": "layer_norm",
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
        parts = LAYER_PARTS.get(part, ()) if layer else (OTHER_PARTS[part],) if part in OTHER_PARTS else ()
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
    generation = architectures.generation(config) | {
        "alignment_heads": original["alignment_heads"],
        "suppress_tokens": original["suppress_ids"],
        "begin_suppress_tokens": original["suppress_ids_begin"],
    }
    files.write_atomic(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    _write_processor(source / "tokenizer.json", config, folder)


def _write_processor(tokenizer_json: Path, config: WhisperConfig, folder: Path) -> None:
    """Write feature extractor and tokenizer as on the Hub: with timestamp tokens and the English spelling table."""
    from transformers import AddedToken, WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

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
    save_processor(WhisperProcessor(WhisperFeatureExtractor(config.num_mel_bins), tokenizer), folder)


def save_processor(processor: Any, folder: Path) -> None:
    """Write a processor's files in the form of the originals, which every release of transformers reads.

    The processor's own ``save_pretrained`` of release 5 writes one ``processor_config.json`` in the place of
    ``preprocessor_config.json``, names the special tokens in a way that release 4 stumbles over, and leaves out the spelling table
    of English that the tokenizer's ``normalize`` needs.
    """
    processor.feature_extractor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
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
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            tensors[openai_name(name)] = tensor
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
    """Export to ONNX with Optimum, in its own environment: encoder and merged decoder, as notebook 05 does step by step.

    Args:
        source: folder of a transformers checkpoint with its processor.
        folder: where to write.
        precision: ``float32``; or ``int8``, quantized dynamically with the operators that also shrink the embedding.
    """
    from transformers import WhisperProcessor

    plain = folder / "float32" if precision == "int8" else folder
    with optimum_env.Session() as optimum:
        optimum.run("from asrlib.models import optimum_export")
        optimum.run("optimum_export.export(source, folder)", {"source": source, "folder": plain})
        if precision == "int8":
            preset, options = _int8()
            given = {"plain": plain, "folder": folder, "preset": preset, "options": options}
            optimum.run("optimum_export.quantize(plain, folder, preset, options)", given)
            shutil.rmtree(plain)
    processor = WhisperProcessor.from_pretrained(source)
    for part in (processor.feature_extractor, processor.tokenizer):  # in two files, which Transformers.js reads
        part.save_pretrained(folder)
    shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")


def _int8() -> tuple[str, dict[str, Any]]:
    """Return Optimum's preset for this processor and its options; without VNNI, sums of 8-bit products would saturate at
    full range.
    """
    import platform

    options = {"is_static": False, "per_channel": False, "operators_to_quantize": ["MatMul", "Gather", "Transpose"]}
    if platform.machine() in ("arm64", "aarch64"):
        return "arm64", options
    if "avx512_vnni" in hardware.cpu_features():
        return "avx512_vnni", options
    return "avx2", options | {"reduce_range": True}

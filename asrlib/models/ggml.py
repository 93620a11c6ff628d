"""Whisper weights as whisper.cpp reads them: one ggml file, in half precision or in blocks of 32 quantized weights.

The layout is the one of whisper.cpp's ``models/convert-h5-to-ggml.py`` and ``examples/quantize``: sizes of the model, filters of
the mel spectrogram, vocabulary, tensors. Matrices alone are quantized: ``whisper_model_load`` wants half precision for
convolutions, float32 for biases, norms and positions.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from asrlib import AsrlibError
from asrlib.io import files
from asrlib.models import architectures
from asrlib.models.conversion import openai_name

if TYPE_CHECKING:
    import torch
    from transformers import WhisperConfig

__all__ = ["FILE", "PRECISIONS", "blocks", "file_bytes", "to_ggml", "vocabulary"]

FILE = "ggml-model.bin"
MAGIC = 0x67676D6C  # "ggml"
BLOCK = 32  # weights that share a scale
PRECISIONS = {"f16": 1, "q8_0": 2007, "q5_0": 2008}  # of a file; 2 is the version of the block formats
KINDS = {"f32": (0, 128), "f16": (1, 64), "q8_0": (8, 34), "q5_0": (6, 22)}  # of a tensor: number, bytes of a block
VOCABULARIES = (51_864, 51_865, 51_866)  # whisper.cpp knows the special tokens by the size alone
PIECE = 1 << 16  # blocks packed at a time, so that memory does not grow with the tensor


class _Tensor(NamedTuple):
    source: str  # its name in transformers
    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def head(self) -> bytes:
        name = self.name.encode()
        shape = (*self.shape, 1) if self.name in ("encoder.conv1.bias", "encoder.conv2.bias") else self.shape
        return struct.pack(f"<{3 + len(shape)}i", len(shape), len(name), KINDS[self.kind][0], *reversed(shape)) + name

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * KINDS[self.kind][1] // BLOCK


def file_bytes(config: WhisperConfig, precision: str, words: list[bytes]) -> int:
    """Return the size of a file in bytes, without any weights; arguments and errors as for `to_ggml`.

    Args:
        config: the architecture.
        precision: one of `PRECISIONS`.
        words: of its `vocabulary`.
    """
    _check(config, precision)
    tensors = _tensors(config, precision)
    return len(_head(config, precision, words)) + sum(len(tensor.head) + tensor.nbytes for tensor in tensors)


def to_ggml(source: Path, folder: Path, precision: str) -> None:
    """Write the one file that whisper.cpp opens, `FILE`, from the folder of a transformers checkpoint.

    Matrices are rounded to half precision and then quantized, as by whisper.cpp's own two programs.

    Args:
        source: folder with ``*.safetensors``, ``config.json`` and a tokenizer.
        folder: where to write.
        precision: ``f16``; ``q8_0``, 8.5 bits a weight; ``q5_0``, 5.5 bits a weight.

    Raises:
        AsrlibError: unknown precision, an architecture or a vocabulary that whisper.cpp has no place for, no tokenizer, a
            tensor that is missing, of another shape, or not finite in half precision.
    """
    from safetensors import safe_open
    from transformers import WhisperConfig

    config = WhisperConfig.from_pretrained(source)
    _check(config, precision)
    with contextlib.ExitStack() as stack, open(folder / FILE, "wb") as stream:
        parts = [stack.enter_context(safe_open(path, "pt")) for path in source.glob("*.safetensors")]
        places = {name: part for part in parts for name in part.keys()}  # noqa: SIM118 - it is no mapping
        stream.write(_head(config, precision, vocabulary(source, config)))
        for tensor in _tensors(config, precision):
            stream.write(tensor.head)
            values = _values(tensor, places, source)
            for piece in blocks(values.flatten().numpy(), tensor.kind):
                stream.write(piece.tobytes())


def _values(tensor: _Tensor, places: dict[str, Any], source: Path) -> torch.Tensor:
    """Return the values of one tensor, rounded to float32 or float16."""
    import torch

    if tensor.source not in places:
        raise AsrlibError(f"{source} has no weights for {tensor.source}: save or fetch the checkpoint again.")
    values = places[tensor.source].get_tensor(tensor.source)
    if values.shape != tensor.shape:
        raise AsrlibError(
            f"{tensor.source} in {source} has the shape {tuple(values.shape)}, its config.json says {tensor.shape}: save or "
            "fetch the checkpoint again."
        )
    values = values.to(torch.float32 if tensor.kind == "f32" else torch.float16)
    if not torch.stack(values.aminmax()).isfinite().all():  # of all values, this takes twenty times as long
        raise AsrlibError(
            f"{tensor.source} in {source} has values that are no numbers in half precision: train or save the model again."
        )
    return values


def vocabulary(folder: Path, config: WhisperConfig) -> list[bytes]:
    """Return the tokens below the first special one as bytes, from a folder's tokenizer; the last of many languages is empty."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte = {character: value for value, character in bytes_to_unicode().items()}
    model = files.read_json(folder / "tokenizer.json").get("model") or {"vocab": files.read_json(folder / "vocab.json")}
    count = architectures.special_tokens(config.vocab_size)[architectures.END]
    try:
        texts = {number: text for text, number in model["vocab"].items()}
        return [bytes(byte[character] for character in texts[number]) for number in range(count)]
    except (AttributeError, KeyError, TypeError):
        raise AsrlibError(
            f"{folder} has no tokenizer of Whisper's {count:,} words and pieces: call processor.save_pretrained("
            f"{str(folder)!r}) with the processor of the model it was trained from, then again."
        ) from None


def _check(config: WhisperConfig, precision: str) -> None:
    """Refuse what whisper.cpp cannot load."""
    if precision not in PRECISIONS:
        raise AsrlibError(f"whisper.cpp's files are not written in {precision!r}: use one of {', '.join(PRECISIONS)}.")
    if config.vocab_size not in VOCABULARIES:
        raise AsrlibError(
            f"whisper.cpp cannot use a vocabulary of {config.vocab_size:,} tokens, since it knows the special tokens of "
            f"{', '.join(f'{size:,}' for size in VOCABULARIES)} only: use another format, or a model with one of these."
        )
    if {config.encoder_ffn_dim, config.decoder_ffn_dim} != {4 * config.d_model} or config.d_model % BLOCK:
        raise AsrlibError(
            f"whisper.cpp expects a width that {BLOCK} divides and feed-forward layers four times as wide, not "
            f"{config.d_model} and {config.encoder_ffn_dim}: use another format for this model."
        )


def _head(config: WhisperConfig, precision: str, words: list[bytes]) -> bytes:
    """Return all that comes before the tensors."""
    audio = (config.max_source_positions, config.d_model, config.encoder_attention_heads, config.encoder_layers)
    text = (config.max_target_positions, config.d_model, config.decoder_attention_heads, config.decoder_layers)
    filters = _mel_filters(config.num_mel_bins)
    sizes = (MAGIC, config.vocab_size, *audio, *text, config.num_mel_bins, PRECISIONS[precision], *filters.shape)
    listed = [struct.pack("<i", len(word)) + word for word in words]
    return struct.pack("<14i", *sizes) + filters.tobytes() + struct.pack("<i", len(words)) + b"".join(listed)


def _mel_filters(bins: int) -> np.ndarray:
    """Return the filters of openai-whisper, (bins, 201), bit for bit.

    librosa made them: it rounded the triangles to float32 before it divided them by their widths, transformers does not.
    """
    from transformers.audio_utils import hertz_to_mel, mel_filter_bank, mel_to_hertz

    filters = mel_filter_bank(201, bins, 0.0, 8000.0, 16_000, mel_scale="slaney").T.astype("<f4", order="C")
    edges = mel_to_hertz(np.linspace(0.0, hertz_to_mel(8000.0, "slaney"), bins + 2), "slaney")
    filters *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return filters


def _tensors(config: WhisperConfig, precision: str) -> Iterator[_Tensor]:
    """Yield what the file holds after its head."""
    import torch
    from transformers import WhisperForConditionalGeneration

    with torch.device("meta"):
        model = WhisperForConditionalGeneration._from_config(config)
    for source, parameter in model.state_dict().items():
        if source == "proj_out.weight":  # tied to the embeddings
            continue
        name, shape = openai_name(source), tuple(parameter.shape)
        kind = {1: "f32", 2: precision, 3: "f16"}[len(shape)]
        yield _Tensor(source, name, shape, "f32" if name.endswith("positional_embedding") else kind)


def blocks(weights: np.ndarray, kind: str) -> Iterator[np.ndarray]:
    """Yield weights as ggml stores them, some thousand blocks at a time (ggml, ``quantize_row_q5_0_ref``).

    Args:
        weights: float16 or, for ``f32``, float32, in one dimension; for the quantized kinds a multiple of 32.
        kind: ``f32`` and ``f16``: as they are; ``q8_0``: blocks of a float16 scale and 32 signed bytes; ``q5_0``: blocks of
            a float16 scale, the 32 highest bits, and two by two the lower 4 bits.
    """
    if kind in ("f32", "f16"):
        yield weights.astype(f"<{kind[0]}{int(kind[1:]) // 8}", copy=False)
        return
    rows = weights.reshape(-1, BLOCK)
    pack = _q8_0 if kind == "q8_0" else _q5_0
    for first in range(0, len(rows), PIECE):
        yield pack(rows[first : first + PIECE].astype(np.float32))


def _q8_0(rows: np.ndarray) -> np.ndarray:
    """Map the largest weight of a block, (blocks, 32), to -127 or 127."""
    packed = np.empty(len(rows), [("scale", "<f2"), ("levels", "i1", BLOCK)])
    packed["scale"] = scale = np.abs(rows).max(axis=1) / 127
    levels = rows * _inverse(scale)
    whole = np.trunc(levels)
    packed["levels"] = whole + np.trunc(2 * (levels - whole))  # halves go away from zero, as in C
    return packed


def _q5_0(rows: np.ndarray) -> np.ndarray:
    """Map the weight of a block, (blocks, 32), that is farthest from zero to level 0 of 0 to 31, and zero to level 16."""
    packed = np.empty(len(rows), [("scale", "<f2"), ("high", "u1", 4), ("low", "u1", BLOCK // 2)])
    farthest = np.abs(rows).argmax(axis=1)
    packed["scale"] = scale = rows[np.arange(len(rows)), farthest] / -16
    levels = np.minimum((rows * _inverse(scale) + np.float32(16.5)).astype(np.uint8), 31)
    packed["high"] = np.packbits(levels >> 4, axis=1, bitorder="little")
    packed["low"] = levels[:, : BLOCK // 2] & 15 | (levels[:, BLOCK // 2 :] & 15) << 4
    return packed


def _inverse(scale: np.ndarray) -> np.ndarray:
    """Return 1 / scale as a column, 0 for a block of zeros."""
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)[:, None]

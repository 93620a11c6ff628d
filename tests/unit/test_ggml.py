"""Files for whisper.cpp: their blocks, their layout, their size, what is refused; and that whisper.cpp hears with them."""

import ctypes
import functools
import importlib.metadata
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from asrlib import AsrlibError
from asrlib.models import architectures, checkpoints, ggml

PACKAGED = ("openai/whisper-base", "openai/whisper-tiny.en")
WORDS = 50_256  # of an English-only vocabulary


@pytest.fixture(scope="module")
def small():
    """A Whisper with random weights, as small as whisper.cpp takes one."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {"d_model": 32, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "encoder_layers": 2, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    tokens = {"pad_token_id": WORDS, "bos_token_id": WORDS, "eos_token_id": WORDS, "begin_suppress_tokens": None}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(vocab_size=51_864, **sizes, **heads, **tokens)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:
                parameter.uniform_(-0.5, 0.5)  # biases and norms too: zeros and ones would hide a swap
    return model


@pytest.fixture(scope="module")
def words():
    """As many tokens as Whisper has: every byte, then pairs of bytes, most of them no text in any encoding."""
    singles = [bytes([value]) for value in range(256)]
    return singles + [first + second for first in singles for second in singles][: WORDS - 256]


@pytest.fixture
def saved(small, words, tmp_path):
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    character = bytes_to_unicode()
    vocabulary = {"".join(character[value] for value in word): number for number, word in enumerate(words)}
    small.save_pretrained(tmp_path / "fine_tuned")
    (tmp_path / "fine_tuned" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    return tmp_path / "fine_tuned"


# ---- blocks


def packed(weights, kind):
    return np.concatenate(list(ggml.blocks(weights, kind))).tobytes()


halves = arrays.arrays(
    np.float16,
    st.integers(1, 4).map(lambda count: 32 * count),
    elements=st.floats(-60_000, 60_000, width=16) | st.floats(-0.25, 0.25, width=16),
)


@functools.cache
def shared_library(name):
    """Open a library that pywhispercpp's wheel brings."""
    import _pywhispercpp  # noqa: F401  # its own loading finds those that it depends on

    found = [path for path in importlib.metadata.files("pywhispercpp") if f"{name}-" in path.name]
    return ctypes.CDLL(str(found[0].locate()))


@given(weights=halves)
@pytest.mark.parametrize("kind", ["q8_0", "q5_0"])
def test_blocks_are_those_of_ggml_bit_for_bit(kind, weights):
    values = weights.astype(np.float32) + 0  # no negative zeros: of blocks of them, ggml's scale has the other sign
    theirs = ctypes.create_string_buffer(len(values) // 32 * {"q8_0": 34, "q5_0": 22}[kind])
    quantize = getattr(shared_library("libggml-base"), f"quantize_row_{kind}_ref")
    quantize(values.ctypes.data_as(ctypes.c_void_p), theirs, ctypes.c_int64(len(values)))
    assert packed(values.astype(np.float16), kind) == theirs.raw


def test_large_tensors_are_packed_in_pieces(monkeypatch):
    weights = np.random.default_rng(0).standard_normal(32 * 10).astype(np.float16)
    whole = packed(weights, "q5_0")
    monkeypatch.setattr(ggml, "PIECE", 3)
    assert [len(piece) for piece in ggml.blocks(weights, "q5_0")] == [3, 3, 3, 1]
    assert packed(weights, "q5_0") == whole


# ---- the file


class Reader:
    """Reads a file field by field, as `whisper_model_load` does."""

    def __init__(self, path):
        self.data, self.offset = path.read_bytes(), 0

    def integers(self, count):
        self.offset += 4 * count
        return struct.unpack_from(f"<{count}i", self.data, self.offset - 4 * count)

    def bytes(self, count):
        self.offset += count
        return self.data[self.offset - count : self.offset]

    def tensors(self):
        """Return {name: (number of the type, shape, data)}."""
        found = {}
        sizes = {0: 128, 1: 64, 6: 22, 8: 34}  # ggml's numbers of float32, float16, q5_0, q8_0: bytes of 32 weights
        while self.offset < len(self.data):
            rank, length, kind = self.integers(3)
            shape = self.integers(rank)[::-1]
            name = self.bytes(length).decode()
            found[name] = (kind, shape, self.bytes(int(np.prod(shape)) * sizes[kind] // 32))
        return found


@pytest.mark.parametrize(
    ("format", "file_type", "matrix"), [("ggml", 1, 1), ("ggml-q8_0", 2007, 8), ("ggml-q5_0", 2008, 6)]
)
def test_the_layout_is_whisper_cpps(saved, small, words, cache, format, file_type, matrix):
    import whisper

    path = checkpoints.fetch(saved, format)
    read = Reader(path)
    assert read.integers(12) == (0x67676D6C, 51_864, 1500, 32, 2, 2, 448, 32, 2, 1, 80, file_type)
    assert read.integers(2) == (80, 201)
    filters = np.frombuffer(read.bytes(4 * 80 * 201), "<f4").reshape(80, 201)
    assert np.array_equal(filters, whisper.audio.mel_filters("cpu", 80).numpy())
    (count,) = read.integers(1)
    assert [read.bytes(*read.integers(1)) for _ in range(count)] == words
    tensors = read.tensors()
    state = small.state_dict()
    assert len(tensors) == len(state) - 1  # all but the tied projection
    kinds = {name: tensors[name][0] for name in tensors}
    assert kinds["decoder.token_embedding.weight"] == kinds["encoder.blocks.1.mlp.0.weight"] == matrix
    assert kinds["encoder.conv1.weight"] == kinds["encoder.conv2.weight"] == 1
    floats = {"encoder.positional_embedding", "decoder.positional_embedding"}
    assert {name for name in kinds if kinds[name] == 0} == floats | {
        name for name in kinds if name.endswith("bias") or ("ln" in name and name.endswith("weight"))
    }
    assert tensors["encoder.conv2.bias"][1] == (32, 1)
    bias = np.frombuffer(tensors["decoder.blocks.0.cross_attn.query.bias"][2], "<f4")
    assert np.array_equal(bias, state["model.decoder.layers.0.encoder_attn.q_proj.bias"])
    query = state["model.decoder.layers.0.encoder_attn.q_proj.weight"].half().numpy().ravel()
    assert tensors["decoder.blocks.0.cross_attn.query.weight"][2] == packed(
        query, {1: "f16", 8: "q8_0", 6: "q5_0"}[matrix]
    )
    assert path.stat().st_size == ggml.file_bytes(small.config, checkpoints.GGML[format], words)


def test_a_file_follows_what_its_folder_holds_and_knows_its_origin(saved, cache):
    first = checkpoints.fetch(saved, "ggml-q5_0")
    assert checkpoints.available(saved, "ggml-q5_0")
    assert not checkpoints.available(saved, "ggml-q8_0")
    assert checkpoints.fetch(saved, "ggml-q5_0") == first
    note = checkpoints.provenance(first)
    assert (note["model"], note["source"], len(note["sha256"])) == ("fine_tuned", "local", 64)
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"max_length": 100}))
    assert not checkpoints.available(saved, "ggml-q5_0")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_of_every_precision_are_read_from_every_part(saved, small, cache, dtype, tmp_path):
    import torch

    model = type(small)(small.config)
    model.load_state_dict(small.state_dict())
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "parts", max_shard_size="1MB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    (tmp_path / "parts" / "tokenizer.json").write_bytes((saved / "tokenizer.json").read_bytes())
    read = Reader(checkpoints.fetch(tmp_path / "parts", "ggml"))
    read.offset = len(read.data) - sum(
        len(tensor.head) + tensor.nbytes for tensor in ggml._tensors(small.config, "f16")
    )
    tensors = read.tensors()
    for source, name in (("encoder_attn.q_proj.weight", "cross_attn.query.weight"), ("fc2.bias", "mlp.2.bias")):
        expected = model.state_dict()[f"model.decoder.layers.0.{source}"].to(
            torch.float16 if "q_" in source else torch.float32
        )
        assert tensors[f"decoder.blocks.0.{name}"][2] == expected.numpy().tobytes()


# ---- what is refused


def refused(saved, complaint):
    with pytest.raises(AsrlibError, match=complaint) as caught:
        checkpoints.fetch(saved, "ggml-q8_0")
    assert "\n" not in str(caught.value)
    assert not checkpoints.available(saved, "ggml-q8_0")


def change(saved, **tensors):
    """Save the folder's weights anew, some of them changed or, with None, left out."""
    import safetensors.torch

    found = safetensors.torch.load_file(saved / "model.safetensors")
    found |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in found.items() if tensor is not None}
    safetensors.torch.save_file(kept, saved / "model.safetensors", metadata={"format": "pt"})


NORM = "model__encoder__layer_norm__bias"


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (None, r"no weights for model\.encoder\.layer_norm\.bias: save or fetch"),
        ([0.0] * 31, r"shape \(31,\), its config\.json says \(32,\)"),
        ([0.0] * 31 + [float("nan")], "no numbers in half precision"),
        ([float("-inf")] + [0.0] * 31, "no numbers in half precision"),
    ],
)
def test_weights_that_do_not_make_the_model_are_refused(saved, cache, values, complaint):
    import torch

    change(saved, **{NORM: None if values is None else torch.tensor(values)})
    refused(saved, complaint)


def test_weights_beyond_half_precision_are_refused_in_matrices_alone(saved, cache, small):
    import torch

    change(saved, **{NORM: torch.full((32,), 1e6)})
    assert checkpoints.fetch(saved, "ggml-q8_0").is_file()
    change(saved, model__decoder__layers__0__fc1__weight=torch.full((128, 32), 1e6))
    refused(saved, r"fc1\.weight in .* no numbers in half precision")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"vocab_size": 51_870}, "vocabulary of 51,870 tokens"),
        ({"d_model": 40}, "width that 32 divides and feed-forward layers four times as wide, not 40 and 128"),
        ({"decoder_ffn_dim": 64}, "four times as wide"),
    ],
)
def test_architectures_that_whisper_cpp_has_no_place_for_are_refused(saved, cache, settings, complaint):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | settings))
    refused(saved, complaint)


@pytest.mark.parametrize(
    "content", [None, "{}", '{"model": {"vocab": {"a": 0}}}', '{"model": {"vocab": [["a", -1.5]]}}', "["]
)
def test_a_folder_without_whispers_tokenizer_is_one_sentence(saved, cache, content):
    if content is None:
        (saved / "tokenizer.json").unlink()
    else:
        (saved / "tokenizer.json").write_text(content)
    refused(saved, "cannot be read as JSON" if content == "[" else "has no tokenizer of Whisper's 50,256 words")


def test_an_older_tokenizer_in_two_files_serves_too(saved, words, small):
    vocabulary = json.loads((saved / "tokenizer.json").read_text())["model"]["vocab"]
    (saved / "tokenizer.json").unlink()
    (saved / "vocab.json").write_text(json.dumps(vocabulary | {"<|endoftext|>": WORDS}))
    assert ggml.vocabulary(saved, small.config) == words


# ---- sizes


@pytest.mark.weights
@pytest.mark.parametrize("precision", ggml.PRECISIONS)
@pytest.mark.parametrize("model_id", PACKAGED)
def test_the_counted_size_is_the_files(model_id, precision):
    (format,) = (format for format, value in checkpoints.GGML.items() if value == precision)
    size = checkpoints.fetch(model_id, format).stat().st_size
    assert checkpoints.ggml_bytes(model_id, precision) == size
    assert checkpoints.ggml_bytes(architectures.config(model_id), precision) == size


@pytest.mark.weights
@pytest.mark.parametrize(
    ("model_id", "precision", "published"),  # bytes of the files that whisper.cpp publishes on the Hub
    [
        ("openai/whisper-tiny", "f16", 77_691_713),
        ("openai/whisper-base", "f16", 147_951_465),
        ("openai/whisper-small", "f16", 487_601_967),
        ("openai/whisper-large-v3", "f16", 3_095_033_483),
        ("openai/whisper-large-v3", "q5_0", 1_081_140_203),
        ("openai/whisper-large-v3-turbo", "f16", 1_624_555_275),
        ("openai/whisper-large-v3-turbo", "q8_0", 874_188_075),
        ("openai/whisper-large-v3-turbo", "q5_0", 574_041_195),
        ("openai/whisper-medium", "q5_0", 539_212_467),
    ],
)
def test_sizes_are_the_published_ones_to_the_byte(model_id, precision, published):
    assert checkpoints.ggml_bytes(model_id, precision) == published


@pytest.mark.weights
def test_english_files_lack_the_one_special_token_that_the_published_ones_name():
    # 77,704,715 bytes are published: a length and "<|endoftext|>", which whisper.cpp, and its own newer converter, make up.
    assert checkpoints.ggml_bytes("openai/whisper-tiny.en") == 77_704_715 - 4 - len("<|endoftext|>")


def test_unknown_precisions_and_architectures_are_one_sentence(small, words):
    with pytest.raises(AsrlibError, match="not written in 'q4_0': use one of f16, q8_0, q5_0"):
        ggml.file_bytes(small.config, "q4_0", words)
    with pytest.raises(AsrlibError, match="'openai/whisper-huge' is unknown"):
        checkpoints.ggml_bytes("openai/whisper-huge")


# ---- whisper.cpp


@pytest.fixture(scope="module")
def clips():
    from asrlib import corpora

    return corpora.load("telephone", "en", "test").select([12, 24, 84])  # whole sentences


def heard(model_id, format, clips):
    """Return what whisper.cpp writes for the clips, searching greedily, without timestamps and second attempts."""
    import torch
    from pywhispercpp.model import Model

    from asrlib import audio

    model = Model(
        str(checkpoints.fetch(model_id, format)),
        redirect_whispercpp_logs_to=None,
        n_threads=torch.get_num_threads(),
        print_progress=False,
        language="en",
        no_timestamps=True,
        single_segment=True,
        temperature_inc=0.0,
        greedy={"best_of": 1},
        suppress_nst=True,
    )
    return [" ".join(part.text for part in model.transcribe(audio.load(row["audio"]))) for row in clips]


@pytest.mark.weights
@pytest.mark.parametrize("model_id", PACKAGED)
def test_whisper_cpp_hears_the_same_words_and_quantized_nearly(model_id, clips, request):
    from asrlib import scoring, text
    from asrlib.decoding import transcription

    model, processor = request.getfixturevalue("tiny_en" if model_id.endswith(".en") else "base")
    language = "en" if model.generation_config.is_multilingual else None
    ours = [one.text for one in transcription.transcribe(model, processor, clips, language=language, strict=True)]
    assert sum(len(words.split()) for words in ours) > 20
    assert heard(model_id, "ggml", clips) == ours
    quantized = heard(model_id, "ggml-q8_0", clips)
    assert scoring.score(ours, quantized, normalizer=text.normalizer("en")).wer < 0.1

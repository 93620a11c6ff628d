"""Linear layers in 8 bits: as near to float as 8 bits allow, each position by itself, and the words of the model."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperConfig

from asrlib import AsrlibError, corpora, hardware, scoring, text
from asrlib.decoding import transcription
from asrlib.io import files
from asrlib.models import folders, int8

TINY = "openai/whisper-tiny.en"
ROOT = files.repository()


def made(seed, inputs, outputs, positions, bias=True):
    """Return a layer and an input whose positions are of very different size."""
    draw = torch.Generator().manual_seed(seed)
    layer = torch.nn.Linear(inputs, outputs, bias=bias)
    for part in layer.parameters():
        part.data = torch.randn(part.shape, generator=draw) * 10 ** (torch.rand(1, generator=draw) * 2 - 1)
    sizes = 10 ** (6 * torch.rand(positions, 1, generator=draw) - 3)
    return layer, torch.randn(positions, inputs, generator=draw) * sizes


def beyond(layer, x, top):
    """Return by how many times the largest error exceeds what the rounding of both sides allows."""
    weight, found = layer.weight.detach().double(), int8.Int8Linear(layer)(x).double()
    exact = torch.nn.functional.linear(x.double(), weight, None if layer.bias is None else layer.bias.detach().double())
    half = weight.abs().amax(dim=1) / 127 / 2, x.double().abs().amax(dim=1, keepdim=True) / top / 2  # a step
    inputs = x.double().abs().sum(dim=1, keepdim=True) * half[0]
    weights = half[1] * (weight.abs().sum(dim=1) + len(weight.T) * half[0])
    return float(((found - exact).abs() / (1.001 * (inputs + weights) + 1e-5 * exact.abs() + 1e-12)).max())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 96), st.integers(1, 96), st.integers(1, 40), st.booleans())
def test_products_are_as_near_as_the_rounding_allows(seed, inputs, outputs, positions, bias):
    layer, x = made(seed, inputs, outputs, positions, bias)
    assert beyond(layer, x, int8.top()) <= 1


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 9))
def test_a_position_is_multiplied_as_if_it_were_alone(seed, positions):
    layer, x = made(seed, 64, 48, positions, bias=False)
    x[0].abs_()  # another range than all together
    rounded = int8.Int8Linear(layer)
    alone = torch.cat([rounded(row[None]) for row in x])
    torch.testing.assert_close(rounded(x), alone, rtol=1e-6, atol=0)
    torch.testing.assert_close(rounded(x.view(1, positions, 64))[0], alone, rtol=1e-6, atol=0)


def test_silence_and_a_row_without_weights_give_the_bias():
    layer, x = made(0, 32, 16, 4)
    layer.weight.data[3], x[2] = 0, 0
    y = int8.Int8Linear(layer)(x)
    assert torch.equal(y[2], layer.bias.detach())
    assert torch.equal(y[:, 3], layer.bias.detach()[3].expand(4))


def test_a_processor_that_adds_products_in_16_bits_gets_smaller_ones(monkeypatch):
    monkeypatch.setattr(int8, "top", lambda: 63)
    assert beyond(*made(1, 96, 64, 8), 63) <= 1
    layer = torch.nn.Linear(64, 64)
    layer.weight.data.fill_(1.0)
    seen, multiply = [], torch.ops.onednn.qlinear_pointwise
    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", lambda x, *rest: seen.append(x) or multiply(x, *rest))
    int8.Int8Linear(layer)(torch.linspace(-1, 1, 64)[None])
    pairs = 2 * 127 * int(seen[0].max())  # the largest sum of two products
    assert pairs < 2**15 < 2 * 127 * 255


def test_the_largest_integer_is_found_by_a_product_that_would_overflow(monkeypatch):
    whole, multiply = int8.top.__wrapped__, torch.ops.onednn.qlinear_pointwise
    if "avx512_vnni" in hardware.cpu_features():
        assert whole() == 127
    most = (32 * (2**15 - 1) - 64 * 128 * 127) / 127**2  # of 64 products, added in pairs of at most 16 bits

    def poor(x, *rest):
        return multiply(x, *rest).clamp(max=most) if len(x) == 1 else multiply(x, *rest)

    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", poor)
    assert whole() == 63


def test_a_processor_without_fast_integers_is_served_too():
    check = (
        "import sys; sys.path.insert(0, 'tests/unit')\nimport test_int8 as t\n"
        "worst = max(t.beyond(*t.made(seed, 96, 64, 9), t.int8.top()) for seed in range(20))\n"
        "assert worst <= 1, worst\n"
        "layer = t.torch.nn.Linear(64, 64, bias=False)\nlayer.weight.data.fill_(1)\n"
        "for n in (1, 64): assert t.torch.allclose(t.int8.Int8Linear(layer)(t.torch.ones(n, 64)), t.torch.tensor(64.0))\n"
    )
    poor = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, env=poor, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.weights
def test_a_model_in_int8_writes_nearly_what_it_writes_in_float32():
    speech, heard = corpora.load("telephone", "en", "test").select(range(0, 60, 6)), []
    for dtype in (torch.float32, torch.int8):
        model, processor = transcription.load(TINY, device="cpu", dtype=dtype)
        said = transcription.transcribe(model, processor, speech, language="en", strict=True)
        heard.append([one.text for one in said])
    parts = (model.model.encoder.layers, model.model.decoder.layers)
    left = [layer for part in parts for layer in part.modules() if type(layer) is torch.nn.Linear]
    assert not left and type(model.proj_out) is int8.Int8Linear
    assert model.dtype == torch.float32 and model.get_input_embeddings().weight.dtype == torch.float32
    assert scoring.score(*heard, normalizer=text.normalizer("en")).wer <= 0.05


@pytest.mark.weights
def test_8_bits_are_refused_where_they_cannot_be_had(monkeypatch):
    with pytest.raises(AsrlibError, match=r"8 bits are for processors here: .* take float16 on cuda"):
        transcription.load(TINY, device="cuda", dtype=torch.int8)
    with monkeypatch.context() as patch:
        patch.setattr(int8, "top", lambda: torch.ops.onednn.no_such_product())
        with pytest.raises(AsrlibError, match="cannot multiply in 8 bits on this processor: leave out int8"):
            transcription.load(TINY, dtype=torch.int8)
    with monkeypatch.context() as patch:
        patch.setattr(WhisperConfig, "quantization_config", {"load_in_8bit": True}, raising=False)
        with pytest.raises(AsrlibError, match="quantized already: leave out int8"):
            int8.rounded(SimpleNamespace(config=WhisperConfig()))
    monkeypatch.setattr(folders, "exported", lambda path: True)
    with pytest.raises(AsrlibError, match="keeps the precision of its files: leave out int8"):
        transcription.load(TINY, dtype=torch.int8)

"""Linear layers in 8 bits: as near to float as 8 bits allow, each position by itself, and the words of the model."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asrlib import AsrlibError, corpora, hardware, scoring, text
from asrlib.decoding import transcription
from asrlib.models import int8

TINY = "openai/whisper-tiny.en"


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
    layer, x = made(seed, 64, 48, positions)
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
    given, multiply = [], torch.ops.onednn.qlinear_pointwise
    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", lambda x, *rest: given.append(x) or multiply(x, *rest))
    int8.Int8Linear(layer)(torch.linspace(-1, 1, 64)[None])
    pairs = 2 * 127 * int(given[0].max())  # the largest sum of two products
    assert pairs < 2**15 < 2 * 127 * 255


def test_the_largest_integer_is_found_by_a_product_that_would_overflow(monkeypatch):
    whole, multiply = int8.top.__wrapped__, torch.ops.onednn.qlinear_pointwise
    assert whole() in (63, 127)
    if "avx512_vnni" in hardware.cpu_features():
        assert whole() == 127
    monkeypatch.setattr(
        torch.ops.onednn, "qlinear_pointwise", lambda *given: multiply(*given).clamp(max=32 * (2**15 - 1))
    )
    assert whole() == 63


def test_a_processor_without_fast_integers_is_served_too():
    check = (
        "import sys; sys.path.insert(0, 'tests/unit')\nimport test_int8 as t\n"
        "worst = max(t.beyond(*t.made(seed, 96, 64, 9), t.int8.top()) for seed in range(20))\n"
        "assert worst <= 1, worst\nprint(t.int8.top())"
    )
    poor = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", check], env=poor, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("63", "127")


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
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(AsrlibError, match="because it has no oneDNN: leave the model in float32"):
        transcription.load(TINY, dtype=torch.int8)

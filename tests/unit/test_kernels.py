"""Linear layers in oneDNN's layout and attention by products against PyTorch's own, and what must not go that way."""

import contextlib
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune

from asrlib import hardware
from asrlib.decoding import kernels

PRECISIONS = {torch.float32: 1e-4, torch.bfloat16: 0.05}
REORDER = "_reorder_linear_weight"


def layer(inputs=64, outputs=96, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Linear(inputs, outputs, bias=bias).to(dtype).eval()


@pytest.fixture
def asked_anew():
    """Let the processor be asked again in this test, and once more after it."""

    def forget():
        hardware.multiplies.cache_clear()
        hardware.product_seconds.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def reordered(monkeypatch):
    """Return the list of the weights that are laid out in this test."""
    seen, reorder = [], torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(torch.ops.mkldnn, REORDER, lambda weight: (seen.append(weight), reorder(weight))[1])
    return seen


@pytest.fixture
def poor(monkeypatch, asked_anew):
    """Take bfloat16 away from this processor's oneDNN; return how often it was asked for."""
    asked, reorder = [], torch.ops.mkldnn._reorder_linear_weight

    def refuse(weight):
        if weight.dtype == torch.bfloat16:
            asked.append(weight)
            raise RuntimeError(
                "mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx_ne_convert or avx512bw"
            )
        return reorder(weight)

    monkeypatch.setattr(torch.ops.mkldnn, REORDER, refuse)
    return asked


@pytest.mark.parametrize("dtype", PRECISIONS)
@settings(max_examples=30)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    bias=st.booleans(),
    activation=st.sampled_from(["none", "gelu"]),
)
def test_the_numbers_are_the_layers_own(dtype, shape, bias, activation):
    plain = layer(bias=bias, dtype=dtype)
    x = torch.randn(*shape, 64).to(dtype)
    with torch.inference_mode(), kernels.laid_out():
        expected = plain(x)
        expected = torch.nn.functional.gelu(expected) if activation == "gelu" else expected
        found = kernels.linear(plain, x, activation)
    assert found.shape == expected.shape
    assert found.dtype == dtype
    assert torch.allclose(found.float(), expected.float(), atol=PRECISIONS[dtype])


@pytest.mark.parametrize("dtype", PRECISIONS)
@torch.no_grad()
def test_a_weight_is_laid_out_once_where_the_processor_multiplies_it(reordered, dtype):
    able, plain, x = hardware.multiplies(dtype), layer(dtype=dtype), torch.randn(3, 64, dtype=dtype)
    reordered.clear()
    with kernels.laid_out():
        first = kernels.linear(plain, x)
        with kernels.laid_out():
            assert torch.equal(kernels.linear(plain, x), first)
    assert len(reordered) == able


@torch.no_grad()
def test_a_processor_without_bfloat16_is_asked_once_and_then_left_to_pytorch(poor):
    plain, x = layer(dtype=torch.bfloat16), torch.randn(3, 64, dtype=torch.bfloat16)
    query = torch.randn(1, 2, 5, 8, dtype=torch.bfloat16)
    with kernels.laid_out():
        assert torch.equal(kernels.linear(plain, x), plain(x))
        assert torch.equal(kernels.linear(plain, x, "gelu"), torch.nn.functional.gelu(plain(x)))
    fused = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert torch.equal(kernels.attention(query, query, query), fused)
    assert hardware.best_dtype("cpu") == torch.float32
    assert len(poor) == 1
    assert hardware.multiplies(torch.float32)


@torch.no_grad()
def test_a_build_without_onednn_is_left_to_pytorch(monkeypatch, asked_anew):
    monkeypatch.delattr(torch.ops.mkldnn, REORDER)
    monkeypatch.setattr(type(torch.ops.mkldnn), "__getattr__", lambda self, name: getattr(object(), name))
    plain, x = layer(), torch.randn(3, 64)
    with kernels.laid_out():
        assert torch.equal(kernels.linear(plain, x), plain(x))


POOR = """
import torch
from asrlib import hardware
from asrlib.decoding import kernels

assert hardware.best_dtype("cpu") == torch.float32 and not hardware.multiplies(torch.bfloat16)
layer, x = torch.nn.Linear(64, 96).bfloat16(), torch.randn(3, 64).bfloat16()
heads = torch.randn(1, 2, 5, 8).bfloat16()
with torch.inference_mode(), kernels.laid_out():
    assert torch.equal(kernels.linear(layer, x, "gelu"), torch.nn.functional.gelu(layer(x)))
    assert kernels.attention(heads, heads, heads).isfinite().all()
"""


@pytest.mark.slow
def test_bfloat16_is_multiplied_on_the_poorest_processor():
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", POOR], env=environment, check=True)


def by_fused_adamw(pair):
    optimizer = torch.optim.AdamW(pair.parameters(), lr=0.1, fused=True)
    with torch.enable_grad():
        pair(torch.ones(1, 64)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def by_adapter(pair):
    peft = pytest.importorskip("peft")
    for name in "01":
        if type(pair[int(name)]) is torch.nn.Linear:
            config = peft.LoraConfig(target_modules=[name], r=2, init_lora_weights=False)
            peft.get_peft_model(pair, config)


def by_switching_the_adapter(pair):
    for part in pair:
        if hasattr(part, "enable_adapters"):
            part.enable_adapters(part.disable_adapters)


def by_merging_the_adapter(pair):
    for name, part in list(pair.named_children()):
        if hasattr(part, "merge"):
            part.merge()
            setattr(pair, name, part.get_base_layer())


def by_8_bits(pair):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    if type(pair[0]) is torch.nn.Linear:
        made = bitsandbytes.nn.Linear8bitLt(64, 96, has_fp16_weights=False)
        made.load_state_dict(pair[0].state_dict())
        pair[0] = made.to("cpu")


class Negative(torch.Tensor):
    """Stands for the weights of libraries that quantize: a linear layer of another product."""

    @classmethod
    def __torch_function__(cls, function, types, given=(), options=None):
        found = super().__torch_function__(function, types, given, options)
        return -found.as_subclass(torch.Tensor) if function is torch.nn.functional.linear else found


class Doubled(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def weights(pair):
    return [part.weight for part in pair if type(part) is torch.nn.Linear and "weight" in part._parameters]


def each(change):
    return lambda pair: [change(weight) for weight in weights(pair)]


def of_layers(change):
    return lambda pair: [
        change(part) for part in pair if type(part) is torch.nn.Linear and "weight" in part._parameters
    ]


EDITS = {
    "in place": each(lambda weight: weight.mul_(-1)),
    "by .data": each(lambda weight: weight.data.mul_(-1)),
    "by numpy": each(lambda weight: weight.numpy().__imul__(-1)),
    "by another .data": each(lambda weight: setattr(weight, "data", -weight.data)),
    "swapped": each(lambda weight: torch.utils.swap_tensors(weight, torch.nn.Parameter(-weight))),
    "fused AdamW": by_fused_adamw,
    "another parameter": of_layers(lambda part: setattr(part, "weight", torch.nn.Parameter(-part.weight))),
    "state": lambda pair: pair.load_state_dict({name: -value for name, value in pair.state_dict().items()}),
    "state assigned": of_layers(lambda part: part.load_state_dict({"weight": -part.weight, "bias": -part.bias}, assign=True)),
    "precision": lambda pair: pair.to(torch.bfloat16).to(torch.float32),
    "pruned": of_layers(lambda part: prune.random_unstructured(part, "weight", 0.5)),
    "pruned for good": lambda pair: [prune.remove(part, "weight") for part in pair if prune.is_pruned(part)],
    "weight norm": of_layers(torch.nn.utils.parametrizations.weight_norm),
    "a forward of its own": of_layers(lambda part: setattr(part, "forward", lambda x: -torch.nn.Linear.forward(part, x))),
    "a hook before": of_layers(lambda part: part.register_forward_pre_hook(lambda part, given: (-given[0],))),
    "a hook": of_layers(lambda part: part.register_forward_hook(lambda *given: -given[2])),
    "a weight of its own class": of_layers(
        lambda part: setattr(part, "weight", torch.nn.Parameter(part.weight.detach().as_subclass(Negative)))
    ),
    "a class of its own": of_layers(lambda part: setattr(part, "__class__", Doubled)),
    "an adapter": by_adapter,
    "the adapter off or on": by_switching_the_adapter,
    "the adapter merged": by_merging_the_adapter,
    "8 bits": by_8_bits,
}  # fmt: skip


@settings(max_examples=60)
@given(edits=st.lists(st.sampled_from(list(EDITS)), min_size=1, max_size=4))
@torch.no_grad()
def test_weights_that_have_changed_between_two_blocks_are_heard_as_they_are(edits):
    torch.manual_seed(0)
    pair, x = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Linear(96, 64)).eval(), torch.randn(3, 64)
    for number, edit in enumerate((None, *edits)):
        if edit:
            # Some edits go together in no model, such as 8 bits of a layer that is being pruned.
            with contextlib.suppress(*(AttributeError, KeyError, RuntimeError, ValueError) * (number > 1)):
                EDITS[edit](pair)
        with kernels.laid_out():
            found = kernels.linear(pair[1], kernels.linear(pair[0], x))
        assert torch.allclose(found, pair[1](pair[0](x)), atol=1e-3), edit


@torch.no_grad()
def test_outside_of_a_block_a_weight_is_never_kept():
    plain, x = layer(), torch.randn(3, 64)
    assert torch.equal(kernels.linear(plain, x), plain(x))
    plain.weight.data.zero_()
    assert torch.equal(kernels.linear(plain, x), plain.bias.expand(3, 96))


@torch.no_grad()
def test_copies_that_are_given_serve_the_next_block(reordered):
    plain, x, blocks = layer(), torch.randn(3, 64), {}
    for _ in range(2):
        with kernels.laid_out(), kernels.laid_out(blocks):
            kernels.linear(plain, x)
    assert list(blocks) == [plain]
    assert len(reordered) == 1


def test_gradients_flow_where_they_are_wanted():
    plain, x = layer(), torch.randn(3, 64, requires_grad=True)
    with kernels.laid_out():
        kernels.linear(plain, x, "gelu").sum().backward()
    assert x.grad.abs().sum() > 0


@settings(max_examples=40)
@given(
    shape=st.tuples(
        st.integers(1, 3), st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.sampled_from([8, 64])
    ),
    standing=st.one_of(st.none(), st.lists(st.integers(0, 8), min_size=3, max_size=3)),
    room=st.sampled_from([1, 500, 3000]),
)
def test_attention_is_that_of_pytorch_whatever_is_computed_together(shape, standing, room):
    clips, heads, queries, keys, size = shape
    torch.manual_seed(0)
    # As the encoder makes them: heads are a view of the width, not apart in memory.
    query, key, value = (
        torch.randn(clips, positions, heads * size).bfloat16().unflatten(2, (heads, size)).transpose(1, 2)
        for positions in (queries, keys, keys)
    )
    bias = None
    if standing:  # how many positions each key stands for: none behind a shorter clip, but never none at all
        counts = torch.tensor(standing).repeat(clips, keys)[:, :keys]
        counts[:, 0] += 1
        bias = counts.log().bfloat16()[:, None, None]
    exact = [x.float() for x in (query, key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(*exact, None if bias is None else bias.float())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_amx", lambda: False)
        patch.setattr(hardware, "multiplies", lambda dtype: True)
        patch.setattr(kernels, "CACHED", room)
        found = kernels.attention(query, key, value, bias)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected, atol=0.06)


@pytest.mark.parametrize(("dtype", "amx"), [(torch.float32, False), (torch.bfloat16, True)])
def test_fused_attention_does_what_it_does_better(monkeypatch, dtype, amx):
    monkeypatch.setattr(kernels, "_amx", lambda: amx)
    x = torch.randn(2, 3, 10, 8, dtype=dtype)
    assert torch.equal(kernels.attention(x, x, x), torch.nn.functional.scaled_dot_product_attention(x, x, x))

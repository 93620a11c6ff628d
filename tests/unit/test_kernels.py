"""Linear layers in oneDNN's layout and attention by products against PyTorch's own, and what must not go that way."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asrlib import kernels

PRECISIONS = {torch.float32: 1e-4, torch.bfloat16: 0.05}


def layer(inputs=64, outputs=96, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Linear(inputs, outputs, bias=bias).to(dtype).eval()


@pytest.mark.parametrize("dtype", PRECISIONS)
@settings(deadline=None, max_examples=30)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    bias=st.booleans(),
    activation=st.sampled_from(["none", "gelu"]),
)
def test_the_numbers_are_the_layers_own(dtype, shape, bias, activation):
    plain = layer(bias=bias, dtype=dtype)
    x = torch.randn(*shape, 64).to(dtype)
    with torch.inference_mode():
        expected = plain(x)
        expected = torch.nn.functional.gelu(expected) if activation == "gelu" else expected
        found = kernels.linear(plain, x, activation)
    assert found.shape == expected.shape
    assert found.dtype == dtype
    assert torch.allclose(found.float(), expected.float(), atol=PRECISIONS[dtype])


@torch.no_grad()
def test_a_weight_that_has_changed_is_laid_out_again():
    plain, x = layer(), torch.randn(3, 64)
    before = kernels.linear(plain, x)
    plain.weight.mul_(2)
    plain.bias.zero_()
    after = kernels.linear(plain, x)
    assert torch.allclose(after, plain(x), atol=1e-4)
    assert not torch.allclose(after, before)
    plain.load_state_dict(layer(outputs=96, bias=True).state_dict())
    assert torch.allclose(kernels.linear(plain, x), before, atol=1e-4)


@torch.no_grad()
def test_a_replaced_weight_is_seen_too():
    plain, x = layer(), torch.randn(3, 64)
    kernels.linear(plain, x)
    plain.weight = torch.nn.Parameter(torch.zeros(96, 64))
    assert torch.allclose(kernels.linear(plain, x), plain.bias.expand(3, 96), atol=1e-6)


def test_gradients_flow_where_they_are_wanted():
    plain, x = layer(), torch.randn(3, 64, requires_grad=True)
    kernels.linear(plain, x, "gelu").sum().backward()
    assert x.grad.abs().sum() > 0


@torch.no_grad()
def test_a_layer_with_hooks_or_of_another_kind_is_called_as_it_is():
    hooked, x, seen = layer(), torch.randn(3, 64), []
    hooked.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    kernels.linear(hooked, x)
    assert seen == [(3, 96)]

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    doubled = Doubled(64, 96)
    assert torch.equal(kernels.linear(doubled, x), doubled(x))


@torch.no_grad()
def test_the_second_copy_goes_with_the_layer():
    plain = layer()
    kernels.linear(plain, torch.randn(1, 64))
    known = len(kernels._laid_out)
    copied = copy.deepcopy(plain)  # and it does not stand in the way of a copy
    assert torch.equal(copied.weight, plain.weight)
    del plain
    assert len(kernels._laid_out) == known - 1


@settings(deadline=None, max_examples=40)
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
        patch.setattr(kernels, "CACHED", room)
        found = kernels.attention(query, key, value, bias)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected, atol=0.06)


@pytest.mark.parametrize(("dtype", "amx"), [(torch.float32, False), (torch.bfloat16, True)])
def test_fused_attention_does_what_it_does_better(monkeypatch, dtype, amx):
    monkeypatch.setattr(kernels, "_amx", lambda: amx)
    x = torch.randn(2, 3, 10, 8, dtype=dtype)
    assert torch.equal(kernels.attention(x, x, x), torch.nn.functional.scaled_dot_product_attention(x, x, x))

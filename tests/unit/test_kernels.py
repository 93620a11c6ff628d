"""Linear layers in oneDNN's layout against PyTorch's own, and everything that must not go that way."""

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

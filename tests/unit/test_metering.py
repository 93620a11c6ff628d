"""Bytes are counted exactly; the peak of memory is seen."""

import os

import numpy as np
import pytest
import torch

from asrlib import AsrlibError
from asrlib.training import metering


def test_bytes_of_a_training_are_exact():
    model = torch.nn.Linear(30, 10)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 30)).sum().backward()
    optimizer.step()
    steps = 2 * 4  # AdamW keeps a float32 step count for each of two tensors
    assert metering.training_bytes(model, optimizer) == {
        "weights": 310 * 4,
        "gradients": 310 * 4,
        "optimizer": 2 * 310 * 4 + steps,
    }


def test_shared_weights_count_once():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    assert metering.weight_bytes(model) == 64 * 4


def test_frozen_weights_cost_neither_gradients_nor_optimizer():
    model = torch.nn.Linear(30, 10)
    model.weight.requires_grad_(False)
    optimizer = torch.optim.SGD([model.bias], lr=0.1, momentum=0.9)
    model(torch.ones(2, 30)).sum().backward()
    optimizer.step()
    assert metering.training_bytes(model, optimizer) == {"weights": 1240, "gradients": 40, "optimizer": 40}


def test_four_bit_weights_count_with_their_scales():
    import bitsandbytes

    sizes = {}
    for double in (False, True):
        layer = bitsandbytes.nn.Linear4bit(256, 256, bias=False, quant_type="nf4", compress_statistics=double).to("cpu")
        sizes[double] = metering.weight_bytes(layer)
    codes = 256 * 256 // 2  # two weights a byte
    assert sizes[False] == codes + 1024 * 4 + 16 * 4  # a float32 scale for each 64 weights, and the 16 levels
    assert codes < sizes[True] < sizes[False]


def test_quantos_wrapped_weights_count_with_their_scales():
    from optimum.quanto import freeze, qint8, quantize

    model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    quantize(model, weights=qint8)
    freeze(model)
    buffers = sum(buffer.nbytes for buffer in model.buffers())  # scales of activations, of which there are none
    assert metering.weight_bytes(model) == 64 * 32 + 4 * 32 + 4 * 32 + buffers


@pytest.mark.filterwarnings("ignore")
def test_packed_dynamic_weights_count():
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 8, bias=False))
    model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert metering.weight_bytes(model) == (64 * 32 + 16 + 4 * 32) + (32 * 8 + 16)


@pytest.mark.filterwarnings("ignore")
def test_packed_dynamic_weights_count_with_a_scale_for_each_row():
    model, by_rows = torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.ao.quantization.per_channel_dynamic_qconfig
    model = torch.ao.quantization.quantize_dynamic(model, {"0": by_rows}, dtype=torch.qint8)
    assert metering.weight_bytes(model) == 64 * 32 + 16 * 32 + 4 * 32


def test_the_peak_is_seen_after_it_is_gone():
    with metering.PeakMemory() as peak:
        block = np.ones(200 * 2**20, np.uint8)
        _ = [block.sum() for _ in range(10)]  # it stays for some looks, also on a busy machine
        del block
    assert 195 < peak.mib < 260


def test_calls_are_timed_in_turn_and_the_first_round_only_warms_up():
    called = []
    calls = {"slow": lambda: called.append(np.ones(30_000_000).sum()), "fast": lambda: called.append("fast")}
    taken = metering.in_turn(calls, rounds=8)
    rounds = {tuple(item == "fast" for item in called[first : first + 2]) for first in range(0, 18, 2)}
    assert rounds == {(False, True), (True, False)}  # both in each round, and neither always first
    assert [*taken] == ["slow", "fast"]
    assert {len(seconds) for seconds in taken.values()} == {8}
    assert all(slow > fast > 0 for slow, fast in zip(*taken.values(), strict=True))


def _allocate(mib):
    return int(np.ones(mib * 2**20, np.uint8).sum())


@pytest.mark.slow
def test_a_fresh_process_returns_the_result_and_its_own_peak():
    keep = np.ones(300 * 2**20, np.uint8)  # what this process holds does not count
    result, mib = metering.in_fresh_process(_allocate, 150)
    assert result == 150 * 2**20 < len(keep)
    assert 145 < mib < 210


@pytest.mark.slow
def test_a_function_of_a_notebook_reaches_the_fresh_process():
    space = {"__name__": "__main__", "factor": 3}
    exec("def scaled(x):\n    return factor * x", space)
    assert metering.in_fresh_process(space["scaled"], 5)[0] == 15


@pytest.mark.slow
def test_a_process_that_dies_is_one_sentence():
    with pytest.raises(AsrlibError, match=r"ran _exit died: free some memory"):
        metering.in_fresh_process(os._exit, 9)

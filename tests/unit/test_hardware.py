import math

import pytest
import torch

from asrlib import hardware


@pytest.mark.parametrize(
    ("seconds", "dtype"),
    [
        (0.5, torch.bfloat16),
        (0.76, torch.bfloat16),
        (0.78, torch.float32),
        (2.0, torch.float32),
        (math.inf, torch.float32),
    ],
)
def test_bfloat16_only_where_the_processor_is_fast_in_it(monkeypatch, seconds, dtype):
    taken = {torch.float32: 1.0, torch.bfloat16: seconds}
    monkeypatch.setattr(hardware, "product_seconds", taken.__getitem__)
    assert hardware.best_dtype("cpu") is dtype


def test_a_precision_that_is_not_multiplied_takes_infinitely_long(monkeypatch):
    monkeypatch.setattr(hardware, "multiplies", lambda dtype: dtype == torch.float32)
    hardware.product_seconds.cache_clear()
    assert 0 < hardware.product_seconds(torch.float32) < hardware.product_seconds(torch.bfloat16) == math.inf
    assert hardware.best_dtype("cpu") is torch.float32
    hardware.product_seconds.cache_clear()


def test_the_probe_takes_one_core_and_gives_the_others_back(monkeypatch):
    threads, seen = torch.get_num_threads(), set()
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: seen.add(torch.get_num_threads()) or 0.0)
    hardware.product_seconds.__wrapped__(torch.float32)
    assert seen == {1} and torch.get_num_threads() == threads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_multiplied_is_what_pytorch_says(dtype):
    asked = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    assert hardware.multiplies(dtype) == asked.get(dtype, torch.backends.mkldnn.is_available)()


def test_description_is_plain_and_complete():
    found = hardware.describe()
    assert found["cores"] >= 1
    assert found["memory_gib"] > 0
    assert set(found["cpu_features"]) <= set(hardware.FEATURES)
    assert bool(found["gpu"]) == torch.cuda.is_available()

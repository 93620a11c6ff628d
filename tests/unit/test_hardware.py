import math

import pytest
import torch

from asrlib import hardware
from asrlib.cli import doctor


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


@pytest.mark.parametrize(
    ("float32", "bfloat16", "said"),
    [(2.0, 1.0, "bfloat16 2.0 times as fast"), (1.0, math.inf, "no bfloat16"), (math.inf, math.inf, "no bfloat16")],
)
def test_the_doctor_says_how_fast_bfloat16_is_also_where_no_product_can_be_tried(monkeypatch, float32, bfloat16, said):
    taken = {torch.float32: float32, torch.bfloat16: bfloat16}  # without oneDNN, as on a Mac: infinite, both
    monkeypatch.setattr(hardware, "product_seconds", taken.__getitem__)
    assert f"multiplies {said}" in str(next(doctor._hardware()))


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

import pytest
import torch

from asrlib import hardware


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fpu avx2", torch.float32),
        ("fpu avx2 avx512f avx512_vnni", torch.float32),
        ("fpu avx2 avx512f avx512_bf16", torch.bfloat16),
        ("fpu amx_bf16 amx_tile", torch.bfloat16),
    ],
)
def test_bfloat16_only_where_the_processor_is_fast_in_it(monkeypatch, flags, dtype):
    monkeypatch.setattr(hardware, "_cpuinfo", lambda: {"flags": flags})
    monkeypatch.setattr(hardware, "multiplies", lambda dtype: True)
    assert hardware.best_dtype("cpu") is dtype
    monkeypatch.setattr(hardware, "multiplies", lambda dtype: False)  # whatever the processor is called
    assert hardware.best_dtype("cpu") is torch.float32


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


def test_peak_memory_grows_with_use():
    before = hardware.peak_rss_mib()
    block = torch.ones(64 * 2**20)  # 256 MiB
    assert hardware.peak_rss_mib() >= before
    assert hardware.peak_rss_mib() > block.element_size() * block.nelement() / 2**20

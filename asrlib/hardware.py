"""What this machine can do: processor features, graphics card, memory, and the precision that pays here."""

from __future__ import annotations

import functools
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PAYS = 1.3  # times as fast that bfloat16 must multiply; the rest of the work is not faster
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entries of /proc/cpuinfo, empty where there is none."""
    try:
        block = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def cpu_features() -> list[str]:
    """Return the instruction sets that matter for speed here, among `FEATURES`; none where there is no /proc/cpuinfo."""
    flags = _cpuinfo().get("flags", "").split()
    return [feature for feature in FEATURES if feature in flags]


def best_device() -> str:
    """Return ``"cuda"`` where PyTorch sees a usable GPU, else ``"cpu"``.

    Of several GPUs each process that torchrun starts gets its own: ``"cuda:1"`` is the second one's.
    """
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    number = os.environ.get("LOCAL_RANK")
    return f"cuda:{int(number) % torch.cuda.device_count()}" if number else "cuda"


@functools.cache
def multiplies(dtype: torch.dtype) -> bool:
    """Say whether oneDNN multiplies matrices of this precision on this processor, by trying it with small ones.

    Where it does not (bfloat16 with AVX2 only), PyTorch's own products still come out right, but slowly.
    """
    import torch

    x = torch.zeros(2, 16, dtype=dtype)
    try:
        with torch.inference_mode():
            weight = torch.ops.mkldnn._reorder_linear_weight(x)
            torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    except (AttributeError, RuntimeError):  # AttributeError: PyTorch was built without oneDNN
        return False
    return True


@functools.cache
def product_seconds(dtype: torch.dtype) -> float:
    """Return the seconds that oneDNN takes for a product of the size of whisper-base's encoder, (1500, 512) by (512, 512).

    The least of several, and on one core, so that another busy program does not decide: threads that wait for each other all
    wait for the one that it delays. Infinite where `multiplies` says no.
    """
    import torch

    if not multiplies(dtype):
        return float("inf")
    x, weight = torch.zeros(1500, 512, dtype=dtype), torch.zeros(512, 512, dtype=dtype)
    threads, taken = torch.get_num_threads(), []
    torch.set_num_threads(1)
    with torch.inference_mode():
        weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        for _ in range(8):
            started = time.perf_counter()
            torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
            taken.append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    return min(taken)


def best_dtype(device: str | None = None) -> torch.dtype:
    """Return the fastest precision that keeps the WER on a device.

    On a CPU bfloat16 has to multiply `PAYS` times as fast as float32, and that is tried: the instruction set alone does not decide (a Xeon
    with AVX512-BF16, but without AMX, takes 1.8 times as long for it). On a GPU older than Ampere (a T4, say) float16 takes its
    place.

    Args:
        device: ``"cuda"``, ``"cuda:1"`` or ``"cpu"``; default: `best_device()`.
    """
    import torch

    device = device or best_device()
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    fast = PAYS * product_seconds(torch.bfloat16) < product_seconds(torch.float32)
    return torch.bfloat16 if fast else torch.float32


def describe() -> dict[str, Any]:
    """Return processor, cores, features, GPU and memory as plain values.

    ``cores`` counts those this process may use (a container's limit counts); memory is in GiB. The GPU is the one that PyTorch
    sees; a process that has not loaded PyTorch uses none, and is spared the seconds that loading takes.
    """
    import psutil

    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpuinfo().get("model name") or platform.processor() or platform.machine(),
        "cores": len(affinity(0)) if affinity else os.cpu_count() or 1,
        "cpu_features": cpu_features(),
        "gpu": torch.cuda.get_device_name(0) if cuda else "",
        "gpu_memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if cuda else 0.0,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }

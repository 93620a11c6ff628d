"""What a method costs: bytes of weights, gradients and optimiser, and the peak of a process's memory."""

from __future__ import annotations

import gc
import sys
import threading
from types import TracebackType
from typing import Any

__all__ = ["PeakMemory", "training_bytes", "weight_bytes"]

INTERVAL = 0.01  # seconds between two looks at the process's memory


def weight_bytes(model: Any) -> int:
    """Return the bytes of a model's parameters and buffers, each shared tensor once, with the scales of quantized ones.

    bitsandbytes keeps the scales beside the weights, out of reach of ``model.parameters()`` and ``get_memory_footprint()``:
    ``quant_state`` of a 4-bit layer; ``SCB`` of an 8-bit one, of the weight and after the first forward pass of the layer.
    """
    kept = {tensor.data_ptr(): tensor for tensor in [*model.parameters(), *model.buffers()]}
    for layer in model.modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if state is not None:
            second = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
            kept |= {tensor.data_ptr(): tensor for tensor in (state.absmax, state.code, *second)}
        for holder in (getattr(layer, "state", None), getattr(layer, "weight", None)):
            if (scales := getattr(holder, "SCB", None)) is not None:
                kept[scales.data_ptr()] = scales
    return sum(tensor.nbytes for tensor in kept.values())


def training_bytes(model: Any, optimizer: Any) -> dict[str, int]:
    """Return the bytes of ``weights``, ``gradients`` and ``optimizer`` state, after at least one step.

    Activations are not among them: they depend on the batch. `PeakMemory` sees them.

    Args:
        model: any model, before ``zero_grad`` has dropped its gradients.
        optimizer: a torch optimiser, or accelerate's wrapper around one.
    """
    import torch

    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    states = [item for state in optimizer.state.values() for item in state.values() if torch.is_tensor(item)]
    return {
        "weights": weight_bytes(model),
        "gradients": sum(tensor.nbytes for tensor in gradients),
        "optimizer": sum(tensor.nbytes for tensor in states),
    }


class PeakMemory:
    """Measure how far memory rises above where it stood: resident memory of the process, or a GPU's allocations.

    Attributes:
        mib: the rise, in MiB, after the ``with`` block.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device, self.mib = device, 0.0

    def __enter__(self) -> PeakMemory:
        import psutil
        import torch

        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = torch.cuda.memory_allocated(self.device)
            return self
        if sys.platform == "linux":
            import ctypes

            ctypes.CDLL(None).malloc_trim(0)  # freed memory that the allocator keeps would hide a part of the rise
        self.process, self.ended = psutil.Process(), threading.Event()
        self.start = self.top = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.ended.wait(INTERVAL):
            self.top = max(self.top, self.process.memory_info().rss)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import torch

        if self.device == "cpu":
            self.ended.set()
            self.thread.join()
            self.top = max(self.top, self.process.memory_info().rss)
        else:
            self.top = torch.cuda.max_memory_allocated(self.device)
        self.mib = (self.top - self.start) / 2**20

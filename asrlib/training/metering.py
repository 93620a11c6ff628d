"""What a method costs: bytes of weights, gradients and optimiser, and the peak of a process's memory."""

from __future__ import annotations

import gc
import random
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from asrlib import AsrlibError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["PeakMemory", "hear_once", "in_fresh_process", "in_turn", "training_bytes", "weight_bytes"]

INTERVAL = 0.01  # seconds between two looks at the process's memory
Name, Result = TypeVar("Name", bound=Hashable), TypeVar("Result")


def weight_bytes(model: Any) -> int:
    """Return the bytes of a model's parameters and buffers, each shared tensor once, with the scales of quantized ones.

    Three libraries keep them out of reach of ``model.parameters()`` and ``get_memory_footprint()``. bitsandbytes:
    ``quant_state`` of a 4-bit layer; ``SCB`` of an 8-bit one, of the weight and after the first forward pass of the layer.
    Quanto: inside a tensor that wraps others. PyTorch's dynamic quantization: in packed parameters, with a scale and a zero
    point (8 bytes each) a tensor, or a row.
    """
    import torch

    wrapped = [*model.parameters(), *model.buffers()]
    kept = {tensor.data_ptr(): tensor for outer in wrapped for tensor in _stored(outer)}
    for layer in model.modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if state is not None:
            second = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
            kept |= {tensor.data_ptr(): tensor for tensor in (state.absmax, state.code, *second)}
        for holder in (getattr(layer, "state", None), getattr(layer, "weight", None)):
            if (scales := getattr(holder, "SCB", None)) is not None:
                kept[scales.data_ptr()] = scales
    total = sum(tensor.nbytes for tensor in kept.values())
    for layer in model.modules():
        if type(layer).__name__ == "LinearPackedParams":
            weight, bias = layer._weight_bias()  # copies: their addresses say nothing
            scales = len(weight) if weight.qscheme() == torch.per_channel_affine else 1
            total += weight.nbytes + 16 * scales + (0 if bias is None else bias.nbytes)
    return total


def _stored(tensor: Any) -> Iterator[Any]:
    """Yield the plain tensors that a tensor consists of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _stored(getattr(tensor, name))


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


def in_turn(calls: Mapping[Name, Callable[[], Any]], rounds: int, *, device: str = "cpu") -> dict[Name, list[float]]:
    """Time several calls one after another, round by round, so that what slows a round slows all; the first round only warms up.

    Each round has an order of its own, so that no call always finds the caches as the same other has left them.

    Args:
        calls: by name.
        rounds: that count.
        device: where they compute; a GPU is waited for.

    Returns:
        Seconds of each round, by name: what `asrlib.uncertainty.paired_ratio` takes.
    """
    import torch

    taken: dict[Name, list[float]] = {name: [] for name in calls}
    shuffled = random.Random(0)
    for _ in range(rounds + 1):
        for name in shuffled.sample([*calls], len(calls)):
            started = time.perf_counter()
            calls[name]()
            if device != "cpu":
                torch.cuda.synchronize(device)
            taken[name].append(time.perf_counter() - started)
    return {name: seconds[1:] for name, seconds in taken.items()}


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


def in_fresh_process(function: Callable[..., Result], *arguments: Any, device: str = "cpu") -> tuple[Result, float]:
    """Call a function in a new Python process, where nothing that ran before hides what it needs.

    Args:
        function: may be defined in a notebook; it imports what it uses, and prints nothing.
        arguments: for the function; they and its result must be picklable.
        device: whose memory is watched.

    Returns:
        (the function's result, rise of memory above what torch, transformers and asrlib need once imported, in MiB).

    Raises:
        AsrlibError: the process died, for want of memory, say.
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    import dill

    work = dill.dumps((function, arguments, device), recurse=True)  # pickle cannot carry a notebook's functions
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return dill.loads(pool.submit(_metered, work).result())
        except BrokenProcessPool:
            raise AsrlibError(
                f"The process that ran {function.__name__} died: free some memory, or choose a smaller model."
            ) from None


def hear_once(model: str | Path, sound: np.ndarray, language: str) -> str:
    """Load a model in float32, or as it was exported, on the CPU, and return what it hears: what `in_fresh_process` may watch.

    Args:
        model: id or folder.
        sound: at 16 kHz.
        language: that is spoken.
    """
    import torch

    from asrlib.decoding import transcription

    loaded = transcription.load(model, device="cpu", dtype=torch.float32)
    (heard,) = transcription.transcribe(*loaded, [sound], language=language, strict=True)
    return heard.text


def _metered(work: bytes) -> bytes:
    """Run in the fresh process: call the function and watch its memory."""
    import dill
    import transformers  # noqa: F401

    from asrlib.decoding import transcription  # noqa: F401

    function, arguments, device = dill.loads(work)
    with PeakMemory(device) as peak:
        result = function(*arguments)
    return dill.dumps((result, peak.mib))

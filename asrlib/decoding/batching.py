"""Any number of clips through any engine: batches of like length, in the input's order, at constant memory."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from asrlib import AsrlibError, audio
from asrlib.io.progress import Meter
from asrlib.whisper import POSITIONS, SAMPLES_PER_POSITION

__all__ = ["Clip", "Engine", "Hypothesis", "Result", "rtfx", "run"]

WINDOW_CLIPS = 256  # clips, fewer at first, are sorted by length together, and at most so many ...
WINDOW_AUDIO = 1200.0  # ... seconds of audio, so that memory does not grow with the corpus
PATIENCE = 2.0  # seconds that features under way may take once nobody wants them
T = TypeVar("T")
Result = tuple[str, str, tuple[tuple[float, float, str], ...]]  # text, language, (start seconds, end seconds, text) ...


@dataclass(frozen=True)
class Hypothesis:
    """What a model heard in one clip."""

    id: str
    text: str  # as the model wrote it, not normalised
    language: str  # code that the model was told or detected; "en" for an English-only model
    seconds_audio: float
    seconds_compute: float  # this clip's share of the wall time of features, encoding and decoding
    segments: tuple[
        tuple[float, float, str], ...
    ] = ()  # start seconds, end seconds, text; none where no times were wanted


@dataclass
class Clip:
    """One clip on its way through an engine: its place in the input, its name, its samples at 16 kHz."""

    index: int
    id: str
    samples: np.ndarray

    @property
    def seconds(self) -> float:
        """Return its length."""
        return len(self.samples) / audio.SAMPLING_RATE


class Engine(Protocol):
    """What transcribes batches of clips, the library's own search or another runtime; with what most have in common."""

    timestamps: bool = False  # whether segment times of short clips are wanted too

    def fits(self, clip: Clip) -> bool:
        """Say whether a clip is transcribed in one window."""
        return len(clip.samples) <= POSITIONS * SAMPLES_PER_POSITION

    def width(self, clip: Clip) -> int:
        """Return the encoder positions that a clip takes: all of a window, whatever its length."""
        return POSITIONS

    def features(self, clips: Sequence[Clip]) -> Any:
        """Return what `decode` needs of some clips; it is called in a thread, one batch ahead."""

    def decode(self, clips: Sequence[Clip], features: Any) -> list[Result]:
        """Return (text, language, segments) of each clip."""


def rtfx(hypotheses: Iterable[Hypothesis]) -> float:
    """Return seconds of audio per second of computing (higher is faster) over features, encoding and decoding.

    Raises:
        AsrlibError: no hypotheses.
    """
    pairs = [(hypothesis.seconds_audio, hypothesis.seconds_compute) for hypothesis in hypotheses]
    if not pairs:
        raise AsrlibError("Nothing was transcribed, so there is no speed: give rtfx at least one hypothesis.")
    return sum(length for length, _ in pairs) / sum(spent for _, spent in pairs)


def run(engine: Engine, clips: Iterable[Any], *, batch_size: int = 16, label: str = "") -> Iterator[Hypothesis]:
    """Let any engine transcribe clips; yield hypotheses in the clips' order, at constant memory.

    Clips of like length share a batch; those that are longer than the engine's window are not mixed with others.

    Args:
        engine: such as the runtimes of `asrlib.engines`.
        clips, batch_size, label: as in `asrlib.decoding.transcription.transcribe`.

    Raises:
        AsrlibError: one recording in the place of several.
    """
    if isinstance(clips, str | bytes | Path | Mapping) or getattr(clips, "ndim", 2) == 1:
        raise AsrlibError("This is one recording, and clips are several: put it into a list, [recording].")
    return _run(engine, clips, batch_size, label)


def _run(engine: Engine, clips: Iterable[Any], batch_size: int, label: str) -> Iterator[Hypothesis]:
    total = len(clips) if hasattr(clips, "__len__") else 0
    waiting: dict[int, Hypothesis] = {}
    following = 0
    with (
        contextlib.closing(_ahead(_batches(clips, engine, batch_size))) as batches,
        Meter(label, total, "clips") if label else contextlib.nullcontext() as meter,
    ):
        started = time.perf_counter()
        for group, features in batches:
            results = engine.decode(group, features)
            share = (time.perf_counter() - started) / len(group)
            for clip, (words, spoken, segments) in zip(group, results, strict=True):
                waiting[clip.index] = Hypothesis(clip.id, words, spoken, clip.seconds, share, segments)
            if meter:
                meter.step(len(group))
            while following in waiting:
                yield waiting.pop(following)
                following += 1
            started = time.perf_counter()  # what the caller does with a hypothesis is not ours to count


def _read(item: Any, index: int) -> Clip:
    row = item if isinstance(item, Mapping) and "audio" in item else {"audio": item}
    name = row.get("id") or (str(item) if isinstance(item, str | Path) else f"clip-{index}")
    return Clip(index, str(name), audio.load(row["audio"]))


def _batches(clips: Iterable[Any], engine: Engine, batch_size: int) -> Iterator[tuple[list[Clip], Any]]:
    """Yield (clips of like length, their features); no batch has both clips of one window and others."""
    numbered = (_read(item, index) for index, item in enumerate(clips))
    # Whoever gives a stream gets the first words soon: its window grows from one batch.
    growing = () if hasattr(clips, "__len__") else range(batch_size, WINDOW_CLIPS, batch_size)
    for size in itertools.chain(growing, itertools.repeat(WINDOW_CLIPS)):
        ahead, seconds = [], 0.0
        for clip in itertools.islice(numbered, size):
            ahead.append(clip)
            seconds += clip.seconds
            if seconds >= WINDOW_AUDIO:
                break
        if not ahead:
            return
        ahead.sort(key=lambda clip: clip.seconds)
        short = [clip for clip in ahead if engine.fits(clip) and not engine.timestamps]
        for clips_of_a_kind in (short, ahead[len(short) :]):
            for group in _alike(clips_of_a_kind, engine, batch_size):
                yield group, engine.features(group)


def _alike(clips: Sequence[Clip], engine: Engine, batch_size: int) -> Iterator[list[Clip]]:
    """Cut clips, shortest first, into batches; what fills them up to their longest clip may cost no more than one window."""
    group: list[Clip] = []
    used = 0
    for clip in clips:
        width = engine.width(clip)
        if len(group) == batch_size or len(group) * width - used > POSITIONS:
            yield group
            group, used = [], 0
        group.append(clip)
        used += width
    if group:
        yield group


def _ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """Run an iterator in a thread, ``depth`` items ahead of its consumer; errors come out where they belong."""
    ready: queue.SimpleQueue[tuple[T | None, BaseException | None] | None] = queue.SimpleQueue()
    room, stopped = threading.Semaphore(depth), threading.Event()

    def work() -> None:
        try:
            for item in items:
                ready.put((item, None))
                room.acquire()
                if stopped.is_set():
                    return
            ready.put(None)
        except BaseException as error:
            ready.put((None, error))

    thread = threading.Thread(target=work, name="asrlib-features", daemon=True)
    thread.start()
    try:
        while entry := ready.get():
            item, error = entry
            if error:
                raise error
            yield item
            room.release()
    finally:
        stopped.set()
        room.release()
        thread.join(PATIENCE)  # a stream may never give its next item; the thread ends with the process then

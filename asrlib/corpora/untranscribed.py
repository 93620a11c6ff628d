"""Acted English dialogue of the adventure game Flight of the Amazon Queen: many voices and no transcripts.

Its one file begins with a table: ``QTBL``, a version, a 16-bit number of entries, and for each entry 21 bytes: a name of 12, a bundle of
one, a 32-bit offset and size, all big-endian. Names that end in ``.SB`` are speech, each an MP3 file of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from asrlib import AsrlibError, audio
from asrlib.corpora.clips import Clip, Clips

__all__ = ["pack", "read"]

ENTRIES = 13  # place of their number
ENTRY = struct.Struct(">12sBII")
PAUSE = 0.3  # seconds between clips that are joined
THREADS = 8  # decoding leaves the interpreter's lock


def read(share: Path, language: str, voice: str) -> Clips:
    """Return the clips by name, with their places in the file.

    Raises:
        AsrlibError: a table that is truncated, or names bytes outside the file or twice.
    """
    path = share / "scummvm" / "flight-of-the-amazon-queen" / "queen.1c"
    if not path.is_file():
        return {}
    size = path.stat().st_size
    with open(path, "rb") as stream:
        head = stream.read(ENTRIES + 2)
        count = int.from_bytes(head[ENTRIES:], "big")
        table = stream.read(count * ENTRY.size)
    if head[:4] != b"QTBL" or len(table) < count * ENTRY.size:
        raise AsrlibError(f"{path} has no whole table of contents: fetch it again.")
    clips, first, total = {}, ENTRIES + 2 + len(table), 0
    for name, _, offset, length in ENTRY.iter_unpack(table):
        total += length
        if offset < first or offset + length > size or total > size:
            raise AsrlibError(f"{path} names bytes that it does not hold: it is damaged or hostile, so fetch it again.")
        stem, _, kind = name.rstrip(b"\0").decode("latin-1").rpartition(".")
        if kind == "SB" and stem.isascii() and stem.replace("_", "").isalnum():
            clips[stem] = Clip(path, None, span=(offset, length))
    return clips


def pack(rows: Iterable[Mapping[str, Any]], *, seconds: float = 30.0) -> Iterator[dict[str, Any]]:
    """Join neighbouring clips to recordings of at most ``seconds``, with a short pause between two.

    Full windows cost a model no more than short ones. Clips are decoded in parallel threads.

    Args:
        rows: clips with ``id`` and ``audio``, such as ``corpora.load("untranscribed")``; taken in order.
        seconds: a longer clip is left as it is.

    Yields:
        Rows with ``id`` (the first clip's and the number of others), ``ids``, ``audio`` (float32, 16 kHz), ``seconds``, an empty
        ``text``, and the first clip's language and split.

    Raises:
        AsrlibError: a clip that cannot be read.
    """
    pause = np.zeros(int(PAUSE * audio.SAMPLING_RATE), np.float32)
    held: list[Mapping[str, Any]] = []
    sounds: list[np.ndarray] = []
    for row, samples in _decoded(rows):
        if held and sum(map(len, sounds)) + len(pause) + len(samples) > int(seconds * audio.SAMPLING_RATE):
            yield _packed(held, sounds)
            held, sounds = [], []
        sounds += [pause, samples] if held else [samples]
        held.append(row)
    if held:
        yield _packed(held, sounds)


def _decoded(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], np.ndarray]]:
    """Yield rows with their samples, in order; a few clips are decoded ahead."""
    rows = iter(rows)
    with ThreadPoolExecutor(THREADS) as pool:
        while some := list(islice(rows, 8 * THREADS)):
            yield from zip(some, pool.map(lambda row: audio.load(row["audio"]), some), strict=True)


def _packed(rows: list[Mapping[str, Any]], sounds: list[np.ndarray]) -> dict[str, Any]:
    samples, ids = np.concatenate(sounds), [row["id"] for row in rows]
    kept = {name: rows[0][name] for name in ("language", "split") if name in rows[0]}
    seconds = len(samples) / audio.SAMPLING_RATE
    return kept | {"id": f"{ids[0]}+{len(ids) - 1}", "ids": ids, "text": "", "audio": samples, "seconds": seconds}

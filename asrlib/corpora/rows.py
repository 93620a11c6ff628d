"""Rows to tables whose audio stays on disk, and the lengths of recordings that no list gives."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError, audio
from asrlib.io import files
from asrlib.io.progress import track

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["COLUMNS", "dataset", "lengths", "only"]

COLUMNS = ("id", "audio", "text", "language", "seconds", "speaker", "split")


def dataset(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> Dataset:
    """Return rows as a table; ``audio``, a mapping with ``path`` or ``bytes``, is not decoded."""
    from datasets import Audio, Dataset, Features, Value

    rows = list(rows)
    kinds = {column: Value("string") for column in columns}
    kinds |= {"audio": {"bytes": Value("binary"), "path": Value("string")}, "seconds": Value("float32")}
    content = {column: [row[column] for row in rows] for column in columns}
    # Named as audio afterwards: datasets would ask for torchcodec to encode it, though nothing is to be encoded.
    return Dataset.from_dict(content, features=Features(kinds)).cast_column(
        "audio", Audio(sampling_rate=audio.SAMPLING_RATE, decode=False)
    )


def only(table: Dataset, name: str, split: str) -> Dataset:
    """Return the rows of one split; a split without any is named."""
    known = table["split"]
    chosen = [index for index, value in enumerate(known) if value == split]
    if not chosen:
        raise AsrlibError(f"The corpus {name!r} has no split {split!r}: choose one of {', '.join(sorted(set(known)))}.")
    return table.select(chosen)


def lengths(paths: Sequence[Path], root: Path, read: Callable[[Path], Any]) -> list[Any]:
    """Return what ``read`` finds in each file, from the cache where size and time of change are the same.

    Args:
        paths: files; one that is missing is read each time.
        root: what they belong to; each has a list of its own in the cache.
        read: returns seconds; None, which is not kept, where there are none.
    """
    store = files.cache_dir() / "lengths" / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"
    known: dict[str, Any] = {}
    with contextlib.suppress(AsrlibError):  # a damaged list is made anew
        known = files.read_json(store)
    marks = {str(path): _mark(path) for path in paths}
    new = [name for name, mark in marks.items() if mark is None or known.get(name, [None])[0] != mark]
    for name in track(new, f"lengths of {root.name}", unit="files"):
        known[name] = [marks[name], read(Path(name))]
    found = [known[str(path)][1] for path in paths]
    if new:
        with contextlib.suppress(AsrlibError):  # a cache that cannot be written: they are read again next time
            files.write_atomic(store, json.dumps({name: kept for name, kept in known.items() if kept[1] is not None}))
    return found


def _mark(path: Path) -> str | None:
    try:
        facts = path.stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
    return f"{facts.st_size} {facts.st_mtime_ns}"

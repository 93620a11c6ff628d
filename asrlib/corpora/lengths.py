"""Lengths of recordings that no list gives: read once, and kept in the cache for as long as the files stay as they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from asrlib import AsrlibError
from asrlib.io import files

__all__ = ["kept"]


def kept(
    paths: Sequence[Path], root: Path, read: Callable[[list[Path]], list[float | list[float]]]
) -> list[float | list[float]]:
    """Return what ``read`` finds for each file, from the cache where its size and time of change are the same.

    Args:
        paths: files; one that is missing is read each time.
        root: what they belong to; each has a list of its own in the cache.
        read: of the files that are new or changed.
    """
    store = files.cache_dir() / "lengths" / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"
    try:
        known = files.read_json(store)
    except AsrlibError:
        known = {}  # damaged: it is made anew
    marks = [_mark(path) for path in paths]
    new = [
        place
        for place, (path, mark) in enumerate(zip(paths, marks, strict=True))
        if mark is None or known.get(str(path), [None])[0] != mark
    ]
    if not new:
        return [known[str(path)][1] for path in paths]
    found = [known.get(str(path), [None, 0.0])[1] for path in paths]
    for place, seconds in zip(new, read([paths[place] for place in new]), strict=True):
        found[place] = seconds
        if marks[place]:
            known[str(paths[place])] = [marks[place], seconds]
    try:
        files.write_atomic(store, json.dumps(known))
    except AsrlibError:
        pass  # a cache that is full or read-only: the lengths are read again next time
    return found


def _mark(path: Path) -> str | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return f"{facts.st_size} {facts.st_mtime_ns}"

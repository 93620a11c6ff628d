"""A corpus of any size in any number of processes, on one machine or many: nothing lost, nothing counted twice.

A corpus is cut into shards as `asrlib.decoding.batching` cuts what it reads ahead; so the batches, and with them the hypotheses, are
those of a single process. The processes send no messages: each takes a shard whose lock is free, writes its file whole or not at
all, and goes on; the operating system drops the lock of one that dies. They must see one folder, on a file system with locks.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from asrlib import AsrlibError
from asrlib.decoding import outcomes
from asrlib.decoding.batching import WINDOW_AUDIO, WINDOW_CLIPS
from asrlib.io import files
from asrlib.io.progress import Meter

__all__ = ["cut", "fill", "first_process", "merged"]

Row = Mapping[str, Any]


def first_process() -> bool:
    """Say whether this is the process that reports, by the number that torchrun (RANK) or Slurm (SLURM_PROCID) gives."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def cut(seconds: Sequence[float]) -> list[range]:
    """Return the places of the clips of each shard, in order: 256 clips, or as many as make 20 minutes.

    Args:
        seconds: length of each clip.
    """
    shards, first, total = [], 0, 0.0
    for place, length in enumerate(seconds):
        total += length
        if total >= WINDOW_AUDIO or place + 1 - first == WINDOW_CLIPS:
            shards.append(range(first, place + 1))
            first, total = place + 1, 0.0
    return shards + ([range(first, len(seconds))] if first < len(seconds) else [])


def fill(folder: Path | str, table: Any, work: Callable[[list[Row]], Iterable[Row]], run: Row, label: str = "") -> None:
    """Have ``work`` done for all shards; return once each one's file is there, whoever made it.

    Of a file that an earlier run has left, the rows are made again that failed or whose audio has changed since.

    Args:
        folder: for this run and nothing else, the same for all its processes.
        table: rows with ``id``, ``audio`` and ``seconds``: a corpus as `asrlib.corpora.load` returns it, or a list. The rows
            of one shard are held at a time.
        work: makes a JSON object of each of some rows, in their order; with ``failed``, a reason, where it could not.
        run: what the objects depend on besides the rows, such as the model; another one is refused in this folder.
        label: shown in the progress line; none is shown without it.

    Raises:
        AsrlibError: a folder of another run, a full disk, and what ``work`` raises.
    """
    began, shards = time.time(), _shards(folder, table)
    run = {**run, "clips": len(table), "shards": len(shards)}
    files.reserve(Path(folder), run, "model or corpus, or to other options")
    with Meter(label, len(table), "clips") if label else contextlib.nullcontext() as meter:
        step = meter.step if meter else lambda clips: None

        def counted(rows: list[Row]) -> Iterator[Row]:
            for done in work(rows):
                yield done
                step(1)

        left = shards
        for wait in (False, True):  # first what is free; then, of what the others hold, what they leave behind
            held = []
            for path, places in left:
                with files.lock(path, wait=wait) as free:
                    if not free:
                        held.append((path, places))
                    else:
                        step(_finished(path, [table[place] for place in places], counted, began))
            left = held
    for path, _ in shards:  # no longer needed, as the files are there
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)


def _finished(path: Path, rows: list[Row], work: Callable[[list[Row]], Iterable[Row]], began: float) -> int:
    """Write what is missing in the file of a shard; return how many of its rows were there."""
    if path.is_file() and path.stat().st_mtime >= began:  # another process of this run has just made it
        return len(rows)
    made = list(files.read_jsonl(path)) if path.is_file() else [{} for _ in rows]
    _check(path, rows, made)
    todo = [n for n, row in enumerate(rows) if not outcomes.is_done(made[n], row.get("audio"))]
    hashes = [outcomes.content(rows[n].get("audio")) for n in todo]
    for n, sha256, done in zip(todo, hashes, work([rows[n] for n in todo]) if todo else (), strict=True):
        made[n] = {"id": rows[n]["id"], "sha256": sha256, **done}
    if todo:
        files.write_jsonl(path, made)
    return len(rows) - len(todo)


def _check(path: Path, rows: Sequence[Row], made: Sequence[Row]) -> None:
    if [row["id"] for row in rows] != [done.get("id", row["id"]) for row, done in zip(rows, made, strict=False)]:
        raise AsrlibError(f"{path} is of other clips: delete it and run the same command again.")


def merged(folder: Path | str, table: Any) -> Iterator[tuple[list[Row], list[Row]]]:
    """Yield, shard by shard in the table's order, its rows and what `fill` has made of them.

    Raises:
        AsrlibError: a file that is not one of these rows any more.
    """
    for path, places in _shards(folder, table):
        rows, made = [table[place] for place in places], list(files.read_jsonl(path))
        _check(path, rows, made)
        yield rows, made


def _shards(folder: Path | str, table: Any) -> list[tuple[Path, range]]:
    """Return file and places of each shard; of a table on disk, only the column of seconds is read."""
    seconds = list(table["seconds"]) if hasattr(table, "column_names") else [row["seconds"] for row in table]
    return [(Path(folder) / f"{number:06d}.jsonl", places) for number, places in enumerate(cut(seconds))]

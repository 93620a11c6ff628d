"""Rows to tables whose audio stays on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError, audio
from asrlib.corpora.sources import data_folders

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["COLUMNS", "brought", "dataset", "only"]

COLUMNS = ("id", "audio", "text", "language", "seconds", "speaker", "split")


def dataset(rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...] = COLUMNS) -> Dataset:
    """Return rows as a table: ``audio`` is made of their ``path``, and of ``bytes`` where they have them; it is not decoded."""
    from datasets import Audio, Dataset, Features, Value

    content: dict[str, list[Any]] = {column: [] for column in columns}
    for row in rows:
        for column in columns:
            sound = {"path": row["path"], "bytes": row.get("bytes")} if column == "audio" else None
            content[column].append(sound or row[column])
    kinds = {column: Value("string") for column in columns}
    kinds |= {"audio": {"bytes": Value("binary"), "path": Value("string")}, "seconds": Value("float32")}
    table = Dataset.from_dict(content, features=Features(kinds))
    # Named as audio afterwards: datasets would ask for torchcodec to encode it, though nothing is to be encoded.
    return table.cast_column("audio", Audio(sampling_rate=audio.SAMPLING_RATE, decode=False))


def only(table: Dataset, name: str, split: str) -> Dataset:
    """Return the rows of one split; a split without any is named."""
    known = table["split"]
    chosen = [index for index, value in enumerate(known) if value == split]
    if not chosen:
        raise AsrlibError(f"The corpus {name!r} has no split {split!r}: choose one of {', '.join(sorted(set(known)))}.")
    return table.select(chosen)


def brought(root: Path | None, folders: tuple[str, ...], need: str) -> Path | None:
    """Return ``root``, or a folder of ``ASRLIB_DATA`` with one of these names, or None."""
    if root is None:
        return next(
            (place / folder for place in data_folders() for folder in folders if (place / folder).is_dir()), None
        )
    if not root.exists():
        raise AsrlibError(f"{root} does not exist: give root={need}.")
    return root

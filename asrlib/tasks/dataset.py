"""The table of a data set that grows and that people correct: ``metadata.csv``, its splits, and a page to listen to its clips."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from asrlib.corpora import metadata
from asrlib.io import files

__all__ = ["COLUMNS", "SHARES", "divide", "read", "write"]

COLUMNS = ("file_name", "transcription", "language", "speaker", "split")
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}  # of the seconds
FIRST = ("test", "validation", "train")  # the order of the page: errors in a test count most

Row = dict[str, str]


def divide(new: Mapping[str, float], have: Mapping[str, float]) -> dict[str, str]:
    """Give whole recordings to splits, so that no voice and no room of a test is learnt from.

    The longest comes first, and goes to the split that is farthest below its share. The last ones fill splits that have
    nothing: one recording is for training, a second for validation, a third for the test.

    Args:
        new: seconds of each recording that has no split yet.
        have: seconds that splits have already.

    Returns:
        Recording -> split.
    """
    have = {split: have.get(split, 0.0) for split in SHARES}
    total, chosen = sum(new.values()) + sum(have.values()), {}
    for left, name in zip(range(len(new), 0, -1), sorted(new, key=new.__getitem__, reverse=True), strict=True):
        empty = [split for split, seconds in have.items() if not seconds]
        lacking = {split: SHARES[split] * total - have[split] for split in SHARES}
        chosen[name] = empty[0] if left <= len(empty) else max(lacking, key=lacking.__getitem__)
        have[chosen[name]] += new[name]
    return chosen


def read(folder: Path) -> list[Row] | None:
    """Return the rows of a folder's ``metadata.csv``; None where there is none yet.

    Raises:
        AsrlibError: a table that is not well formed; the sentence names the line.
    """
    return metadata.folder(folder) if (folder / "metadata.csv").is_file() else None


def write(folder: Path, rows: Iterable[Row], logprobs: Mapping[str, float]) -> None:
    """Write ``metadata.csv``, and ``listen.html``: each clip with its text to correct, the most doubtful first.

    Args:
        folder: of the data set.
        rows: by column; columns beyond `COLUMNS` are kept.
        logprobs: clip -> mean log-probability of its label, where there is one.
    """
    rows = list(rows)
    columns = list(dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]))
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_atomic(folder / "metadata.csv", table.getvalue())

    def doubt(row: Row) -> tuple[int, float]:
        rank = FIRST.index(row["split"]) if row.get("split") in FIRST else len(FIRST)
        return rank, logprobs.get(row["file_name"], 0.0)

    order = sorted(range(len(rows)), key=lambda place: doubt(rows[place]))
    data = json.dumps({"columns": columns, "rows": rows, "order": order}).replace("<", "\\u003c")
    files.write_atomic(folder / "listen.html", files.data_file("listen.html").read_text("utf-8").replace("DATA", data))

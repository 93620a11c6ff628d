"""Tables of transcripts, read strictly: a row that can be read in two ways is refused with its line."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asrlib import AsrlibError
from asrlib.io import files
from asrlib.io.sound import SUFFIXES

__all__ = ["common_voice", "folder"]

SEPARATORS = ",;\t|"
FOLDER = (
    ("file_name",),
    ("transcription", "text", "sentence"),
)  # one column of each group is needed; the first is its name
COMMON_VOICE = ("path",), ("sentence",), ("client_id",)  # the first is never empty
Groups = tuple[tuple[str, ...], ...]


def folder(root: Path) -> list[dict[str, str]]:
    """Return the rows of a folder's ``metadata.csv``, ``.tsv`` or ``.jsonl``: file_name, transcription, and what else it has.

    Commas, semicolons, tabs or bars part the columns, as the first line shows; a line ``sep=;`` before it is passed over.

    Raises:
        AsrlibError: no table, or one that is not well formed; the sentence names the line.
    """
    path = next((path for kind in ("csv", "tsv", "jsonl") if (path := root / f"metadata.{kind}").is_file()), None)
    if path is None:
        raise AsrlibError(
            f"{root / 'metadata.csv'} does not exist: write one with the columns file_name and transcription."
        )
    rows = _rows(path, FOLDER)
    if not rows:
        raise AsrlibError(f"{path} names no recording: add a line for each.")
    return rows


def common_voice(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table of Common Voice, whose texts hold quotation marks as they are."""
    return _rows(path, COMMON_VOICE, csv.QUOTE_NONE)


def _rows(path: Path, groups: Groups, quoting: int = csv.QUOTE_MINIMAL) -> list[dict[str, str]]:
    if path.suffix == ".jsonl":
        numbers = [number for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]
        lines = zip(numbers, files.read_jsonl(path), strict=True)
    else:
        lines = _lines(path, groups, quoting)
    rows = []
    for number, row in lines:
        row = {name: value for name, value in row.items() if value is not None}
        for group in groups:
            value = next((row[name] for name in group if name in row), None)
            if not isinstance(value, str) or (group is groups[0] and not value):
                raise AsrlibError(f"{path}, line {number}, has no {_either(group)}: complete it.")
            row[group[0]] = value
        rows.append({name: str(value) for name, value in row.items()})
    return rows


def _lines(path: Path, groups: Groups, quoting: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line where each row of a table begins, and the row."""
    number = 1
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            if first.lower().startswith("sep="):
                first, number = stream.readline(), 2
            above = number
            separator, names = _header(path, first, groups)
            number = above + 1
            reader = csv.reader(stream, delimiter=separator, quoting=quoting, skipinitialspace=True, strict=True)
            for fields in reader:
                if any(map(_swallows_a_row, fields)):
                    raise AsrlibError(f"{path}, line {number}, goes on in the next: is a quotation mark not closed?")
                if len(fields) > len(names):
                    raise AsrlibError(
                        f"{path}, line {number}, has {len(fields)} fields and the first line {len(names)}: "
                        "put a text with the separator in quotes."
                    )
                if fields:
                    yield number, dict(zip(names, fields, strict=False))
                number = above + reader.line_num + 1
    except csv.Error as error:
        raise AsrlibError(f"{path}, line {number}: a quotation mark is not closed, or not doubled ({error}).") from None
    except (OSError, UnicodeDecodeError) as error:
        raise AsrlibError(f"{path} cannot be read as a table of UTF-8 text ({error}): save it again as such.") from None


def _header(path: Path, line: str, groups: Groups) -> tuple[str, list[str]]:
    """Return the separator that makes the needed columns of a table's first line, and the names of all columns."""
    for separator in SEPARATORS:
        names = [name.strip() for name in next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])]
        if all(set(group) & set(names) for group in groups):
            if len(set(names)) < len(names):
                raise AsrlibError(f"{path} has two columns of one name: delete one, or rename it.")
            return separator, names
    raise AsrlibError(f"{path} must have the columns {' and '.join(map(_either, groups))}: correct its first line.")


def _either(names: tuple[str, ...]) -> str:
    return names[0] + (f" (or {', '.join(names[1:])})" if names[1:] else "")


def _swallows_a_row(field: str) -> bool:
    """Say whether a later line of a field begins with the name of a recording, as a row does."""
    rest = [re.split(f"[{SEPARATORS}]", line) for line in field.splitlines()[1:]]
    return any(Path(name.strip('" ')).suffix.lower() in SUFFIXES for name, *others in rest if others)

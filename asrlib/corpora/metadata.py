"""Tables of transcripts, read strictly: a row that can be read in two ways is refused with its line."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from asrlib import AsrlibError
from asrlib.io import files
from asrlib.io.sound import SUFFIXES

__all__ = ["common_voice", "folder"]

TEXT_COLUMNS = ("transcription", "text", "sentence")
Row = tuple[int, dict[str, str]]  # line, column -> value


def folder(root: Path) -> tuple[Path, str, list[Row]]:
    """Return a folder's table (``metadata.csv``, ``.tsv`` or ``.jsonl``), the name of its column of transcripts, and its rows.

    Raises:
        AsrlibError: no table, or one that is not well formed; the sentence names the line.
    """
    path = next(
        (root / f"metadata.{kind}" for kind in ("csv", "tsv", "jsonl") if (root / f"metadata.{kind}").is_file()), None
    )
    if path is None:
        raise AsrlibError(
            f"{root / 'metadata.csv'} does not exist: write one with the columns file_name and transcription."
        )
    needed = (("file_name",), TEXT_COLUMNS)
    rows = _json_lines(path, *needed) if path.suffix == ".jsonl" else _lines(path, *needed)
    if not rows:
        raise AsrlibError(f"{path} names no recording: add a line for each.")
    column = next(name for name in TEXT_COLUMNS if name in rows[0][1])
    for number, row in rows:
        if not row.get("file_name") or not isinstance(row.get(column), str):
            raise AsrlibError(f"{path}, line {number}, lacks the file name or the transcript: complete it.")
    return path, column, rows


def common_voice(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table of Common Voice, whose texts hold quotation marks as they are."""
    columns = ("client_id",), ("path",), ("sentence",)
    return [row for _, row in _lines(path, *columns, quoting=csv.QUOTE_NONE)]


def _json_lines(path: Path, *columns: tuple[str, ...]) -> list[Row]:
    rows = list(enumerate(files.read_jsonl(path), 1))
    if rows:
        _check_columns(path, list(rows[0][1]), columns)
    return rows


def _lines(path: Path, *columns: tuple[str, ...], quoting: int = csv.QUOTE_MINIMAL) -> list[Row]:
    """Read a table of UTF-8 text that has at least one column of each group."""
    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=separator, quoting=quoting, strict=True)
            names = next(reader, [])
            _check_columns(path, names, columns)
            return [
                (number, dict(zip(names, fields, strict=True))) for number, fields in _fields(path, reader, len(names))
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AsrlibError(f"{path} cannot be read as a table of UTF-8 text ({error}): save it again as such.") from None


def _fields(path: Path, reader: Iterator[list[str]], width: int) -> Iterator[tuple[int, list[str]]]:
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field larger" in str(error):
                raise
            raise AsrlibError(
                f"{path}, line {number}: a quotation mark is not closed, or not doubled: mend it."
            ) from None
        if any(map(_swallows_a_row, fields)):
            raise AsrlibError(f"{path}, line {number}, goes on in the next line: is a quotation mark not closed?")
        if len(fields) > width:
            raise AsrlibError(
                f"{path}, line {number}, has {len(fields)} fields and the first line {width}: put a text with the separator in quotes."
            )
        if fields:
            yield number, fields + [None] * (width - len(fields))


def _swallows_a_row(field: str) -> bool:
    """Say whether a later line of a field begins with the name of a recording, as a row does."""
    rest = [re.split("[,\t]", line) for line in field.splitlines()[1:]]
    return any(Path(name).suffix.lower() in SUFFIXES for name, *others in rest if others)


def _check_columns(path: Path, names: list[str], columns: tuple[tuple[str, ...], ...]) -> None:
    if all(set(group) & set(names) for group in columns):
        return
    line = ",".join(names)
    if line.lower().startswith("sep="):
        raise AsrlibError(f"{path} begins with {line!r}: delete this line, and save the table with commas.")
    for separator, name in {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}.items():
        other = {name.strip('" ') for name in line.split(separator)}
        if len(names) == 1 and all(set(group) & other for group in columns):
            raise AsrlibError(
                f"{path} has {name} between its columns: save it with commas, or with tabs as metadata.tsv."
            )
    wanted = " and ".join(group[0] + (f" (or {', '.join(group[1:])})" if group[1:] else "") for group in columns)
    raise AsrlibError(f"{path} must have the columns {wanted}: correct its first line.")

"""The plan of a sweep: notebooks under many parameters and seeds, from a table. The Snakefile runs it.

Each run is one of `asrlib.course.runner`, with an output folder of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from asrlib import AsrlibError
from asrlib.course import registry
from asrlib.course.registry import Notebook
from asrlib.io import files

__all__ = ["Job", "plan"]


@dataclass(frozen=True)
class Job:
    """A run of one notebook with one value of every axis.

    Attributes:
        options: of ``asrlib run``, which set its parameters.
        needs: folders, below the sweep's own, of the runs whose results it reads.
        key: digest of the notebook's code, the profile's values, library, tables and lock; `asrlib.course.registry.key` without
            the parameters, which the options state.
    """

    options: tuple[str, ...]
    needs: tuple[str, ...]
    key: str


def plan(root: Path, table: Mapping[str, Any]) -> dict[str, Job]:
    """Return the jobs of a sweep by their folders ``NAME=VALUE/.../PROFILE/NOTEBOOK``.

    Args:
        root: the checkout.
        table: the content of a file such as ``workflow/sweep.yaml``, which explains it.

    Raises:
        AsrlibError: a table of another form, an unknown notebook, profile or parameter, a value of another type, or a
            notebook without one that it needs.
    """
    files.check_schema(table, root / "workflow" / "sweep.schema.json", "The sweep's table")
    profile, matrix = table["profile"], table["matrix"]
    own = {
        book.name: values or {}
        for name, values in table["notebooks"].items()
        for book in registry.select(root, [str(name)])
    }
    cells = {_folder(values): values for values in _cells(matrix)}
    jobs: dict[str, Job] = {}
    keys: dict[str, str] = {}
    for book in registry.select(root, own):
        if missing := [need for need in book.needs if need not in own]:
            raise AsrlibError(
                f"The sweep has {book.name}, which needs {', '.join(missing)}: add that to its notebooks."
            )
        _check_values(book, own[book.name], matrix)
        keys[book.name] = registry.key(root, book, profile, {}, [keys[need] for need in book.needs])
        for cell, values in cells.items():
            given = [f"{name}={_text(value)}" for name, value in (values | own[book.name]).items()]
            options = tuple(part for text in given for part in ("-p", text))
            needs = tuple(f"{cell}/{profile}/{need}" for need in book.needs)
            jobs[f"{cell}/{profile}/{book.name}"] = Job(options, needs, keys[book.name])
    return jobs


def _check_values(book: Notebook, own: Mapping[str, Any], matrix: Mapping[str, Sequence[Any]]) -> None:
    """Let `registry.check_parameters` see every value that a notebook will get."""
    if both := sorted(set(own) & set(matrix)):
        raise AsrlibError(f"The sweep gives {book.name} {', '.join(both)} twice: in its matrix and under notebooks.")
    for name, values in ({name: [value] for name, value in own.items()} | dict(matrix)).items():
        for value in values:
            meant = registry.check_parameters(book, {name: _text(value)})[name]
            if isinstance(value, bool) and not isinstance(meant, bool):
                raise AsrlibError(
                    f"{book.name}: {name} is {value}, as YAML reads yes, no, on and off: put it in quotes."
                )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cells(matrix: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return all combinations of the axes' values.

    Raises:
        AsrlibError: two values of an axis would share a folder.
    """
    for name, values in matrix.items():
        folders = [_folder({name: value}) for value in values]
        if twice := {folder for folder in folders if folders.count(folder) > 1}:
            raise AsrlibError(
                f"The sweep's matrix has values of {name} that share the folder {min(twice)}: rename one."
            )
    return [dict(zip(matrix, values, strict=True)) for values in product(*matrix.values())]


def _folder(values: Mapping[str, Any]) -> str:
    """Return the folder of a combination of values: what no file system and no shell minds."""
    slugs = {name: re.sub(r"[^\w.-]+", "-", _text(value), flags=re.ASCII).strip("-") for name, value in values.items()}
    return "/".join(f"{name}={slug}" for name, slug in slugs.items())

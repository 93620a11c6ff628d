"""Sweeps: one notebook under many parameters and seeds, planned from a table, and its values averaged over the seeds.

The runs are those of `asrlib.course.runner`, each with an output folder of its own; ``workflow/Snakefile`` runs what `plan` lists.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from scipy import special

from asrlib import AsrlibError
from asrlib.course import records, registry
from asrlib.course.registry import Notebook
from asrlib.io import files

__all__ = ["Job", "Row", "collect", "csv_text", "markdown", "plan", "read", "write"]

ALWAYS = ("MODEL_ID", "LANGUAGE")  # parameters that a row shows even where they are the same in all runs
CONFIDENCE = 0.95
HEAD = """\
# Means over seeds

sd is the standard deviation over the seeds (n - 1). The interval is the 95 % t interval of the mean, t(n - 1) · sd / √n to each side:
it tells what the seed moves (choice of clips, order of training), not what few clips leave open, which the interval of each record tells.
One seed gives none.
"""


# ------------------------------------------------------------------------------------------------------------------- plan
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
    _check_form(root, table)
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


def _check_form(root: Path, table: Mapping[str, Any]) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    schema = files.read_json(root / "workflow" / "sweep.schema.json")
    if error := best_match(Draft202012Validator(schema).iter_errors(table)):
        place = "/".join(map(str, error.absolute_path)) or "top level"
        raise AsrlibError(
            f"The sweep's table is wrong at {place}: {error.message[:200]}; workflow/sweep.yaml explains it."
        )


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


# ---------------------------------------------------------------------------------------------------------------- collect
@dataclass(frozen=True)
class Row:
    """A metric of runs that differ by the seed alone.

    Attributes:
        parameters: of the notebook, those that `collect` chose to show.
        labels: what tells the metric from others of its name in the same record.
        values: seed to value, by seed.
    """

    notebook: str
    profile: str
    parameters: Mapping[str, Any]
    metric: str
    unit: str
    labels: Mapping[str, Any]
    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Return the mean over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """Return the standard deviation over the seeds, with n - 1; None for one seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % t interval of the mean; None for one seed."""
        if self.deviation is None:
            return None
        n = len(self.values)
        half = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * self.deviation / math.sqrt(n)
        return self.mean - half, self.mean + half


def read(places: Iterable[Path]) -> list[dict[str, Any]]:
    """Read the records of runs.

    Args:
        places: each a ``record.json``, the folder of a run, or a folder above such.

    Raises:
        AsrlibError: no record in one of the places, or one that is not valid.
    """
    found: dict[Path, None] = {}
    for place in places:
        inside = sorted(place.rglob("record.json")) if place.is_dir() else [place]
        if not inside:
            raise AsrlibError(
                f"There is no record.json in {place} or below: run the notebooks first, with `asrlib run`."
            )
        found |= dict.fromkeys(path.resolve() for path in inside)
    return [records.load(path) for path in found]


def collect(found: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return a row for each metric, with its labels, of each notebook under each choice of parameters.

    A row shows model and language, and whatever other parameters differ between the notebook's runs.

    Raises:
        AsrlibError: two runs that even the seed does not tell apart, or runs of one row by different code.
    """
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for record in found:
        run = record["run"]
        groups.setdefault((run["notebook"], run["profile"], _identity(_but_seed(run))), []).append(record)
    varied = _varied([group[0]["run"] for group in groups.values()])
    rows = []
    for key in sorted(groups):
        group = sorted(groups[key], key=lambda record: record["run"]["seed"])
        _check_group(group)
        known = _but_seed(group[0]["run"])
        shown = {name: known[name] for name in known if name in ALWAYS or name in varied[key[:2]]}
        rows += _rows(group, shown)
    return rows


def _but_seed(run: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run["parameters"].items() if name != "SEED"}


def _identity(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)


def _varied(runs: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], set[str]]:
    """Return, by notebook and profile, the parameters that differ between runs."""
    seen: dict[tuple[str, str], dict[str, set[str]]] = {}
    for run in runs:
        values = seen.setdefault((run["notebook"], run["profile"]), {})
        for name, value in run["parameters"].items():
            values.setdefault(name, set()).add(json.dumps(value))
    return {book: {name for name, texts in values.items() if len(texts) > 1} for book, values in seen.items()}


def _check_group(group: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to average what is not the same experiment, seed by seed."""
    runs = [record["run"] for record in group]
    name, seeds = runs[0]["notebook"], [run["seed"] for run in runs]
    if len({run["source_sha256"] for run in runs}) > 1:
        raise AsrlibError(f"The runs of {name} were made by different code of the notebook: run all of them again.")
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise AsrlibError(f"Two runs of {name} have the same parameters and seed {twice[0]}: name only one of them.")


def _rows(group: Sequence[Mapping[str, Any]], shown: Mapping[str, Any]) -> list[Row]:
    metrics: dict[tuple[str, str], Mapping[str, Any]] = {}
    values: dict[tuple[str, str], dict[int, float]] = {}
    for record in group:
        for metric in record["metrics"]:
            key = metric["name"], _identity(metric["labels"])
            metrics.setdefault(key, metric)
            values.setdefault(key, {})[record["run"]["seed"]] = metric["value"]
    book = [group[0]["run"][name] for name in ("notebook", "profile")]
    return [Row(*book, shown, item["name"], item["unit"], item["labels"], values[key]) for key, item in metrics.items()]


# ------------------------------------------------------------------------------------------------------------------ write
def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write ``sweep.csv`` and ``sweep.md``, and return their paths."""
    texts = {"sweep.csv": csv_text(rows), "sweep.md": markdown(rows)}
    return [files.write_atomic(folder / name, text) for name, text in texts.items()]


def csv_text(rows: Sequence[Row]) -> str:
    """Return the rows as CSV, with a column for each parameter, each label (``label.NAME``) and each seed (``seed.N``)."""
    parameters = dict.fromkeys(name for row in rows for name in row.parameters)
    labels = dict.fromkeys(name for row in rows for name in row.labels)
    seeds = sorted({seed for row in rows for seed in row.values})
    table = io.StringIO()
    out = csv.writer(table, lineterminator="\n")
    told = (*(f"label.{name}" for name in labels), "seeds", "mean", "sd", "low", "high")
    out.writerow(["notebook", "profile", *parameters, "metric", "unit", *told, *(f"seed.{seed}" for seed in seeds)])
    for row in rows:
        chosen = [_text(row.parameters.get(name, "")) for name in parameters]
        told = [row.labels.get(name, "") for name in labels]
        counted = [len(row.values), row.mean, row.deviation, *(row.interval or (None, None))]
        values = [row.values.get(seed) for seed in seeds]
        out.writerow([row.notebook, row.profile, *chosen, row.metric, row.unit, *told, *counted, *values])
    return table.getvalue()


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown, with a table for each notebook."""
    books = dict.fromkeys((row.notebook, row.profile) for row in rows)
    tables = [_table(*book, [row for row in rows if (row.notebook, row.profile) == book]) for book in books]
    return "\n".join([HEAD, *tables])


def _table(notebook: str, profile: str, rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.parameters))
    head = [*names, "metric", "of", "seeds", "mean", "sd", "95 % interval", "values by seed"]
    lines = [_line(head), _line(["---"] * (len(names) + 2) + ["---:"] * 5)]
    for row in rows:
        labels = ", ".join(f"{name} {value}" for name, value in row.labels.items())
        low_high = " to ".join(map(_shown, row.interval)) if row.interval else ""
        deviation = "" if row.deviation is None else _shown(row.deviation)
        values = ", ".join(f"{seed}: {_shown(value)}" for seed, value in row.values.items())
        chosen = [_text(row.parameters.get(name, "")) for name in names]
        lines.append(
            _line([*chosen, row.metric, labels, str(len(row.values)), _shown(row.mean), deviation, low_high, values])
        )
    return "\n".join([f"## {notebook}, profile {profile}", "", *lines, ""])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"

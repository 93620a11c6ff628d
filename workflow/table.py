"""Average the values of runs over their seeds: ``python workflow/table.py RUN|FOLDER ... [--output FOLDER]``.

Without ``--output`` the table is printed; else it is written as ``sweep.csv`` and ``sweep.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from asrlib import AsrlibError
from asrlib.course import records
from asrlib.io import files
from asrlib.uncertainty import CONFIDENCE

ALWAYS = ("MODEL_ID", "LANGUAGE")  # parameters that a row shows even where they are the same in all runs
HEAD = """\
# Means over seeds

sd is the standard deviation over the seeds (n - 1). The interval is the 95 % t interval of the mean, t(n - 1) · sd / √n to each side:
it shows the effect of the seed (choice of clips, order of training); the uncertainty from few clips is in the interval of each record.
One seed gives none.
"""


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


def collect(found: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], pd.DataFrame]:
    """Return, by notebook and profile, a row for each metric with its labels under each choice of parameters.

    A row shows model and language, and whatever other parameters differ between the notebook's runs.

    Raises:
        AsrlibError: two runs that do not even differ by the seed, or runs by different code of the notebook.
    """
    books: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in found:
        books.setdefault((record["run"]["notebook"], record["run"]["profile"]), []).append(record)
    return {book: _averaged(book[0], books[book]) for book in sorted(books)}


def _averaged(name: str, runs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    if len({record["run"]["source_sha256"] for record in runs}) > 1:
        raise AsrlibError(f"The runs of {name} were made by different code of the notebook: run all of them again.")
    known = pd.DataFrame([record["run"]["parameters"] for record in runs]).drop(columns="SEED", errors="ignore")
    known = known.map(lambda value: value if isinstance(value, str) else json.dumps(value))
    shown = [column for column in known if column in ALWAYS or known[column].nunique() > 1]
    rows = pd.DataFrame(
        {
            **dict(zip(shown, known.loc[number, shown], strict=True)),
            "metric": metric["name"],
            "unit": metric["unit"],
            **{f"label.{key}": value for key, value in metric["labels"].items()},
            "seed": record["run"]["seed"],
            "value": metric["value"],
        }
        for number, record in enumerate(runs)
        for metric in record["metrics"]
    )
    key = [column for column in rows if column not in ("seed", "value")]
    rows[key] = rows[key].astype(object).fillna("")
    if (twice := rows.duplicated([*key, "seed"])).any():
        seed = rows.loc[twice, "seed"].iloc[0]
        raise AsrlibError(f"Two runs of {name} have the same parameters and seed {seed}: name only one of them.")
    values = rows.pivot(index=key, columns="seed", values="value")
    n, mean, sd = values.count(axis=1), values.mean(axis=1), values.std(axis=1)
    half = special.stdtrit(np.maximum(n - 1, 1), (1 + CONFIDENCE) / 2) * sd / np.sqrt(n)
    told = pd.DataFrame({"seeds": n, "mean": mean, "sd": sd, "low": mean - half, "high": mean + half})
    return told.join(values.add_prefix("seed.")).reset_index()


def markdown(tables: Mapping[tuple[str, str], pd.DataFrame]) -> str:
    """Return the tables as Markdown, one for each notebook and profile."""
    parts = [HEAD]
    for (notebook, profile), table in tables.items():
        lines = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
        parts += [f"## {notebook}, profile {profile}", "", *map(_line, lines), ""]
    return "\n".join(parts)


def _line(cells: Iterable[Any]) -> str:
    shown = (cell if isinstance(cell, str) else "" if pd.isna(cell) else records.number(cell) for cell in cells)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in shown) + " |"


def write(tables: Mapping[tuple[str, str], pd.DataFrame], folder: Path) -> None:
    """Write ``sweep.csv``, with a column for each parameter, label (``label.NAME``) and seed (``seed.N``), and ``sweep.md``."""
    whole = pd.concat(table.assign(notebook=book, profile=profile) for (book, profile), table in tables.items())
    files.write_atomic(folder / "sweep.csv", whole.set_index(["notebook", "profile"]).reset_index().to_csv(index=False))
    files.write_atomic(folder / "sweep.md", markdown(tables))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read runs; print or write their table."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN|FOLDER")
    parser.add_argument("--output", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        tables = collect(read(options.runs))
        if options.output:
            write(tables, options.output)
        else:
            print(markdown(tables), end="")
    except AsrlibError as error:
        raise SystemExit(f"asrlib: {error}") from None


if __name__ == "__main__":
    main()

"""The course as data: its notebooks and their parameters, and what their runs left.

A run (`asrlib.course.runner`) leaves in ``build/runs/PROFILE/NAME/``: ``notebook.ipynb``, ``record.json``, ``predictions.jsonl``,
``log.txt``, and last of all ``result.json``, which alone says whether it is complete.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from asrlib import AsrlibError
from asrlib.course import records
from asrlib.course.parameters import Parameter, check, declared, profile_values
from asrlib.io import environment, files

# No notebook imports these: a change repeats no run.
ROOF = {
    "cli/*", "course/colab.py", "course/comparison.py", "course/registry.py", "course/runner.py",
    "io/environment.py", "tasks/demo.py", "tasks/evaluation.py", "tasks/sharding.py",
}  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- registry
@dataclass(frozen=True)
class Notebook:
    """An entry of ``notebooks/notebooks.toml``.

    Attributes:
        reproduces: what it reproduces, in a few words.
        needs: names of the notebooks that must have finished in the same profile.
        checkpoints: model ids that the ``reference`` profile loads.
        corpora: (name, language) pairs that it loads.
        writes: files that a run must leave beside the executed notebook.
        extras: of pyproject.toml, whose packages it imports.
        finding: which of its main findings, counted from 1, README.md shows.
        picture: id of the cell whose figure the site shows beside the findings.
        required_api: names that must occur in the notebook's own code: the method stays in plain sight.
    """

    name: str
    path: Path
    title: str
    reproduces: str
    needs: tuple[str, ...]
    checkpoints: tuple[str, ...]
    corpora: tuple[tuple[str, str], ...]
    writes: tuple[str, ...]
    required_api: tuple[str, ...]
    extras: tuple[str, ...]
    finding: int
    picture: str


def read(root: Path) -> dict[str, Notebook]:
    """Return the registered notebooks by name, in the order of their numbers.

    Raises:
        AsrlibError: an entry lacks a field, has an unknown one, or needs a notebook that is not there.
    """
    table = files.read_toml(root / "notebooks" / "notebooks.toml")
    books: dict[str, Notebook] = {}
    for name in sorted(table):
        book = _entry(root, name, table[name])
        if missing := set(book.needs) - set(books):
            raise AsrlibError(f"notebooks.toml: {name} needs {', '.join(missing)}, which is not registered before it.")
        books[name] = book
    return books


def _entry(root: Path, name: str, entry: Mapping[str, Any]) -> Notebook:
    wanted = {field.name for field in fields(Notebook)} - {"name", "path"}
    if wrong := ", ".join(sorted(wanted ^ set(entry))):
        known = ", ".join(sorted(wanted))
        raise AsrlibError(f"notebooks.toml, [{name}]: {wrong} is missing or unknown; the fields are {known}.")
    values = {field: tuple(value) if isinstance(value, list) else value for field, value in entry.items()}
    values["corpora"] = tuple(
        (corpus, language) for corpus, _, language in (item.partition("/") for item in entry["corpora"])
    )
    return Notebook(name, root / "notebooks" / f"{name}.ipynb", **values)


def select(root: Path, chosen: Iterable[str] = (), besides: Iterable[str] = ()) -> list[Notebook]:
    """Return the notebooks with the given numbers (``01``) or names, or all of them.

    Raises:
        AsrlibError: no notebook has this number or name; ``besides`` could have been chosen too.
    """
    books = read(root)
    wanted = set()
    for choice in chosen:
        found = [name for name in books if name == choice or name.split("_")[0] == choice.zfill(2)]
        if not found:
            what = "notebook or corpus" if besides else "notebook"
            raise AsrlibError(f"There is no {what} {choice!r}: choose among {', '.join([*books, *besides])}.")
        wanted.update(found)
    return [book for name, book in books.items() if not wanted or name in wanted]


def inputs(root: Path, chosen: Iterable[str] = ()) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the checkpoints, and the (corpus, language) pairs, that the reference profile of these notebooks loads.

    A packaged corpus may be chosen too, such as ``telephone/it``, or ``telephone`` for all of its languages.

    Raises:
        AsrlibError: there is no such notebook, or corpus, or language of it.
    """
    from asrlib import corpora  # numpy

    known, pairs, numbers = corpora.names(), [], []
    for choice in chosen:
        name, _, language = choice.partition("/")
        if language and name in known and language not in known[name]:
            raise AsrlibError(f"There is no {choice}: {name} has {', '.join(known[name])}.")
        numbers += [choice] if name not in known else []
        pairs += [(name, one) for one in known.get(name, ()) if language in ("", one)]
    books = select(root, numbers, known) if numbers or not pairs else []
    pairs += [item for book in books for item in book.corpora]
    checkpoints = dict.fromkeys(item for book in books for item in book.checkpoints)
    return list(checkpoints), list(dict.fromkeys(pairs))


# ------------------------------------------------------------------------------------------------------------- parameters
def parameters(path: Path) -> dict[str, Parameter]:
    """Return the parameters of a notebook by name.

    Raises:
        AsrlibError: there is not exactly one cell with the tag ``parameters``, or a line of it has another form.
    """
    return declared(records.parameter_cell(path), path.name)


def check_parameters(notebook: Notebook, given: Mapping[str, str]) -> dict[str, Any]:
    """Turn ``NAME=VALUE`` texts into values of the types that the notebook's parameter cell states.

    A text that is no JSON, such as ``ro``, stands for itself.

    Raises:
        AsrlibError: unknown name, or a value of another type.
    """
    known = parameters(notebook.path)
    values = {}
    for name, text in given.items():
        if name == "PROFILE":
            raise AsrlibError("Choose the profile with --profile, not with -p PROFILE=...")
        if name not in known:
            raise AsrlibError(f"{notebook.name} has no parameter {name}: it has {', '.join(known)}.")
        kind = known[name].type
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
        if kind == "str" and not isinstance(value, str):
            value = text  # -p NAME=12 means the text
        values[name] = check(notebook.name, known[name], value)
    return values


# ------------------------------------------------------------------------------------------------------------------- keys
def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def stamp(root: Path, notebook: Notebook, profile: str) -> str:
    """Return the SHA-256 over a notebook's code, its profile's values and `versions`: what published outputs came from."""
    values = profile_values(files.read_toml(root / "notebooks" / "profiles.toml"), notebook.name, profile)
    return _digest(records.notebook_code(notebook.path), profile, values, versions(root, notebook))


def versions(root: Path, notebook: Notebook) -> dict[str, str]:
    """Return the locked versions on which a notebook's numbers depend.

    Those are asrlib's own dependencies, the extra ``methods``, and whatever else the notebook imports: a new version of the
    demo page's or the tests' packages makes no published output stale.
    """
    project = files.read_toml(root / "pyproject.toml")["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["methods"]]
    wanted = {re.match(r"[\w.-]+", line)[0].lower() for line in lines}
    code = "\n".join(records.notebook_code(notebook.path))
    wanted |= {name.replace("_", "-") for name in re.findall(r"^\s*(?:import|from) (\w+)", code, re.MULTILINE)}
    lock = (root / "requirements.lock").read_text(encoding="utf-8")
    return {name: version for name, version in environment.pins(lock).items() if name in wanted}


def key(root: Path, notebook: Notebook, profile: str, values: Mapping[str, Any], needed: Sequence[str] = ()) -> str:
    """Return the SHA-256 of all that a run's results depend on: a run whose key is unchanged need not be repeated.

    Args:
        values: parameters that override those of the profile.
        needed: keys of the runs whose results this one reads.
    """
    package = Path(__file__).parents[1]
    sources = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    sources = {name: path for name, path in sources.items() if not any(fnmatchcase(name, roof) for roof in ROOF)}
    tables = [path for path in (root / "data").rglob("*") if path.is_file() and path.suffix != ".md"]
    foundation = [(name, files.sha256(path)) for name, path in sorted(sources.items())]
    foundation += [(path.name, files.sha256(path)) for path in sorted(tables)]
    return _digest(stamp(root, notebook, profile), foundation, dict(values), list(needed))


# ---------------------------------------------------------------------------------------------------------------- results
@dataclass(frozen=True)
class Outcome:
    """What became of one notebook; the content of ``result.json``.

    ``status`` is finished, unchanged, failed, kernel died, timed out, interrupted or not run; ``key`` is that of `key`;
    ``cell`` counts code cells from 1, as Jupyter does when a notebook runs from the top.
    """

    notebook: str
    status: str
    key: str = ""
    folder: str = ""
    cell: int | None = None
    heading: str = ""
    error: str = ""
    seconds: float = 0.0
    peak_rss_mib: float | None = None

    @property
    def good(self) -> bool:
        """Say whether the notebook's results are there and belong to its present code."""
        return self.status in ("finished", "unchanged")

    def __str__(self) -> str:
        line = f"{self.notebook:24} {self.status}"
        if self.status == "finished":
            return line + f" in {self.seconds:.0f} s" + (f", {self.peak_rss_mib:.0f} MiB" if self.peak_rss_mib else "")
        if self.status == "unchanged":
            return line
        place = f" in cell {self.cell} ({self.heading})" if self.cell else ""
        return f"{line}{place}\n    {self.error}" + (f"\n    See {self.folder}/" if self.folder else "")


def run_folder(root: Path, profile: str, name: str, output: Path | None = None) -> Path:
    """Return where a notebook's run in a profile leaves its files: below ``output``, default ``build/runs``."""
    return (output or root / "build" / "runs") / profile / name


def result(folder: Path) -> Outcome | None:
    """Return what ``result.json`` says, or None where no run has ended, or by another version of this file."""
    try:
        return Outcome(**json.loads((folder / "result.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def newest(root: Path, name: str, profile: str = "reference", output: Path | None = None) -> Path | None:
    """Return the folder with a notebook's newest record: the reader's own finished run in a profile, else the published one."""
    own, published = run_folder(root, profile, name, output), root / "results" / name
    if (outcome := result(own)) and outcome.good and (own / "record.json").is_file():
        return own
    return published if (published / "record.json").is_file() else None


def latest_records(root: Path, profile: str = "reference", output: Path | None = None) -> dict[str, dict[str, Any]]:
    """Return the `newest` records by notebook."""
    folders = {name: newest(root, name, profile, output) for name in read(root)}
    return {name: records.load(folder / "record.json") for name, folder in folders.items() if folder}

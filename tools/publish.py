"""Write a finished reference run into the tracked files: ``python -m tools.publish 01 02``, or ``asrlib run 01 02 --publish``.

Outputs go into ``notebooks/``, records into ``results/``, and the table of chapters and the verdicts into README.md. What
stands there between the markers is never typed.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

from asrlib import AsrlibError
from asrlib.course import claims, records, registry, rules
from asrlib.io import files

TOOK = re.compile(r"^\| took \|.*\|$", re.MULTILINE)  # in a notebook's first cell: the line that publishing fills in
RESULT = re.compile(r"<!-- result -->\n.*?<!-- end of result -->", re.DOTALL)  # ... and the box with the answer
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:home|root|Users|tmp|var/folders|mnt|private)/[^\s\"'<>)\]]*|[A-Z]:\\Users\\\S*")
NAMES = re.compile(r"(?<= \(Holm's correction\)):.*")  # the comparisons that hold, one by one: too long for a table
PICTURE = "docs/_static/picture.png"  # of the last chapter, which joins the others' results
PART = "<!-- {0} -->\n{1}<!-- end of {0} -->"


# -------------------------------------------------------------------------------------------------------------- notebooks
def absolute_paths(text: str) -> list[str]:
    """Return the absolute paths of somebody's machine that a text holds."""
    return [match.group() for match in ABSOLUTE.finditer(text)]


def publish(root: Path, names: Sequence[str]) -> None:
    """Write the outputs of finished ``reference`` runs into ``notebooks/``, ``results/`` and README.md.

    All notebooks are checked before the first file is written.

    Raises:
        AsrlibError: a notebook did not finish, changed while it ran, or its outputs name a path of this machine.
    """
    books = registry.read(root)
    folders = {name: registry.run_folder(root, "reference", name) for name in names}
    if bad := [name for name, folder in folders.items() if not ((run := registry.result(folder)) and run.good)]:
        raise AsrlibError(
            f"Nothing was published, because {', '.join(bad)} did not finish: correct that and run again."
        )
    ready = {name: _published(root, books[name]) for name in names}
    for name, text in ready.items():
        for item in (*books[name].writes, "result.json"):  # the last has the memory of the run
            files.write_atomic(root / "results" / name / item, (folders[name] / item).read_bytes())
        files.write_atomic(books[name].path, text)
    if stale(root) & set(ready):
        path = root / "notebooks" / "stale.txt"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        files.write_atomic(path, "".join(line for line in lines if line.strip() not in ready))
    *_, last = books.values()
    if last.name in ready and (shown := picture(last)):
        files.write_atomic(root / PICTURE, shown[0])
    files.write_atomic(root / "README.md", readme(root))


def opening(source: str, folder: Path) -> str:
    """Return a notebook's first cell with what the run in a folder found and took, in the places meant for it."""
    source = TOOK.sub(lambda _: f"| took | {took(folder)} |", source)
    found = main_findings(records.load(folder / "record.json"))
    lines = ["> **Result.** " + " ".join(found), ">", f"> Measured in the run below: {took(folder)}."]
    return RESULT.sub(lambda _: "\n".join(["<!-- result -->", *lines, "<!-- end of result -->"]), source)


def main_findings(record: Mapping[str, Any]) -> list[str]:
    """Return the sentences that answer a chapter's question."""
    return [item["text"] for item in record.get("findings", ()) if item["main"]]


def stale(root: Path) -> set[str]:
    """Return the notebooks whose code is ahead of their outputs, as ``notebooks/stale.txt`` lists them, a name a line."""
    path = root / "notebooks" / "stale.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


def took(folder: Path) -> str:
    """Return the time and memory of a finished run, from its record and result: ``8 minutes, 1.5 GiB, on 2 cores of ...``."""
    record, outcome = records.load(folder / "record.json"), registry.result(folder)
    hardware = record["environment"]["hardware"]
    memory = f", {outcome.peak_rss_mib / 1024:.1f} GiB at most" if outcome and outcome.peak_rss_mib else ""
    return f"{minutes(record)}{memory}, on {hardware['cores']} cores of {hardware['cpu']}"


def minutes(record: Mapping[str, Any]) -> str:
    """Return the time of a record's run in words."""
    seconds = record["run"]["seconds"]
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def _published(root: Path, notebook: registry.Notebook) -> str:
    """Return the tracked notebook's text with the outputs of its run: nothing else of the executed copy gets in."""
    copy = registry.run_folder(root, "reference", notebook.name) / "notebook.ipynb"
    if records.notebook_code(copy) != records.notebook_code(notebook.path):
        raise AsrlibError(f"The code of {notebook.name} was changed while it ran: run it again.")
    tracked = nbformat.read(notebook.path, as_version=4)
    executed = {cell.id: cell for cell in nbformat.read(copy, as_version=4).cells}
    code = [cell for cell in tracked.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        cell.outputs = executed[cell.id].outputs
        for output in cell.outputs:
            _normalise(output, f"{notebook.name}, cell {number}", root)
    count(tracked)
    if "record.json" in notebook.writes:
        tracked.cells[0].source = opening(tracked.cells[0].source, copy.parent)
    for noise in ("papermill", "widgets"):
        tracked.metadata.pop(noise, None)
    tracked.metadata.get("language_info", {}).pop("version", None)
    tracked.metadata["asrlib"] = {"profile": "reference", "stamp": registry.stamp(root, notebook, "reference")}
    return nbformat.writes(tracked) + "\n"


def count(notebook: Any) -> None:
    """Number a notebook's code cells, and the results below them, from 1."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number


def _normalise(output: Any, place: str, root: Path) -> None:
    """Refuse an output that shows an error, a widget or a path of this machine."""
    if output.output_type == "error":
        raise AsrlibError(f"{place} shows an error: outputs with errors are not published.")
    data = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data:
        raise AsrlibError(f"{place} shows a widget, which nobody can see in a saved notebook: show text or a figure.")
    shown = [str(value) for kind, value in data.items() if not kind.startswith("image/")]
    text = "\n".join([*shown, output.get("text", "")])
    own = [path for path in (str(root), str(Path.home()), tempfile.gettempdir()) if path != "/" and path in text]
    if found := own + absolute_paths(text):
        raise AsrlibError(f"{place} shows the path {found[0]}, which is this machine's own: print a relative one.")


# ----------------------------------------------------------------------------------------------------------------- README
def readme(root: Path) -> str:
    """Return README.md of a checkout with its generated parts as the published records have them.

    Raises:
        AsrlibError: a record or claim that cannot be read, or a finding that its record does not have.
    """
    found = {path.parent.name: records.load(path) for path in sorted(root.glob("results/*/record.json"))}
    text = (root / "README.md").read_text(encoding="utf-8")
    parts = {"picture": _picture(root), "chapters": _chapters(root, found), "verdicts": _verdicts(root, found)}
    for name, lines in parts.items():
        part = PART.format(name, "".join(f"{line}\n" for line in lines))
        text = re.sub(PART.format(name, ".*?"), lambda _, part=part: part, text, flags=re.DOTALL)
    return text


def _picture(root: Path) -> Iterator[str]:
    *_, last = registry.read(root).values()
    if (shown := picture(last)) and (root / PICTURE).is_file():
        yield f"![{shown[1]}]({PICTURE})"


def picture(book: registry.Notebook) -> tuple[bytes, str] | None:
    """Return the figure of a published notebook that ``notebooks.toml`` chooses, as PNG, with its text alternative."""
    cells = json.loads(book.path.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells if cell.get("id") == book.picture for output in cell.get("outputs", ())]
    drawn = [output for output in outputs if "image/png" in output.get("data", {})]
    if not drawn:
        return None
    return base64.b64decode(drawn[-1]["data"]["image/png"]), drawn[-1]["metadata"]["image/png"]["alt"]


def _chapters(root: Path, found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield from ("| notebook | reproduces | found | took |", "|---|---|---|---|")
    for name, book in registry.read(root).items():
        record = found.get(name)
        told = f"{finding(book, record)} | {minutes(record)}" if record else " | "
        yield f"| [{name[:2]} {book.title}](notebooks/{name}.ipynb) | {book.reproduces} | {told} |"


def finding(book: registry.Notebook, record: Mapping[str, Any]) -> str:
    """Return what a chapter found in one sentence: the first of the main finding that ``notebooks.toml`` chooses.

    Raises:
        AsrlibError: the record has findings, but not so many.
    """
    texts = main_findings(record)
    if texts and not 1 <= book.finding <= len(texts):
        raise AsrlibError(f"notebooks.toml, {book.name}: finding is {book.finding}, but its record has {len(texts)}.")
    return NAMES.sub(".", re.split(r"(?<=\.) (?=[A-Z])", texts[book.finding - 1])[0]) if texts else ""


def _verdicts(root: Path, found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    verdicts = claims.judge(claims.load(root / "data" / "claims.yaml"), found.values())
    kinds = (rules.HOLDS, rules.DIRECTION, rules.FAILS, "not run")
    yield f"| claims about | {' | '.join(kinds)} | all |"
    yield "|---" + "|---:" * (len(kinds) + 1) + "|"
    counts = claims.by_topic(verdicts)
    counts[f"**all {len(verdicts)}**"] = sum(counts.values(), Counter())
    for topic, each in counts.items():
        yield f"| {topic} | {' | '.join(str(each[kind] or '') for kind in kinds)} | {each.total()} |"


def main(arguments: Sequence[str]) -> None:
    """Publish the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.publish", description="Write finished reference runs into the tracked files."
    )
    parser.add_argument("notebooks", nargs="*", metavar="NN", help="numbers or names of notebooks; default: all")
    chosen = parser.parse_args(arguments).notebooks
    root = Path.cwd()
    try:
        publish(root, [book.name for book in registry.select(root, chosen)])
    except AsrlibError as error:
        raise SystemExit(f"asrlib: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])

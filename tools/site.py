"""The generated half of the course's site: ``python -m tools.site`` writes it, then Sphinx joins it with ``docs/*.md``.

Records, claims and tables fill the templates in ``docs/_fragments``; the pages take in the results as raw files from
``docs/_generated``. So what other people wrote (claims, transcripts, labels) is escaped by Jinja, all of it and once, and is
never read as Markdown, as a directive or as a template. Notebooks are copied with their outputs; nothing is executed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from asrlib import __version__
from asrlib.course import claims, comparison, evidence, records, registry, rules
from asrlib.course.records import number
from asrlib.io import files
from tools import publish

__all__ = ["Chapter", "chapters", "write"]

FRAGMENTS = (
    "answer", "scoreboard", "findings", "map", "ledger", "corpora", "checkpoints", "timings", "records", "review",
)  # fmt: skip
ERRORS = ("substitutions", "deletions", "insertions")
OWN = {"id", "hypothesis", "words", "seconds", *ERRORS}  # keys of a prediction that are no labels
WORST = 8  # clips with the most errors that the page of records shows of each notebook
PAGES = {"../data/README.md": "../../corpora.md", "../data/claims.yaml": "../../ledger.md"}
LINK = re.compile(r"\[([^\]]*)\]\(\.\./((?!\.\./)[^)]+)\)")  # a Markdown link to a file of the repository


# ---------------------------------------------------------------------------------------------------------------- chapters
@dataclass(frozen=True)
class Chapter:
    """A notebook with all that the site shows of it.

    Attributes:
        book: its entry in ``notebooks.toml``.
        folder: where its newest record lies: the reader's own reference run, else the published one; None without any.
        record: that record.
        published: the published record, where ``record`` is the reader's own.
        peak_mib: highest resident memory of the run, where it was measured.
        verdicts: the claims about its methods.
        stale: its code is ahead of its outputs.
    """

    book: registry.Notebook
    folder: Path | None
    record: dict[str, Any] | None
    published: dict[str, Any] | None
    peak_mib: float | None
    verdicts: tuple[rules.Verdict, ...]
    stale: bool

    @property
    def number(self) -> str:
        """Return the notebook's two digits."""
        return self.book.name[:2]

    @property
    def title(self) -> str:
        """Return number and title."""
        return f"{self.number} {self.book.title}"

    @property
    def found(self) -> list[str]:
        """Return the main findings of the run."""
        return publish.main_findings(self.record) if self.record else []

    @property
    def finding(self) -> str:
        """Return the one sentence that stands for the chapter."""
        return publish.finding(self.book, self.record) if self.record else ""

    @cached_property
    def picture(self) -> tuple[bytes, str] | None:
        """Return the figure of the published notebook that ``notebooks.toml`` chooses, as PNG, with its text alternative."""
        return publish.picture(self.book)

    @property
    def judged(self) -> list[rules.Verdict]:
        """Return the verdicts that were reached."""
        return [verdict for verdict in self.verdicts if claims.kind(verdict) != "not run"]

    @property
    def machine(self) -> str:
        """Return the processor, its cores and the GPU of the run."""
        hardware = self.record["environment"]["hardware"]
        return ", ".join(filter(None, (hardware["cpu"], f"{hardware['cores']} cores", hardware["gpu"])))

    @property
    def changes(self) -> list[comparison.Change]:
        """Return how the reader's own run differs from the published one."""
        return comparison.compare(self.published, self.record) if self.published else []

    @property
    def worst(self) -> list[dict[str, Any]]:
        """Return the predictions with the most errors; what was said is not in the repository."""
        rows = files.read_jsonl(self.folder / "predictions.jsonl")
        counted = [(sum(row.get(kind, 0) for kind in ERRORS), row) for row in rows]
        ranked = sorted(counted, key=lambda pair: -pair[0])[:WORST]
        return [row | {"labels": {key: row[key] for key in row if key not in OWN}} for errors, row in ranked if errors]

    @property
    def warnings(self) -> list[str]:
        """Return what a reviewer should know of the run before reading its numbers."""
        run, predictions = self.record["run"], self.folder / "predictions.jsonl"
        other = self.published is not None and run["parameters"] != self.published["run"]["parameters"]
        told = {
            "The notebook is being rewritten: its outputs are older than its code.": self.stale,
            "The parameters are not those of the published run.": other,
            "The notebook's code has changed since this run.": not self.stale
            and run["source_sha256"] != records.source_hash(self.book.path),
            "The library or the tables of this run had changes that were not committed.": run["dirty"],
            "The transcripts are not those that this run wrote.": files.sha256(predictions)
            != self.record["predictions"]["sha256"],
        }
        return [warning for warning, applies in told.items() if applies]


def chapters(root: Path) -> list[Chapter]:
    """Return the chapters of the course in a checkout, in order, with the verdicts that their records give.

    Raises:
        AsrlibError: a table, a record or a claim that cannot be read.
    """
    books = registry.read(root)
    folders = {name: registry.newest(root, name) for name in books}
    newest = {name: records.load(folder / "record.json") for name, folder in folders.items() if folder}
    known = claims.load(root / "data" / "claims.yaml")
    judges = {claim["id"]: claim["evidence"]["notebook"] for claim in known if "evidence" in claim}
    home = {
        claim["method"]: judges[claim["id"]] for claim in known if claim["id"] in judges
    }  # for those without evidence
    verdicts = claims.judge(known, newest.values())
    found = []
    for name, book in books.items():
        own = folders[name] == registry.run_folder(root, "reference", name)
        published = root / "results" / name / "record.json"
        earlier = records.load(published) if own and published.is_file() else None
        outcome = folders[name] and registry.result(folders[name])
        mine = tuple(item for item in verdicts if judges.get(item.id, home.get(item.method)) == name)
        peak = outcome.peak_rss_mib if outcome else None
        stale = name in publish.stale(root)
        found.append(Chapter(book, folders[name], newest.get(name), earlier, peak, mine, stale))
    return found


# --------------------------------------------------------------------------------------------------------------- fragments
def _interval(ends: Sequence[float] | None) -> str:
    return f"{number(ends[0])} to {number(ends[1])}" if ends else ""


def _labels(labels: Mapping[str, Any]) -> str:
    shown = {key: number(value) if isinstance(value, float) else value for key, value in labels.items()}
    return ", ".join(f"{key} {value}" for key, value in shown.items())


def _needs(verdict: rules.Verdict) -> str:
    return (
        verdict.verdict.removeprefix("not run (needs ").removesuffix(")") if claims.kind(verdict) == "not run" else ""
    )


def _prose(text: str) -> Any:
    """Return escaped text in which what stood between backticks is set as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _templates(root: Path) -> Any:
    """Return the templates; every value they show is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(root / "docs" / "_fragments"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (claims.kind, number, _interval, _labels, _needs, _prose)
    templates.filters |= {function.__name__.removeprefix("_"): function for function in filters}
    return templates


# --------------------------------------------------------------------------------------------------------------- notebooks
def _rendered(chapter: Chapter, repository: str, bar: str) -> str:
    """Return a notebook for myst-nb: with a bar of links under its title, and alternative texts where myst-nb looks for them."""
    content = json.loads(chapter.book.path.read_text(encoding="utf-8"))
    content["metadata"].setdefault("language_info", {})["pygments_lexer"] = "ipython3"  # a cell may hold %pip
    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = _relinked("".join(cell["source"]), repository)
        for output in cell.get("outputs", ()):
            if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
    title, _, rest = content["cells"][0]["source"].removeprefix("# ").partition("\n")
    line = " ".join(bar.split())  # Markdown leaves a paragraph of HTML alone, up to the next empty line
    content["cells"][0]["source"] = f"# {chapter.number} {title}\n\n{line}\n\n{rest}"
    return json.dumps(content, ensure_ascii=False)


def _relinked(markdown: str, repository: str) -> str:
    """Turn links to files of the repository into links to the site's pages, to the repository's own, or into plain names."""

    def new(link: re.Match[str]) -> str:
        text, path = link.groups()
        if page := PAGES.get(f"../{path}"):
            return f"[{text}]({page})"
        return f"[{text}]({repository}/blob/v{__version__}/{path})" if repository else f"`{path}`"

    return LINK.sub(new, markdown)


# ------------------------------------------------------------------------------------------------------------------- write
def write(root: Path) -> Path:
    """Write ``docs/_generated`` of a checkout anew: fragments, notebooks, a page for each module, and files for download.

    Returns:
        The folder.

    Raises:
        AsrlibError: a table, a record, a claim or a notebook that cannot be read.
    """
    found = chapters(root)
    known = claims.load(root / "data" / "claims.yaml")
    verdicts = claims.judge(known, [chapter.record for chapter in found if chapter.record])
    project = files.read_toml(root / "pyproject.toml")["project"]
    repository = project.get("urls", {}).get("Repository", "").rstrip("/")
    templates = _templates(root)
    told = {chapter.book.name: chapter.record for chapter in found if chapter.found}
    values = {
        "chapters": found,
        "verdicts": verdicts,
        "paths": evidence.Table(evidence.paths(told, verdicts, root / "data" / "paths.toml")),
        "kinds": {kind: n for kind in rules.KINDS if (n := claims.count(verdicts).get(kind))},
        "counts": Counter((verdict.topic, claims.kind(verdict)) for verdict in verdicts),
        "topics": {topic: n for topic in rules.TOPICS if (n := Counter(verdict.topic for verdict in verdicts)[topic])},
        "methods": list(dict.fromkeys(verdict.method for verdict in verdicts)),
        "corpora": {
            name: table for name, table in files.read_toml(root / "data" / "corpora.toml").items() if "title" in table
        },
        "checkpoints": files.read_toml(root / "data" / "checkpoints.toml"),
        "meanings": comparison.KINDS,
    }
    with files.new_folder(root / "docs" / "_generated") as folder:
        for name in FRAGMENTS:
            files.write_atomic(folder / f"{name}.html", templates.get_template(f"{name}.html").render(values))
        for chapter in found:
            bar = templates.get_template("bar.html").render(
                chapter=chapter, github=_github(repository), version=__version__
            )
            records.notebook_code(chapter.book.path)  # a file that is missing or no notebook is named there
            name = chapter.book.path.name
            files.write_atomic(folder / "notebooks" / name, _rendered(chapter, repository, bar))
            files.write_atomic(folder / "extra" / "notebooks" / name, chapter.book.path.read_bytes())
            if chapter.picture:
                files.write_atomic(folder / "extra" / "pictures" / f"{chapter.number}.png", chapter.picture[0])
            for left in ("record.json", "predictions.jsonl") if chapter.folder else ():
                target = folder / "extra" / "results" / chapter.book.name / left
                files.write_atomic(target, (chapter.folder / left).read_bytes())
        for module in _modules(root):
            title = module.removeprefix("asrlib.")
            page = f"{title}\n{'=' * len(title)}\n\n.. automodule:: {module}\n   :members:\n"
            files.write_atomic(folder / "api" / f"{title}.rst", page)
    return root / "docs" / "_generated"


def _modules(root: Path) -> list[str]:
    """Return the library's modules by their dotted names, and a folder whose ``__init__`` has functions of its own."""
    paths = sorted((root / "asrlib").rglob("[a-z]*.py")) + sorted((root / "asrlib").glob("*/__init__.py"))
    inside = [path.relative_to(root).with_suffix("") for path in paths]
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in inside)


def _github(repository: str) -> str:
    """Return OWNER/NAME of a repository on GitHub, which Colab can open; empty for one elsewhere."""
    start = "https://github.com/"
    return repository.removeprefix(start) if repository.startswith(start) else ""


if __name__ == "__main__":
    write(Path.cwd())

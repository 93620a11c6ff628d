"""What the records of all chapters say for a choice: lines of evidence, and the table of paths that ``data/paths.toml`` lays out."""

from __future__ import annotations

import html
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from asrlib import AsrlibError
from asrlib.course import claims, records
from asrlib.io import files

NONE = "not measured yet"


def gather(run: records.Record, chapters: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the newest record of each chapter by name: of this profile's last run, else as published.

    A chapter that has left none, or one of the first edition, which kept no findings, is left out.

    Args:
        run: of the chapter that asks.
        chapters: names of notebooks.

    Raises:
        AsrlibError: no chapter has a record, or a record cannot be read.
    """
    found = {}
    for name in chapters:
        try:
            path = records.earlier(run, name) / "record.json"
        except AsrlibError:
            continue
        if (record := records.load(path)).get("findings"):
            found[name] = record
    if not found:
        raise AsrlibError("No chapter has a record to read: run one first, such as `asrlib run 03`.")
    return found


def metric(wanted: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the value that a line of evidence asks for, or None where no record has it.

    Args:
        wanted: ``notebook``, ``metric``, ``where`` and perhaps ``against``, as for `asrlib.course.claims.find`.
        found: records by notebook.
    """
    if wanted["notebook"] not in found:
        return None
    name, record = wanted["metric"], found[wanted["notebook"]]
    return claims.find("paths.toml", record, name, wanted["where"], wanted.get("against"))


def shown(value: Mapping[str, Any], ratio: bool) -> str:
    """Return a value with its interval and number of clips: ``2.9 times [2.8, 3.0]``, ``3.2 points higher [1.4, 5.2], 132 clips``."""
    number, unit, low_high = value["value"], value.get("unit", ""), value["interval"]
    if ratio or unit == "x":
        text, digits = f"{number:.2f} times", 2
    elif unit == "points":
        text, digits = f"{number:+.1f} points", 1
    else:
        text, digits = f"{number:.1f} {unit}".strip(), 1
    ends = " [{:.{d}f}, {:.{d}f}]".format(*low_high, d=digits) if low_high else ""
    return text + ends + (f", {value['utterances']} clips" if value.get("utterances") else "")


def sure(wanted: Mapping[str, Any] | None, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Say how sure the line of evidence is that decides a path, such as ``no difference shown on 40 clips``."""
    if wanted is None:
        return "published only"
    value = metric(wanted, found)
    if value is None:
        return NONE
    clips = f" on {value['utterances']} clips" if value.get("utterances") else ""
    if value["interval"] is None:
        return f"measured here{clips}, without an interval"
    same = 1 if "against" in wanted or value.get("unit") == "x" else 0
    if value["interval"][0] <= same <= value["interval"][1]:
        return f"no difference shown{clips}"
    less, more = ("fewer errors", "more errors") if wanted["metric"].startswith("wer") else ("slower", "faster")
    return f"shown here{clips}: {less if value['value'] < same else more}"


# ---------------------------------------------------------------------------------------------------------------- systems
NAMES = (
    "system",
    "engine",
    "method",
    "precision",
    "window",
    "cache",
    "batch",
)  # labels that name a system, as chapters have them


@dataclass(frozen=True)
class System:
    """What a record says of one system: its WER (%), a cost such as a speed, both with intervals where there are any.

    ``worse``: its WER is shown to be worse than that of a system which its chapter compares it with.
    """

    wer: float
    wer_interval: tuple[float, float] | None
    cost: float
    cost_interval: tuple[float, float] | None
    worse: bool


def systems(record: Mapping[str, Any], cost: str, **where: Any) -> dict[str, System]:
    """Return the systems of a record that have both words and a cost, by name, in its order; none where it lacks either.

    Args:
        record: content of a ``record.json``.
        cost: name of the metric, such as ``times_as_fast`` or ``weight_bytes``; of a system in parts, the parts are added up.
        where: labels that the words must have, such as ``noise="5 dB"``.

    Raises:
        AsrlibError: several values of a system's words fit equally well.
    """
    found: dict[str, System] = {}
    for name, labels, items in _costs(record, cost):
        wanted = labels | where
        if words := claims.find(name, record, "wer_percent", wanted):
            value, interval = sum(item["value"] for item in items), items[0]["interval"] if len(items) == 1 else None
            gaps = [
                item["interval"]
                for item in record["metrics"]
                if item["name"] == "wer_difference_points" and wanted.items() <= item["labels"].items()
            ]
            gaps += [row["interval"] for other, _, row in tabled(record) if other == name]
            worse = any(ends and ends[0] > 0 for ends in gaps)
            found[name] = System(words["value"], words["interval"], value, interval, worse)
    return found


def tabled(record: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield the comparisons that only a finding's table has: the system's full name, the other's, and the row.

    Such a table leaves out the word that all its names begin with: "int8" beside "OpenVINO float" is "OpenVINO int8".
    """
    known = {item["labels"].get("system") for item in record["metrics"]}
    for numbers in (item["numbers"] for item in record["findings"] if item.get("kind") == "table"):
        other = numbers["reference"].partition(",")[0]
        for row in numbers["comparisons"]:
            name = f"{other.partition(' ')[0]} {row['system']}"
            if name in known and row["interval"]:
                yield name, other, row


def _costs(record: Mapping[str, Any], cost: str) -> Iterator[tuple[str, dict[str, Any], list[Mapping[str, Any]]]]:
    """Yield each system's name, the labels that make it out, and its values of a metric: one, or one a part."""
    values: dict[str, tuple[dict[str, Any], list[Mapping[str, Any]]]] = {}
    for item in (item for item in record["metrics"] if item["name"] == cost):
        labels = {key: value for key, value in item["labels"].items() if key in (*NAMES, "model")}
        name = " ".join(str(labels[key]) for key in NAMES if key in labels)
        if name and labels.get("model", "") not in ("", record["run"]["parameters"].get("MODEL_ID", "")):
            name += f", {labels['model']}"
        values.setdefault(name, (labels, []))[1].append(item)
    for name, (labels, items) in values.items():
        whole = [item for item in items if item["labels"].get("part", "both") == "both"]
        if name:
            yield name, labels, whole or items


# ------------------------------------------------------------------------------------------------------------------ paths
@dataclass(frozen=True)
class Path:
    """A path with its evidence, ready to be shown; ``costs``, ``here`` and ``published`` are lines."""

    name: str
    when: str
    command: str
    costs: tuple[str, ...]
    here: tuple[str, ...]
    published: tuple[str, ...]
    sure: str


def paths(
    found: Mapping[str, Mapping[str, Any]], verdicts: Iterable[claims.Verdict], table: pathlib.Path | None = None
) -> list[Path]:
    """Return the paths to a first prototype, simplest first.

    Args:
        found: records by notebook.
        verdicts: on all claims, in the light of these records.
        table: another file than the course's own ``data/paths.toml``.
    """
    of = {item.id: item for item in verdicts}
    answers = []
    for path in files.read_toml(table or files.data_file("paths.toml"))["path"]:
        texts = {key: path[key] for key in ("name", "when", "command")}
        lines = {key: tuple(_line(item, found) for item in path[key]) for key in ("costs", "here")}
        published = tuple(_published(item["says"], of[item["claim"]]) for item in path["published"])
        answers.append(Path(**texts, **lines, published=published, sure=sure(path.get("decides"), found)))
    return answers


def _line(wanted: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> str:
    record = found.get(wanted["notebook"])
    text = NONE
    if "metric" not in wanted:
        text = f"{record['run']['seconds'] / 60:.0f} minutes" if record else NONE
    elif value := metric(wanted, found):
        text = shown(value, "against" in wanted)
    return f"{wanted['says']}: {text}"


def _published(says: str, verdict: claims.Verdict) -> str:
    return f"{says}: {verdict.published} ({verdict.id}: {claims.kind(verdict)})"


class Table:
    """The paths as a table: what to type, when, what it costs, what was measured and published, how sure that is."""

    HEAD = ("path", "when", "it costs", "measured here", "published", "how sure")

    def __init__(self, answers: list[Path]) -> None:
        self.answers = answers

    def __repr__(self) -> str:
        return "\n".join(f"{path.name}: {path.sure}; {path.command}" for path in self.answers)

    def _repr_html_(self) -> str:
        left = ' style="text-align: left; vertical-align: top"'
        head = "".join(f"<th{left}>{word}</th>" for word in self.HEAD)
        body = "".join(
            f"<tr>{''.join(f'<td{left}>{cell}</td>' for cell in self._row(path))}</tr>" for path in self.answers
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    @staticmethod
    def _row(path: Path) -> list[str]:
        gap = '<div style="margin-bottom: 0.5em">{}</div>'  # between lines of evidence
        told = (path.costs, path.here, path.published)
        lines = ["".join(gap.format(html.escape(line)) for line in part) for part in told]
        words = (f'<span style="white-space: nowrap">{html.escape(word)}</span>' for word in path.command.split())
        named = f"<b>{html.escape(path.name)}</b><br><code>{' '.join(words)}</code>"
        return [named, html.escape(path.when), *lines, html.escape(path.sure)]

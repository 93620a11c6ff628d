"""What changed between two runs of a notebook: the metrics that moved, as data and as text.

A value moved when it left the 95 % interval that it had before. A value without an interval (bytes, seconds, parameters)
can only be said to differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asrlib.course import records

KINDS = {
    "moved": "moved out of their interval",
    "differs": "differ, and have no interval to judge by",
    "new": "are new",
    "gone": "are gone",
}


@dataclass(frozen=True)
class Change:
    """One metric of two records: ``kind`` is a key of `KINDS`; ``before`` or ``after`` is None where a record lacks it.

    ``interval`` is that of ``before``, in the unit of both values.
    """

    kind: str
    name: str
    labels: Mapping[str, Any]
    unit: str
    before: float | None
    after: float | None
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        """Return a line such as ``wer_percent (corpus telephone): 8.4 % [7.1, 9.9] -> 12 %``."""
        labels = ", ".join(f"{key} {value}" for key, value in self.labels.items())
        interval = f" [{', '.join(map(records.number, self.interval))}]" if self.interval else ""
        before, after = (
            "none" if value is None else f"{records.number(value)} {self.unit}".strip()
            for value in (self.before, self.after)
        )
        return f"{self.name} ({labels}): {before}{interval} -> {after}"


def read(run: Path) -> dict[str, Any]:
    """Read the record of a run: a folder that holds ``record.json``, or that file; errors as `asrlib.course.records.load`."""
    return records.load(run / "record.json" if run.is_dir() else run)


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Return the metrics that changed from one record to another, by kind in the order of `KINDS`, then largest change first."""
    old, new = (
        {(metric["name"], *sorted(metric["labels"].items())): metric for metric in record["metrics"]}
        for record in (before, after)
    )
    changed = [change for key in old | new if (change := _change(old.get(key), new.get(key)))]
    return sorted(changed, key=lambda change: (list(KINDS).index(change.kind), -_size(change.before, change.after)))


def _change(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> Change | None:
    metric = old or new
    values = (old and old["value"], new and new["value"])
    interval = tuple(old["interval"]) if old and old["interval"] else None
    if None in values:
        kind = "gone" if old else "new"
    elif values[0] == values[1] or (interval and interval[0] <= values[1] <= interval[1]):
        return None
    else:
        kind = "moved" if interval else "differs"
    return Change(kind, metric["name"], metric["labels"], metric["unit"], *values, interval)


def _size(before: float | None, after: float | None) -> float:
    """Return a change as a share of the larger value."""
    return abs((after or 0) - (before or 0)) / max(abs(before or 0), abs(after or 0), 1e-12)


def describe(changes: list[Change]) -> str:
    """Return the changes as text, a paragraph for each kind."""
    groups = {kind: [f"  {change}" for change in changes if change.kind == kind] for kind in KINDS}
    paragraphs = ["\n".join([f"{len(lines)} {KINDS[kind]}:", *lines]) for kind, lines in groups.items() if lines]
    return "\n\n".join(paragraphs) or "No metric changed."

"""What a reader must know of a corpus before using a number measured on it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from asrlib.corpora import catalogue

__all__ = ["Card", "card"]


@dataclass(frozen=True)
class Card:
    """What a reader must know of a corpus before using a number measured on it.

    Attributes:
        speakers: how many, and which voice, as far as it is known.
        clips, minutes: per split.
        excluded: reason -> clips left out.
    """

    name: str
    language: str | None
    title: str
    source: str
    licence: str
    attribution: str
    speakers: str
    clips: dict[str, int]
    minutes: dict[str, float]
    excluded: dict[str, int]

    def _facts(self) -> list[tuple[str, str]]:
        splits = ", ".join(f"{split} {count} ({self.minutes[split]:.1f} min)" for split, count in self.clips.items())
        excluded = "; ".join(f"{reason} {count}" for reason, count in self.excluded.items())
        facts = [
            ("source", self.source),
            ("licence", self.licence),
            ("attribution", self.attribution),
            ("speakers", self.speakers),
            ("clips", splits),
            ("left out", f"{sum(self.excluded.values())}: {excluded}" if excluded else ""),
        ]
        return [(key, value) for key, value in facts if value]

    def _heading(self) -> str:
        return f"{self.title}, language {self.language}" if self.language else self.title

    def __str__(self) -> str:
        return "\n".join([self._heading(), *(f"  {key}: {value}" for key, value in self._facts())])

    def _repr_markdown_(self) -> str:
        rows = [f"| {key} | {value} |" for key, value in self._facts()]
        return "\n".join([f"**{self._heading()}**", "", "| | |", "|---|---|", *rows])


def card(name: str, language: str | None = None) -> Card:
    """Return the card of a corpus, from committed tables alone; nothing is fetched.

    Raises:
        AsrlibError: unknown name or language.
    """
    rows: list[dict[str, Any]] = []
    if name not in catalogue.FOREIGN:
        language = catalogue.known_language(name, language)
        rows = catalogue.manifest(name, language)
    facts = catalogue.facts(name, language)
    kept = [row for row in rows if "split" in row]
    clips = Counter(row["split"] for row in kept)
    order = [split for split in ("train", "validation", "test") if split in clips]
    return Card(
        name=name,
        language=language,
        title=facts["title"],
        source=facts["home"] + (f", Debian packages {', '.join(facts['packages'])}" if "packages" in facts else ""),
        licence=facts["licence"],
        attribution=facts["attribution"],
        speakers=facts["speakers"],
        clips={split: clips[split] for split in order},
        minutes={split: sum(row["seconds"] for row in kept if row["split"] == split) / 60 for split in order},
        excluded=dict(Counter(row["excluded"] for row in rows if "excluded" in row).most_common()),
    )

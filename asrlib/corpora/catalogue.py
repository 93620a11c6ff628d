"""What ``data/corpora.toml`` and ``data/splits`` say of the corpora: facts, committed lists, and cards made of both."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from typing import Any

from asrlib import AsrlibError
from asrlib.io import files
from asrlib.text import base_code

__all__ = [
    "FOREIGN",
    "PACKAGED",
    "PUBLISHED",
    "Card",
    "card",
    "facts",
    "known_language",
    "listed",
    "manifest",
    "names",
    "table",
]

PACKAGED = ("telephone", "picture_words", "audiobook", "dialogue", "untranscribed")
ORDER = ("train", "validation", "test", "")
PUBLISHED = ("ami", "earnings21", "earnings22", "gigaspeech", "meanwhile", "rev16", "spgispeech", "tedlium", "tedlium_long",
             "voxpopuli")  # fmt: skip
FOREIGN = ("librispeech", "fleurs", *PUBLISHED, "common_voice", "folder")


@functools.cache
def table() -> dict[str, Any]:
    """Return ``data/corpora.toml``."""
    return files.read_toml(files.data_file("corpora.toml"))


def names() -> dict[str, list[str]]:
    """Return the packaged corpora and their languages."""
    return {name: sorted(table()[name]["languages"]) for name in PACKAGED}


def known_language(name: str, language: str | None) -> str:
    """Return the code of a packaged corpus's language, which may be left out where there is only one."""
    if name not in PACKAGED:
        raise AsrlibError(f"{name!r} is not a packaged corpus: choose one of {', '.join(PACKAGED)}.")
    known = names()[name]
    code = base_code(language) if language else known[0] if len(known) == 1 else None
    if code not in known:
        raise AsrlibError(f"The corpus {name!r} has no language {language!r}: choose one of {', '.join(known)}.")
    return code


def facts(name: str, language: str | None = None) -> dict[str, Any]:
    """Return what the table says of a corpus, merged with what it says of the language; placeholders are filled in."""
    if name not in PACKAGED + FOREIGN:
        raise AsrlibError(f"There is no corpus {name!r}: choose one of {', '.join(PACKAGED + FOREIGN)}.")
    found = dict(table()[name])
    if name in FOREIGN:
        return found
    found |= found.pop("languages")[language]
    values = {"language": language, "voice": found.get("voice", "")}
    for key in ("packages", "files"):
        found[key] = [text.format(**values) for text in found[key]]
    for key in ("upstream", "upstream_becomes"):
        found[key] = found[key].format(**values)
    return found


def manifest(name: str, language: str) -> list[dict[str, Any]]:
    """Return the committed rows of a corpus: accepted clips with split and checksums, others with the reason.

    A line with ``clips`` (name -> seconds) stands for many clips of one file, whose checksum it has.
    """
    rows = []
    for line in files.read_jsonl(files.data_file(f"splits/{name}-{language}.jsonl")):
        clips = line.pop("clips", None)
        if clips is None:
            rows.append(line)
        else:
            rows += [line | {"id": f"{line['id']}/{clip}", "seconds": seconds} for clip, seconds in clips.items()]
    return rows


def listed(name: str, language: str) -> list[dict[str, Any]]:
    """Return the accepted clips of a `manifest`."""
    return [row for row in manifest(name, language) if "split" in row]


@dataclass(frozen=True)
class Card:
    """What a reader must know of a corpus before using a number measured on it.

    Attributes:
        facts: source, licence, attribution, speakers.
        clips, minutes: per split.
        excluded: reason -> clips left out.
    """

    name: str
    language: str | None
    title: str
    facts: dict[str, str]
    clips: dict[str, int]
    minutes: dict[str, float]
    excluded: dict[str, int]

    def _repr_markdown_(self) -> str:
        splits = [f"{split} {count} ({self.minutes[split]:.1f} min)" for split, count in self.clips.items()]
        reasons = [f"{reason} {count}" for reason, count in self.excluded.items()]
        lines = dict(self.facts)
        if splits:
            lines["clips"] = ", ".join(splits)
        if reasons:
            lines["left out"] = f"{sum(self.excluded.values())}: {'; '.join(reasons)}"
        heading = f"**{self.title}{f', language {self.language}' if self.language else ''}**"
        return "\n".join([heading, "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in lines.items())])


def card(name: str, language: str | None = None) -> Card:
    """Return the card of a corpus, from committed tables alone; nothing is fetched.

    Raises:
        AsrlibError: unknown name or language.
    """
    rows: list[dict[str, Any]] = []
    if name not in FOREIGN:
        language = known_language(name, language)
        rows = manifest(name, language)
    found = facts(name, language)
    packages = f", Debian packages {', '.join(found['packages'])}" if "packages" in found else ""
    shown = {"source": found["home"] + packages} | {key: found[key] for key in ("licence", "attribution", "speakers")}
    excluded = Counter(row["excluded"] for row in rows if "excluded" in row)
    lengths: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: ORDER.index(row.get("split", ""))):
        if "split" in row:
            lengths.setdefault(row["split"], []).append(row["seconds"])
    clips, minutes = ({split: of(some) for split, some in lengths.items()} for of in (len, lambda some: sum(some) / 60))
    return Card(name, language, found["title"], shown, clips, minutes, dict(excluded.most_common()))

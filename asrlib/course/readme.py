"""The generated parts of README.md, from the published records: times in the map, headlines, verdicts.

`write` brings them up to date after publishing; a test compares. What stands between the markers, and the last column of the
map, is never typed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from asrlib import AsrlibError
from asrlib.course import claims, records, registry
from asrlib.io import files

__all__ = ["text", "write"]

ROW = re.compile(r"^(\| \[[^\]]*\]\(notebooks/(\w+)\.ipynb\) \| .*? \| .*? \|)[^|\n]*\|$", re.MULTILINE)
COUNTS = {"utterances": "clips", "words": "words"}
PART = "<!-- {0} -->\n{1}<!-- end of {0} -->"


def text(root: Path) -> str:
    """Return README.md of a checkout with its generated parts as the published records have them.

    Raises:
        AsrlibError: a record or claim that cannot be read, or a headline that fits no value of its record, or several.
    """
    found = {path.parent.name: records.load(path) for path in sorted(root.glob("results/*/record.json"))}
    readme = (root / "README.md").read_text(encoding="utf-8")
    readme = ROW.sub(lambda row: f"{row[1]} {registry.minutes(found[row[2]]) if row[2] in found else ''} |", readme)
    parts = {"headlines": _headlines(root, found), "verdicts": _verdicts(root, found)}
    for name, lines in parts.items():
        part = PART.format(name, "".join(f"{line}\n" for line in lines))
        readme = re.sub(PART.format(name, ".*?"), lambda _, part=part: part, readme, flags=re.DOTALL)
    return readme


def write(root: Path) -> None:
    """Bring README.md up to date."""
    files.write_atomic(root / "README.md", text(root))


def _headlines(root: Path, found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield from ("| notebook | measured | here |", "|---|---|---|")
    for name, book in registry.read(root).items():
        for number, headline in enumerate(book.headlines if name in found else ()):
            title = f"[{name[:2]}](notebooks/{name}.ipynb)" if not number else ""
            yield f"| {title} | {headline['says']} | {_value(name, found[name], headline)} |"


def _value(name: str, record: Mapping[str, Any], headline: Mapping[str, Any]) -> str:
    """Return a headline's value with its interval, and with the clips and words it rests on."""
    against = headline.get("against")
    metric = claims.find(name, record, headline["metric"], headline["where"], against)
    if metric is None:
        raise AsrlibError(f"notebooks.toml, {name}: no value of the record fits the headline {headline['says']!r}.")
    if against:
        shown = f"{metric['value']:.2f}"
    else:
        shown = f"{metric['value']:.1f} {metric['unit']}" if metric["unit"] else f"{metric['value']:,.0f}"
    interval = " [{:.1f}, {:.1f}]".format(*metric["interval"]) if metric["interval"] else ""
    counts = [f"{metric[count]:,} {word}" for count, word in COUNTS.items() if metric.get(count)]
    return shown + interval + "".join(f", {count}" for count in counts)


def _verdicts(root: Path, found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    verdicts = claims.judge(claims.load(root / "data" / "claims.yaml"), found.values())
    counts = Counter((verdict.method, claims.kind(verdict)) for verdict in verdicts)
    kinds = [kind for kind in claims.KINDS if kind in claims.count(verdicts)]
    yield f"| claims about | {' | '.join(kinds)} |"
    yield "|---" + "|---:" * len(kinds) + "|"
    for method in dict.fromkeys(verdict.method for verdict in verdicts):
        yield f"| {method} | {' | '.join(str(counts[method, kind] or '') for kind in kinds)} |"
    yield f"| **all {len(verdicts)}** | {' | '.join(str(claims.count(verdicts)[kind]) for kind in kinds)} |"

"""What a finding is, and the words of its sentence: numbers, ratios, points and intervals as they are said."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from asrlib.scoring import Difference

SPECIAL = re.compile(r"([\\`*_<>|~$])")  # what Markdown or MathJax would take for a sign of its own
ESCAPED = r"\\\1"
HIGHER = {"chrF", "BLEU"}  # more of it is better
OF_WORDS = {"WER", "capped WER", *HIGHER}


@dataclass(frozen=True)
class Finding:
    """What a section found, in words, and the numbers behind it.

    Attributes:
        text: one or two sentences.
        kind: the function that made it: ``level``, ``paired``, ``contrast``, ``quality``, ``calibration``, ``ratio``, ``amount``,
            ``gap``, ``size``, ``pays_back``, ``choice``, ``trend``, ``count`` or ``table``.
        numbers: plain data, for a record: ``value``, ``interval`` (two numbers or None), ``unit``, ``n`` and what ``n`` counts
            (``of``); a table has one such entry for each comparison under ``comparisons``.
    """

    text: str
    kind: str
    numbers: dict[str, Any] = field(hash=False)

    def __str__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        line = " ".join(self.text.split())  # a line break in a name would end the block
        return f"> **Finding.** {SPECIAL.sub(ESCAPED, line)}"


def plain(
    value: float | None, interval: Sequence[float] | None, unit: str, n: int | None, of: str | None
) -> dict[str, Any]:
    """Return the numbers of a finding as plain data, as `Finding.numbers` has them."""
    return {"value": value, "interval": interval and list(interval), "unit": unit, "n": n, "of": of}


def of_difference(found: Difference) -> dict[str, Any]:
    """Return the numbers of a difference, in points."""
    interval = [100 * end for end in found.interval] if found.interval else None
    return plain(100 * found.delta, interval, "points", found.utterances, "clips") | {"words": found.words}


def many(n: int, what: str) -> str:
    """Return a count with its noun: "1 clip", "2 clips"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def capital(text: str) -> str:
    """Return a text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def number(value: float, digits: int = 1) -> str:
    """Return a number with so many decimals, and a smaller one with one significant digit, so that it does not read as 0."""
    shown = f"{value:,.{digits}f}"
    return shown if float(shown.replace(",", "")) or not value else f"{value:.1g}"


def figure(value: float) -> str:
    """Return a number with three significant digits, in full from 100 on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def times(value: float) -> str:
    """Return a ratio with two decimals, a small one with two significant digits, a large one in full."""
    return f"{value:.2g} times" if value < 0.1 else f"{value:.2f} times" if value < 10 else f"{figure(value)} times"


def range_of_times(ends: tuple[float, float]) -> str:
    """Return an interval of ratios in words, such as "1.10 to 1.25 times"."""
    return f"{times(ends[0]).removesuffix(' times')} to {times(ends[1])}"


def start(name: str) -> str:
    """Return a name as it stands at the beginning of a sentence: "The pipeline", "Training longer", "Rounded weights", but "whisper-base"."""
    first, _, rest = name.partition(" ")
    return capital(name) if rest and (first in ("the", "a", "an") or first.endswith(("ing", "ed"))) else name


def better(found: Difference, of: str = "WER") -> str:
    """Return "better" or "worse", of a difference that is shown; of some measures more is better."""
    return "better" if (found.interval[1] < 0) != (of in HIGHER) else "worse"


def points(delta: float) -> str:
    """Return a difference of two WERs, given as a fraction, in words."""
    size = abs(100 * delta)
    if size < 1e-9:  # the rounding of equal sums
        return "the same"
    return f"{number(size)} points {'lower' if delta < 0 else 'higher'}"


def range_of_points(found: Difference) -> str:
    """Return the interval of a difference in words, such as "7.5 points lower to 0.8 points higher"."""
    low, high = found.interval
    if found.significant:
        near, far = sorted((abs(100 * low), abs(100 * high)))
        return f"{number(near)} to {points(math.copysign(far / 100, low))}"
    return f"{points(low)} to {points(high)}".replace("the same", "no difference")


def behind(found: Difference, of: str = "") -> str:
    """Return what a comparison rests on: clips, words, and trainings where there were several."""
    counts = [many(found.utterances, "clip")] + ([many(found.words, "word")] if of in OF_WORDS else [])
    if max(found.seeds) > 1:
        counts.append("{} and {} trainings".format(*found.seeds))
    return ", ".join(counts)

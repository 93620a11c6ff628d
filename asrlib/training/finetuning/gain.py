"""What a fine-tuning has gained: the clips that were not learnt from, transcribed by the model before and after.

The scores while a model is trained are of the model as it is trained: with its context cut, or its base in 4 bits. These are of
the saved model as `asrlib transcribe` loads it, counted as `asrlib evaluate` counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asrlib import scoring, text
from asrlib.decoding import transcription
from asrlib.scoring import Score
from asrlib.training.finetuning.data import Part

__all__ = ["gains", "sentence"]


def gains(before: Path | str, after: Path | str, parts: Sequence[Part], seed: int) -> list[dict[str, Any]]:
    """Return what two models score on clips, for each place and language.

    Args:
        before, after: Hub ids or folders.
        parts: clips that neither has learnt from.
        seed: of the bootstrap.

    Returns:
        Rows with ``place``, ``language``, ``clips``, ``words``; ``before`` and ``after`` in percent, each with ``wer``, its interval from
        ``low`` to ``high``, and ``orthographic``, as it is written; ``points``, the WER after minus the WER before, with its paired
        interval from ``low`` to ``high`` or, where there is none, the ``shortage``. In a language without spaces all count characters.
    """
    groups = []
    for part in parts:
        codes = part.languages
        for code in dict.fromkeys(codes):
            groups.append((part.place, code, part.table.select([at for at, one in enumerate(codes) if one == code])))
    old, new = (_scores(model, groups, label, seed) for model, label in ((before, "before"), (after, "after")))
    return [_row(place, code, one, other, seed) for (place, code, _), one, other in zip(groups, old, new, strict=True)]


def _scores(
    model: Path | str, groups: Sequence[tuple[str, str, Any]], label: str, seed: int
) -> list[tuple[Score, float]]:
    """Return a model's score on each group of clips, and the rate of errors as it is written."""
    loaded, processor = transcription.load(model)
    found = []
    for _, code, rows in groups:
        said = list(rows["text"])
        clips = transcription.transcribe(loaded, processor, rows, language=code, label=f"scored {label}")
        heard = [clip.text for clip in clips]
        speakers = [speaker or at for at, speaker in enumerate(rows["speaker"])]
        plain = scoring.score(said, heard, normalizer=str, seed=seed)
        score = scoring.score(said, heard, normalizer=text.normalizer(code), blocks=speakers, seed=seed)
        found.append((score, plain.wer if text.spaced(code) else plain.cer))
    return found


def _row(place: str, code: str, before: tuple[Score, float], after: tuple[Score, float], seed: int) -> dict[str, Any]:
    """Return the comparison of two scores of one group."""
    difference = scoring.compare(after[0], before[0], seed=seed)
    return {
        "place": place,
        "language": code,
        "clips": difference.utterances,
        "words": difference.words,
        "before": _rates(*before),
        "after": _rates(*after),
        "points": 100 * difference.delta,
        "shortage": difference.shortage,
    } | _interval(difference.interval)


def _rates(score: Score, written: float) -> dict[str, float]:
    return {"wer": 100 * score.wer, "orthographic": 100 * written} | _interval(score.interval)


def _interval(ends: tuple[float, float] | None) -> dict[str, float]:
    return dict(zip(("low", "high"), 100 * np.array(ends or ()), strict=False))


def sentence(row: Mapping[str, Any]) -> str:
    """Return a row of `gains` in words."""
    rate, unit = ("WER", "words") if text.spaced(row["language"]) else ("CER", "characters")
    before, after = (f"{row[name]['wer']:.1f} %{_ends(row[name])}" for name in ("before", "after"))
    if row["shortage"]:
        judged = f" ({row['shortage']}, too few for an interval)"
    elif row["low"] > 0 or row["high"] < 0:
        judged = _ends(row)
    else:
        judged = f"{_ends(row)}: no difference is shown"
    return (
        f"{rate} on {row['clips']} other clips of {row['place']} ({row['language']}, {row['words']} {unit}): {before} before, "
        f"{after} after, {row['points']:+.1f} points{judged}."
    )


def _ends(row: Mapping[str, Any]) -> str:
    return f" [{row['low']:.1f}, {row['high']:.1f}]" if "low" in row else ""

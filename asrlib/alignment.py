"""A reference and a hypothesis, word by word: the alignment with the fewest errors, which is jiwer's."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Alignment", "align", "count"]


@dataclass(frozen=True)
class Alignment:
    """A reference and a hypothesis, word by word.

    ``pairs`` holds (kind, reference word, hypothesis word) with kind ``equal``, ``substitute``, ``delete`` or ``insert``;
    the word that is missing on one side is ``""``.
    """

    pairs: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        widths = [max(len(reference), len(hypothesis), 1) for _, reference, hypothesis in self.pairs]
        marks = {"equal": " ", "substitute": "S", "delete": "D", "insert": "I"}
        rows = [
            ("REF: ", [reference or "*" * width for (_, reference, _), width in zip(self.pairs, widths, strict=True)]),
            ("HYP: ", [hypothesis or "*" * width for (*_, hypothesis), width in zip(self.pairs, widths, strict=True)]),
            ("     ", [marks[kind] for kind, *_ in self.pairs]),
        ]
        return "\n".join(
            head + " ".join(word.ljust(width) for word, width in zip(words, widths, strict=True)).rstrip()
            for head, words in rows
        )

    def _repr_html_(self) -> str:
        """Show the alignment in colour, and with strokes and underlines for readers who do not see the colour."""
        shown = []
        for kind, reference, hypothesis in self.pairs:
            old, new = html.escape(reference), html.escape(hypothesis)
            removed = f'<del style="color:#b3261e">{old}</del>' if old and kind != "equal" else ""
            added = f'<ins style="color:#00639b">{new}</ins>' if new and kind != "equal" else ""
            shown.append(
                old if kind == "equal" else f"{removed}{added}" if not (removed and added) else f"{removed} {added}"
            )
        return f"<div>{' '.join(shown)}</div>"


def align(reference: str, hypothesis: str) -> Alignment:
    """Align two texts by words with the fewest errors (Levenshtein, jiwer's choice among equals)."""
    import jiwer

    if not reference.split():
        return Alignment(tuple(("insert", "", word) for word in hypothesis.split()))
    out = jiwer.process_words([reference], [hypothesis])
    old, new = out.references[0], out.hypotheses[0]
    pairs: list[tuple[str, str, str]] = []
    for chunk in out.alignments[0]:
        left = old[chunk.ref_start_idx : chunk.ref_end_idx]
        right = new[chunk.hyp_start_idx : chunk.hyp_end_idx]
        for position in range(max(len(left), len(right))):
            pairs.append((chunk.type, left[position] if left else "", right[position] if right else ""))
    return Alignment(tuple(pairs))


def count(references: Sequence[str], hypotheses: Sequence[str], process: Callable[..., Any]) -> np.ndarray:
    """Count the errors of each hypothesis.

    Args:
        references: one text per utterance; where it is empty, the words of the hypothesis are insertions.
        hypotheses: as many texts.
        process: ``jiwer.process_words`` or ``jiwer.process_characters``.

    Returns:
        Substitutions, deletions, insertions and the reference's length, shape (utterances, 4).
    """
    counts = np.zeros((len(references), 4), dtype=np.int64)
    filled = [index for index, reference in enumerate(references) if reference.strip()]
    for index in set(range(len(references))) - set(filled):
        out = process(["x"], [hypotheses[index] or "x"]) if hypotheses[index].strip() else None
        counts[index, 2] = 0 if out is None else out.hits + out.substitutions + out.insertions
    if filled:
        out = process([references[index] for index in filled], [hypotheses[index] for index in filled])
        column = {"substitute": 0, "delete": 1, "insert": 2}
        for index, chunks, tokens in zip(filled, out.alignments, out.references, strict=True):
            counts[index, 3] = len(tokens)
            for chunk in chunks:
                if chunk.type != "equal":
                    size = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
                    counts[index, column[chunk.type]] += size
    return counts

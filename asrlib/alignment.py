"""A reference and a hypothesis, word by word: the alignment with the fewest errors, which is jiwer's."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import jiwer
import numpy as np

KINDS = ("substitute", "delete", "insert")  # of errors, in the order of all counts
MARKS = {"equal": " ", "substitute": "S", "delete": "D", "insert": "I"}


@dataclass(frozen=True)
class Alignment:
    """A reference and a hypothesis, word by word.

    ``pairs`` holds (kind, reference word, hypothesis word) with kind ``equal``, ``substitute``, ``delete`` or ``insert``;
    the word that is missing on one side is ``""``.
    """

    pairs: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        rows = ["REF: ", "HYP: ", "     "]
        for kind, reference, hypothesis in self.pairs:
            width = max(len(reference), len(hypothesis))
            cells = (reference or "*" * width, hypothesis or "*" * width, MARKS[kind])
            rows = [row + cell.ljust(width + 1) for row, cell in zip(rows, cells, strict=True)]
        return "\n".join(map(str.rstrip, rows))

    def _repr_html_(self) -> str:
        """Show the alignment in colour, and with strokes and underlines for readers who do not see the colour."""
        shown = []
        for kind, reference, hypothesis in self.pairs:
            old, new = html.escape(reference), html.escape(hypothesis)
            if kind == "equal":
                shown.append(old)
                continue
            shown += [f'<del style="color:#b3261e">{old}</del>'] if old else []
            shown += [f'<ins style="color:#00639b">{new}</ins>'] if new else []
        return f"<div>{' '.join(shown)}</div>"


def align(reference: str, hypothesis: str) -> Alignment:
    """Align two texts by words with the fewest errors (Levenshtein, jiwer's choice among equals)."""
    found = jiwer.process_words(reference, hypothesis)
    old, new = found.references[0], found.hypotheses[0]
    pairs: list[tuple[str, str, str]] = []
    for chunk in found.alignments[0]:
        left, right = old[chunk.ref_start_idx : chunk.ref_end_idx], new[chunk.hyp_start_idx : chunk.hyp_end_idx]
        pairs += [(chunk.type, *words) for words in zip_longest(left, right, fillvalue="")]
    return Alignment(tuple(pairs))


def stretches(reference: str, hypothesis: str, words: int) -> list[tuple[str, str]]:
    """Cut a long reference into stretches of so many words, the last of at least as many, and a transcript at the same places.

    The errors of the stretches add up to those of the whole. What was invented between two belongs to the first.

    Args:
        reference: normalised text, with one word at least.
        hypothesis: normalised text, perhaps empty.
        words: of a stretch.

    Returns:
        (reference, hypothesis) of each stretch.
    """
    total, at = len(reference.split()), 0
    last = max(total // words, 1) - 1
    parts: list[tuple[list[str], list[str]]] = [([], []) for _ in range(last + 1)]
    for _, old, new in align(reference, hypothesis).pairs:
        at += bool(old)
        part = parts[min(max(at - 1, 0) // words, last)]
        for side, word in zip(part, (old, new), strict=True):
            side += [word] if word else []
    return [(" ".join(old), " ".join(new)) for old, new in parts]


def count(references: Sequence[str], hypotheses: Sequence[str], process: Callable[..., jiwer.WordOutput]) -> np.ndarray:
    """Count the errors of each hypothesis.

    Args:
        references: one text per utterance; where it is empty, the words of the hypothesis are insertions.
        hypotheses: as many texts.
        process: ``jiwer.process_words`` or ``jiwer.process_characters``.

    Returns:
        Substitutions, deletions, insertions and the reference's length, shape (utterances, 4).
    """
    counts = np.zeros((len(references), 4), dtype=np.int64)
    if references:
        found = process(references, hypotheses)
        for row, chunks, tokens in zip(counts, found.alignments, found.references, strict=True):
            row[3] = len(tokens)
            for chunk in chunks:
                size = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
                if chunk.type != "equal":
                    row[KINDS.index(chunk.type)] += size
    return counts

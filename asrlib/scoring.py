"""Word error rate, character error rate, and how sure we are of them.

Alignment is jiwer's. Intervals are percentile bootstraps over utterances or over blocks of utterances that belong together
(Bisani & Ney 2004; Liu & Peng 2020, arXiv:1912.09508: utterances of one speaker are not independent).
"""

from __future__ import annotations

import html
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asrlib import AsrlibError

__all__ = ["Alignment", "Difference", "Score", "Tally", "align", "bootstrap", "compare", "metric", "score"]

REPLICATES = 2000
CONFIDENCE = 0.95
_CHUNK = 1 << 20  # bootstrap draws held in memory at once


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
        """Show the alignment in colour, and with strokes and underlines for who cannot see the colour."""
        shown = []
        for kind, reference, hypothesis in self.pairs:
            old, new = html.escape(reference), html.escape(hypothesis)
            removed = f'<del style="color:#b3261e">{old}</del>' if old and kind != "equal" else ""
            added = f'<ins style="color:#00639b">{new}</ins>' if new and kind != "equal" else ""
            shown.append(
                old if kind == "equal" else f"{removed}{added}" if not (removed and added) else f"{removed} {added}"
            )
        return f"<div>{' '.join(shown)}</div>"


@dataclass(frozen=True)
class Score:
    """Errors of one system on a set of utterances. Rates are fractions: 0.084 is a WER of 8.4 %.

    Attributes:
        wer: word errors over reference words, summed over the corpus (never a mean of per-utterance rates).
        cer: the same over characters.
        interval: 95 % bootstrap interval of ``wer``.
        errors: word errors per utterance, shape (utterances,).
        lengths: reference words per utterance, shape (utterances,).
        blocks: label of the resampling block of each utterance.
        kinds: substitutions, deletions, insertions per utterance, shape (utterances, 3).
    """

    wer: float
    cer: float
    interval: tuple[float, float]
    errors: np.ndarray
    lengths: np.ndarray
    blocks: tuple[Hashable, ...]
    kinds: np.ndarray

    @property
    def utterances(self) -> int:
        """Number of utterances."""
        return len(self.errors)

    @property
    def words(self) -> int:
        """Number of reference words."""
        return int(self.lengths.sum())

    @property
    def substitutions(self) -> int:
        """Reference words heard as another word."""
        return int(self.kinds[:, 0].sum())

    @property
    def deletions(self) -> int:
        """Reference words that were not heard."""
        return int(self.kinds[:, 1].sum())

    @property
    def insertions(self) -> int:
        """Words heard where there is none."""
        return int(self.kinds[:, 2].sum())

    def row(self) -> dict[str, object]:
        """Return what every table of this course shows of a score, for a data frame."""
        low, high = (100 * bound for bound in self.interval)
        return {
            "WER (%)": round(100 * self.wer, 2),
            "95 % interval": f"{low:.1f} to {high:.1f}",
            "CER (%)": round(100 * self.cer, 2),
            "clips": self.utterances,
            "words": self.words,
        }

    def __str__(self) -> str:
        low, high = (100 * bound for bound in self.interval)
        return f"WER {100 * self.wer:.2f} % [{low:.1f}, {high:.1f}], {self.utterances} utterances, {self.words} words"


@dataclass(frozen=True)
class Difference:
    """WER of one system minus that of another on the same utterances, as fractions.

    Attributes:
        delta: first minus second; negative when the first is better.
        interval: 95 % paired bootstrap interval of ``delta``.
        p_first_better: share of bootstrap replicates in which the first has the lower WER.
    """

    delta: float
    interval: tuple[float, float]
    p_first_better: float

    @property
    def significant(self) -> bool:
        """True when the interval does not cover zero; only then may one system be ranked above the other."""
        return self.interval[0] > 0 or self.interval[1] < 0

    def __str__(self) -> str:
        low, high = (100 * bound for bound in self.interval)
        verdict = "differ" if self.significant else "no difference shown"
        return f"{100 * self.delta:+.2f} points [{low:+.1f}, {high:+.1f}], {verdict}"


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


def _count(references: Sequence[str], hypotheses: Sequence[str], process: Callable[..., Any]) -> np.ndarray:
    """Return (utterances, 4): substitutions, deletions, insertions, reference length; empty references count insertions."""
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


class Tally:
    """Errors of one system added up batch by batch, for a corpus whose texts would not fit into memory.

    Of each utterance four counts and its block's label are kept, and no text. `score` is one of a single batch.
    """

    def __init__(self, normalizer: Callable[[str], str] | None = None) -> None:
        """Begin with no utterance; the normalizer is applied to both sides of all that come."""
        self.normalizer = normalizer
        self._counts: list[np.ndarray] = []
        self._characters = np.zeros(4, dtype=np.int64)
        self._blocks: list[Hashable] = []

    def add(
        self, references: Sequence[str], hypotheses: Sequence[str], blocks: Sequence[Hashable] | None = None
    ) -> np.ndarray:
        """Count the errors of some more utterances; arguments as for `score`, with blocks in all batches or in none.

        Returns:
            Substitutions, deletions, insertions and reference words of each, shape (utterances, 4).

        Raises:
            AsrlibError: lengths that differ.
        """
        import jiwer

        references, hypotheses = list(references), list(hypotheses)
        if len(references) != len(hypotheses):
            raise AsrlibError(
                f"{len(references)} references and {len(hypotheses)} hypotheses cannot be scored: give one hypothesis per reference."
            )
        labels = range(len(self._blocks), len(self._blocks) + len(references)) if blocks is None else list(blocks)
        if len(labels) != len(references):
            raise AsrlibError(
                f"{len(references)} references and {len(labels)} block labels: give one label per reference."
            )
        if self.normalizer:
            references, hypotheses = [[self.normalizer(text) for text in side] for side in (references, hypotheses)]
        counts = _count(references, hypotheses, jiwer.process_words)
        self._counts.append(counts)
        self._characters += _count(references, hypotheses, jiwer.process_characters).sum(axis=0)
        self._blocks += labels
        return counts

    def score(self, seed: int = 0) -> Score:
        """Return the score of all utterances so far.

        Args:
            seed: of the bootstrap.

        Raises:
            AsrlibError: no utterance at all, or no reference word in any of them.
        """
        counts = np.concatenate([np.zeros((0, 4), dtype=np.int64), *self._counts])
        if not counts[:, 3].sum():
            raise AsrlibError("No reference holds a word: a WER needs at least one transcribed utterance.")
        errors, lengths = counts[:, :3].sum(axis=1), counts[:, 3]
        blocks = tuple(self._blocks) if len(set(self._blocks)) > 1 else tuple(range(len(errors)))
        return Score(
            wer=float(errors.sum() / lengths.sum()),
            cer=float(self._characters[:3].sum() / self._characters[3]),
            interval=_percentiles(bootstrap(errors, lengths, blocks=blocks, seed=seed)),
            errors=errors,
            lengths=lengths,
            blocks=blocks,
            kinds=counts[:, :3],
        )


def score(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    normalizer: Callable[[str], str] | None = None,
    blocks: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Score:
    """Score hypotheses against references.

    Args:
        references: one text per utterance. One that is empty after normalisation adds no words; what was heard there
            counts as insertions.
        hypotheses: as many texts, in the same order; an empty one is all deletions.
        normalizer: applied to both sides, for example `asrlib.text.normalizer("en")`.
        blocks: label per utterance of what is resampled together, such as the speaker; default: each utterance alone.
            With fewer than two different labels there is nothing to resample and each utterance is a block.
        seed: of the bootstrap.

    Raises:
        AsrlibError: lengths that differ, no utterance at all, or no reference word in any of them.
    """
    tally = Tally(normalizer)
    tally.add(references, hypotheses, blocks)
    return tally.score(seed)


def _percentiles(replicates: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def _draws(blocks: int, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """Yield resampled block indices, shape (some replicates, blocks), never more than `_CHUNK` numbers at once."""
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // blocks)
    for first in range(0, replicates, rows):
        yield generator.integers(0, blocks, size=(min(rows, replicates - first), blocks))


def _by_block(values: np.ndarray, blocks: Sequence[Hashable]) -> np.ndarray:
    """Sum values, shape (utterances, columns), within each block; shape (blocks, columns)."""
    order: dict[Hashable, int] = {}
    index = [order.setdefault(label, len(order)) for label in blocks]
    sums = np.zeros((len(order), values.shape[1]))
    np.add.at(sums, index, values)
    return sums


def bootstrap(
    errors: np.ndarray, lengths: np.ndarray, *, blocks: Sequence[Hashable], replicates: int = REPLICATES, seed: int = 0
) -> np.ndarray:
    """Return bootstrap replicates of the ratio sum(errors) / sum(lengths), shape (replicates,).

    Args:
        errors: word errors per utterance, shape (utterances,).
        lengths: reference words per utterance, shape (utterances,).
        blocks: label of the block each utterance belongs to; whole blocks are drawn with replacement.
        replicates: number of resampled corpora.
        seed: of the generator.
    """
    sums = _by_block(np.stack([errors, lengths], axis=1), blocks)
    parts = [sums[drawn].sum(axis=1) for drawn in _draws(len(sums), replicates, seed)]
    totals = np.concatenate(parts)
    return totals[:, 0] / np.maximum(totals[:, 1], 1)  # a draw of empty references only has no rate: count its errors


def compare(first: Score, second: Score, *, replicates: int = REPLICATES, seed: int = 0) -> Difference:
    """Compare two systems on the same utterances by a paired bootstrap (Bisani & Ney 2004).

    Each replicate draws one set of utterances and scores both systems on it, so what is hard for both cancels.

    Raises:
        AsrlibError: the two scores are not of the same utterances.
    """
    if first.blocks != second.blocks or not np.array_equal(first.lengths, second.lengths):
        raise AsrlibError("Two systems can be compared only on the same utterances, references and normaliser.")
    sums = _by_block(np.stack([first.errors - second.errors, first.lengths], axis=1), first.blocks)
    totals = np.concatenate([sums[drawn].sum(axis=1) for drawn in _draws(len(sums), replicates, seed)])
    deltas = totals[:, 0] / np.maximum(totals[:, 1], 1)
    return Difference(first.wer - second.wer, _percentiles(deltas), float((deltas < 0).mean()))


def metric(name: str) -> Any:
    """Return ``evaluate.load("wer")`` or ``("cer")`` without the Hub: the metric's code is part of this package.

    Raises:
        AsrlibError: another name.
    """
    import evaluate

    path = Path(__file__).parent / "metrics" / name / f"{name}.py"
    if not path.is_file():
        raise AsrlibError(
            f"asrlib ships the metrics 'wer' and 'cer', not {name!r}: load others with evaluate.load and the Hub."
        )
    return evaluate.load(str(path))

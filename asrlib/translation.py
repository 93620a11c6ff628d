"""BLEU and chrF of translations with their intervals: sacrebleu counts, the bootstrap is that of `asrlib.uncertainty`.

Both are made of sums over the corpus, so clips are resampled by their counts and no text is read twice (Koehn 2004, "Statistical
significance tests for machine translation evaluation").
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from asrlib import AsrlibError, uncertainty
from asrlib.scoring import Difference

try:
    from sacrebleu.metrics import BLEU, CHRF
except ImportError:
    raise AsrlibError("Translations are scored by sacrebleu: pip install 'asrlib[peers]' first.") from None

__all__ = ["METRICS", "Quality", "compare", "score"]

METRICS = {"chrF": CHRF, "BLEU": BLEU}  # with sacrebleu's defaults: chrF2 without words, BLEU of 13a tokens


@dataclass(frozen=True)
class Quality:
    """How near translations come to their references: 0 is nothing in common, 100 the same text.

    Attributes:
        metric: ``chrF`` or ``BLEU``.
        counts: sacrebleu's statistics per clip, shape (clips, columns).
        words: words of the references.
        blocks: label of the resampling block of each clip.
        interval: 95 % bootstrap interval of ``value``; None under ten blocks.
    """

    metric: str
    counts: np.ndarray
    words: int
    blocks: tuple[Hashable, ...]
    interval: tuple[float, float] | None = None

    @functools.cached_property
    def value(self) -> float:
        """The score of the whole corpus."""
        return float(self._values(self.counts.sum(axis=0, keepdims=True))[0])

    @property
    def utterances(self) -> int:
        """Number of clips."""
        return len(self.counts)

    @property
    def shortage(self) -> str:
        """Why there is no interval, such as ``only 4 clips``; empty where there is one."""
        return uncertainty.shortage(len(set(self.blocks)), "clip")

    def __str__(self) -> str:
        ends = "[{:.1f}, {:.1f}]".format(*self.interval) if self.interval else f"[no interval: {self.shortage}]"
        return f"{self.value:.1f} {ends}"

    def _values(self, sums: np.ndarray) -> np.ndarray:
        # The two steps of `corpus_score`, as sacrebleu.significance takes them apart.
        metric = METRICS[self.metric]()
        return np.array([metric._compute_score_from_stats(row).score for row in sums.round().astype(int).tolist()])

    def _replicates(self, seed: int) -> np.ndarray:
        return self._values(uncertainty.resample(self.counts, blocks=self.blocks, seed=seed))


def score(
    translations: Sequence[str],
    references: Sequence[str],
    metric: str = "chrF",
    *,
    normalizer: Callable[[str], str] | None = None,
    blocks: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Quality:
    """Score translations by one reference each.

    Args:
        translations: one text per clip.
        references: as many, in the same order.
        metric: ``chrF`` (Popović 2015) or ``BLEU`` (Papineni et al. 2002).
        normalizer: applied to both sides; default: none, as BLEU is published.
        blocks: label per clip of what is resampled together, such as the sentence that several people read; default: each alone.
        seed: of the bootstrap.

    Raises:
        AsrlibError: another metric, no clip, or lengths that differ.
    """
    if metric not in METRICS:
        raise AsrlibError(f"There is no metric {metric!r} of translations: choose {' or '.join(METRICS)}.")
    labels = range(len(references)) if blocks is None else blocks
    if not len(references) or len({len(translations), len(references), len(labels)}) > 1:
        counted = f"{len(translations)} translations, {len(references)} references and {len(labels)} block labels"
        raise AsrlibError(f"{counted} cannot be scored: give one of each per clip, and one clip at least.")
    sides = [[(normalizer or str)(text) for text in side] for side in (translations, references)]
    counts = np.array(METRICS[metric]()._extract_corpus_statistics(sides[0], [sides[1]]))
    words = sum(len(text.split()) for text in sides[1])
    found = Quality(metric, counts, words, tuple(labels))
    if found.shortage:
        return found
    ends = uncertainty.interval(found._replicates(seed), len(set(labels)))
    return Quality(metric, counts, words, tuple(labels), ends)


def compare(first: Quality, second: Quality, *, seed: int = 0) -> Difference:
    """Compare two systems on the same clips by a paired bootstrap: both are scored on the clips of each replicate.

    Returns:
        The first minus the second, as a fraction: 0.012 is 1.2 points. Above 0 the first is better.

    Raises:
        AsrlibError: other clips, or another metric.
    """
    if (first.metric, first.blocks, first.words) != (second.metric, second.blocks, second.words):
        raise AsrlibError("Two systems can be compared only on the same clips, references and metric.")
    delta, counted = (first.value - second.value) / 100, (first.utterances, first.words)
    if first.shortage:
        return Difference(delta, None, None, first.shortage, *counted)
    drawn = (first._replicates(seed) - second._replicates(seed)) / 100
    units = len(set(first.blocks))
    return Difference(delta, uncertainty.interval(drawn, units), uncertainty.p_value(drawn, units), "", *counted)

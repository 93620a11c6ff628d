"""Word error rate, character error rate, and their intervals.

Alignment is jiwer's. Intervals are percentile bootstraps over utterances or over blocks of utterances that belong together
(Bisani & Ney 2004; Liu & Peng 2020, arXiv:1912.09508: utterances of one speaker are not independent), over trainings with
several seeds too where there are such (Saravanan et al. 2020, arXiv:2007.07853: the hierarchical bootstrap).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np

from asrlib import AsrlibError, uncertainty
from asrlib.alignment import align as align
from asrlib.alignment import count
from asrlib.uncertainty import REPLICATES, bootstrap


@dataclass(frozen=True)
class Score:
    """Errors of one system on a set of utterances. Rates are fractions: 0.084 is a WER of 8.4 %.

    Attributes:
        kinds: substitutions, deletions, insertions of words per utterance, shape (utterances, 3); of several runs their mean.
        lengths: reference words per utterance, shape (utterances,).
        characters: the same three kinds and the length, of characters, shape (utterances, 4).
        blocks: label of the resampling block of each utterance.
        runs: scores of the single trainings where this is their mean (`over_seeds`), else empty.
        interval: 95 % bootstrap interval of ``wer``; None where there is too little to resample, see ``shortage``.
    """

    kinds: np.ndarray
    lengths: np.ndarray
    characters: np.ndarray
    blocks: tuple[Hashable, ...]
    runs: tuple[Score, ...] = ()
    interval: tuple[float, float] | None = None

    @functools.cached_property
    def errors(self) -> np.ndarray:
        """Word errors per utterance, shape (utterances,)."""
        return self.kinds.sum(axis=1)

    @functools.cached_property
    def wer(self) -> float:
        """Word errors over reference words, summed over the corpus (never a mean of per-utterance rates)."""
        return float(self.errors.sum() / self.lengths.sum())

    @functools.cached_property
    def cer(self) -> float:
        """The same over characters."""
        return float(self.characters[:, :3].sum() / self.characters[:, 3].sum())

    @property
    def utterances(self) -> int:
        """Number of utterances."""
        return len(self.lengths)

    @property
    def words(self) -> int:
        """Number of reference words."""
        return int(self.lengths.sum())

    @property
    def substitutions(self) -> int:
        """Reference words replaced by another word."""
        return round(self.kinds[:, 0].sum())

    @property
    def deletions(self) -> int:
        """Reference words without a counterpart in the hypothesis."""
        return round(self.kinds[:, 1].sum())

    @property
    def insertions(self) -> int:
        """Words of the hypothesis without a counterpart in the reference."""
        return round(self.kinds[:, 2].sum())

    @property
    def shortage(self) -> str:
        """Why there is no interval, such as ``only 4 speakers``; empty where there is one."""
        return _shortage(self)

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval for a plot: NaN at both ends, which draws nothing, where there is none."""
        return self.interval or (math.nan, math.nan)

    @functools.cached_property
    def capped(self) -> Score:
        """The score with loops capped: no clip has more errors than reference words, and an empty one has one at most.

        A system that repeats itself can invent hundreds of words in one clip, which then decides the corpus. What is taken off
        are insertions (and inserted characters), since the other errors of a clip are never more than its words.
        """
        if self.runs:
            return over_seeds([run.capped for run in self.runs])
        kinds, characters = self.kinds.copy(), self.characters.copy()
        for counts, lengths in ((kinds, self.lengths), (characters, characters[:, 3])):
            counts[:, 2] = np.minimum(counts[:, 2], np.maximum(lengths, 1) - counts[:, :2].sum(axis=1))
        return Score(kinds, self.lengths, characters, self.blocks)._with_interval(seed=0)

    def row(self) -> dict[str, object]:
        """Return what every table of this course shows of a score, for a data frame.

        The last column, the WER with loops capped, is there only where it is lower.
        """
        low, high = (100 * bound for bound in self.bounds)
        row = {
            "WER (%)": round(100 * self.wer, 2),
            "95 % interval": f"{low:.1f} to {high:.1f}" if self.interval else f"none ({self.shortage})",
            "CER (%)": round(100 * self.cer, 2),
            "clips": self.utterances,
            "words": self.words,
        }
        capped = {"WER, loops capped (%)": round(100 * self.capped.wer, 2)}
        return row | (capped if self.capped.wer < self.wer else {})

    def __str__(self) -> str:
        low, high = (100 * bound for bound in self.bounds)
        interval = f"[{low:.1f}, {high:.1f}]" if self.interval else f"[no interval: {self.shortage}]"
        runs = f", mean of {len(self.runs)} seeds" if self.runs else ""
        loops = f", {100 * self.capped.wer:.2f} % with loops capped" if self.capped.wer < self.wer else ""
        return f"WER {100 * self.wer:.2f} % {interval}{runs}, {self.utterances} utterances, {self.words} words{loops}"

    def _with_interval(self, seed: int) -> Score:
        if self.shortage:
            return self
        low, high = uncertainty.interval(*_replicates(self, seed=seed))
        # Replicates of a mean over trainings add up two deviations, which reach below zero where one clip decides a training.
        return dataclasses.replace(self, interval=(max(low, 0.0), high))


@dataclass(frozen=True)
class Difference:
    """WER of one system minus that of another on the same utterances, as fractions.

    Attributes:
        delta: first minus second; negative when the first is better.
        interval: 95 % paired bootstrap interval of ``delta``; None where there is too little to resample.
        p_value: two-sided bootstrap p-value of "there is no difference"; None where there is no interval.
        shortage: why there is no interval, such as ``only 4 speakers``; empty where there is one.
        utterances: number of utterances.
        words: number of reference words in them.
        seeds: number of trainings behind the first and behind the second; 1 is a system that is as it is.
    """

    delta: float
    interval: tuple[float, float] | None
    p_value: float | None
    shortage: str
    utterances: int
    words: int
    seeds: tuple[int, int] = (1, 1)

    @property
    def significant(self) -> bool:
        """True when the interval does not cover zero; only then may one system be ranked above the other."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    def equivalent(self, margin: float) -> bool:
        """Say whether the two are equal within a margin: the whole interval lies inside it, so that few clips confirm nothing.

        Args:
            margin: the largest difference in WER that does not matter, as a fraction: 0.01 is one percentage point.

        Raises:
            AsrlibError: a margin that is not above 0.
        """
        if not margin > 0:
            raise AsrlibError(f"A margin of {margin} shows nothing: give a difference above 0, such as 0.01.")
        return self.interval is not None and -margin < self.interval[0] and self.interval[1] < margin

    def __str__(self) -> str:
        if self.interval is None:
            return f"{100 * self.delta:+.2f} points [no interval: {self.shortage}], no difference shown"
        low, high = (100 * bound for bound in self.interval)
        verdict = "differ" if self.significant else "no difference shown"
        return f"{100 * self.delta:+.2f} points [{low:+.1f}, {high:+.1f}], {verdict}"


class Tally:
    """Errors of one system added up batch by batch, for a corpus whose texts would not fit into memory.

    Of each utterance eight counts and its block's label are kept, and no text. `score` is one of a single batch.
    """

    def __init__(self, normalizer: Callable[[str], str] | None = None) -> None:
        """Begin with no utterance; the normalizer is applied to both sides of all that come."""
        self.normalizer = normalizer
        self._words, self._characters = [np.zeros((0, 4), dtype=np.int64)], [np.zeros((0, 4), dtype=np.int64)]
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
        references, hypotheses = list(references), list(hypotheses)
        n, seen = len(references), len(self._blocks)
        labels = range(seen, seen + n) if blocks is None else list(blocks)
        for what, side in (("hypotheses", hypotheses), ("block labels", labels)):
            if len(side) != n:
                raise AsrlibError(f"{n} references and {len(side)} {what} cannot be scored: give one per reference.")
        if self.normalizer:
            references, hypotheses = [[self.normalizer(text) for text in side] for side in (references, hypotheses)]
        self._words.append(count(references, hypotheses, jiwer.process_words))
        self._characters.append(count(references, hypotheses, jiwer.process_characters))
        self._blocks += labels
        return self._words[-1]

    def score(self, seed: int = 0) -> Score:
        """Return the score of all utterances so far.

        Args:
            seed: of the bootstrap.

        Raises:
            AsrlibError: no utterance at all, or no reference word in any of them.
        """
        words, characters = np.concatenate(self._words), np.concatenate(self._characters)
        if not words[:, 3].sum():
            raise AsrlibError("No reference holds a word: a WER needs at least one transcribed utterance.")
        blocks = tuple(self._blocks) if len(set(self._blocks)) > 1 else tuple(range(len(words)))
        return Score(words[:, :3], words[:, 3], characters, blocks)._with_interval(seed)


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
        references: one text per utterance. One that is empty after normalisation adds no words; words of the
            hypothesis there count as insertions.
        hypotheses: as many texts, in the same order; an empty one is all deletions.
        normalizer: applied to both sides, for example `asrlib.text.normalizer("en")`.
        blocks: label per utterance of what is resampled together, such as the speaker; default: each utterance alone.
            With fewer than two different labels there is nothing to resample and each utterance is a block. Under ten
            blocks there is no interval.
        seed: of the bootstrap.

    Raises:
        AsrlibError: lengths that differ, no utterance at all, or no reference word in any of them.
    """
    tally = Tally(normalizer)
    tally.add(references, hypotheses, blocks)
    return tally.score(seed)


def choices(right: Sequence[bool], *, blocks: Sequence[Hashable] | None = None, seed: int = 0) -> Score:
    """Score answers that are right or wrong, such as languages: the error rate is the share of wrong ones, a clip a "word".

    So `over_seeds`, `compare` and `contrast` serve such answers too.

    Args:
        right: of each clip.
        blocks, seed: as for `score`.

    Raises:
        AsrlibError: no answer, or other than one block label for each.
    """
    wrong = ~np.asarray(right, dtype=bool)
    labels = range(len(wrong)) if blocks is None else blocks
    if not len(wrong) or len(labels) != len(wrong):
        raise AsrlibError(
            f"{len(wrong)} answers and {len(labels)} block labels cannot be scored: give one of each per clip."
        )
    kinds = np.stack([wrong, 0 * wrong, 0 * wrong], axis=1).astype(int)
    counted = np.ones(len(wrong), dtype=int)
    return Score(kinds, counted, np.concatenate([kinds, counted[:, None]], axis=1), tuple(labels))._with_interval(seed)


def over_seeds(scores: Sequence[Score], *, seed: int = 0) -> Score:
    """Return the mean score of one recipe trained several times, with an interval that covers seeds and clips.

    The mean has three seeds or more, or no interval. `compare` takes such a mean on either side.

    Args:
        scores: of each training, on the same utterances.
        seed: of the bootstrap.

    Raises:
        AsrlibError: no score, or scores of different utterances.
    """
    if not scores:
        raise AsrlibError("There is no training to take the mean of: give the score of each seed.")
    for score in scores:
        _check_same(score, scores[0])
    kinds, characters = (np.mean([getattr(run, name) for run in scores], axis=0) for name in ("kinds", "characters"))
    return Score(kinds, scores[0].lengths, characters, scores[0].blocks, tuple(scores))._with_interval(seed)


def compare(first: Score, second: Score, *, replicates: int = REPLICATES, seed: int = 0) -> Difference:
    """Compare two systems on the same utterances by a paired bootstrap (Bisani & Ney 2004).

    Each replicate draws one set of utterances and scores both systems on it, so what is hard for both cancels. Where a side is
    a mean `over_seeds`, its trainings are drawn too, apart from those of the other side: also if both used the same seeds, for
    three pairs are too few to learn from how far a seed helps both, and to ignore that is the cautious side.

    Raises:
        AsrlibError: the two scores are not of the same utterances.
    """
    _check_same(first, second)
    counted = (first.utterances, first.words, (len(first.runs) or 1, len(second.runs) or 1))
    delta = first.wer - second.wer
    if few := _shortage(first, second):
        return Difference(delta, None, None, few, *counted)
    drawn = _replicates(first, second, replicates=replicates, seed=seed)
    return Difference(delta, uncertainty.interval(*drawn), uncertainty.p_value(*drawn), "", *counted)


def contrast(first: Score, second: Score, *, same_clips: bool, seed: int = 0) -> Difference:
    """Return the WER of one score minus that of another that counts other words: by another normaliser, on other clips.

    Args:
        first, second: scores of one training each.
        same_clips: they are the same clips, counted in two ways, and are resampled together; else each side on its own.
        seed: of the bootstrap.

    Raises:
        AsrlibError: a mean over seeds, or not the same clips, though ``same_clips`` says so.
    """
    if first.runs or second.runs:
        raise AsrlibError(
            "A contrast takes scores of one training each: a mean over seeds would hide how far these scatter."
        )
    if same_clips and first.blocks != second.blocks:
        raise AsrlibError("These two scores are not of the same clips: give same_clips=False.")
    total = max if same_clips else sum
    counted = (total([first.utterances, second.utterances]), total([first.words, second.words]))
    delta = first.wer - second.wer
    if few := _few_units(first.blocks) or _few_units(second.blocks):
        return Difference(delta, None, None, few, *counted)
    seeds = (seed, seed) if same_clips else (2 * seed, 2 * seed + 1)  # the same seed draws the same clips on both sides
    one, other = (
        bootstrap(side.errors, side.lengths, blocks=side.blocks, seed=own)
        for side, own in zip((first, second), seeds, strict=True)
    )
    drawn = (one - other, min(len(set(first.blocks)), len(set(second.blocks))))
    return Difference(delta, uncertainty.interval(*drawn), uncertainty.p_value(*drawn), "", *counted)


def resampled(
    gap: Callable[[np.ndarray], float], n: int, words: int, unit: str, *, replicates: int = REPLICATES, seed: int = 0
) -> Difference:
    """Return a difference in WER that is no sum over utterances, such as between what two filters keep of them.

    Args:
        gap: rows that were drawn, shape (n,), to the difference, as a fraction.
        n: units to draw from.
        words: reference words in all of them.
        unit: name of one, in the singular.
        replicates, seed: of the bootstrap.
    """
    delta = gap(np.arange(n))
    if few := uncertainty.shortage(n, unit):
        return Difference(delta, None, None, few, n, words)
    generator = np.random.default_rng(seed)
    drawn = (np.array([gap(generator.integers(0, n, n)) for _ in range(replicates)]), n)
    return Difference(delta, uncertainty.interval(*drawn), uncertainty.p_value(*drawn), "", n, words)


def _few_units(blocks: Sequence[Hashable]) -> str:
    units = len(set(blocks))
    return uncertainty.shortage(units, "clip" if units == len(blocks) else "speaker")


def _shortage(*scores: Score) -> str:
    """Return why scores of the same utterances allow no interval; empty if they do."""
    seeds = min((len(score.runs) for score in scores if score.runs), default=uncertainty.MIN_SEEDS)
    return _few_units(scores[0].blocks) or uncertainty.shortage(seeds, "seed", uncertainty.MIN_SEEDS)


def _check_same(first: Score, second: Score) -> None:
    if first.blocks != second.blocks or not np.array_equal(first.lengths, second.lengths):
        raise AsrlibError("Two systems can be compared only on the same utterances, references and normaliser.")


def _replicates(first: Score, *others: Score, **options: int) -> tuple[np.ndarray, int, float]:
    """Resample one mean WER, or the first minus the second; return what `uncertainty.interval` takes."""
    sides = [np.stack([run.errors for run in side.runs or (side,)], axis=1) for side in (first, *others)]
    return uncertainty.resample_runs(sides, first.lengths, blocks=first.blocks, **options)

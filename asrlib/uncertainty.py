"""Uncertainty of measured numbers: intervals, p-values, and how many units both need."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from asrlib import AsrlibError

REPLICATES = 10_000  # with forty units, so many that forty comparisons can hold beside each other
CONFIDENCE = 0.95
MIN_UNITS = 10  # below, a bootstrap over clips or speakers covers far less than it says, however it is widened
MIN_SEEDS = 3
MIN_ROUNDS = 5
_CHUNK = 1 << 20  # drawn numbers held in memory at once


def shortage(units: int, name: str, least: int = MIN_UNITS) -> str:
    """Return in words why there is no interval, such as ``only 4 speakers``; empty where there are enough.

    Args:
        units: how many there are.
        name: of one unit, in the singular.
        least: how many it takes.
    """
    return "" if units >= least else f"only {units} {name}{'' if units == 1 else 's'}"


# -------------------------------------------------------------------------------------------------------------- bootstrap
def resample(
    values: np.ndarray, *, blocks: Sequence[Hashable], replicates: int = REPLICATES, seed: int = 0
) -> np.ndarray:
    """Return column sums of resampled corpora, shape (replicates, columns).

    Args:
        values: counts per utterance, shape (utterances, columns); all columns are drawn together.
        blocks: label of the block each utterance belongs to; whole blocks are drawn with replacement, as many as there are.
        replicates: number of resampled corpora.
        seed: of the generator.
    """
    order = {label: number for number, label in enumerate(dict.fromkeys(blocks))}
    sums = np.zeros((len(order), values.shape[1]))
    np.add.at(sums, [order[label] for label in blocks], values)
    generator, rows = np.random.default_rng(seed), max(1, _CHUNK // sums.size)
    sizes = [min(rows, replicates - first) for first in range(0, replicates, rows)]
    return np.concatenate([sums[generator.integers(0, len(sums), (size, len(sums)))].sum(axis=1) for size in sizes])


def bootstrap(
    errors: np.ndarray, lengths: np.ndarray, *, blocks: Sequence[Hashable], replicates: int = REPLICATES, seed: int = 0
) -> np.ndarray:
    """Return bootstrap replicates of the ratio sum(errors) / sum(lengths), shape (replicates,).

    Args:
        errors: word errors per utterance, shape (utterances,).
        lengths: reference words per utterance, shape (utterances,).
        blocks: as for `resample`, like the rest.
    """
    totals = resample(np.stack([errors, lengths], axis=1), blocks=blocks, replicates=replicates, seed=seed)
    return totals[:, 0] / np.maximum(totals[:, 1], 1)  # a draw of empty references only has no rate: count its errors


def resample_runs(
    sides: Sequence[np.ndarray],
    lengths: np.ndarray,
    *,
    blocks: Sequence[Hashable],
    replicates: int = REPLICATES,
    seed: int = 0,
) -> tuple[np.ndarray, int, float]:
    """Resample utterances and trainings of one or two systems (hierarchical bootstrap: Saravanan et al. 2020).

    All sides are scored on the same drawn utterances. Of a system with S trainings S - 1 are drawn, which makes the spread of
    their mean unbiased (Rao & Wu 1988), and of each only the distance from the mean that the utterances do not explain: to draw
    both levels in full counts three times what a training does to single utterances (Owen 2007), and covers 99 % with 3 seeds.
    The degrees of freedom account for the few trainings.

    Args:
        sides: errors of each system, shape (utterances, trainings); one column is a system without spread of its own.
        lengths: reference words, shape (utterances,).
        blocks: as for `resample`, like the rest.

    Returns:
        Replicates of the mean WER, or of the first side's minus the second's, the number of blocks, and the degrees of freedom:
        the arguments of `interval` and `p_value`.
    """
    columns = np.concatenate([*sides, lengths[:, None]], axis=1)
    totals = resample(columns, blocks=blocks, replicates=replicates, seed=seed)
    words = np.maximum(totals[:, -1:], 1)
    parts = np.split(totals[:, :-1], [sides[0].shape[1]], axis=1)[: len(sides)]
    first, *other = (part.mean(axis=1) / words[:, 0] for part in parts)  # means of whole numbers: equal ones stay equal
    values = first - sum(other)
    units, generator = len(set(blocks)), np.random.default_rng((seed, 1))
    spreads = [(float(np.var(values)), units - 1)]
    for errors, part in zip(sides, parts, strict=True):
        if errors.shape[1] > 1:
            deviations, variance = _of_training(errors.sum(axis=0) / lengths.sum(), part / words, generator)
            values = values + deviations
            spreads.append((variance, errors.shape[1] - 1))
    return values, units, freedom(spreads)


def _of_training(wers: np.ndarray, rates: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return what drawing other trainings adds to a mean WER, shape (replicates,), and its variance.

    Args:
        wers: WER of each training, shape (trainings,).
        rates: the same in resampled corpora, shape (replicates, trainings).
        generator: draws the trainings.
    """
    n = len(wers)
    seen = np.var(wers, ddof=1)
    of_utterances = np.var(rates - rates.mean(axis=1, keepdims=True), axis=0).mean() * n / (n - 1)
    own = max(0.0, float(seen - of_utterances))
    shrunk = (wers - wers.mean()) * math.sqrt(own / seen if own else 0.0)
    chosen = generator.integers(0, n, size=(len(rates), n - 1))
    return shrunk[chosen].mean(axis=1), own / n


def freedom(parts: Iterable[tuple[float, int]]) -> float:
    """Return the degrees of freedom of a sum of independent variances, each estimated from few units.

    Source: Satterthwaite 1946. Where nothing varies, the first part's degrees count.

    Args:
        parts: of each source of spread its variance and its degrees of freedom.
    """
    variances, degrees = (np.array(column, dtype=float) for column in zip(*parts, strict=True))
    total = variances.sum()
    return float(total**2 / (variances**2 / degrees).sum()) if total > 0 else float(degrees[0])


def interval(replicates: np.ndarray, units: int, degrees: float | None = None) -> tuple[float, float]:
    """Return the expanded percentile interval of bootstrap replicates at 95 %.

    The plain percentile interval is too narrow for few units: over 10 to 20 of them it covers 85 to 91 %. So its two tails are
    cut where Student's t puts them, not the normal curve, with the standard error's own bias taken out (Hesterberg 2015,
    "What teachers should know about the bootstrap", section 3.3). With hundreds of units nothing is left of the difference.

    Args:
        replicates: values of the statistic in resampled corpora, shape (replicates,).
        units: number of units that were drawn, 2 at least.
        degrees: degrees of freedom of the standard error; default: units - 1.
    """
    cut = special.stdtrit(degrees or units - 1, (1 + CONFIDENCE) / 2)
    tail = special.ndtr(-math.sqrt(units / (units - 1)) * cut)
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def p_value(replicates: np.ndarray, units: int, degrees: float | None = None) -> float:
    """Return the two-sided p-value of "the statistic is zero", out of its bootstrap replicates; arguments as for `interval`.

    It is the level at which the interval just reaches zero (Efron & Tibshirani 1993, section 15.4). Replicates of exactly zero
    count against a difference on both sides, and one is added to each count, so that it is never 0 (Davison & Hinkley 1997,
    section 4.2). Where it is at most 0.05, the interval at 95 % leaves out zero.
    """
    beyond = min((replicates <= 0).sum(), (replicates >= 0).sum())
    share = min((beyond + 1) / (len(replicates) + 1), 0.5)
    cut = special.ndtri(share) / math.sqrt(units / (units - 1))
    return float(2 * special.stdtr(degrees or units - 1, cut))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted for their number, by name.

    Those of at most 0.05 hold together: the chance that any of them is wrong is at most 5 % (Holm 1979). The smallest of m is
    multiplied by m, the next by m - 1 and so on, never falling and never above 1.
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


@dataclass(frozen=True)
class Estimate:
    """A statistic of values that come in blocks, such as the median of the errors in several recordings.

    Attributes:
        value: of all values; not a number where there is none.
        interval: 95 % interval over blocks; None under ten of them.
        p_value: of "it is zero", two-sided; None under ten blocks.
        units: number of blocks that hold a value.
    """

    value: float
    interval: tuple[float, float] | None
    p_value: float | None
    units: int


def estimate(
    blocks: Iterable[np.ndarray],
    statistic: Callable[[np.ndarray], float],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Estimate:
    """Return a statistic of pooled values with its interval, by a bootstrap that draws whole blocks.

    Args:
        blocks: the values of each block, shape (values, ...).
        statistic: of the values of several blocks, as one array.
        replicates: number of resampled corpora.
        seed: of the generator.
    """
    blocks = [block for block in blocks if len(block)]
    if not blocks:
        return Estimate(math.nan, None, None, 0)
    value, units = float(statistic(np.concatenate(blocks))), len(blocks)
    if units < MIN_UNITS:
        return Estimate(value, None, None, units)
    draws = np.random.default_rng(seed).integers(0, units, (replicates, units))
    found = np.array([statistic(np.concatenate([blocks[block] for block in draw])) for draw in draws])
    return Estimate(value, interval(found, units), p_value(found, units), units)


# ------------------------------------------------------------------------------------------------------- shares and trends
def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, as fractions (Wilson 1927); it needs no minimum of trials.

    Args:
        hits: how many of them.
        n: number of independent trials.

    Raises:
        AsrlibError: no trial, or more hits than trials.
    """
    if not 0 <= hits <= n or n == 0:
        raise AsrlibError(f"{hits} of {n} is no share: give the number of trials, and how many of them were hits.")
    z = special.ndtri((1 + CONFIDENCE) / 2)
    share, spread = hits / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # Without a hit the lower end is 0, without a miss the upper one 1: rounding would miss both.
    return float(middle - half) if hits else 0.0, float(middle + half) if hits < n else 1.0


def spearman(x: Sequence[float], y: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Return Spearman's rank correlation and its 95 % interval (Bonett & Wright 2000).

    Args:
        x: one value a point; four points at least.
        y: as many values; neither x nor y has the same value everywhere.
    """
    correlation = float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])
    if abs(correlation) > 1 - 1e-12:  # perfect order, where the transformed value is infinite
        return round(correlation) * 1.0, (round(correlation) * 1.0,) * 2
    error = math.sqrt((1 + correlation**2 / 2) / (len(x) - 3))
    reach = special.ndtri((1 + CONFIDENCE) / 2) * error
    return correlation, tuple(math.tanh(math.atanh(correlation) + side * reach) for side in (-1, 1))


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Return ranks from 1, equal values sharing their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


# ----------------------------------------------------------------------------------------------------- repeated measurements
@dataclass(frozen=True)
class Ratio:
    """How many times as much the first of two systems takes as the second, measured in turn.

    Attributes:
        value: median over rounds of first / second.
        interval: 95 % interval of that median; None under five rounds.
        medians: the middle value of each system.
        rounds: number of rounds.
    """

    value: float
    interval: tuple[float, float] | None
    medians: tuple[float, float]
    rounds: int

    @property
    def shortage(self) -> str:
        """Why there is no interval, in words; empty where there is one."""
        return shortage(self.rounds, "round", MIN_ROUNDS)

    @property
    def significant(self) -> bool:
        """True when the interval leaves out 1; only then may one system be called faster, or smaller."""
        return self.interval is not None and not self.interval[0] <= 1 <= self.interval[1]

    def __str__(self) -> str:
        shown = f"none, {self.shortage}" if self.interval is None else "{:.2f} to {:.2f}".format(*self.interval)
        return f"{self.value:.2f} times [{shown}], {self.rounds} rounds"


def paired_ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """Compare two systems that were measured in turn, round by round, so that what slows a round slows both.

    The interval of the median ratio lies between two of the ordered ratios (the sign test turned round: Thompson 1936). It asks
    for no form of the noise, and one disturbed round does not move it far. Up to eight rounds it is the smallest to the largest
    ratio, so a system is called faster only if it was so in every round; five rounds cover 94 %, six and more 95 % or more.

    Args:
        first: what the first system took in each round, such as seconds.
        second: what the second took in the same rounds.

    Raises:
        AsrlibError: rounds that do not pair, or a value that is not positive.
    """
    if len(first) != len(second) or not len(first):
        raise AsrlibError(
            f"{len(first)} and {len(second)} rounds cannot be compared: measure both systems in each round."
        )
    if not all(math.isfinite(value) and value > 0 for value in (*first, *second)):
        raise AsrlibError("A ratio needs measured values above 0 in every round: leave out a round that failed.")
    ratios = np.sort(np.asarray(first, dtype=float) / np.asarray(second, dtype=float))
    rounds = len(ratios)
    cut = next(
        (cut for cut in range(rounds // 2, 0, -1) if 2 * special.bdtr(cut - 1, rounds, 0.5) <= 1 - CONFIDENCE), 1
    )
    ends = (float(ratios[cut - 1]), float(ratios[rounds - cut])) if rounds >= MIN_ROUNDS else None
    return Ratio(float(np.median(ratios)), ends, (float(np.median(first)), float(np.median(second))), rounds)

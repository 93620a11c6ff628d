"""Intervals and p-values against scipy and worked examples; coverage by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from asrlib import AsrlibError, uncertainty

FEW = st.lists(st.floats(0.01, 100), min_size=5, max_size=20)


# -------------------------------------------------------------------------------------------------------------- bootstrap
def covered(units, corpora=400, seed=0):
    """Return how often 95 % intervals over so many speakers hold the true rate: ours, and the plain percentile interval."""
    generator = np.random.default_rng(seed)
    ours, plain = [], []
    for number in range(corpora):
        words = generator.integers(30, 200, units)
        errors = generator.binomial(words, generator.beta(2, 18, units))
        drawn = uncertainty.bootstrap(errors, words, blocks=range(units), replicates=1000, seed=number)
        for ends, found in ((uncertainty.interval(drawn, units), ours), (np.quantile(drawn, [0.025, 0.975]), plain)):
            found.append(ends[0] <= 0.1 <= ends[1])
    return np.mean(ours), np.mean(plain)


def test_ten_speakers_are_covered_better_than_by_the_plain_interval():
    ours, plain = covered(uncertainty.MIN_UNITS)
    assert plain < 0.9 <= ours


def test_of_many_units_the_plain_interval_is_left():
    drawn = np.random.default_rng(0).normal(size=2000)
    assert uncertainty.interval(drawn, 5000) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
    few = uncertainty.interval(drawn, 10)
    assert few[0] < np.quantile(drawn, 0.025) < np.quantile(drawn, 0.975) < few[1]
    wide = uncertainty.interval(drawn, 10, degrees=2)
    assert wide[0] < few[0] < few[1] < wide[1]


def test_the_tails_are_cut_where_hesterberg_puts_them():
    drawn = np.random.default_rng(0).gamma(2, size=4000)
    tail = stats.norm.cdf(-np.sqrt(12 / 11) * stats.t.ppf(0.975, 11))
    assert uncertainty.interval(drawn, 12) == pytest.approx(np.quantile(drawn, [tail, 1 - tail]))


def test_where_all_clips_agree_only_the_trainings_spread():
    errors = np.tile([1, 2, 6], (50, 1))
    drawn, units, degrees = uncertainty.resample_runs([errors], np.full(50, 10), blocks=range(50))
    assert (units, degrees) == (50, 2)
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.01)
    assert np.var(drawn) == pytest.approx(np.var([0.1, 0.2, 0.6], ddof=1) / 3, rel=0.1)


def test_degrees_of_freedom_weigh_clips_and_trainings_by_what_each_adds():
    clips, words = np.random.default_rng(0).integers(0, 6, 30), np.full(30, 10)
    errors = clips[:, None] + np.array([0, 1, 3])  # each training as much worse in every clip
    of_clips = np.var(uncertainty.bootstrap(errors.mean(axis=1), words, blocks=range(30)))
    of_trainings = np.var(errors.sum(axis=0) / words.sum(), ddof=1) / 3
    _, _, degrees = uncertainty.resample_runs([errors], words, blocks=range(30))
    assert degrees == pytest.approx(uncertainty.freedom([(of_clips, 29), (of_trainings, 2)]))


def over_seeds(spread, corpora=200):
    """Return how often intervals over 3 seeds and 40 clips hold the true difference, 0, of two equal recipes."""
    generator, held = np.random.default_rng(1), 0
    for number in range(corpora):
        words = generator.integers(5, 15, 40)
        hard = generator.gamma(1, 1, (40, 1))  # some clips are harder, for all trainings

        def errors(words=words, hard=hard):
            rates = 0.1 * np.exp(generator.normal(0, spread, 3)) * hard * generator.gamma(4, 0.25, (40, 3))
            return generator.binomial(words[:, None], np.minimum(rates, 0.9))

        drawn = uncertainty.resample_runs([errors(), errors()], words, blocks=range(40), replicates=500, seed=number)
        low, high = uncertainty.interval(*drawn)
        held += low <= 0 <= high
    return held / corpora


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_two_equal_recipes_over_three_seeds_are_covered(spread):
    assert 0.9 < over_seeds(spread) < 0.995


def test_a_side_without_trainings_is_the_plain_paired_bootstrap():
    generator = np.random.default_rng(0)
    words, first, second = (generator.integers(0, 9, (30, 1)) for _ in range(3))
    drawn, units, degrees = uncertainty.resample_runs([first, second], words[:, 0], blocks=range(30))
    expected = uncertainty.bootstrap((first - second)[:, 0], words[:, 0], blocks=range(30))
    assert (units, degrees) == (30, 29)
    assert drawn == pytest.approx(expected)


def test_degrees_of_freedom_are_those_of_what_varies():
    assert uncertainty.freedom([(1.0, 29), (0.0, 2)]) == 29
    assert uncertainty.freedom([(0.0, 29), (1.0, 2)]) == 2
    assert uncertainty.freedom([(0.0, 29), (0.0, 2)]) == 29
    first, second = np.random.default_rng(0).normal(0, [[1.0], [3.0]], (2, 6))
    parts = [(np.var(side, ddof=1) / 6, 5) for side in (first, second)]
    assert uncertainty.freedom(parts) == pytest.approx(stats.ttest_ind(first, second, equal_var=False).df)


# ----------------------------------------------------------------------------------------------------------------- p-values
@settings(max_examples=60)
@given(
    st.lists(st.integers(-3, 8), min_size=200, max_size=200),
    st.integers(10, 60),
    st.one_of(st.none(), st.integers(2, 9)),
)
def test_a_p_value_of_five_percent_means_an_interval_without_zero(values, units, degrees):
    drawn = np.array(values, dtype=float)
    p = uncertainty.p_value(drawn, units, degrees)
    low, high = uncertainty.interval(drawn, units, degrees)
    assert 0 < p <= 1
    assert p == uncertainty.p_value(-drawn, units, degrees)
    if p <= 0.05:
        assert low > 0 or high < 0


def test_ties_count_against_a_difference_on_both_sides():
    drawn = np.array([0.0] * 60 + [1.0] * 940)
    assert uncertainty.p_value(drawn, 10_000) == pytest.approx(2 * 61 / 1001, rel=0.01)
    assert uncertainty.p_value(np.zeros(1000), 50) == 1.0
    assert uncertainty.p_value(np.ones(1000), 10_000) == pytest.approx(2 / 1001, rel=0.02)


def test_p_values_agree_with_the_paired_t_test():
    differences = np.random.default_rng(2).normal(0.4, 1, 40)
    drawn = uncertainty.bootstrap(differences, np.ones(40), blocks=range(40), replicates=20_000)
    assert uncertainty.p_value(drawn, 40) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)


def test_holm_by_hand():
    found = uncertainty.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(found) == ["a", "b", "c", "d"]
    assert uncertainty.holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert uncertainty.holm({}) == {}


@settings(max_examples=60)
@given(st.dictionaries(st.text(max_size=2), st.floats(0.0001, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_single_value_and_bonferroni(p_values):
    found = uncertainty.holm(p_values)
    for name, p in p_values.items():
        assert p <= found[name] <= min(1.0, len(p_values) * p) + 1e-12
    order = sorted(p_values, key=p_values.get)
    assert [found[name] for name in order] == sorted(found.values())
    remaining = [name for name in order if found[name] <= 0.05]  # the stepwise rule, as Holm states it
    steps = [p_values[name] <= 0.05 / (len(order) - place) for place, name in enumerate(order)]
    assert len(remaining) == (steps.index(False) if False in steps else len(steps))


# -------------------------------------------------------------------------------------------------------- shares and trends
@settings(max_examples=60)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(pair):
    theirs = stats.binomtest(*pair).proportion_ci(method="wilson")
    low, high = uncertainty.wilson(*pair)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= low <= pair[0] / pair[1] <= high <= 1
    assert (low == 0, high == 1) == (pair[0] == 0, pair[0] == pair[1])


@pytest.mark.parametrize("pair", [(0, 0), (3, 2), (-1, 4)])
def test_no_share(pair):
    with pytest.raises(AsrlibError, match="no share"):
        uncertainty.wilson(*pair)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=10, max_size=30))
def test_spearman_is_scipys_and_lies_in_its_interval(pairs):
    x, y = zip(*pairs, strict=True)
    if len(set(x)) == 1 or len(set(y)) == 1:
        return
    value, (low, high) = uncertainty.spearman(x, y)
    assert value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert -1 <= low <= value <= high <= 1
    assert uncertainty.spearman(x, [-one for one in y])[1] == pytest.approx((-high, -low))


def test_the_interval_of_spearman_is_that_of_bonett_and_wright():
    x, y = range(12), [1, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 12]
    value = stats.spearmanr(x, y).statistic
    half = stats.norm.ppf(0.975) * np.sqrt((1 + value**2 / 2) / 9)  # section 2: Fisher's z with this standard error
    ends = np.tanh([np.arctanh(value) - half, np.arctanh(value) + half])
    assert uncertainty.spearman(x, y)[1] == pytest.approx(tuple(ends))


def test_the_interval_of_spearman_covers():
    generator, held = np.random.default_rng(0), 0
    for _ in range(400):
        x, noise = generator.normal(size=(2, 25))
        low, high = uncertainty.spearman(x, 0.6 * x + 0.8 * noise)[1]
        held += low <= 6 / np.pi * np.arcsin(0.6 / 2) <= high  # of two normal variables with correlation 0.6
    assert 0.92 < held / 400 < 0.98


# ------------------------------------------------------------------------------------------------------ repeated measurements
def test_an_estimate_of_a_mean_over_blocks_is_the_bootstrap_of_their_sums():
    blocks = [np.random.default_rng(seed).normal(seed % 3, 1, size=1 + seed) for seed in range(12)]
    found = uncertainty.estimate(blocks, np.mean, seed=5)
    sums, sizes = np.array([block.sum() for block in blocks]), np.array([len(block) for block in blocks])
    draws = uncertainty.bootstrap(sums, sizes, blocks=range(12), seed=5)
    assert found.value == pytest.approx(np.concatenate(blocks).mean())
    assert found.interval == pytest.approx(uncertainty.interval(draws, 12))
    assert found.p_value == pytest.approx(uncertainty.p_value(draws, 12))


def test_an_estimate_needs_ten_blocks_with_values_and_one_has_no_value():
    few = uncertainty.estimate([np.array([float(number)]) for number in range(9)] + [np.array([])], np.median)
    assert (few.value, few.interval, few.p_value, few.units) == (4.0, None, None, 9)
    assert np.isnan(uncertainty.estimate([np.array([])], np.median).value)


@settings(max_examples=60)
@given(FEW, st.floats(0.5, 2))
def test_the_ratio_of_paired_rounds(seconds, factor):
    found = uncertainty.paired_ratio(seconds, [one * factor for one in seconds])
    assert found.value == pytest.approx(1 / factor)
    assert found.interval == pytest.approx((1 / factor,) * 2)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)), min_size=6, max_size=25))
def test_the_interval_of_a_ratio_is_scipys_for_the_median(pairs):
    first, second = zip(*pairs, strict=True)
    found = uncertainty.paired_ratio(first, second)
    theirs = stats.quantile_test(np.divide(first, second), p=0.5).confidence_interval(0.95)
    assert found.interval == pytest.approx((theirs.low, theirs.high))
    back = uncertainty.paired_ratio(second, first)
    assert back.interval == pytest.approx((1 / found.interval[1], 1 / found.interval[0]))
    assert back.significant == found.significant


def test_a_system_is_faster_only_if_it_was_so_in_each_of_five_rounds():
    slow = [2.0, 2.2, 2.1, 2.0, 1.9]
    assert uncertainty.paired_ratio([1.0, 1.1, 1.0, 1.2, 1.8], slow).significant
    assert not uncertainty.paired_ratio([1.0, 1.1, 1.0, 1.2, 2.0], slow).significant
    assert not uncertainty.paired_ratio([1.0, 1.1, 1.0, 1.2, 1.9], slow).significant  # as fast in one round
    few = uncertainty.paired_ratio([1.0] * 4, slow[:4])
    assert (few.interval, few.shortage, few.significant) == (None, "only 4 rounds", False)
    assert "only 4 rounds" in str(few)
    assert few.medians == (1.0, 2.05)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [([], [], "0 and 0 rounds"), ([1], [1, 2], "1 and 2"), ([0], [1], "above 0"), ([1], [np.inf], "above 0")],
)
def test_rounds_that_cannot_be_compared(first, second, said):
    with pytest.raises(AsrlibError, match=said):
        uncertainty.paired_ratio(first, second)

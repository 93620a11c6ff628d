"""Scoring against jiwer and kaldialign, which count independently of us."""

import jiwer
import kaldialign
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrlib import AsrlibError, scoring, uncertainty

WORDS = st.lists(st.sampled_from(["a", "b", "c", "dd", "ee", "the", "cat", "sat"]), max_size=8).map(" ".join)
FILLED = WORDS.filter(str.strip)


@settings(max_examples=60)
@given(st.lists(st.tuples(FILLED, WORDS), min_size=1, max_size=6))
def test_rates_equal_jiwer(pairs):
    references, hypotheses = zip(*pairs, strict=True)
    ours = scoring.score(references, hypotheses)
    theirs = jiwer.process_words(list(references), list(hypotheses))
    assert ours.wer == theirs.wer
    assert (ours.substitutions, ours.deletions, ours.insertions) == (
        theirs.substitutions,
        theirs.deletions,
        theirs.insertions,
    )
    assert ours.cer == jiwer.cer(list(references), list(hypotheses))


@settings(max_examples=60)
@given(FILLED, WORDS)
def test_alignment_spells_both_sides(reference, hypothesis):
    pairs = scoring.align(reference, hypothesis).pairs
    assert " ".join(old for _, old, _ in pairs if old) == reference
    assert " ".join(new for *_, new in pairs if new) == hypothesis
    errors = sum(kind != "equal" for kind, *_ in pairs)
    assert errors == kaldialign.edit_distance(reference.split(), hypothesis.split())["total"]


def test_texts_and_blocks_may_come_from_generators():
    texts, speakers = ["a b", "c d"] * 10, [number // 2 for number in range(20)]
    lazy = scoring.score(iter(texts), iter(["a b"] * 20), blocks=iter(speakers))
    assert lazy.interval == scoring.score(texts, ["a b"] * 20, blocks=speakers).interval


def test_empty_reference_counts_insertions_and_adds_no_words():
    result = scoring.score(["one two", "", ""], ["one two", "three four", ""])
    assert (result.insertions, result.words, result.wer) == (2, 2, 1.0)
    assert scoring.align("", "a b").pairs == (("insert", "", "a"), ("insert", "", "b"))


@pytest.mark.parametrize(
    ("references", "hypotheses", "said"),
    [
        (["a"], [], "1 references and 0 hypotheses"),
        ([], [], "No reference holds a word"),
        ([" ", "?"], ["a", "b"], "No reference holds a word"),
    ],
)
def test_impossible_input_is_one_sentence(references, hypotheses, said):
    with pytest.raises(AsrlibError, match=said):
        scoring.score(references, hypotheses, normalizer=lambda text: text.replace("?", ""))


def corpus(utterances=120, seed=3):
    """Random sentences and hypotheses in which about one word in eight is wrong."""
    generator = np.random.default_rng(seed)
    words = [f"w{number}" for number in range(50)]
    references = [" ".join(generator.choice(words, generator.integers(2, 12))) for _ in range(utterances)]

    def hear(sentence):
        return " ".join("wrong" if generator.random() < 0.12 else word for word in sentence.split())

    return references, [hear(sentence) for sentence in references], [hear(sentence) for sentence in references]


def test_interval_agrees_with_kaldialign():
    references, hypotheses, _ = corpus()
    ours = scoring.score(references, hypotheses)
    theirs = kaldialign.bootstrap_wer_ci(
        [text.split() for text in references], [text.split() for text in hypotheses], replications=4000, seed=1
    )
    half = theirs["ci95"]
    assert ours.wer == pytest.approx(theirs["wer"], abs=0.003)  # theirs is the mean over replicates
    assert (ours.interval[1] - ours.interval[0]) / 2 == pytest.approx(half, rel=0.1)


def test_paired_interval_is_narrower_than_the_difference_of_single_ones():
    references, first, second = corpus()
    one, two = scoring.score(references, first), scoring.score(references, second)
    paired = scoring.compare(one, two)
    assert paired.delta == pytest.approx(one.wer - two.wer)
    assert paired.interval[0] <= paired.delta <= paired.interval[1]
    same = scoring.compare(one, one)
    assert same.interval == (0.0, 0.0)
    assert not same.significant
    worse = scoring.score(references, ["" for _ in references])
    assert scoring.compare(one, worse).significant
    assert scoring.compare(one, worse).p_value < 0.05 < scoring.compare(one, one).p_value == 1.0


def test_comparing_different_utterances_is_refused():
    with pytest.raises(AsrlibError, match="same utterances"):
        scoring.compare(scoring.score(["a b"], ["a b"]), scoring.score(["a b c"], ["a b"]))


def test_blocks_widen_the_interval_when_errors_cluster():
    references = ["a b c d"] * 60
    hypotheses = ["a b c d"] * 30 + ["x x x x"] * 30  # every error is of one half of the speakers
    speakers = [number // 5 for number in range(60)]
    alone = scoring.score(references, hypotheses)
    blocked = scoring.score(references, hypotheses, blocks=speakers)
    assert alone.wer == blocked.wer
    assert blocked.interval[0] < alone.interval[0] < alone.interval[1] < blocked.interval[1]


@pytest.mark.parametrize(("units", "enough"), [(9, False), (10, True)])
def test_under_ten_units_there_is_no_interval_and_a_reason(units, enough):
    references, hypotheses, others = corpus(40)
    speakers = [number % units for number in range(40)]
    first, second = (scoring.score(references, heard, blocks=speakers) for heard in (hypotheses, others))
    gap = scoring.compare(first, second)
    alone = scoring.score(references[:units], hypotheses[:units])
    assert [found.interval is not None for found in (first, alone, gap)] == [enough] * 3
    assert (gap.p_value is not None) == enough
    reasons = ["", ""] if enough else [f"only {units} speakers", f"only {units} clips"]
    assert [first.shortage, alone.shortage] == reasons
    assert gap.shortage == reasons[0]
    for shown, reason in ((str(first), reasons[0]), (str(gap), reasons[0]), (alone.row()["95 % interval"], reasons[1])):
        assert reason in shown
    assert np.isnan(first.bounds).all() != enough
    assert not gap.significant or enough
    assert gap.equivalent(0.9) == enough


def test_a_margin_holds_the_whole_interval_or_shows_nothing():
    difference = scoring.Difference(0.0, (-0.004, 0.009), 0.5, "", 50, 300)
    assert difference.equivalent(0.01)
    assert not difference.equivalent(0.009)
    assert not difference.equivalent(0.004)
    assert not scoring.Difference(0.0, (-0.009, 0.004), 0.5, "", 50, 300).equivalent(0.009)
    for margin in (0, -0.01, float("nan")):
        with pytest.raises(AsrlibError, match="margin"):
            difference.equivalent(margin)


def test_a_loop_is_capped_at_the_words_of_its_clip():
    references = ["one two"] * 11 + [""]
    hypotheses = ["one two"] * 9 + ["one " * 40, "one three", "thank you for watching"]
    raw = scoring.score(references, hypotheses)
    assert raw.errors.tolist() == [0] * 9 + [39, 1, 4]
    assert raw.capped.errors.tolist() == [0] * 9 + [2, 1, 1]
    assert raw.capped.wer == 4 / 22
    assert (raw.capped.kinds >= 0).all()
    assert raw.capped.interval[1] < raw.interval[1]
    assert raw.row()["WER, loops capped (%)"] == 18.18
    assert str(raw).endswith("18.18 % with loops capped")
    mean = scoring.over_seeds([raw, raw, scoring.score(references, references)])
    assert mean.capped.wer == pytest.approx(8 / 66)  # each training is capped by itself
    assert mean.row()["WER, loops capped (%)"] == 12.12
    calm = scoring.score(references, references)
    assert calm.capped.wer == calm.wer
    assert set(raw.row()) - set(calm.row()) == {"WER, loops capped (%)"}


@settings(max_examples=40)
@given(st.lists(st.tuples(FILLED, WORDS), min_size=1, max_size=6))
def test_capping_takes_off_insertions_only(pairs):
    raw = scoring.score(*zip(*pairs, strict=True))
    assert np.array_equal(raw.capped.errors, np.minimum(raw.errors, raw.lengths))
    assert np.array_equal(raw.capped.kinds[:, :2], raw.kinds[:, :2])
    letters = np.minimum(raw.characters[:, :3].sum(axis=1), np.maximum(raw.characters[:, 3], 1))
    assert np.array_equal(raw.capped.characters[:, :3].sum(axis=1), letters)


def trainings(errors, seed=0):
    """Return a score for each training, with about so many errors in a hundred words of the same 60 clips."""
    generator, references = np.random.default_rng(seed), ["a b c d e f g h"] * 60

    def hear(sentence, rate):
        return " ".join("x" if generator.random() < rate else word for word in sentence.split())

    return [scoring.score(references, [hear(text, rate / 100) for text in references]) for rate in errors]


def test_an_interval_never_reaches_below_no_error():
    """One training of three repeats itself in one clip: what it adds to the mean is taken off where that clip is not drawn."""
    references = [f"word number {place}" for place in range(40)]
    looping = [f"{said} {'again ' * 200 * (place == 7)}" for place, said in enumerate(references)]
    mean = scoring.over_seeds([scoring.score(references, said) for said in (references, references, looping)])
    low, high = mean.interval
    assert low == 0 < mean.wer < high


def test_a_mean_over_seeds_is_wider_than_its_runs_and_says_so():
    runs = trainings([5, 15, 30])
    mean = scoring.over_seeds(runs)
    assert mean.wer == pytest.approx(np.mean([run.wer for run in runs]))
    assert mean.cer == pytest.approx(np.mean([run.cer for run in runs]))
    assert mean.interval[1] - mean.interval[0] > max(run.interval[1] - run.interval[0] for run in runs)
    assert "mean of 3 seeds" in str(mean)
    assert mean.capped.wer == mean.wer
    two = scoring.over_seeds(runs[:2])
    assert (two.interval, two.shortage) == (None, "only 2 seeds")
    assert scoring.compare(two, mean).shortage == "only 2 seeds"
    with pytest.raises(AsrlibError, match="each seed"):
        scoring.over_seeds([])
    with pytest.raises(AsrlibError, match="same utterances"):
        scoring.over_seeds([runs[0], scoring.score(["a"], ["a"])])


def test_trainings_whose_seeds_scatter_are_not_ranked_though_single_runs_are():
    first, second = trainings([2, 12, 25]), trainings([9, 20, 32], seed=1)
    assert scoring.compare(first[0], second[0]).significant
    spread = scoring.compare(scoring.over_seeds(first), scoring.over_seeds(second))
    assert not spread.significant
    assert spread.delta == pytest.approx(np.mean([run.wer for run in first]) - np.mean([run.wer for run in second]))
    assert spread.seeds == (3, 3)
    steady = scoring.compare(
        scoring.over_seeds(trainings([5, 5, 5])), scoring.over_seeds(trainings([20, 20, 20], seed=1))
    )
    assert steady.significant
    assert steady.interval[0] <= steady.delta <= steady.interval[1] < 0


def test_a_mean_is_compared_with_a_system_that_is_as_it_is():
    runs, untrained = trainings([5, 5, 5]), trainings([20], seed=2)[0]
    there = scoring.compare(scoring.over_seeds(runs), untrained)
    assert there.seeds == (3, 1)
    assert there.significant
    again = scoring.over_seeds(runs)
    assert scoring.compare(again, scoring.over_seeds(runs[::-1])).delta == 0.0


def test_one_block_falls_back_to_utterances_and_two_are_too_few():
    references, hypotheses, _ = corpus(20)
    one = scoring.score(references, hypotheses, blocks=["only"] * 20)
    assert one.interval == scoring.score(references, hypotheses).interval is not None
    assert scoring.score(references, hypotheses, blocks=["a", "b"] * 10).shortage == "only 2 speakers"


def test_bootstrap_is_deterministic_and_chunking_does_not_change_it(monkeypatch):
    errors, lengths = np.arange(50) % 3, np.full(50, 5)
    whole = scoring.bootstrap(errors, lengths, blocks=range(50))
    monkeypatch.setattr(uncertainty, "_CHUNK", 500)
    assert np.array_equal(whole, scoring.bootstrap(errors, lengths, blocks=range(50)))


def test_a_contrast_of_the_same_clips_is_drawn_together_and_of_other_clips_apart():
    said = [f"Word{number} two." for number in range(40)]
    heard = [f"word{number} {'two' if number % 4 else 'too'}" for number in range(40)]
    strict, loose = (scoring.score(said, heard, normalizer=way) for way in (str, lambda text: text.lower().strip(".")))
    together = scoring.contrast(loose, strict, same_clips=True)
    assert together.delta == pytest.approx(loose.wer - strict.wer)
    assert together.interval[0] <= together.delta <= together.interval[1] < 0
    assert (together.utterances, together.words) == (40, 80)
    apart = scoring.contrast(loose, strict, same_clips=False)
    assert (apart.utterances, apart.words) == (80, 160)
    itself = scoring.contrast(loose, loose, same_clips=True)
    assert itself.interval == (0, 0)
    other = scoring.contrast(loose, loose, same_clips=False).interval
    assert other[0] < 0 < other[1]


def test_of_a_contrast_the_fewer_clips_decide_how_wide_it_is():
    sides = [scoring.score(*corpus(clips, seed=clips)[:2]) for clips in (200, 12)]
    one, other = (
        scoring.bootstrap(side.errors, side.lengths, blocks=side.blocks, seed=n) for n, side in enumerate(sides)
    )
    found = scoring.contrast(*sides, same_clips=False)
    assert found.interval == uncertainty.interval(one - other, 12)
    assert found.p_value == uncertainty.p_value(one - other, 12)


def test_a_contrast_of_few_clips_has_no_interval_and_other_clips_are_told_apart():
    few, many = (scoring.score(["a b"] * n, ["a c"] * n) for n in (4, 20))
    assert scoring.contrast(few, many, same_clips=False).shortage == "only 4 clips"
    with pytest.raises(AsrlibError, match="not of the same clips"):
        scoring.contrast(few, many, same_clips=True)
    with pytest.raises(AsrlibError, match="one training each"):
        scoring.contrast(scoring.over_seeds([many] * 3), many, same_clips=True)


def test_a_row_of_a_table_is_in_percent():
    found = scoring.score(["ab cd"] * 10, ["ab ce"] * 9 + ["ab cd"])
    low, high = found.interval
    assert found.row() == {
        "WER (%)": 45.0,
        "95 % interval": f"{100 * low:.1f} to {100 * high:.1f}",
        "CER (%)": 18.0,
        "clips": 10,
        "words": 20,
    }
    assert str(found) == f"WER 45.00 % [{100 * low:.1f}, {100 * high:.1f}], 10 utterances, 20 words"
    gap = scoring.compare(found, scoring.score(["ab cd"] * 10, ["ab cd"] * 10))
    low, high = gap.interval
    assert str(gap) == f"+45.00 points [{100 * low:+.1f}, {100 * high:+.1f}], differ"


# ------------------------------------------------------------------------------------------------------------------ choices
@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_the_error_rate_of_choices_is_the_share_of_wrong_ones(right):
    found = scoring.choices(right)
    assert found.wer == pytest.approx(1 - sum(right) / len(right))
    assert (found.utterances, found.words, found.errors.tolist()) == (
        len(right),
        len(right),
        [not one for one in right],
    )
    assert (found.interval is None) == (len(right) < 10)


def test_choices_are_compared_clip_by_clip_and_over_trainings():
    right, wrong = [True] * 12 + [False] * 3, [False] * 15
    assert scoring.compare(scoring.choices(right), scoring.choices(wrong)).delta == pytest.approx(-0.8)
    mean = scoring.over_seeds([scoring.choices(one) for one in (right, right, wrong)])
    assert mean.wer == pytest.approx((0.2 + 0.2 + 1) / 3)
    for answers, blocks in (([], None), (right, ["one"])):
        with pytest.raises(AsrlibError, match="block labels cannot be scored: give one of each"):
            scoring.choices(answers, blocks=blocks)


def test_a_resampled_difference_is_that_of_compare_where_both_apply():
    generator = np.random.default_rng(0)
    said = [" ".join("abcde"[: generator.integers(1, 6)]) for _ in range(60)]
    first, second = ([text.replace(letter, "x") for text in said] for letter in "ad")
    one, other = scoring.score(said, first), scoring.score(said, second)
    compared = scoring.compare(one, other, replicates=4000)

    def gap(rows):
        return (one.errors[rows].sum() - other.errors[rows].sum()) / one.lengths[rows].sum()

    found = scoring.resampled(gap, len(said), one.words, "piece", replicates=4000)
    assert found.delta == pytest.approx(compared.delta)
    assert found.interval == pytest.approx(compared.interval, abs=0.01)
    assert (found.utterances, found.words, found.significant) == (60, one.words, True)
    few = scoring.resampled(gap, 5, one.words, "piece")
    assert (few.interval, few.p_value, few.shortage) == (None, None, "only 5 pieces")

"""A finding concludes only what its interval allows, names the right side, and holds no number but those of its object."""

import json
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asrlib import AsrlibError, scoring, translation, uncertainty
from asrlib.course import findings

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
PART = st.one_of(st.just(0.0), st.floats(-3, 3), st.floats(-0.001, 0.001), st.floats(-1e4, 1e4))
every = settings(max_examples=100)


@st.composite
def differences(draw, interval=True):
    """Return a `Difference` with any delta inside its interval, over any number of clips."""
    low, delta, high = sorted(draw(st.tuples(PART, PART, PART)))
    clips = draw(st.integers(1, 3_000_000))
    counts = (clips, draw(st.integers(1, 9 * clips)), draw(st.sampled_from([(1, 1), (3, 3), (3, 1)])))
    if not interval:
        return scoring.Difference(delta, None, None, "only 4 clips", *counts)
    p = 0.01 if low > 0 or high < 0 else 0.6
    return scoring.Difference(delta, (low, high), p, "", *counts)


def concludes(finding):
    return bool(re.search(r"\b(better|worse|faster|slower|smaller|larger|rises|falls)\b", str(finding)))


def numbers(text):
    return [float(one.replace(",", "")) for one in NUMBER.findall(text)]


# ----------------------------------------------------------------------------------------------------------- paired
@every
@given(differences() | differences(interval=False), st.one_of(st.none(), st.floats(0.001, 2)))
def test_better_is_said_only_where_the_interval_leaves_out_zero(difference, margin):
    text = str(findings.paired(difference, "Anna", "Bert", margin=margin))
    if difference.interval is None:
        assert text.startswith("No conclusion") and "only 4 clips" in text
        assert not re.search("equal|No difference|better|worse", text)
        return
    low, high = difference.interval
    assert ("Anna is better than Bert" in text) == (high < 0)
    assert ("Anna is worse than Bert" in text) == (low > 0)
    assert ("No difference is shown" in text) == (low <= 0 <= high and not (margin and difference.equivalent(margin)))
    if margin:
        assert bool(re.search(r"(?<!that they )are equal within|, by less than", text)) == difference.equivalent(margin)
    assert text.count(".") >= 1
    assert text.endswith(").")


@every
@given(differences())
def test_the_numbers_in_the_sentence_are_those_of_the_object(difference):
    finding = findings.paired(difference, "Anna", "Bert")
    said = numbers(finding.text)
    known = [abs(100 * end) for end in (difference.delta, *difference.interval)]
    known += [difference.utterances, difference.words, *difference.seeds]
    for number in said:
        assert any(number == pytest.approx(one, abs=0.0501, rel=0.06) or number == one for one in known), number
    assert difference.utterances in said
    assert finding.numbers["interval"] == pytest.approx([100 * end for end in difference.interval])
    assert json.loads(json.dumps(finding.numbers)) == finding.numbers


@every
@given(differences() | differences(interval=False))
def test_a_contrast_names_the_side_and_says_where_nothing_is_shown(difference):
    text = str(findings.contrast(difference, "with one", "with another"))
    lower, shown = difference.delta < 0, difference.significant
    said = "the same as" if abs(difference.delta) < 1e-11 else f"{'lower' if lower else 'higher'} than with another"
    assert said in text
    assert ("[" in text) == shown
    zero = difference.interval == (0, 0)
    assert ("no difference is shown" in text) == (difference.interval is not None and not shown and not zero)
    assert ("without an interval: only 4 clips" in text) == (difference.interval is None)


def test_the_sentences_of_a_comparison():
    def said(delta, interval, **options):
        return str(
            findings.paired(scoring.Difference(delta, interval, 0.5, "", 199, 1204), "LoRA", "the teacher", **options)
        )

    rests = "(199 clips, 1,204 words)."
    better = "LoRA is better than the teacher: its WER is 3.1 points lower [0.8 to 7.5 points lower] "
    assert said(-0.031, (-0.075, -0.008)) == better + rests
    open_ = "the WER of LoRA is 3.1 points lower, but the interval reaches from 7.5 points lower to 0.8 points higher "
    none = "No difference is shown between LoRA and the teacher"
    assert said(-0.031, (-0.075, 0.008)) == f"{none}: {open_}{rests}"
    assert (
        said(-0.031, (-0.075, 0.008), margin=0.01) == f"{none}, nor that they are equal within 1 point: {open_}{rests}"
    )
    assert said(-0.031, (-0.075, 0.008), margin=0.08).startswith(
        "LoRA and the teacher are equal within 8 points: the WER"
    )
    assert said(-0.003, (-0.005, -0.001), margin=0.01).startswith(
        "LoRA is better than the teacher, by less than 1 point: its"
    )
    assert "to no difference (" in said(-0.031, (-0.075, 0.0))
    assert said(0.0, (0.0, 0.0)) == f"{none}: their errors are the same {rests}"
    assert "0.02 points higher" in said(0.0002, (-0.01, 0.01))
    shown = scoring.Difference(-0.167, (-0.2, -0.13), 0.001, "", 96, 1304)
    assert str(findings.contrast(shown, "with a normaliser", "as written")) == (
        "The WER with a normaliser is 16.7 points lower than as written [13.0 to 20.0 points lower] (96 clips, 1,304 words)."
    )
    one = findings.paired(scoring.Difference(0.5, None, None, "only 1 clip", 1, 1), "the student", "the teacher")
    assert str(one).endswith("without an interval (only 1 clip; 1 clip, 1 word).")


# ------------------------------------------------------------------------------------------------------------ level, table
def test_a_level_says_rate_interval_and_what_it_rests_on():
    references = ["a b c d e"] * 20
    loop = ["a b c d e"] * 19 + ["a " * 90]
    score = scoring.score(references, loop)
    low, high = (100 * end for end in score.interval)
    text = str(findings.level(score, "the student", "English prompts"))
    assert text.startswith(
        f"The student has a WER of {100 * score.wer:.1f} % [{low:.1f}, {high:.1f}] on English prompts (20"
    )
    assert text.endswith(
        f"(20 clips, 100 words). If no clip may count more errors than it has words, it is {100 * score.capped.wer:.1f} %."
    )
    one = findings.level(scoring.score(["a"], ["a"]), "tiny.en", "one clip")
    assert str(one) == "tiny.en has a WER of 0.0 % on one clip (1 clip, 1 word, no interval: only 1 clip)."
    assert one.numbers == {"value": 0.0, "interval": None, "unit": "%", "n": 1, "of": "clips"}
    mean = scoring.over_seeds([score] * 3)
    assert "mean of 3 trainings" in str(findings.level(mean, "LoRA", "prompts"))


@every
@given(st.dictionaries(st.sampled_from(["int8", "int4", "nf4", "fp8", "hqq"]), differences(), min_size=1))
def test_a_table_names_what_holds_and_how_many_chance_gives(found):
    finding = findings.table(found, "float32")
    adjusted = uncertainty.holm({name: one.p_value for name, one in found.items()})
    kept = [name for name in found if adjusted[name] <= 0.05]
    assert finding.numbers["remain"] == kept
    for name, one in found.items():
        held, _, alone = str(finding).partition("Judged alone")
        assert (f"{name} is better" in held) == (name in kept and one.interval[1] < 0)
        assert (f"{name} is worse" in held) == (name in kept and one.interval[0] > 0)
        assert (f"{name} is" in alone) == (one.significant and name not in kept)
    assert finding.numbers["by_chance"] == pytest.approx(0.05 * len(found))
    assert json.loads(json.dumps(finding.numbers)) == finding.numbers


def test_the_sentences_of_a_table():
    def gap(p, delta=-0.02):
        interval = (delta - 0.01, delta + 0.01) if p is not None and p <= 0.05 else (-0.1, 0.1)
        return scoring.Difference(delta, interval if p is not None else None, p, "", 60, 300)

    found = {"int4": gap(0.001, 0.05), "int8": gap(0.03), "fp16": gap(0.9), "odd": gap(None)}
    assert str(findings.table(found, "float32")) == (
        "Of 3 comparisons with float32, 1 shows a difference that holds beside the others (Holm's correction): int4 is worse "
        "(WER 5.0 points higher). Judged alone, this differs too: int8 is better (WER 2.0 points lower). Of 3 equal systems, "
        "0.15 on average would seem to differ, by chance alone. 1 comparison has no interval."
    )
    assert str(findings.table({"a": gap(0.9), "b": gap(0.8)}, "x")).startswith(
        "Of 2 comparisons with x, none show a difference"
    )
    assert str(findings.table({"a": gap(0.9)}, "x")) == "The one comparison with x shows no difference."
    only = findings.table({"a": gap(None), "b": gap(None)}, "x")
    assert str(only) == "No conclusion about systems compared with x: 2 comparisons have no interval."
    with pytest.raises(AsrlibError, match="no comparison"):
        findings.table({}, "x")


# ------------------------------------------------------------------------------------------------------------- amount, gap
@every
@given(st.lists(st.lists(st.floats(-1e4, 1e4), max_size=3), max_size=14))
def test_a_gap_concludes_only_where_its_interval_leaves_out_zero(values):
    found = uncertainty.estimate([np.array(block) for block in values], np.median, replicates=50)
    text = str(findings.gap(found, "Anna", "Bert", of="the error", unit="ms", each="recording"))
    sure = found.interval is not None and not found.interval[0] <= 0 <= found.interval[1]
    assert ("ms lower than that of Bert [" in text) == (sure and found.value < 0)
    assert ("ms higher than that of Bert [" in text) == (sure and found.value > 0)
    assert text.startswith("No conclusion") == (found.interval is None)
    stated = str(findings.amount(found, "the error", unit="ms", each="recording"))
    assert stated.startswith("No conclusion") == (found.units == 0)
    assert ("no interval: only" in stated) == (0 < found.units < 10)


def test_the_sentences_of_an_amount_and_of_a_gap():
    names, told = ("the aligner", "attention"), {"of": "the median error", "unit": "ms", "each": "recording"}
    sure = uncertainty.Estimate(-12.34, (-20.0, -3.0), 0.01, 12)
    assert str(findings.gap(sure, *names, **told)) == (
        "The median error of the aligner is 12.3 ms lower than that of attention [3.0 to 20.0 ms lower] (12 recordings)."
    )
    unsure = uncertainty.Estimate(2.0, (-1.0, 5.0), 0.3, 12)
    assert str(findings.gap(unsure, *names, **told)) == (
        "No difference is shown between the aligner and attention: the median error of the aligner is 2.0 ms higher, but the "
        "interval reaches from 1.0 ms lower to 5.0 ms higher (12 recordings)."
    )
    one = findings.amount(uncertainty.Estimate(30.0, (22.0, 41.0), 0.01, 12), "the error", unit="ms", each="recording")
    assert str(one) == "The error is 30.0 ms [22.0, 41.0] (12 recordings)."
    assert one.numbers == {"value": 30.0, "interval": [22.0, 41.0], "unit": "ms", "n": 12, "of": "recordings"}


# ------------------------------------------------------------------------------------------------- ratio, size, trend, count
@every
@given(
    st.lists(st.tuples(st.floats(0.001, 1e4), st.floats(0.001, 1e4)), min_size=1, max_size=12),
    st.sampled_from(["time", "memory"]),
)
def test_a_ratio_concludes_only_where_its_interval_leaves_out_one(rounds, of):
    found = uncertainty.paired_ratio(*zip(*rounds, strict=True))
    text = str(findings.ratio(found, "Anna", "Bert", of=of))
    less, more = ("faster", "slower") if of == "time" else ("smaller", "larger")
    assert (f"Anna is {less} than Bert" in text) == (found.significant and found.interval[1] < 1)
    assert (f"Anna is {more} than Bert" in text) == (found.significant and found.interval[0] > 1)
    assert concludes(text) == found.significant
    assert text.startswith("No conclusion") == (len(rounds) < 5)
    assert ("No difference" in text) == (len(rounds) >= 5 and not found.significant)


def test_the_sentences_of_a_ratio():
    quick, slow = [1.0, 1.1, 1.2, 1.0, 1.1], [2.0, 2.2, 2.4, 2.0, 2.2]
    there = findings.ratio(uncertainty.paired_ratio(quick, slow), "the student", "the teacher")
    back = findings.ratio(uncertainty.paired_ratio(slow, quick), "the teacher", "the student")
    assert str(there) == (
        "The student is faster than the teacher: it is 2.00 times as fast [2.00 to 2.00 times] "
        "(5 rounds in turn, median 1.1 s against 2.2 s)."
    )
    assert str(back) == (
        "The teacher is slower than the student: it takes 2.00 times as long [2.00 to 2.00 times] "
        "(5 rounds in turn, median 2.2 s against 1.1 s)."
    )
    heavy = findings.ratio(uncertainty.paired_ratio(slow, quick), "A", "B", of="memory", unit="GB")
    assert str(heavy).startswith("A is larger than B: it needs 2.00 times as much memory [2.00 to 2.00 times]")
    assert there.numbers == {"value": 0.5, "interval": [0.5, 0.5], "unit": "times", "n": 5, "of": "rounds"}


def test_sizes_are_exact():
    assert (
        str(findings.size(74, 296, "int8", "float32"))
        == "int8 is smaller than float32: 74 MB against 296 MB, 0.25 times the size."
    )
    assert "larger" in str(findings.size(2e12, 1, "a", "b", unit="bytes"))
    assert "2,000,000,000,000 bytes" in str(findings.size(2e12, 1, "a", "b", unit="bytes"))
    assert str(findings.size(7, 7, "a", "b")) == "a and b are of the same size: 7 MB against 7 MB."
    for name, start in (("training it", "Training it"), ("a file", "A file"), ("whisper-base", "whisper-base")):
        assert str(findings.size(7, 7, name, "b")).startswith(f"{start} and b are")
    with pytest.raises(AsrlibError, match="above 0"):
        findings.size(0, 7, "a", "b")


@every
@given(st.lists(st.tuples(st.integers(-50, 50), st.floats(-1e6, 1e6)), min_size=2, max_size=30))
def test_a_trend_is_shown_only_by_ten_points_and_more(points):
    x, y = zip(*points, strict=True)
    text = str(findings.trend(x, y, "the WER", "the noise"))
    if len(points) < 10:
        assert text.startswith("No conclusion")
        return
    assume(len(set(x)) > 1 and len(set(y)) > 1)
    low, high = uncertainty.spearman(x, y)[1]
    assert ("The WER rises" in text) == (low > 0)
    assert ("The WER falls" in text) == (high < 0)
    assert ("No trend" in text) == (low <= 0 <= high)


def test_the_sentences_of_a_trend():
    x = np.arange(12)[::-1]
    falling = findings.trend(x, 100 - x * 5, "the WER", "the number of clips", x_unit="clips")
    assert str(falling) == (
        "The WER falls with the number of clips: from 100 % (at 0 clips) to 45 % (at 11 clips) "
        "(Spearman's rank correlation -1.00 [-1.00, -1.00], 12 points)."
    )
    noisy = [1, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 12]
    value, (low, high) = uncertainty.spearman(range(12), noisy)
    rising = str(findings.trend(range(12), noisy, "loss", "noise", y_unit=""))
    assert rising == (
        "Loss rises with noise: from 1 (at 0) to 12 (at 11) "
        f"(Spearman's rank correlation {value:.2f} [{low:.2f}, {high:.2f}], 12 points)."
    )
    few = findings.trend([100, 1550], [30.06, 24], "the WER", "the number of clips", x_unit="clips")
    assert (
        str(few)
        == "No conclusion about a trend of the WER: from 30.1 % (at 100 clips) to 24 % (at 1,550 clips) (only 2 points)."
    )
    assert "the same" in str(findings.trend(x, [3] * 12, "the WER", "noise"))
    for bad in (([1], [2]), ([1, 2], [3]), ([1, 2], [3, float("nan")])):
        with pytest.raises(AsrlibError, match="no curve"):
            findings.trend(*bad, "the WER", "noise")


def test_the_sentences_of_a_count():
    found = findings.count(91, 96, "language named correctly")
    assert str(found) == "Language named correctly: 91 of 96 clips, 94.8 % [88.4, 97.8]."
    assert str(findings.count(0, 1, "loops")) == "Loops: 0 of 1 clip, 0.0 % [0.0, 79.3]."
    assert str(findings.count(0, 0, "loops", of="error")) == "No conclusion about loops: there is no error."
    assert "1,200 of 5,000 words" in str(findings.count(1200, 5000, "matched", of="word"))
    assert found.numbers["n"] == 96
    whole = findings.count(4, 8, "heads in the list", of="head", sampled=False)
    assert str(whole) == "Heads in the list: 4 of 8 heads, 50.0 %." and whole.numbers["interval"] is None


# ----------------------------------------------------------------------------------------------------------------- the block
def test_a_finding_is_shown_as_a_block_that_no_name_can_break():
    finding = findings.size(1, 2, "a_b_c*\n\n# <script>", "$x$|y")
    shown = finding._repr_markdown_()
    assert shown.startswith("> **Finding.** a\\_b\\_c\\* # \\<script\\> is smaller than \\$x\\$\\|y: 1 MB")
    assert "\n" not in shown
    assert hash(finding)
    with pytest.raises(AttributeError):
        finding.text = "typed"


# --------------------------------------------------------------------------------------- translations, and confidence
@every
@given(differences(), st.sampled_from(["WER", "error rate", "chrF", "BLEU"]))
def test_more_is_better_of_chrf_and_bleu_only(difference, of):
    text = str(findings.paired(difference, "Anna", "Bert", of=of))
    low, high = difference.interval
    assert f" {of} " in text or difference.interval == (0, 0)
    assert ("Anna is better than Bert" in text) == (low > 0 if of in ("chrF", "BLEU") else high < 0)
    assert ("Anna is worse than Bert" in text) == (high < 0 if of in ("chrF", "BLEU") else low > 0)
    assert str(findings.contrast(difference, "here", "there", of=of)).startswith(f"The {of} here is")


def test_words_are_named_only_where_they_were_counted():
    found = scoring.Difference(0.1, (0.05, 0.2), 0.01, "", 80, 400)
    for of, behind in (("WER", "80 clips, 400 words"), ("chrF", "80 clips, 400 words"), ("error rate", "80 clips")):
        assert f"({behind})" in str(findings.paired(found, "Anna", "Bert", of=of))
        assert f"({behind})" in str(findings.contrast(found, "here", "there", of=of))


def test_a_quality_is_said_with_its_interval_or_with_the_reason_why_there_is_none():
    found = translation.Quality("chrF", np.array([[6, 6, 3] * 6] * 12), 24, tuple(range(12)), (40.0, 60.0))
    text = str(findings.quality(found, "the translation", "dialogue"))
    assert text == "The translation has a chrF of 50.0 [40.0, 60.0] on dialogue (12 clips, 24 words)."
    few = translation.Quality("chrF", np.array([[6, 6, 3] * 6]), 2, (0,))
    assert "chrF of 50.0 on dialogue (1 clip, 2 words, no interval: only 1 clip)" in str(
        findings.quality(few, "Anna", "dialogue")
    )


@every
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_confidence_is_judged_where_the_interval_leaves_out_zero(answers):
    stated, right = zip(*answers, strict=True)
    found = findings.calibration(stated, right, "Anna")
    ends = found.numbers["interval"]
    assert found.numbers["value"] == pytest.approx(100 * (np.mean(stated) - np.mean(right)))
    assert ("Anna is overconfident" in found.text) == (ends is not None and ends[0] > 0)
    assert ("Anna is underconfident" in found.text) == (ends is not None and ends[1] < 0)
    assert (ends is None) == (len(answers) < 10) == found.text.startswith("No conclusion")


def test_no_answers_have_no_confidence():
    for stated, right in (([], []), ([0.5], [True, False])):
        with pytest.raises(AsrlibError, match="give both of each clip"):
            findings.calibration(stated, right, "Anna")


def test_of_many_differences_the_surest_are_named_and_the_rest_are_counted():
    found = {f"s{n}": scoring.Difference(0.1, (0.05, 0.15), 10.0 ** -(9 - n), "", 50, 400) for n in range(8)}
    text = str(findings.table(found, "float32"))
    assert "s5 is worse (WER 10.0 points higher); 2 more." in text and "s6" not in text


speeds = st.dictionaries(
    st.text("abc", min_size=1),
    st.tuples(st.floats(0.5, 3), st.floats(0, 1)).map(lambda x: (x[0], x[0] + x[1])),
    min_size=1,
)


@given(speeds)
def test_a_choice_names_the_fastest_and_every_system_whose_interval_meets_its_own(found):
    numbers = findings.choice(found, "the systems", "float32").numbers
    low, high = found[numbers["fastest"]]
    assert all((low + high) >= sum(ends) for ends in found.values())
    near = {name for name, ends in found.items() if ends[1] >= low}
    gains = {name for name, ends in found.items() if sum(ends) > 2} | {"float32", numbers["fastest"]}
    assert set(numbers["ties"]) == near & gains
    assert numbers["simplest"] == next(name for name in found if name in numbers["ties"])


def test_of_many_points_a_trend_tells_the_medians_of_the_outer_quarters():
    x = np.arange(20.0)
    y = 100 - x
    y[0], y[-1] = 3, 99  # single points, which do not stand for the ends
    text = str(findings.trend(x, y, "chrF", "the WER"))
    assert "from 97 % (at 2) to 84 % (at 17), medians of the lowest and the highest quarter" in text
    mostly_right = [0.0] * 15 + [0.0, 0.0, 0.0, 20.0, 80.0]
    text = str(findings.trend(range(20), mostly_right, "the error", "the doubt"))
    assert "from 0 % (at 2) to 20 % (at 17), means of the lowest and the highest quarter" in text  # both medians are 0


def test_the_sentences_of_a_choice():
    found = {"plain": (1.0, 1.0), "easy": (1.8, 2.1), "hard": (2.0, 2.2)}
    assert str(findings.choice(found, "these 3", "plain")) == (
        "Of these 3, hard is the fastest, 2.00 to 2.20 times as fast as plain; easy is not told apart from it; the simplest of "
        "these 2 is easy."
    )
    slow = {"slow": (0.8, 1.04), "fast": (1.01, 1.2)}
    assert findings.choice(slow, "both", "plain").numbers["ties"] == ["fast"]  # it gains nothing
    assert str(findings.choice({"plain": (1.0, 1.0)}, "this 1", "it")).endswith("1.00 to 1.00 times as fast as it.")
    assert str(findings.choice({"plain": (1.0, 1.0)}, "this 1", "plain")) == "Of this 1, plain is the fastest."
    assert "No conclusion about these" in str(findings.choice({}, "these", "it"))


@every
@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)), min_size=1, max_size=12), st.floats(0.01, 1e4))
def test_a_cost_is_paid_back_only_by_a_gain_that_is_shown(rounds, cost):
    found = uncertainty.paired_ratio(*zip(*rounds, strict=True))
    told = findings.pays_back(cost, found, "compiling")
    value, interval = told.numbers["value"], told.numbers["interval"]
    assert ("pays back after" in told.text) == (value is not None) == (found.significant and found.value < 1)
    if value is not None:
        saved = found.medians[1] * (1 - found.value)  # the clips' savings add up to the cost
        assert value * saved == pytest.approx(cost)
        assert interval[0] <= value <= interval[1]


def test_the_sentences_of_a_cost_paid_once():
    gain = uncertainty.paired_ratio([0.5] * 5, [1.0] * 5)
    assert str(findings.pays_back(50, gain, "compiling")) == (
        "Compiling takes 50 s and saves 0.5 s a clip: it pays back after 100 clips [100 to 100]."
    )
    none = uncertainty.paired_ratio([0.9, 1.1, 1, 1, 1], [1.0] * 5)
    assert str(findings.pays_back(50, none, "compiling")) == (
        "Compiling takes 50 s, and no gain is shown that would pay it back."
    )

"""Scoring against jiwer and kaldialign, which count independently of us."""

import jiwer
import kaldialign
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrlib import AsrlibError, scoring

WORDS = st.lists(st.sampled_from(["a", "b", "c", "dd", "ee", "the", "cat", "sat"]), max_size=8).map(" ".join)
FILLED = WORDS.filter(str.strip)


@settings(max_examples=60, deadline=None)
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


@settings(max_examples=60, deadline=None)
@given(FILLED, WORDS)
def test_alignment_spells_both_sides(reference, hypothesis):
    pairs = scoring.align(reference, hypothesis).pairs
    assert " ".join(old for _, old, _ in pairs if old) == reference
    assert " ".join(new for *_, new in pairs if new) == hypothesis
    errors = sum(kind != "equal" for kind, *_ in pairs)
    assert errors == kaldialign.edit_distance(reference.split(), hypothesis.split())["total"]


def test_empty_reference_counts_insertions_and_adds_no_words():
    result = scoring.score(["one two", "", ""], ["one two", "three four", ""])
    assert (result.insertions, result.words, result.wer) == (2, 2, 1.0)
    assert scoring.align("", "a b").pairs == (("insert", "", "a"), ("insert", "", "b"))


def test_empty_hypothesis_is_all_deletions():
    assert scoring.score(["one two three"], [""]).deletions == 3


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
    assert scoring.compare(one, worse).p_first_better == 1.0


def test_comparing_different_utterances_is_refused():
    with pytest.raises(AsrlibError, match="same utterances"):
        scoring.compare(scoring.score(["a b"], ["a b"]), scoring.score(["a b c"], ["a b"]))


def test_blocks_widen_the_interval_when_errors_cluster():
    references = ["a b c d"] * 60
    hypotheses = ["a b c d"] * 30 + ["x x x x"] * 30  # every error is one speaker's
    speakers = ["calm"] * 30 + ["fast"] * 30
    alone = scoring.score(references, hypotheses)
    blocked = scoring.score(references, hypotheses, blocks=speakers)
    assert alone.wer == blocked.wer
    assert blocked.interval == (0.0, 1.0)
    assert alone.interval[1] - alone.interval[0] < 0.3


def test_one_block_falls_back_to_utterances():
    references, hypotheses, _ = corpus(20)
    assert (
        scoring.score(references, hypotheses, blocks=["only"] * 20).interval
        == scoring.score(references, hypotheses).interval
    )


def test_bootstrap_is_deterministic_and_chunking_does_not_change_it(monkeypatch):
    errors, lengths = np.arange(50) % 3, np.full(50, 5)
    whole = scoring.bootstrap(errors, lengths, blocks=range(50))
    monkeypatch.setattr(scoring, "_CHUNK", 500)
    assert np.array_equal(whole, scoring.bootstrap(errors, lengths, blocks=range(50)))


def test_alignment_is_escaped():
    shown = scoring.align("<b>bold</b>", "<script>alert(1)</script>")._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


@pytest.mark.parametrize("name", ["wer", "cer"])
def test_evaluate_metric_loads_without_the_hub(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    references, hypotheses, _ = corpus(10)
    value = scoring.metric(name).compute(references=references, predictions=hypotheses)[name]
    assert value == getattr(jiwer, name)(references, hypotheses)


def test_unknown_metric():
    with pytest.raises(AsrlibError, match="'bleu'"):
        scoring.metric("bleu")

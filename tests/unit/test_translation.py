"""Translations: sacrebleu's own corpus scores are the oracle, for the corpus and for each resampled one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from asrlib import AsrlibError, translation, uncertainty

OWN = {"chrF": CHRF, "BLEU": BLEU}
WORDS = ("the", "ship", "was", "a", "wreck", "of", "airplane", "fish", "really", "said")
sentence = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)
pairs = st.lists(st.tuples(sentence, sentence), min_size=1, max_size=14)
few = settings(max_examples=25, deadline=None)


def corpus(metric, said, meant):
    return OWN[metric]().corpus_score(list(said), [list(meant)]).score


@few
@given(pairs, st.sampled_from(sorted(OWN)))
def test_the_value_is_that_of_sacrebleu(texts, metric):
    said, meant = zip(*texts, strict=True)
    found = translation.score(said, meant, metric)
    assert found.value == pytest.approx(corpus(metric, said, meant), abs=1e-9)
    assert (found.utterances, found.words) == (len(texts), sum(len(text.split()) for text in meant))
    assert (found.interval is None) == (len(texts) < uncertainty.MIN_UNITS)


@pytest.mark.parametrize("metric", OWN)
def test_a_resampled_corpus_has_the_score_of_its_texts(metric, monkeypatch):
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, 6)) for _ in range(24)]
    said, meant = texts[:12], texts[12:]
    drawn = generator.integers(0, 12, (3, 12))

    def resample(values, **_):
        return np.stack([values[rows].sum(axis=0) for rows in drawn]).astype(float)

    found = translation.score(said, meant, metric)
    monkeypatch.setattr(uncertainty, "resample", resample)
    wanted = [corpus(metric, [said[row] for row in rows], [meant[row] for row in rows]) for rows in drawn]
    assert found._replicates(0) == pytest.approx(wanted)


def test_intervals_and_differences():
    meant = [f"{one} {two} {one}" for one in WORDS for two in WORDS[:4]]
    half = [text if at % 2 else "nothing like it" for at, text in enumerate(meant)]
    good, poor = (translation.score(said, meant) for said in (meant, half))
    assert good.value == 100 and good.interval == (100, 100)
    assert poor.interval[0] < poor.value < poor.interval[1]
    gap = translation.compare(good, poor)
    assert gap.significant and gap.delta == pytest.approx((good.value - poor.value) / 100)
    assert gap.interval[0] < gap.delta < gap.interval[1]
    same = translation.compare(poor, poor)
    assert (same.delta, same.interval) == (0, (0, 0))
    assert str(poor) == "{:.1f} [{:.1f}, {:.1f}]".format(poor.value, *poor.interval)


def test_clips_of_one_sentence_are_one_unit():
    texts = [f"{word} {word}" for word in WORDS for _ in range(2)]
    found = translation.score(texts, texts, blocks=[word for word in WORDS[:9] for _ in range(2)] + ["said"] * 2)
    assert found.interval == (100, 100)
    found = translation.score(texts, texts, blocks=["one", "two"] * 10)
    assert found.interval is None and found.shortage == "only 2 clips" and "only 2 clips" in str(found)
    assert translation.compare(found, found).shortage == "only 2 clips"


def test_both_sides_are_normalised():
    assert translation.score(["A SHIP."], ["a ship."], normalizer=str.lower).value == 100
    assert translation.score(["A SHIP."], ["a ship."]).value < 100


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((["a"], ["a"], "TER"), "no metric 'TER' of translations: choose chrF or BLEU"),
        (([], []), "0 translations, 0 references and 0 block labels"),
        ((["a"], ["a", "b"]), "1 translations, 2 references and 2 block labels cannot be scored"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(given, message):
    with pytest.raises(AsrlibError, match=message):
        translation.score(*given)


def test_other_clips_or_metrics_are_not_compared():
    one = translation.score(["a ship"], ["a ship"])
    for other in (translation.score(["a"], ["a"]), translation.score(["a ship"], ["a ship"], "BLEU")):
        with pytest.raises(AsrlibError, match="only on the same clips, references and metric"):
            translation.compare(one, other)

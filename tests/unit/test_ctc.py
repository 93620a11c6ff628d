"""Forced alignment with a CTC model, against all paths."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrlib import AsrlibError
from asrlib.decoding import ctc


def collapsed(path):
    """Return the text that a path of frames writes."""
    return [label for label, _ in itertools.groupby(path) if label]


@given(st.integers(1, 6), st.lists(st.integers(1, 2), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_the_path_is_the_best_of_all_that_write_the_text(frames, labels, seed):
    log_probs = np.log(np.random.default_rng(seed).dirichlet(np.ones(3), size=frames))
    paths = [path for path in itertools.product(range(3), repeat=frames) if collapsed(path) == labels]
    if not paths:
        with pytest.raises(AsrlibError, match="cannot be aligned"):
            ctc.forced_align(log_probs, labels)
        return
    best = max(paths, key=lambda path: sum(log_probs[frame, label] for frame, label in enumerate(path)))
    found = np.zeros(frames, int)
    for label, (first, after) in zip(labels, ctc.forced_align(log_probs, labels), strict=True):
        assert after > first
        found[first:after] = label
    assert found.tolist() == list(best)


def test_another_blank_and_no_text():
    log_probs = np.log(np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.1, 0.8, 0.1]]))
    assert ctc.forced_align(log_probs, [0, 1], blank=2).tolist() == [[0, 1], [2, 3]]
    with pytest.raises(AsrlibError, match="0 letters"):
        ctc.forced_align(log_probs, [])


def test_words_get_the_times_of_their_letters_and_unknown_ones_none():
    vocabulary = {"|": 1, "A": 2, "B": 3}
    path = [0, 2, 2, 3, 1, 1, 0, 3, 0, 3]  # "AB|BB" in ten frames
    log_probs = np.log(np.full((10, 4), 0.01) + np.eye(4)[path])
    found = ctc.align_words(log_probs, ["AB", "A2", "", "BB"], vocabulary, seconds=1.0)
    assert found[0] == (pytest.approx(0.1), pytest.approx(0.4), "AB")
    assert np.isnan([found[1][:2], found[2][:2]]).all()
    assert found[3] == (pytest.approx(0.7), pytest.approx(1.0), "BB")

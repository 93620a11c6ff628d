"""When each letter was said, by a CTC model: the most probable way through its frames that writes a known text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asrlib import AsrlibError

__all__ = ["forced_align"]


def forced_align(log_probs: np.ndarray, labels: Sequence[int], blank: int = 0) -> np.ndarray:
    """Return the frames of each label on the best path (Viterbi) of a CTC model, shape (labels, 2): first, and after the last.

    Each frame belongs to a label or to the blank; a label may last, and two equal ones need a blank between them (Graves et al.
    2006; aligned so by WhisperX, after torchaudio's tutorial).

    Args:
        log_probs: log-probabilities, shape (frames, vocabulary).
        labels: the text, as numbers of the vocabulary without blanks.
        blank: number of the blank.

    Raises:
        AsrlibError: no label, or more than the frames can hold.
    """
    states = np.full(2 * len(labels) + 1, blank)  # blank, label, blank, label ... blank
    states[1::2] = labels
    repeats = sum(left == right for left, right in zip(labels, labels[1:], strict=False))
    if not 0 < len(labels) + repeats <= len(log_probs):
        raise AsrlibError(f"{len(labels)} letters cannot be aligned with {len(log_probs)} frames: give another text.")
    skips = np.zeros(len(states), bool)  # from label to label, over the blank
    skips[3::2] = states[3::2] != states[1:-2:2]
    score = np.full(len(states), -np.inf)
    score[:2] = log_probs[0, states[:2]]
    came = np.zeros((len(log_probs), len(states)), int)
    for frame in range(1, len(log_probs)):
        ways = np.full((3, len(states)), -np.inf)  # stay, come from the state before, come from the one before that
        ways[0], ways[1, 1:], ways[2, 2:] = score, score[:-1], np.where(skips[2:], score[:-2], -np.inf)
        came[frame] = ways.argmax(axis=0)
        score = ways.max(axis=0) + log_probs[frame, states]
    path = np.zeros(len(log_probs), int)
    path[-1] = len(states) - 1 if score[-1] >= score[-2] else len(states) - 2
    for frame in range(len(log_probs) - 1, 0, -1):
        path[frame - 1] = path[frame] - came[frame, path[frame]]
    order = np.arange(1, len(states), 2)
    return np.stack([np.searchsorted(path, order), np.searchsorted(path, order, side="right")], axis=1)

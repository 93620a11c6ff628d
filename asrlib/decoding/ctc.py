"""When each letter was said, by a CTC model: the most probable way through its frames that writes a known text."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from asrlib import AsrlibError
from asrlib.decoding.subtitles import Span

__all__ = ["align_words", "forced_align"]


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
    repeats = sum(left == right for left, right in itertools.pairwise(labels))
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


def align_words(
    log_probs: np.ndarray, words: Sequence[str], vocabulary: Mapping[str, int], seconds: float, *, space: str = "|"
) -> list[Span]:
    """Return when each word was said by a CTC model that writes letters, as WhisperX does.

    Args:
        log_probs: log-probabilities, shape (frames, vocabulary); number 0 is the blank.
        words: in the model's letters; one with another sign, or none, gets no time: not a number.
        vocabulary: numbers of the letters.
        seconds: length of the sound.
        space: the model's sign between words.

    Raises:
        AsrlibError: as `forced_align`.
    """
    spelled = [[vocabulary.get(letter, -1) for letter in word] for word in words]
    known = [place for place, letters in enumerate(spelled) if letters and -1 not in letters]
    chain = [label for place in known for label in (*spelled[place], vocabulary[space])][:-1]
    frames = forced_align(log_probs, chain) * seconds / len(log_probs)
    spans = [(np.nan, np.nan, word) for word in words]
    at = 0
    for place in known:
        after = at + len(spelled[place])
        spans[place] = (float(frames[at, 0]), float(frames[after - 1, 1]), words[place])
        at = after + 1
    return spans

"""Whisper's features, log-mel: those of its feature extractor, at less work and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from asrlib.whisper import POSITIONS, SAMPLES_PER_POSITION

__all__ = ["log_mel", "long_log_mel"]

TAIL = (
    8_000  # samples of silence behind a clip that are transformed: more than the 400 that a frame can mix with speech
)
PIECE = 3000  # frames of a long recording that are transformed together


def log_mel(processor: Any, samples: Sequence[np.ndarray], positions: int = POSITIONS) -> torch.Tensor:
    """Return Whisper's features of clips, those of its feature extractor.

    What follows a clip in its window is silence, which has one log-mel, the least. So only the clip and half a second of
    silence are transformed.

    Args:
        processor: a ``WhisperProcessor``.
        samples: clips at 16 kHz.
        positions: encoder positions of the window, half of its frames.

    Returns:
        (clips, mel bins, frames).
    """
    whole = positions * SAMPLES_PER_POSITION
    features = torch.empty(len(samples), processor.feature_extractor.feature_size, 2 * positions)
    for window, clip in zip(features, samples, strict=True):
        heard = long_log_mel(processor, np.pad(clip, (0, TAIL))[:whole])[0]
        window[:] = heard.min()
        window[:, : heard.shape[1]] = heard
    return features


def long_log_mel(processor: Any, samples: np.ndarray) -> torch.Tensor:
    """Return Whisper's features of one recording of any length, those of its feature extractor, at the memory of the result.

    The extractor transforms all frames at once, which takes some ten times the memory of the features. Frames do not depend
    on each other, so `PIECE` of them are enough at a time; only the floor below the loudest bin must wait for the last.

    Args:
        processor: a ``WhisperProcessor``.
        samples: at 16 kHz, at least 201 of them.

    Returns:
        (1, mel bins, frames), a frame for each whole 10 ms.
    """
    extractor = processor.feature_extractor
    size, hop = extractor.n_fft, extractor.hop_length
    window, filters = torch.hann_window(size), torch.from_numpy(extractor.mel_filters).float().T
    features = torch.empty(1, len(filters), len(samples) // hop)
    for first in range(0, features.shape[2], PIECE):
        last = min(first + PIECE, features.shape[2])
        begin, end = first * hop - size // 2, (last - 1) * hop + size // 2
        beyond = (max(0, -begin), max(0, end - len(samples)))  # at its ends the sound is mirrored
        piece = torch.from_numpy(np.pad(samples[max(0, begin) : end], beyond, mode="reflect"))
        energy = torch.stft(piece, size, hop, window=window, center=False, return_complex=True).abs() ** 2
        features[0, :, first:last] = (filters @ energy).clamp_min(1e-10).log10()
    return features.clamp_min_(features.max() - 8).add_(4).div_(4)

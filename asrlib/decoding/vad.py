"""Where somebody speaks: Silero's voice activity detector, as faster-whisper brings it."""

from __future__ import annotations

from typing import Any

import numpy as np

from asrlib import AsrlibError

__all__ = ["speech"]


def speech(samples: np.ndarray, **options: Any) -> list[tuple[int, int]]:
    """Return (first sample, sample after the last) of each stretch of speech.

    Args:
        samples: at 16 kHz, shape (samples,).
        options: of ``faster_whisper.vad.VadOptions``; by default a pause of 2 s parts two stretches.

    Raises:
        AsrlibError: faster-whisper is not installed.
    """
    try:
        from faster_whisper.vad import VadOptions, get_speech_timestamps
    except ImportError:
        raise AsrlibError("Speech is found by the VAD in faster-whisper: pip install 'asrlib[peers]' first.") from None
    return [(span["start"], span["end"]) for span in get_speech_timestamps(samples, VadOptions(**options))]

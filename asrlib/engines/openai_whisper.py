"""openai-whisper, the original code."""

from __future__ import annotations

import numpy as np
import whisper

from asrlib import AsrlibError
from asrlib.decoding.batching import Result
from asrlib.engines.runtime import Runtime, segments
from asrlib.models import checkpoints

__all__ = ["OpenAiWhisper"]


class OpenAiWhisper(Runtime):
    """Its ``transcribe``, clip by clip."""

    precisions = ("float32", "float16")
    on_gpu = True

    def _load(self) -> None:
        if (self.precision, self.device) == ("float16", "cpu"):
            raise AsrlibError("openai-whisper computes in float32 on a processor: choose that, or a GPU.")
        self._refuse_added_words("openai-whisper")
        self.files = checkpoints.fetch(self.checkpoint, format="openai")
        self.model = whisper.load_model(str(self.files), device=self.device)

    def _transcribe(self, samples: np.ndarray, times: bool) -> Result:
        options = {
            "beam_size": self.beams if self.beams > 1 else None,
            "condition_on_previous_text": False,
            "fp16": self.precision == "float16",
        }
        if self.strict:
            options |= {"temperature": 0.0, "no_speech_threshold": None}  # nothing is skipped as silence
        found = self.model.transcribe(samples, language=self.known_language, without_timestamps=not times, **options)
        parts = segments((part["start"], part["end"], part["text"]) for part in found["segments"])
        return found["text"].strip(), found["language"], parts if times else ()

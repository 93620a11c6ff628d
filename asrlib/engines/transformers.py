"""The pipeline of transformers, as the original notebooks call it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import pipeline

from asrlib import audio, whisper
from asrlib.decoding import transcription
from asrlib.decoding.batching import Clip, Result
from asrlib.engines.runtime import Runtime, quiet, segments

__all__ = ["Transformers"]

TESTS = {  # as the documentation of its ``generate`` has them; it measures how well tokens compress, not letters
    "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), "compression_ratio_threshold": 1.35, "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
}  # fmt: skip


class Transformers(Runtime):
    """``pipeline("automatic-speech-recognition")``, clip by clip; with a larger ``batch_size`` short clips share a batch.

    Attributes:
        chunk: seconds of the pieces that a recording is cut into, which overlap by a third and are joined by their words, as in
            Gandhi et al. 2023, arXiv:2311.00430; ``batch_size`` of them are decoded together. 0: window after window. May be set.
    """

    precisions = ("float32", "bfloat16", "float16")
    on_gpu = True
    chunk: float = 0

    def fits(self, clip: Clip) -> bool:
        """Say whether a clip is transcribed without times: in one window, or in pieces."""
        return bool(self.chunk) or super().fits(clip)

    def _load(self) -> None:
        self.files = self.folder
        model, processor = transcription.load(self.files, device=self.device, dtype=getattr(torch, self.precision))
        self.processor = processor
        parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
        with quiet():  # of the device that it was told
            self.pipeline = pipeline("automatic-speech-recognition", model=model, device=model.device, **parts)

    def decode(self, clips: Sequence[Clip], features: Any) -> list[Result]:
        """Return (text, language, segments) of each clip."""
        alone = self.chunk or self.timestamps or not self.fits(clips[-1]) or not self.known_language
        if alone or len(clips) == 1:
            return super().decode(clips, features)
        return self._together([clip.samples for clip in clips], False, self.known_language)

    def _transcribe(self, samples: np.ndarray, times: bool) -> Result:
        return self._together([samples], times, self.known_language or self._detected(samples))[0]

    def _together(self, sounds: Sequence[np.ndarray], times: bool, language: str) -> list[Result]:
        """Return what the pipeline answers for sounds of one language, which it gets in one call."""
        options = {"num_beams": self.beams}
        if self.multilingual:
            options |= {"language": language, "task": "transcribe"}
        if not self.strict:
            options |= TESTS
        more = {"chunk_length_s": self.chunk, "ignore_warning": True} if self.chunk else {}
        inputs = [{"raw": samples, "sampling_rate": audio.SAMPLING_RATE} for samples in sounds]
        more |= {"return_timestamps": times, "generate_kwargs": options, "batch_size": self.batch_size}
        with quiet():  # of an argument that the pipeline itself passes to the feature extractor
            answers = self.pipeline(inputs, **more)
        return [
            (
                found["text"].strip(),
                language,
                segments((*part["timestamp"], part["text"]) for part in found.get("chunks", ())),
            )
            for found in answers
        ]

    def _detected(self, samples: np.ndarray) -> str:
        first = samples[: whisper.POSITIONS * whisper.SAMPLES_PER_POSITION]
        inputs = self.processor(first, sampling_rate=audio.SAMPLING_RATE, return_tensors="pt").input_features
        model = self.pipeline.model
        token = model.detect_language(input_features=inputs.to(model.device, model.dtype)).item()
        return whisper.language_tokens(self.generation)[token]

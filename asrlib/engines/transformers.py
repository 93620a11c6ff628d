"""The pipeline of transformers, clip by clip, as the original notebooks call it."""

from __future__ import annotations

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
    """``pipeline("automatic-speech-recognition")`` on the CPU.

    Attributes:
        chunk: seconds of the pieces that a recording is cut into, which overlap by a third and are joined by their words, as in
            Gandhi et al. 2023, arXiv:2311.00430; ``batch_size`` of them are decoded together. 0: window after window. May be set.
    """

    precisions = ("float32", "bfloat16")
    chunk: float = 0

    def fits(self, clip: Clip) -> bool:
        """Say whether a clip is transcribed without times: in one window, or in pieces."""
        return bool(self.chunk) or super().fits(clip)

    def _load(self) -> None:
        self.files = self.folder
        model, processor = transcription.load(self.files, device="cpu", dtype=getattr(torch, self.precision))
        self.processor = processor
        parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
        with quiet():  # of the device that it was told
            self.pipeline = pipeline("automatic-speech-recognition", model=model, dtype=model.dtype, **parts)

    def _transcribe(self, samples: np.ndarray, times: bool) -> Result:
        language = self.known_language or self._detected(samples)
        options = {"num_beams": self.beams}
        if self.multilingual:
            options |= {"language": language, "task": "transcribe"}
        if not self.strict:
            options |= TESTS
        more = {"chunk_length_s": self.chunk, "ignore_warning": True} if self.chunk else {}
        sound = {"raw": samples, "sampling_rate": audio.SAMPLING_RATE}
        more |= {"return_timestamps": times, "generate_kwargs": options, "batch_size": self.batch_size}
        with quiet():  # of an argument that the pipeline itself passes to the feature extractor
            found = self.pipeline(sound, **more)
        parts = ((*part["timestamp"], part["text"]) for part in found.get("chunks", ()))
        return found["text"].strip(), language, segments(parts)

    def _detected(self, samples: np.ndarray) -> str:
        first = samples[: whisper.POSITIONS * whisper.SAMPLES_PER_POSITION]
        inputs = self.processor(first, sampling_rate=audio.SAMPLING_RATE, return_tensors="pt").input_features
        model = self.pipeline.model
        token = model.detect_language(input_features=inputs.to(model.dtype)).item()
        return whisper.language_tokens(self.generation)[token]

"""CTranslate2 called directly, the engine under faster-whisper, with batches of clips of one window each."""

from __future__ import annotations

from collections.abc import Sequence

import ctranslate2
import numpy as np

from asrlib import whisper
from asrlib.decoding import guards
from asrlib.decoding.batching import Clip, Result
from asrlib.decoding.features import log_mel
from asrlib.engines.faster_whisper import FasterWhisper

__all__ = ["CTranslate2"]


class CTranslate2(FasterWhisper):
    """Batches of short clips; faster-whisper gets longer ones, those whose times are wanted, and what must be decoded again."""

    batch_size = 8

    def features(self, clips: Sequence[Clip]) -> np.ndarray | None:
        """Return log-mel features, (clips, mel bins, 3000), of clips that fit one window and need no times."""
        if self.timestamps or not self.fits(clips[-1]):
            return None
        return log_mel(self.processor, [clip.samples for clip in clips]).numpy()

    def decode(self, clips: Sequence[Clip], features: np.ndarray | None) -> list[Result]:
        """Return (text, language, segments) of each clip."""
        if features is None:
            return super().decode(clips, None)
        model = self.model.model
        states = model.encode(ctranslate2.StorageView.from_array(features), to_cpu=False)
        if self.known_language:
            languages = [self.known_language] * len(clips)
        else:
            languages = [ranked[0][0].strip("<|>") for ranked in model.detect_language(states)]
        prompts = [whisper.prompt(self.generation, language) for language in languages]
        options = {"beam_size": self.beams, "max_length": 448, "return_scores": True, "return_no_speech_prob": True}
        found = model.generate(states, prompts, **options)
        texts = self.processor.batch_decode([one.sequences_ids[0] for one in found], skip_special_tokens=True)
        results = [(text.strip(), language, ()) for text, language in zip(texts, languages, strict=True)]
        if self.strict:
            return results
        return [
            result if self._believed(one, result[0]) else self._transcribe(clip.samples, False)
            for one, result, clip in zip(found, results, clips, strict=True)
        ]

    @staticmethod
    def _believed(one: ctranslate2.models.WhisperGenerationResult, text: str) -> bool:
        """Say whether faster-whisper's tests, which decode again what fails them, need not see a clip."""
        logprob = one.scores[0] * len(one.sequences_ids[0]) / (len(one.sequences_ids[0]) + 1)
        probable = logprob >= guards.LOGPROB and one.no_speech_prob <= guards.NO_SPEECH
        return probable and guards.compression(text) <= guards.COMPRESSION

"""CTranslate2 called directly, the engine under faster-whisper, with batches of clips of one window each."""

from __future__ import annotations

from collections.abc import Sequence

import ctranslate2
import numpy as np
from transformers import WhisperProcessor

from asrlib import whisper
from asrlib.decoding.batching import Clip, Result
from asrlib.decoding.features import log_mel
from asrlib.engines.faster_whisper import FasterWhisper

__all__ = ["CTranslate2"]


class CTranslate2(FasterWhisper):
    """Batches of short clips. Longer clips, and those whose times are wanted, are left to faster-whisper, with the same weights."""

    batch_size = 8

    def _load(self) -> None:
        super()._load()
        self.processor = WhisperProcessor.from_pretrained(self.folder)

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
        found = model.generate(states, prompts, beam_size=self.beams, max_length=448)
        texts = self.processor.batch_decode([one.sequences_ids[0] for one in found], skip_special_tokens=True)
        return [(text.strip(), language, ()) for text, language in zip(texts, languages, strict=True)]

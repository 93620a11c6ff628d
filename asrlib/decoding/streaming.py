"""Live transcription: sound comes in piece by piece, and words that will not change any more go out.

What Whisper writes at the end of a sound that goes on is a guess. So the sound so far is transcribed again and again, and a
word is confirmed when two transcripts in a row agree on it and on all before it: local agreement (Liu et al. 2020,
arXiv:2005.11185, section 3.2), for Whisper as in whisper_streaming (Macháček et al. 2023, arXiv:2307.14743). There each
transcript is free; here the decoder reads the confirmed words first, so that it cannot contradict them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asrlib import AsrlibError, audio, whisper
from asrlib.decoding import guards, network, words
from asrlib.decoding.features import log_mel
from asrlib.decoding.search import detect_language
from asrlib.text import language_code

__all__ = ["Emission", "Live", "Recogniser", "agreed", "spoken"]

Word = tuple[int, ...]  # its tokens
LONGEST = 20.0  # seconds of sound from which the beginning, as far as it is confirmed, is dropped
ENDS = (".", "?", "!", "。", "？", "！")  # of sentences: there it is dropped if it can be


def agreed(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """Return the longest common beginning of two transcripts."""
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    return list(first[:same])


class Recogniser:
    """A Whisper model that goes on with a transcript, and says where in the sound its words end."""

    def __init__(self, model: Any, processor: Any, language: str | None = None, window: str = "full") -> None:
        """Take a model in eval mode, its processor, a language, which it else finds at the first words, and the window:
        ``"full"`` or ``"merged"``, as in `asrlib.decoding.transcription.transcribe`.

        Raises:
            AsrlibError: a model that was exported or whose context was cut, or a language that it does not know.
        """
        if not hasattr(model, "proj_out") or model.config.max_source_positions != whisper.POSITIONS:
            raise AsrlibError(
                "A recogniser for live speech needs a whole Whisper model of transformers: neither one that was exported to ONNX "
                "nor one whose context was cut."
            )
        self.model, self.processor, self.merged = model, processor, window == "merged"
        self.named = language_code(language) if language else None
        self.language = self.named or "en"
        whisper.prompt(model.generation_config, self.language)  # an English-only model refuses others

    def __call__(self, samples: np.ndarray, confirmed: Sequence[Word]) -> list[Word]:
        """Return the words that follow the confirmed ones in at most 30 s of sound; none where nobody speaks."""
        features = log_mel(self.processor, [samples]).to(self.model.device, self.model.dtype)
        states, bias = network.encode(self.model, features, [len(samples)] if self.merged else None)
        if whisper.is_multilingual(self.model.generation_config) and not (self.named or confirmed):
            (self.language,) = detect_language(self.model, states, bias)
        before = [token for word in confirmed for token in word]
        prompt = whisper.prompt(self.model.generation_config, self.language) + before
        if len(prompt) >= self.model.config.max_target_positions:
            return []  # a text without end: the next sound that is dropped takes it along
        sound = features[0, :, : max(1, len(samples) // whisper.HOP)]
        (found,) = guards.guarded(self.model, self.processor, states, [prompt], [sound], bias)
        spelled = words.spell(self.processor, found.tokens, self.language)
        return [tuple(found.tokens[first:end]) for first, end, _ in spelled]

    def text(self, spoken: Sequence[Word]) -> str:
        """Return words as they are written, with the spaces of their language."""
        return self.processor.tokenizer.decode([token for word in spoken for token in word])

    def end(self, samples: np.ndarray, first: Sequence[Word], rest: Sequence[Word]) -> float:
        """Return the second at which the first words end, in a sound that holds them and the rest."""
        said = self.text([*first, *rest]).strip()
        times = words.align(self.model, self.processor, samples, said, language=self.language)
        return words.beginning(times, self.text(first))[-1][1]


class Live:
    """The policy. `add` takes sound as it comes; what it returns is final."""

    def __init__(self, recogniser: Any, longest: float = LONGEST) -> None:
        """Take a `Recogniser`, and the seconds of sound that are kept at most between two transcripts; below 30."""
        self.recogniser, self.most = recogniser, round(longest * audio.SAMPLING_RATE)
        self.sound = np.zeros(0, np.float32)
        self.confirmed: list[Word] = []  # words of this sound that have gone out
        self.guess: list[Word] = []  # what the last transcript said after them

    def add(self, samples: np.ndarray) -> str:
        """Take the next samples at 16 kHz, shape (samples,), of any length, and return the words that are confirmed by now."""
        room = whisper.WINDOW_SECONDS * audio.SAMPLING_RATE - self.most
        return "".join(self._hear(samples[at : at + room]) for at in range(0, len(samples), room))

    def end(self) -> str:
        """Return the rest: nothing comes that could change it."""
        said = self.recogniser.text(self.guess)
        self.sound, self.confirmed, self.guess = self.sound[:0], [], []
        return said

    def _hear(self, samples: np.ndarray) -> str:
        self.sound = np.concatenate([self.sound, samples])
        found = self.recogniser(self.sound, self.confirmed)
        sure = agreed(self.guess, found)
        self.confirmed, self.guess = self.confirmed + sure, found[len(sure) :]
        return self.recogniser.text(sure) + (self._drop() if len(self.sound) > self.most else "")

    def _drop(self) -> str:
        """Forget the sound of confirmed words, up to the end of a sentence if that is enough; else the guess goes out too."""
        closed = [place for place, word in enumerate(self.confirmed, 1) if self.recogniser.text([word]).endswith(ENDS)]
        for gone in (closed[-1] if closed else 0, None):  # None: all that are left
            if len(self.sound) > self.most and (first := self.confirmed[:gone]):
                self.confirmed = self.confirmed[gone:] if gone else []
                second = self.recogniser.end(self.sound, first, self.confirmed)
                self.sound = self.sound[round(second * audio.SAMPLING_RATE) :]
        if len(self.sound) <= self.most:
            return ""
        last = self.sound[:0] if self.guess else self.sound[-audio.SAMPLING_RATE :]  # of silence: a word may begin
        said, self.sound = self.end(), last
        return said


@dataclass(frozen=True)
class Emission:
    """Words that went out, and the seconds after the beginning of the sound at which they did."""

    text: str
    at: float


def spoken(live: Live, samples: np.ndarray, step: float = 1.0) -> Iterator[Emission]:
    """Feed a recording as if it were being spoken: a transcript begins when there is sound for it and the last is done.

    The clock is that of the sound, plus the time that transcribing takes on this machine where the sound does not cover it, as in
    the computation-aware measure of SimulEval (Ma et al. 2020, arXiv:2007.16193).

    Args:
        live: new, or ended.
        samples: at 16 kHz, shape (samples,).
        step: seconds of new sound for which a transcript waits at least.
    """
    clock, at, length = 0.0, 0, len(samples) / audio.SAMPLING_RATE
    while at < len(samples):
        clock = max(clock, min(length, at / audio.SAMPLING_RATE + step))
        come = min(len(samples), round(clock * audio.SAMPLING_RATE))
        started = time.perf_counter()
        said = live.add(samples[at:come])
        clock, at = clock + time.perf_counter() - started, come
        if said:
            yield Emission(said, clock)
    yield Emission(live.end(), clock)

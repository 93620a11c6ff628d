"""Pseudo-labels for pieces of a recording, and the measures by which wrong ones are dropped.

Nobody has listened to these labels. Each gets five measures of how likely it is wrong: its mean log-probability, its compression
ratio and the probability of no speech, as in the Whisper paper (arXiv:2212.04356, section 4.5); the probability that the piece is
in the language of the label; and the disagreement with a second transcript. `Limits` says what is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import soxr
import torch

from asrlib import AsrlibError, audio, scoring, text, whisper
from asrlib.decoding import guards, network, search, transcription
from asrlib.io.progress import track
from asrlib.whisper import WINDOW_SECONDS

__all__ = ["Label", "Labeller", "Limits", "label", "rejection"]

BATCH = 8  # pieces labelled together
FASTER = 1.1  # speed of the sound when the same model transcribes it again
ASKED = 8  # pieces whose votes decide the language of a recording


@dataclass(frozen=True)
class Limits:
    """What a piece must keep to.

    Attributes:
        shortest, longest: seconds of a piece; no label can be learnt from more than a window of 30.
        logprob: mean log-probability of the label's tokens that is at least needed, in nats.
        compression: bytes of the label over those of its zlib compression; more means a loop of repeated text.
        no_speech: probability of no speech that is at most allowed.
        in_language: probability of the label's language, among all languages, that is at least needed: a model that is told a
            wrong language writes fluent nonsense, or translates.
        disagreement: WER (%) of the second transcript against the label that is at most allowed; CER in a language without
            spaces between words.

    The paper's limits, -1 and 2.4, say when a decoder should try again. Labels to learn from are better chosen more strictly;
    notebook 11 shows what each limit lets through.
    """

    shortest: float = 2.0
    longest: float = 30.0
    logprob: float = -0.6
    compression: float = 2.4
    no_speech: float = 0.6
    in_language: float = 0.1
    disagreement: float = 25.0

    def __post_init__(self) -> None:
        if not 0 <= self.shortest < self.longest <= WINDOW_SECONDS:
            raise AsrlibError(
                f"Pieces are from 0 to {WINDOW_SECONDS} s long: {self.shortest:g} to {self.longest:g} s is no such range."
            )


@dataclass(frozen=True)
class Label:
    """What a model wrote for a piece, and how sure it was; the attributes are those of `Limits`."""

    text: str
    language: str
    logprob: float
    compression: float
    no_speech: float
    in_language: float = 1.0
    disagreement: float = 0.0


def label(model: Any, processor: Any, pieces: Sequence[np.ndarray], language: str) -> Iterator[Label]:
    """Transcribe pieces greedily, without timestamps, and yield each label with the model's own confidence.

    Args:
        model: a ``WhisperForConditionalGeneration`` in eval mode.
        processor: its ``WhisperProcessor``.
        pieces: arrays of at most 30 s at 16 kHz.
        language: code of the language.
    """
    start = whisper.prompt(model.generation_config, language)
    for first in range(0, len(pieces), BATCH):
        states = _encode(model, processor, pieces[first : first + BATCH])
        tokens = search.greedy(model, states, [start] * len(states))
        measures = _confidence(model, states, start, tokens)
        for row, (logprob, no_speech, in_language) in zip(tokens, measures, strict=True):
            written = processor.tokenizer.decode(row, skip_special_tokens=True).strip()
            yield Label(written, language, logprob, guards.compression(written), no_speech, in_language)


def _encode(model: Any, processor: Any, pieces: Sequence[np.ndarray]) -> torch.Tensor:
    """Return the encoder's states of some pieces, (pieces, positions, width)."""
    features = processor(list(pieces), sampling_rate=audio.SAMPLING_RATE, return_tensors="pt").input_features
    return network.encode(model, features.to(model.device, model.dtype))[0]


def _confidence(
    model: Any, states: torch.Tensor, start: list[int], tokens: Sequence[list[int]]
) -> Iterator[tuple[float, float, float]]:
    """Yield each label's mean log-probability, its end token included, and the probabilities of no speech and of its language.

    One pass over what was written. No speech is a token that could have come in the place of the language.
    """
    generation = model.generation_config
    end, longest = min(whisper.end_tokens(generation)), max(map(len, tokens))
    filled = [start + row + [end] * (longest - len(row)) for row in tokens]
    with torch.inference_mode():
        read = torch.tensor(filled, device=states.device)
        hidden = model.model.decoder(input_ids=read, encoder_hidden_states=states, use_cache=False).last_hidden_state
        for outputs, row in zip(hidden, tokens, strict=True):  # one by one: a vocabulary is wide
            chosen = torch.tensor([*row, end], device=states.device)
            steps = outputs[len(start) - 1 :][: len(chosen)]
            found = model.proj_out(steps).float().log_softmax(dim=-1).gather(1, chosen[:, None])
            first = model.proj_out(outputs[0]).float().softmax(dim=-1)
            silent = first[whisper.no_speech_token(generation)].item()
            yield found.mean().item(), silent, _share(first, start, generation)


def _share(first: torch.Tensor, start: list[int], generation: Any) -> float:
    """Return the given language's part in the probability of all languages; 1 for a model that knows only one."""
    if not whisper.is_multilingual(generation):
        return 1.0
    return (first[start[1]] / first[list(whisper.language_tokens(generation))].sum()).item()


def rejection(found: Label, limits: Limits) -> str:
    """Return why a label is dropped, in a few words; empty where it keeps to all limits."""
    reasons = {
        "no words": not found.text,
        "no speech": found.no_speech > limits.no_speech,
        "repeated text": found.compression > limits.compression,
        "another language": found.in_language < limits.in_language,
        "improbable": found.logprob < limits.logprob,
        "transcripts differ": found.disagreement > limits.disagreement,
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


class Labeller:
    """A model that labels pieces, and a second transcript to compare with: another model's, or its own of the sound played faster.

    The same model must get another input if it is to disagree: faster sound moves each of its frames, merged padding hardly any.
    """

    def __init__(self, model: str, second: str | None, language: str | None) -> None:
        self.first = transcription.load(model)
        self.second = transcription.load(second) if second else self.first
        self.faster = 1.0 if second else FASTER
        for name, (loaded, _) in {model: self.first, second or model: self.second}.items():
            if not hasattr(loaded, "proj_out"):
                raise AsrlibError(f"{name} was exported to ONNX: label with the checkpoint that it came from.")
            if language:
                whisper.prompt(loaded.generation_config, language)  # an English-only model refuses other languages
        self.language = language if whisper.is_multilingual(self.first[0].generation_config) else "en"

    def label(self, pieces: Sequence[np.ndarray], name: str) -> list[Label]:
        """Label the pieces of one recording, whose name goes before the progress."""
        if not pieces:
            return []
        language = self.language or self._vote(pieces[:ASKED])
        labels = list(track(label(*self.first, pieces, language), f"{name}: pieces labelled", len(pieces)))
        again = track(self._again(pieces, labels), f"{name}: second transcripts", len(pieces))
        return [
            replace(found, disagreement=_disagreement(found.text, other, language))
            for found, other in zip(labels, again, strict=True)
        ]

    def _again(self, pieces: Sequence[np.ndarray], labels: Sequence[Label]) -> Iterator[str]:
        """Yield a second transcript of labelled pieces.

        No token is less than a byte: a transcript of more tokens than the label has bytes differs already, so it ends there.
        """
        model, processor = self.second
        start = whisper.prompt(model.generation_config, labels[0].language)
        for first in range(0, len(pieces), BATCH):
            batch = [soxr.resample(piece, self.faster, 1) for piece in pieces[first : first + BATCH]]
            most = 20 + max(len(found.text.encode()) for found in labels[first : first + BATCH])
            states = _encode(model, processor, batch)
            tokens = search.greedy(model, states, [start] * len(batch), max_new_tokens=most)
            yield from processor.batch_decode(tokens, skip_special_tokens=True)

    def _vote(self, pieces: Sequence[np.ndarray]) -> str:
        """Return the language that most pieces are taken for."""
        votes = search.detect_language(self.first[0], _encode(*self.first, pieces))
        return Counter(votes).most_common(1)[0][0]


def _disagreement(first: str, second: str, language: str) -> float:
    """Return the WER (%) of a second transcript against the first; the CER in a language without spaces between words."""
    normalize = text.normalizer(language)
    first, second = normalize(first), normalize(second)
    if not first:
        return 0.0
    pairs = scoring.align(first, second).pairs
    return 100 * sum(kind != "equal" for kind, *_ in pairs) / len(first.split())

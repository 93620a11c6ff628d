"""Batched decoding of any number of clips, in order, at constant memory.

Clips of like length share a batch, features are prepared in a thread while the model decodes, and the model's own layers are
called with caches that stay in place, in the precision that this machine is fast in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from asrlib import AsrlibError, audio, whisper
from asrlib.decoding import batching, guards, longform, network, vad
from asrlib.decoding.batching import Clip, Engine, Hypothesis, Result
from asrlib.decoding.features import log_mel, long_log_mel
from asrlib.decoding.kernels import laid_out
from asrlib.decoding.search import Found, Rules, detect_language, search
from asrlib.decoding.speculative import Assistant, speculate
from asrlib.models.loading import load
from asrlib.text import language_code
from asrlib.whisper import HOP, POSITIONS, SAMPLES_PER_POSITION

__all__ = ["TorchEngine", "load", "transcribe"]


def transcribe(
    model: Any,
    processor: Any,
    clips: Iterable[Any],
    *,
    language: str | None = None,
    task: str = "transcribe",
    batch_size: int = 16,
    window: str = "full",
    timestamps: bool = False,
    strict: bool = False,
    vad: bool = False,
    previous_text: bool = False,
    assistant: Assistant | None = None,
    drafts: int = 4,
    label: str = "",
) -> Iterator[Hypothesis]:
    """Transcribe clips and yield hypotheses in the clips' order.

    Clips are read a little ahead, so an endless iterator is welcome and memory stays flat. Audio of more than 30 s is
    transcribed whole, window after window. What a window or a clip says is tested as in the Whisper paper, section 3.8
    (`asrlib.decoding.guards`): where nobody speaks nothing is written; what is improbable or repeats itself is decoded again at
    higher temperatures, from a fixed seed.

    Args:
        model: a ``WhisperForConditionalGeneration``, or a PEFT model around one, in eval mode; on any device, in any
            precision. Or an `asrlib.models.graphs.ExportedWhisper`.
        processor: its ``WhisperProcessor``.
        clips: paths, encoded bytes, arrays of shape (samples,) at 16 kHz, or mappings with ``audio`` and perhaps ``id``, such
            as the rows of a corpus.
        language: code or name; None lets a multilingual model detect it, clip by clip. Not for English-only models.
        task: ``"transcribe"``, or ``"translate"`` to English.
        batch_size: clips decoded together; with an assistant, encoded together.
        window: ``"full"`` encodes all 1,500 positions; with ``"merged"`` few positions stand for the silence that pads a clip to
            30 s (`asrlib.decoding.network.merge_padding`), an approximation: compare it with ``"full"`` on your own speech.
        timestamps: find segment times in short clips too; long ones always have them.
        strict: plain greedy decoding without any of these tests, the tokens of ``model.generate``. For comparisons of
            engines, precisions and models, where all must do the same; it invents text in silence and may go round in loops.
        vad: hear only where Silero's detector finds a voice; it comes with faster-whisper.
        previous_text: tell each window of a long recording what was written before it, which makes names and style agree and
            lets an error spread. The paper does so; off here, for windows do then not depend on each other.
        assistant: drafts so many tokens a round (``drafts``) for the model to check: the same words in another time.
        label: shown in the progress line; none is shown without it.

    Raises:
        AsrlibError: one recording in the place of several; audio that `audio.load` refuses; an unknown language, task or window;
            an assistant without ``strict``; it or ``"merged"`` with an exported model; audio longer than a context that was cut.
    """
    asked = language, task, window, timestamps, strict, vad, previous_text, assistant, drafts
    return batching.run(TorchEngine(model, processor, *asked), clips, batch_size=batch_size, label=label)


@dataclass
class TorchEngine(Engine):
    """One model and what it is asked for, the arguments of `transcribe`: features, encoding, decoding of a batch."""

    model: Any
    processor: Any
    language: str | None
    task: str = "transcribe"
    window: str = "full"
    timestamps: bool = False
    strict: bool = False
    vad: bool = False
    previous_text: bool = False
    assistant: Assistant | None = None
    drafts: int = 4

    def __post_init__(self) -> None:
        if self.window not in ("full", "merged"):
            raise AsrlibError(f"There is no window {self.window!r}: choose 'full' or 'merged'.")
        if self.task not in ("transcribe", "translate"):
            raise AsrlibError(f"Whisper has no task {self.task!r}: choose 'transcribe' or 'translate'.")
        if hasattr(self.model, "get_base_model"):
            self.model = self.model.get_base_model()
        self.generation = self.model.generation_config
        self.positions = self.model.config.max_source_positions
        self.language = self.language and language_code(self.language)
        self.blocks: dict[Any, torch.Tensor] = {}  # nobody changes the weights while this engine is used
        if hasattr(self.model, "encode") and self.window == "merged":
            raise AsrlibError("An exported model always encodes 30 seconds: choose the window 'full' for it.")
        if self.assistant and not (self.strict and hasattr(self.model, "model")):
            raise AsrlibError(
                "An assistant goes with strict=True and a model of PyTorch: its drafts are checked greedily."
            )
        whisper.prompt(self.generation, self.language or "en", self.task)  # an English-only model refuses others

    def fits(self, clip: Clip) -> bool:
        """Say whether a clip is heard in one window; refuse it if it is not and the model cannot go on to a second one."""
        context = self.positions * SAMPLES_PER_POSITION
        if len(clip.samples) > context and self.positions < POSITIONS:
            raise AsrlibError(
                f"{clip.id} lasts {clip.seconds:.1f} s, but this model's encoder context was cut to "
                f"{context / audio.SAMPLING_RATE:g} s: give it shorter clips, or take a model with the whole context of 30 s."
            )
        return len(clip.samples) <= context

    def width(self, clip: Clip) -> int:
        """Return the encoder positions that a clip takes."""
        return self.positions if self.window == "full" else network.merged_width(len(clip.samples), self.positions)

    def features(self, clips: Sequence[Clip]) -> torch.Tensor | list[torch.Tensor]:
        """Return log-mel features, (clips, mel bins, frames of the context: 3000); of clips that are heard with times or in
        several windows a list of (1, mel bins, frames), with at least a window of frames.
        """
        if self.fits(clips[-1]) and not self.timestamps:
            return log_mel(self.processor, [clip.samples for clip in clips], self.positions)
        return [
            log_mel(self.processor, [clip.samples], self.positions)
            if self.fits(clip)
            else long_log_mel(self.processor, clip.samples)
            for clip in clips
        ]

    def decode(self, clips: Sequence[Clip], features: torch.Tensor | list[torch.Tensor]) -> list[Result]:
        """Return (text, language, segments) of each clip."""
        spans = [self._spans(clip) for clip in clips]
        with laid_out(self.blocks):
            if isinstance(features, list):
                features = [one.to(self.model.device, self.model.dtype) for one in features]
                return longform.decode(self, clips, features, spans)
            return self._decode(clips, features.to(self.model.device, self.model.dtype), spans)

    def _spans(self, clip: Clip) -> list[tuple[int, int]]:
        """Return (first frame, frame after the last) of what is to be heard: all, or where there is a voice."""
        last = longform.frame_count(clip)
        if not self.vad:
            return [(0, last)]
        return [(start // HOP, min(end // HOP, last)) for start, end in vad.speech(clip.samples)]

    def _decode(self, clips: Sequence[Clip], features: torch.Tensor, spans: Sequence[Any]) -> list[Result]:
        lengths = [len(clip.samples) for clip in clips] if self.window == "merged" else None
        states, bias = self.encode(features, lengths)
        languages = self.languages(states, bias)
        prompts = [whisper.prompt(self.generation, spoken, self.task) for spoken in languages]
        sounds = [sound[:, : longform.frame_count(clip)] for sound, clip in zip(features, clips, strict=True)]
        tokens = [one.tokens for one in self.write(states, prompts, sounds, bias)]
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [
            (text.strip() if voiced else "", spoken, ())
            for text, spoken, voiced in zip(texts, languages, spans, strict=True)
        ]

    def write(
        self,
        states: torch.Tensor,
        prompts: Sequence[Sequence[int]],
        sounds: Any,
        bias: Any = None,
        rules: Rules | None = None,
    ) -> list[Found]:
        """Return what is said in each clip; arguments as for `asrlib.decoding.guards.guarded`."""
        if self.assistant:
            biases = [None] * len(states) if bias is None else bias.split(1)
            made = [
                speculate(self.model, self.assistant, *one, drafts=self.drafts, rules=rules)
                for one in zip(states.split(1), prompts, biases, strict=True)
            ]
            return [Found(one.tokens, math.nan, math.nan) for one in made]
        if self.strict:
            return search(self.model, states, prompts, bias, rules=rules)
        return guards.guarded(self.model, self.processor, states, prompts, sounds, bias, rules=rules)

    def encode(self, features: torch.Tensor, lengths: Sequence[int] | None = None) -> tuple[torch.Tensor, Any]:
        """Return the encoder's states and the bias over them, as `asrlib.decoding.network.encode` does."""
        return network.encode(self.model, features, lengths)

    def languages(self, states: torch.Tensor, bias: torch.Tensor | None = None) -> list[str]:
        """Return the language of each clip: the one that was named, else the one that the model finds."""
        if self.language or not whisper.is_multilingual(self.generation):
            return [self.language or "en"] * len(states)
        return detect_language(self.model, states, bias)

"""Clips as a Trainer takes them and as a model is scored on them: with their sound, or with what a frozen encoder made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from asrlib import audio, text, whisper
from asrlib.decoding import features, network, search
from asrlib.decoding.batching import Hypothesis
from asrlib.io.progress import Meter
from asrlib.training.finetuning.data import labels

__all__ = ["Clips", "HeardClips"]

TOGETHER = 16  # clips encoded or decoded in a batch
SPARE_SECONDS = 1  # of silence whose states are kept behind the longest clip


class Clips:
    """Transcribed clips with their features, made when they are asked for: the items of a data set, and a test.

    Attributes:
        rows: as `asrlib.corpora.load` returns them; ids may repeat.
        language: code.
    """

    def __init__(self, rows: Any, processor: Any, model: Any, language: str) -> None:
        """Take rows, in one language, whose sound and label fit a model.

        Args:
            rows: a table with ``audio``, ``text``, ``id`` and ``seconds``.
            processor: of the model.
            model: a ``WhisperForConditionalGeneration``; only its configurations are kept.
            language: name or code.
        """
        self.rows, self.processor, self.language = rows, processor, text.language_code(language)
        self.generation, self.positions = model.generation_config, model.config.max_source_positions
        written = [labels(said, self.language, self.generation, processor.tokenizer) for said in rows["text"]]
        self.labels = [torch.tensor(tokens[1:]) for tokens in written]  # the model itself puts the start token in front

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        """Return ``sound``, as `batch` needs it, and ``labels``, (tokens,), of a clip."""
        return {"sound": self._features([place])[0], "labels": self.labels[place]}

    def _features(self, places: Sequence[int]) -> torch.Tensor:
        """Return log-mel features, (clips, mel bins, frames)."""
        samples = [audio.load(self.rows[place]["audio"]) for place in places]
        return features.log_mel(self.processor, samples, self.positions)

    @staticmethod
    def _inputs(sound: torch.Tensor) -> dict[str, Any]:
        return {"input_features": sound}

    def batch(self, examples: Sequence[dict[str, torch.Tensor]]) -> dict[str, Any]:
        """Return the arguments of a model for some items, labels padded with -100: a Trainer's ``data_collator``."""
        padded = pad_sequence([one["labels"] for one in examples], batch_first=True, padding_value=-100)
        return self._inputs(torch.stack([one["sound"] for one in examples])) | {"labels": padded}

    def _states(self, model: Any, places: Sequence[int]) -> torch.Tensor:
        """Return what the decoder reads, (clips, positions, width)."""
        return network.encode(model, self._features(places).to(model.device, model.dtype))[0]

    def transcribe(self, model: Any, *, most: int, label: str = "") -> list[Hypothesis]:
        """Return what a model writes of each clip, greedily.

        Args:
            model: a ``WhisperForConditionalGeneration``, or a PEFT model around one.
            most: tokens in a transcript.
            label: shown in the progress line.
        """
        model = (model.get_base_model() if hasattr(model, "get_base_model") else model).eval()
        prompt, written = whisper.prompt(self.generation, self.language), {}
        with Meter(label, len(self), "clips") as meter:
            for places in self._batches():
                prompts = [prompt] * len(places)
                tokens = search.greedy(model, self._states(model, places), prompts, max_new_tokens=most)
                written |= zip(places, self.processor.batch_decode(tokens, skip_special_tokens=True), strict=True)
                meter.step(len(places))
        named = zip(self.rows["id"], self.rows["seconds"], strict=True)
        return [
            Hypothesis(name, written[place].strip(), self.language, seconds, 0.0)
            for place, (name, seconds) in enumerate(named)
        ]

    def _batches(self) -> Iterator[list[int]]:
        """Yield places of clips of like length, which end their texts together."""
        order = np.argsort(self.rows["seconds"], kind="stable").tolist()
        for first in range(0, len(order), TOGETHER):
            yield order[first : first + TOGETHER]


class HeardClips(Clips):
    """The same with the states of an encoder that no training changes, computed once.

    The encoder hears a window of 30 seconds, as it was trained to, with the silence far behind the clip merged
    (`network.merge_padding`). Kept are the states of the clip's seconds and one more; the decoder reads no others.
    """

    def __init__(self, rows: Any, processor: Any, model: Any, language: str, *, seconds: int, label: str = "") -> None:
        """Encode all clips.

        Args:
            rows, processor, language: as for `Clips`.
            model: whose encoder stays as it is.
            seconds: of the longest clip, at most.
            label: shown in the progress line.
        """
        super().__init__(rows, processor, model, language)
        wide = min(self.positions, (seconds + SPARE_SECONDS) * whisper.POSITIONS_PER_SECOND)
        self.heard = torch.empty(len(self), wide, model.config.d_model)
        with Meter(label, len(self), "clips") as meter:
            for places in self._batches():
                sound = self._features(places).to(model.device, model.dtype)
                longest = [seconds * audio.SAMPLING_RATE] * len(places)
                self.heard[places] = network.encode(model, sound, longest)[0][:, :wide].float().cpu()
                meter.step(len(places))

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        """Return ``sound``, as `batch` needs it, and ``labels``, (tokens,), of a clip."""
        return {"sound": self.heard[place], "labels": self.labels[place]}

    @staticmethod
    def _inputs(sound: torch.Tensor) -> dict[str, Any]:
        return {"encoder_outputs": (sound,)}

    def _states(self, model: Any, places: Sequence[int]) -> torch.Tensor:
        return self.heard[places].to(model.device, model.dtype)

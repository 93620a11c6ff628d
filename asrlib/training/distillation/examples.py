"""What a student's decoder reads and is to write: prompt, label and end of each clip, with or without times and earlier text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from asrlib import whisper
from asrlib.training.distillation.labels import Label

__all__ = ["IGNORED", "Example", "examples", "inputs_and_targets", "vocabulary"]

IGNORED = -100  # in the place of a target: no loss


@dataclass(frozen=True)
class Example:
    """The tokens of a clip.

    Attributes:
        tokens: earlier text, prompt, label and end.
        first: place of the first of them that is to be written.
    """

    tokens: list[int]
    first: int

    @property
    def targets(self) -> int:
        """Return how many tokens are to be written."""
        return len(self.tokens) - self.first


def examples(
    labels: Mapping[str, Label],
    languages: Mapping[str, str],
    generation: Any,
    room: int,
    *,
    before: Mapping[str, str] | None = None,
    timestamps: float = 0.0,
    previous: float = 0.0,
    seed: int = 0,
) -> dict[str, Example]:
    """Return an example of each label.

    As in Distil-Whisper's ``run_distillation.py``, a label keeps its times and follows earlier text by chance; what chance decides
    is drawn once, so that a clip has the same example in each epoch.

    Args:
        labels: by id.
        languages: id -> code of the language that is spoken.
        generation: the teacher's generation configuration.
        room: tokens that a decoder can read; longer examples lose their end.
        before: id -> id of the recording before it, where its label is known.
        timestamps: probability that times are kept.
        previous: probability that the text before is put before it.
        seed: of both.
    """
    generator, times = np.random.default_rng(seed), whisper.time_tokens(generation)
    made = {}
    for name in sorted(labels):
        timed, follows = generator.random() < timestamps, generator.random() < previous
        label = labels[name].tokens if timed else _words(labels[name], times)
        earlier = labels.get((before or {}).get(name, "")) if follows else None
        start = [whisper.previous_token(generation), *_words(earlier, times)[1 - room // 2 :]] if earlier else []
        start += whisper.prompt(generation, languages[name], timestamps=timed)
        end = min(whisper.end_tokens(generation))
        made[name] = Example([*start, *label, end][: room + 1], len(start))
    return made


def _words(label: Label, times: range) -> list[int]:
    return [token for token in label.tokens if token not in times]


def inputs_and_targets(rows: Sequence[Example], end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a decoder reads, and what it is to write at each place; both (clips, longest - 1).

    Args:
        rows: of each clip.
        end: the end token, which fills up shorter rows, where nothing is a target.
    """
    inputs = pad_sequence([torch.tensor(row.tokens[:-1]) for row in rows], batch_first=True, padding_value=end)
    targets = pad_sequence([torch.tensor(row.tokens[1:]) for row in rows], batch_first=True, padding_value=IGNORED)
    for row, example in zip(targets, rows, strict=True):
        row[: example.first - 1] = IGNORED
    return inputs, targets


def vocabulary(rows: Mapping[str, Example]) -> torch.Tensor:
    """Return the tokens that are ever to be written, in order, (tokens,)."""
    return torch.tensor(sorted({token for row in rows.values() for token in row.tokens[row.first :]}))

"""The losses of a distillation (Gandhi et al. 2023, arXiv:2311.00430, section 3.2), and what they are computed from."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

from asrlib.decoding import outcomes
from asrlib.io import files
from asrlib.io.progress import track
from asrlib.training.distillation.examples import IGNORED, Example, inputs_and_targets
from asrlib.training.distillation.states import EncoderStates, attending

__all__ = ["LOSSES", "TEMPERATURE", "TeacherStates", "TrainingSet", "divergence"]

LOSSES = ("cross_entropy", "kl", "hidden")
TEMPERATURE = 2.0  # softens both distributions
TOGETHER = 8  # clips that the teacher decodes at once
SPAN = 25  # encoder states that are masked together: half a second


def divergence(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Return the KL divergence from a teacher's softened distributions to its student's, in nats, mean over tokens.

    Args:
        student_logits: (tokens, vocabulary).
        teacher_logits: (tokens, vocabulary).
    """
    student_log_probs = functional.log_softmax(student_logits / TEMPERATURE, dim=-1)
    teacher_probs = functional.softmax(teacher_logits / TEMPERATURE, dim=-1)
    return functional.kl_div(student_log_probs, teacher_probs, reduction="batchmean") * TEMPERATURE**2


def decode(model: Any, encoder_states: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Return a decoder's last states, (clips, tokens, width)."""
    given = {"encoder_outputs": BaseModelOutput(encoder_states), "decoder_input_ids": inputs}
    return model.model(**given, use_cache=False).last_hidden_state


class TeacherStates:
    """The last states of a teacher's decoder at each token that is to be written, kept on disk in bfloat16.

    They are the same in each epoch and for each student, and its output layer makes the distribution from them: 1 kB a token at
    512 numbers a state.
    """

    def __init__(
        self, states: EncoderStates, teacher: Any, examples: Mapping[str, Example], *, share: tuple[int, int] = (0, 1), label: str = ""
    ) -> None:  # fmt: skip
        """Compute what is not there yet.

        Args:
            states: of the clips.
            teacher: in the precision in which it computes.
            examples: by id; clips without one are left out.
            share: (r, N): of all shards only r, r + N, ... are made, until `complete` is called, as by one process of N.
            label: shown in the progress line; none is shown without it.
        """
        facts = {name: (row.tokens, row.first) for name, row in examples.items()}
        self.folder, self.examples = states.folder / f"teacher-{outcomes.fingerprint(facts)}", examples
        self.places: dict[str, tuple[int, int]] = {}
        self.folder.mkdir(exist_ok=True)
        mine = sorted(states.shards)[share[0] :: share[1]]
        for number in track(mine, label, len(mine), "shards") if label else mine:
            names = [name for name in states.shards[number] if name in examples]
            if names and not self._path(number).is_file():
                cut = [names[first : first + TOGETHER] for first in range(0, len(names), TOGETHER)]
                rows = torch.cat([_last_states(states, teacher, [examples[n] for n in part], part) for part in cut])
                stream = io.BytesIO()
                np.save(stream, rows.to("cpu", torch.bfloat16).view(torch.int16).numpy())
                files.write_atomic(self._path(number), stream.getvalue())

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npy"

    def complete(self, states: EncoderStates) -> None:
        """Note where each clip lies, once all processes have made their shards."""
        for number, names in states.shards.items():
            at = 0
            for name in names:
                if name in self.examples:
                    self.places[name] = number, at
                    at += self.examples[name].targets

    def batch(self, names: Sequence[str]) -> torch.Tensor:
        """Return the states at the targets of some clips, one below the other, bfloat16, (targets, width)."""
        parts = []
        for name in names:
            number, first = self.places[name]
            rows = np.load(self._path(number), mmap_mode="r")[first : first + self.examples[name].targets]
            parts.append(torch.from_numpy(rows.copy()).view(torch.bfloat16))
        return torch.cat(parts)


def _last_states(states: EncoderStates, teacher: Any, rows: Sequence[Example], names: Sequence[str]) -> torch.Tensor:
    encoder_states, bias = states.batch(names)
    inputs, targets = inputs_and_targets(rows, 0)
    with torch.no_grad(), attending(bias, teacher):
        found = decode(teacher, encoder_states.to(teacher.device, teacher.dtype), inputs.to(teacher.device))
    return found[(targets != IGNORED).to(teacher.device)]


@dataclass
class TrainingSet:
    """All that a student is trained on.

    Attributes:
        states: of the encoder.
        teaching: the teacher's last states.
        examples: tokens of each clip.
        table: rows of the output layer, which teacher and student share, that the losses are computed over, (tokens, width); None
            for the student's own, as it is being trained, against the whole of ``whole``.
        vocabulary: which tokens these rows are, (tokens,).
        whole: the teacher's output layer, (vocabulary, width).
    """

    states: EncoderStates
    teaching: TeacherStates
    examples: Mapping[str, Example]
    whole: torch.Tensor
    vocabulary: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Number the tokens that the losses are computed over."""
        self.half = self.whole.dtype == torch.bfloat16  # float16 has too small a range for gradients
        self.rows = self.whole if self.vocabulary is None else self.whole[self.vocabulary.to(self.whole.device)]
        self.rows = self.rows if self.half else self.rows.float()
        self.numbers = torch.full((len(self.whole),), IGNORED)
        chosen = torch.arange(len(self.whole)) if self.vocabulary is None else self.vocabulary
        self.numbers[chosen] = torch.arange(len(chosen))

    def targets(self, names: Sequence[str]) -> int:
        """Return how many tokens the losses of some clips are sums over."""
        return sum(self.examples[name].targets for name in names)

    def losses(self, student: Any, names: Sequence[str], mask: float = 0.0) -> torch.Tensor:
        """Return the `LOSSES` of some clips, sums over tokens, (3,): cross-entropy with the labels and divergence from the teacher in
        nats, and the squared distance to the teacher's last states, as a share of their squared length.

        Args:
            student: in float32.
            names: of the clips.
            mask: share of the encoder states that are set to zero, in spans.
        """
        device = student.device
        encoder_states, bias = self.states.batch(names)
        inputs, targets = inputs_and_targets([self.examples[name] for name in names], 0)
        at = targets != IGNORED
        targets = self.numbers[targets[at]].to(device)
        encoder_states = masked(encoder_states.to(device).float(), mask)
        taught = self.teaching.batch(names).to(device)
        with (
            attending(bias, student),
            torch.autocast(device.type, torch.bfloat16, enabled=self.half),
        ):
            learnt = decode(student, encoder_states, inputs.to(device))[at.to(device)]
            rows = student.proj_out.weight if self.vocabulary is None else self.rows
            student_logits = functional.linear(learnt, rows)
            with torch.no_grad():
                teacher_logits = functional.linear(taught.to(self.rows.dtype), self.rows)
        student_logits, teacher_logits = student_logits.float(), teacher_logits.float()
        cross_entropy = functional.cross_entropy(student_logits, targets, reduction="sum")
        taught, learnt = taught.float(), learnt.float()
        distance = ((learnt - taught).square().sum(dim=1) / taught.square().sum(dim=1)).sum()
        return torch.stack([cross_entropy, len(learnt) * divergence(student_logits, teacher_logits), distance])


def masked(states: torch.Tensor, share: float) -> torch.Tensor:
    """Set spans of encoder states to zero: time masking of SpecAugment (Park et al. 2019, arXiv:1904.08779), after the encoder.

    Args:
        states: (clips, positions, width).
        share: of the positions, on average.
    """
    if not share:
        return states
    spans = -(-states.shape[1] // SPAN)
    kept = (torch.rand(len(states), spans) >= share).repeat_interleave(SPAN, dim=1)[:, : states.shape[1]]
    return states * kept[:, :, None].to(states)

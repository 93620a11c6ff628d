"""What a student is trained on, and the two losses of Gandhi et al. 2023 (arXiv:2311.00430, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutput

from asrlib.training.distillation.states import EncoderStates, attending

__all__ = ["TEMPERATURE", "WEIGHTS", "TrainingSet", "divergence", "inputs_and_targets"]

WEIGHTS = {"kl": 0.8, "labels": 1.0}  # of the two losses, as the paper states them
TEMPERATURE = 2.0  # softens both distributions
IGNORED = -100  # in the place of a target: no loss


def divergence(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Return the KL divergence from a teacher's softened distributions to its student's, in nats, mean over tokens.

    Args:
        student_logits: (tokens, vocabulary).
        teacher_logits: (tokens, vocabulary).
    """
    student_log_probs = functional.log_softmax(student_logits / TEMPERATURE, dim=-1)
    teacher_probs = functional.softmax(teacher_logits / TEMPERATURE, dim=-1)
    return functional.kl_div(student_log_probs, teacher_probs, reduction="batchmean") * TEMPERATURE**2


def inputs_and_targets(rows: Sequence[torch.Tensor], prompt: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a decoder reads, and what it is to write at each place; both (clips, longest - 1).

    Args:
        rows: tokens of each clip: its prompt, its label, and the end token.
        prompt: tokens of the prompt; none of them is a target.
        end: the end token, which fills up shorter rows where nothing is a target.
    """
    inputs = pad_sequence([row[:-1] for row in rows], batch_first=True, padding_value=end)
    targets = pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=IGNORED)
    targets[:, : prompt - 1] = IGNORED
    return inputs, targets


@dataclass
class TrainingSet:
    """Encoder states and labels of some clips, and the teacher, whose distribution at each label's token is learnt too.

    Attributes:
        teacher: in the precision in which it computes.
        tokenizer: of both models.
        prompt: tokens before each label.
        states: of the clips.
        labels: tokens of each clip's label, without prompt and end.
    """

    teacher: Any
    tokenizer: Any
    prompt: list[int]
    states: EncoderStates
    labels: dict[str, list[int]]

    def tokens(self, name: str) -> torch.Tensor:
        """Return prompt, label and end of a clip, as far as the decoder can read, (tokens,)."""
        room = self.teacher.config.max_target_positions
        return torch.tensor([*self.prompt, *self.labels[name], self.tokenizer.eos_token_id][: room + 1])

    def targets(self, names: Sequence[str]) -> int:
        """Return how many tokens the losses of some clips are sums over: all but the prompt."""
        return sum(len(self.tokens(name)) - len(self.prompt) for name in names)

    def losses(self, student: Any, names: Sequence[str]) -> torch.Tensor:
        """Return cross-entropy with the labels and divergence from the teacher, in nats, sums over tokens, (2,)."""
        device, precision = self.teacher.device, self.teacher.dtype
        encoder_states, bias = self.states.batch(names)
        rows = [self.tokens(name) for name in names]
        inputs, targets = inputs_and_targets(rows, len(self.prompt), self.tokenizer.eos_token_id)
        encoder_states, inputs, targets = (x.to(device) for x in (encoder_states, inputs, targets))
        at = targets != IGNORED
        with attending(bias, self.teacher, student):
            with torch.no_grad():
                outputs = _decode(self.teacher, encoder_states.to(precision), inputs)
                teacher_logits = self.teacher.proj_out(outputs[at]).float()
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
                outputs = _decode(student, encoder_states.float(), inputs)
                student_logits = student.proj_out(outputs[at]).float()
        cross_entropy = functional.cross_entropy(student_logits, targets[at], reduction="sum")
        return torch.stack([cross_entropy, len(student_logits) * divergence(student_logits, teacher_logits)])


def _decode(model: Any, encoder_states: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Return a decoder's last states, (clips, tokens, width)."""
    given = {"encoder_outputs": BaseModelOutput(encoder_states), "decoder_input_ids": inputs}
    return model.model(**given, use_cache=False).last_hidden_state

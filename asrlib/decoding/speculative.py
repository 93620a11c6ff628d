"""Speculative decoding at batch 1: a small decoder drafts tokens, the teacher checks them in one pass and keeps what it would have said.

Leviathan et al. 2022, arXiv:2211.17192, in its greedy form: the tokens are those of the teacher's own greedy search whatever the
assistant drafts, and only the time depends on it. An assistant distilled with the teacher's encoder frozen (Gandhi et al. 2023,
arXiv:2311.00430, section 8.5) shares the encoder's states. In a small model the output layer over 51,865 tokens is the dearest
part of a draft; drafting from the most frequent tokens only cuts it, and leaves the check whole (Zhao et al. 2025, FR-Spec,
arXiv:2502.14856).
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from asrlib import AsrlibError
from asrlib.decoding import network
from asrlib.decoding.kernels import laid_out
from asrlib.decoding.search import Rules, token_limits
from asrlib.whisper import end_tokens

__all__ = ["Assistant", "Speculated", "costs", "frequent_tokens", "predicted_gain", "speculate", "tokens_per_round"]


@dataclass(frozen=True)
class Speculated:
    """What was written, and what it took.

    Attributes:
        tokens: without the prompt and the end token.
        rounds: passes of the teacher, each over the drafts of a round.
        drafted: tokens that the assistant proposed, one a pass.
        accepted: those of them that the teacher would have written.
        rejected: rounds that a wrong draft ended; the drafts after it were not looked at.
        seconds: of both decoders, without the encoder.
    """

    tokens: list[int]
    rounds: int
    drafted: int
    accepted: int
    rejected: int
    seconds: float

    @property
    def acceptance(self) -> float:
        """Return the share of drafts that were right among those that the teacher looked at; 0 where there is none."""
        return self.accepted / max(1, self.accepted + self.rejected)


class Assistant:
    """A model that drafts, from all tokens or from some: then its output layer has a row for each of those only.

    Args:
        model: a ``WhisperForConditionalGeneration`` with the teacher's vocabulary, whose decoder reads the teacher's states.
        frequent: the tokens to draft from, such as `frequent_tokens` gives; end tokens are always among them. None: all.

    Raises:
        AsrlibError: a token outside of the vocabulary, or an exported model.
    """

    def __init__(self, model: Any, frequent: Iterable[int] | None = None) -> None:
        if not hasattr(model, "proj_out"):
            raise AsrlibError("An exported model cannot draft: take the checkpoint that it was made from.")
        self.model, self.output, self.kept = model, model.proj_out, None
        if frequent is not None:
            kept = sorted({*frequent, *end_tokens(model.generation_config)})
            table = model.model.decoder.embed_tokens.weight  # of the output layer too
            rows = len(table)
            if not 0 <= kept[0] <= kept[-1] < rows:
                raise AsrlibError(
                    f"Tokens {kept[0]} to {kept[-1]} cannot be drafted: this model has tokens 0 to {rows - 1}."
                )
            self.kept = torch.tensor(kept, device=model.device)
            self.output = torch.nn.Linear(model.config.d_model, len(kept), bias=False, device="meta")
            self.output.weight = torch.nn.Parameter(table.detach()[self.kept], requires_grad=False)

    def decoder(self, states: torch.Tensor, bias: torch.Tensor | None, room: int) -> network.Decoder:
        """Return a decoder that has read nothing yet, with this assistant's output layer."""
        decoder = network.Decoder(self.model, states, bias, room)
        decoder.output = self.output
        return decoder

    def choose(self, logits: torch.Tensor) -> int:
        """Return the most probable token, of logits (1, rows of the output layer)."""
        place = logits.argmax(dim=-1)
        return int(place if self.kept is None else self.kept[place])


def frequent_tokens(labels: Iterable[Sequence[int]], number: int) -> list[int]:
    """Return so many of the tokens that occur most often in labels, most frequent first; fewer where fewer occur."""
    return [token for token, _ in Counter(token for label in labels for token in label).most_common(number)]


@laid_out()
def speculate(
    teacher: Any,
    assistant: Assistant,
    states: torch.Tensor,
    prompt: Sequence[int],
    bias: torch.Tensor | None = None,
    *,
    drafts: int = 4,
    max_new_tokens: int | None = None,
    rules: Rules | None = None,
) -> Speculated:
    """Decode one clip with drafts; the tokens are those of `asrlib.decoding.search.greedy`.

    Several tokens are multiplied in another order than one, so in 16 bits two nearly equal logits can change places.

    Args:
        teacher: a ``WhisperForConditionalGeneration``.
        assistant: drafts from the same states.
        states: the teacher's encoder states, (1, positions, width).
        prompt: start tokens.
        bias: as `asrlib.decoding.network.encode` returns it.
        drafts: tokens that are drafted in a round.
        max_new_tokens, rules: as for `asrlib.decoding.search.search`; the assistant drafts without rules.

    Raises:
        AsrlibError: several clips, no draft, or an assistant with another vocabulary or width.
    """
    _fit(teacher, assistant.model, states, drafts)
    ends, (barred, at_first) = end_tokens(teacher.generation_config), _barred(teacher)
    known, stop = list(prompt), len(prompt) + token_limits(teacher, [prompt], max_new_tokens)[0]
    started, rounds, drafted, accepted, rejected = time.perf_counter(), 0, 0, 0, 0
    with torch.inference_mode():
        room = len(prompt) + 60 + drafts
        checker, drafter = (one.decoder(states, bias, room) for one in (Assistant(teacher), assistant))
        while len(known) < stop and known[-1] not in ends:
            proposed = _draft(assistant, drafter, known, min(drafts, stop - len(known) - 1), ends)
            read = torch.tensor([known[checker.at :] + proposed], device=states.device)
            logits = checker.step(read, list(range(-len(proposed) - 1, 0)))[0].index_fill_(1, barred, -torch.inf)
            logits[0, at_first[: 0 if rounds else None]] = -torch.inf
            chosen = _ruled(logits, known, proposed, rules).argmax(dim=-1).tolist()
            right, kept = _agreed(proposed, chosen, ends)
            known += kept
            checker.at = len(known) - 1  # wrong drafts are forgotten; the last token is read in the next round
            drafter.at = min(drafter.at, checker.at)
            rounds, drafted, accepted = rounds + 1, drafted + len(proposed), accepted + right
            rejected += right < len(proposed)
    written = [token for token in known[len(prompt) :] if token not in ends]
    return Speculated(written, rounds, drafted, accepted, rejected, time.perf_counter() - started)


def _barred(teacher: Any) -> list[torch.Tensor]:
    """Return the tokens that are never written, and those that no text begins with."""
    generation = teacher.generation_config
    listed = (generation.suppress_tokens, generation.begin_suppress_tokens)
    return [torch.tensor(tokens or [], dtype=torch.long, device=teacher.device) for tokens in listed]


def _ruled(logits: torch.Tensor, known: list[int], proposed: list[int], rules: Rules | None) -> torch.Tensor:
    """Return the teacher's logits, (drafts + 1, vocabulary), each row after what is known and the drafts before it."""
    if rules is None:
        return logits
    before = [torch.tensor([known + proposed[:place]], device=logits.device) for place in range(len(logits))]
    return torch.cat([rules(written, row[None]) for written, row in zip(before, logits, strict=True)])


def _agreed(proposed: list[int], chosen: list[int], ends: set[int]) -> tuple[int, list[int]]:
    """Return how many drafts are what the teacher chose, and what a round writes: these, and its own token unless they end."""
    right = next((n for n, token in enumerate(proposed) if token != chosen[n]), len(proposed))
    over = right > 0 and chosen[right - 1] in ends
    return right, chosen[: right if over else right + 1]


def _draft(assistant: Assistant, drafter: network.Decoder, known: list[int], number: int, ends: set[int]) -> list[int]:
    """Return at most so many drafts after what is known; none follows an end token."""
    proposed: list[int] = []
    while len(proposed) < number and not (proposed and proposed[-1] in ends):
        unread = torch.tensor([[*known, *proposed][drafter.at :]], device=assistant.model.device)
        proposed.append(assistant.choose(drafter.step(unread)))
    return proposed


def _fit(teacher: Any, assistant: Any, states: torch.Tensor, drafts: int) -> None:
    """Refuse what cannot be decoded together."""
    if len(states) != 1:
        raise AsrlibError(f"Speculative decoding takes one clip at a time, not {len(states)}: call it for each.")
    if drafts < 1:
        raise AsrlibError(f"{drafts} drafts a round check nothing: draft one token at least.")
    for what in ("vocab_size", "d_model", "max_target_positions"):
        ours, theirs = (getattr(model.config, what) for model in (teacher, assistant))
        if ours != theirs:
            raise AsrlibError(
                f"The assistant has {what} {theirs}, the teacher {ours}: use one that was distilled from this teacher."
            )


def tokens_per_round(acceptance: float, drafts: int) -> float:
    """Return how many tokens a round is expected to write (Leviathan et al. 2022, equation 1).

    Args:
        acceptance: the chance that a draft is right if those before it are, such as `Speculated.acceptance`; 0 to 1.
        drafts: of a round.
    """
    return sum(acceptance**place for place in range(drafts + 1))


def predicted_gain(per_round: float, drafts: float, draft: float, check: float) -> float:
    """Return how many times as fast the decoders are with drafts (Leviathan et al. 2022, theorem 3.8; there a check costs 1).

    Args:
        per_round: tokens that a round writes.
        drafts: of a round.
        draft: cost of one step of the assistant, where a step of the teacher over one token costs 1.
        check: cost of the teacher's pass over the drafts.
    """
    return per_round / (drafts * draft + check)


@laid_out()
def costs(
    teacher: Any, assistants: Mapping[str, Assistant], states: torch.Tensor, drafts: int, *, rounds: int = 20
) -> dict[str, float]:
    """Time single passes of the decoders, in turn; return medians, where the teacher's pass over one token costs 1.

    Args:
        teacher: a ``WhisperForConditionalGeneration``.
        assistants: by name.
        states: encoder states, (1, positions, width).
        drafts: tokens of a round.
        rounds: that are timed, after one that warms up.

    Returns:
        ``check``: the teacher's pass over ``drafts + 1`` tokens; and by name a draft of each assistant.
    """
    itself = Assistant(teacher)
    read = min(40, teacher.config.max_target_positions - drafts - 1)  # tokens before them, as in the middle of a window
    passes = {"step": (itself, 1), "check": (itself, drafts + 1)} | {name: (one, 1) for name, one in assistants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    with torch.inference_mode():
        start = torch.full((1, read), teacher.generation_config.decoder_start_token_id, device=states.device)
        decoders = {name: drafter.decoder(states, None, read + drafts + 1) for name, (drafter, _) in passes.items()}
        for decoder in decoders.values():
            decoder.step(start)
        for _ in range(rounds + 1):
            for name, (_, number) in passes.items():
                decoders[name].at, started = read, time.perf_counter()
                decoders[name].step(start[:, :number], list(range(number))).argmax(dim=-1).tolist()
                seconds[name].append(time.perf_counter() - started)
    step = statistics.median(seconds.pop("step")[1:])
    return {name: statistics.median(taken[1:]) / step for name, taken in seconds.items()}

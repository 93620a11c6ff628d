"""Choosing tokens: a search over a batch, greedy or by chance, with its scores; and the language of each clip."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from asrlib.decoding import network
from asrlib.decoding.kernels import laid_out
from asrlib.whisper import end_tokens, language_tokens, no_speech_token

__all__ = ["Found", "Rules", "detect_language", "greedy", "search", "token_limits"]

UNSET = 20  # the ``max_length`` that old versions of transformers wrote where nobody had set one
SEED = 0  # of what is drawn for each clip: a run repeats, and a clip's tokens do not depend on its batch
# (tokens so far, logits) -> logits; may change them in place
Rules = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Found:
    """What a search wrote of one clip.

    Attributes:
        tokens: the new ones, without the prompt and the end token.
        logprob: mean log-probability of these tokens and the end token.
        no_speech: probability of the token for silence where the prompt starts (section 3.8 of the paper).
        temperature: at which tokens were drawn; 0 is greedy.
    """

    tokens: list[int]
    logprob: float
    no_speech: float
    temperature: float = 0.0


def greedy(
    model: Any, states: torch.Tensor, prompts: Sequence[Sequence[int]], bias: torch.Tensor | None = None, **options: Any
) -> list[list[int]]:
    """Return the tokens of a greedy `search`, those of ``model.generate`` without beams and timestamps; arguments as there."""
    return [found.tokens for found in search(model, states, prompts, bias, **options)]


@laid_out()
def search(
    model: Any,
    states: torch.Tensor,
    prompts: Sequence[Sequence[int]],
    bias: torch.Tensor | None = None,
    *,
    allowed: Sequence[int] | None = None,
    rules: Rules | None = None,
    max_new_tokens: int | Sequence[int] | None = None,
    temperature: float = 0.0,
    scores: bool = False,
) -> list[Found]:
    """Decode a batch token by token; clips that have ended leave the batch once they are half of it.

    Args:
        model: a ``WhisperForConditionalGeneration``, or an `asrlib.models.graphs.ExportedWhisper`.
        states: encoder states, (clips, positions, width).
        prompts: start tokens of each clip, all of one length.
        bias: as `network.encode` returns it.
        allowed: only these tokens may be chosen (language detection); default: all but the suppressed ones.
        rules: what else may not be written, such as `asrlib.decoding.timestamps.Rules`.
        max_new_tokens: of all clips, or of each; at most, and by default, what the generation configuration and the decoder's
            positions allow: 448 with the prompt as published.
        temperature: 0 takes the most probable token; above, tokens are drawn from the logits divided by it.
        scores: whether to compute `Found.logprob` and `Found.no_speech`, which are nan otherwise; some 5 % of the time.
    """
    limits = token_limits(model, prompts, max_new_tokens)
    with torch.inference_mode():
        choice = _Choice(model, states.device, allowed, rules, temperature, len(prompts))
        decoder = network.decoder(model, states, bias, room=len(prompts[0]) + 60)
        read = torch.tensor(prompts, device=states.device)
        logits, silence = _first_logits(model, decoder, read, scores)
        written = _write(decoder, choice, read, logits, limits, end_tokens(model.generation_config), scores)
    return [
        Found(tokens, total / (len(tokens) + 1), silent, temperature)
        for (tokens, total), silent in zip(written, silence, strict=True)
    ]


def _write(
    decoder: Any, choice: _Choice, read: torch.Tensor, logits: torch.Tensor, limits: Sequence[int], ends: set[int], scores: bool
) -> list[tuple[list[int], float]]:  # fmt: skip
    """Return the tokens that follow the prompts that were read, and the sum of their log-probabilities, of each clip."""
    found: list[list[int]] = [[] for _ in limits]
    sums, rows, ended = [0.0] * len(limits), list(range(len(limits))), set()
    while True:
        chosen, logprobs = choice(read, logits, rows, scores)
        for row, token, logprob in zip(rows, chosen.tolist(), logprobs, strict=True):
            if row in ended:
                continue
            sums[row] += logprob
            found[row] += [] if token in ends else [token]
            if token in ends or len(found[row]) == limits[row]:
                ended.add(row)
        if len(ended) == len(found):
            return list(zip(found, sums, strict=True))
        alive = [place for place, row in enumerate(rows) if row not in ended]
        if len(alive) <= len(rows) // 2:
            places = torch.tensor(alive, device=read.device)
            decoder.keep(places)
            rows, chosen, read = [rows[place] for place in alive], chosen[places], read[places]
        tokens = chosen[:, None]
        read = torch.cat([read, tokens], dim=1)
        logits = decoder.step(tokens)


def token_limits(model: Any, prompts: Sequence[Sequence[int]], asked: int | Sequence[int] | None) -> list[int]:
    """Return how many tokens each clip may have; Whisper's ``max_length`` does not count the prompt since transformers 5."""
    longest = model.generation_config.max_length
    room = model.config.max_target_positions - len(prompts[0])
    room = room if longest in (None, UNSET) else min(room, longest)
    return [min(room, limit or room) for limit in (asked if isinstance(asked, Sequence) else [asked] * len(prompts))]


def _first_logits(model: Any, decoder: Any, prompts: torch.Tensor, scores: bool) -> tuple[torch.Tensor, list[float]]:
    """Let the decoder read the prompts; return its logits after them, and the probability of silence in each clip."""
    if not scores:
        return decoder.step(prompts), [math.nan] * len(prompts)
    start = prompts[0].tolist().index(model.generation_config.decoder_start_token_id)
    at_start, last = decoder.step(prompts, [start, -1]).unbind(dim=1)
    silence = at_start.softmax(dim=-1, dtype=torch.float32)[:, no_speech_token(model.generation_config)]
    return last, silence.tolist()


class _Choice:
    """What may be written next, and which of it is; the first time it is called, a text begins."""

    def __init__(
        self,
        model: Any,
        device: Any,
        allowed: Sequence[int] | None,
        rules: Rules | None,
        temperature: float,
        clips: int,
    ) -> None:
        generation = model.generation_config
        barred = torch.zeros(model.config.vocab_size, dtype=torch.bool)
        barred[list(generation.suppress_tokens or []) if allowed is None else slice(None)] = True
        barred[list(allowed or [])] = False
        self.barred, self.rules, self.temperature = barred.to(device), rules, temperature
        self.at_first = torch.tensor(generation.begin_suppress_tokens or [], dtype=torch.long, device=device)
        self.draws = [torch.Generator().manual_seed(SEED) for _ in range(clips)] if temperature else []

    def __call__(
        self, written: torch.Tensor, logits: torch.Tensor, rows: Sequence[int], scores: bool
    ) -> tuple[torch.Tensor, list[float]]:
        """Return the chosen tokens, and their log-probabilities if they are wanted, of the clips that are left."""
        logits = logits.masked_fill(self.barred, -torch.inf)
        logits[:, self.at_first] = -torch.inf
        self.at_first = self.at_first[:0]
        if self.rules is not None:
            logits = self.rules(written, logits)
        wanted = logits
        if self.draws:  # the largest of logits and Gumbel noise is a draw from their softmax
            noise = [torch.empty(logits.shape[1]).exponential_(generator=self.draws[row]).log() for row in rows]
            wanted = logits.float() / self.temperature - torch.stack(noise).to(logits.device)
        chosen = wanted.argmax(dim=-1)
        if not scores:
            return chosen, [math.nan] * len(rows)
        logprobs = logits.log_softmax(dim=-1, dtype=torch.float32).gather(1, chosen[:, None])
        return chosen, logprobs[:, 0].tolist()


def detect_language(model: Any, states: torch.Tensor, bias: torch.Tensor | None = None) -> list[str]:
    """Return the most probable language code of each clip (section 2.3 of the paper); arguments as for `search`."""
    names, start = language_tokens(model.generation_config), [[model.generation_config.decoder_start_token_id]]
    chosen = greedy(model, states, start * len(states), bias, allowed=list(names), max_new_tokens=1)
    return [names[tokens[0]] for tokens in chosen]

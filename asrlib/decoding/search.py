"""Choosing tokens: greedy search over a batch, and the language of each clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from asrlib.decoding import network
from asrlib.decoding.kernels import laid_out
from asrlib.whisper import end_tokens, language_tokens

__all__ = ["detect_language", "greedy"]


@laid_out()
def greedy(
    model: Any,
    states: torch.Tensor,
    prompts: Sequence[Sequence[int]],
    bias: torch.Tensor | None = None,
    *,
    allowed: Sequence[int] | None = None,
    rules: Any = None,
    max_new_tokens: int | None = None,
) -> list[list[int]]:
    """Decode greedily; the tokens are those of ``model.generate`` without beams, sampling and timestamps.

    Clips that have ended leave the batch once they are half of it.

    Args:
        model: a ``WhisperForConditionalGeneration``, or an `asrlib.models.graphs.ExportedWhisper`.
        states: encoder states, (clips, positions, width).
        prompts: start tokens of each clip, all of one length.
        bias: as `encode` returns it.
        allowed: only these tokens may be chosen (language detection); default: all but the suppressed ones.
        rules: a ``LogitsProcessor``, such as the library's for times.
        max_new_tokens: default: the ``max_length`` of the generation configuration, which Whisper's ``generate`` counts without
            the prompt since transformers 5; at most what the decoder has positions for, 448 with the prompt as published.

    Returns:
        New tokens of each clip, without the prompt and the end token.
    """
    generation = model.generation_config
    room = min(model.config.max_target_positions - len(prompts[0]), generation.max_length or math.inf)
    ends = end_tokens(generation)
    with torch.inference_mode():
        barred = torch.zeros(model.config.vocab_size, dtype=torch.bool)
        barred[list(generation.suppress_tokens or []) if allowed is None else slice(None)] = True
        barred[list(allowed or [])] = False
        barred = barred.to(states.device)
        at_first = torch.tensor(generation.begin_suppress_tokens or [], dtype=torch.long, device=states.device)
        decoder = network.decoder(model, states, bias, room=len(prompts[0]) + 60)
        found: list[list[int]] = [[] for _ in prompts]
        rows, ended = list(range(len(prompts))), set()
        tokens = torch.tensor(prompts, device=states.device)
        written = tokens
        for step in range(min(room, max_new_tokens or room)):
            logits = decoder.step(tokens).masked_fill(barred, -torch.inf)
            if step == 0:
                logits[:, at_first] = -torch.inf
            if rules is not None:
                logits = rules(written, logits)
            chosen = logits.argmax(dim=-1)
            for row, token in zip(rows, chosen.tolist(), strict=True):
                if token in ends:
                    ended.add(row)
                elif row not in ended:
                    found[row].append(token)
            if len(ended) == len(found):
                break
            alive = [place for place, row in enumerate(rows) if row not in ended]
            if len(alive) <= len(rows) // 2:
                places = torch.tensor(alive, device=states.device)
                decoder.keep(places)
                rows, chosen, written = [rows[place] for place in alive], chosen[places], written[places]
            tokens = chosen[:, None]
            written = torch.cat([written, tokens], dim=1)
    return found


def detect_language(model: Any, states: torch.Tensor, bias: torch.Tensor | None = None) -> list[str]:
    """Return the most probable language code of each clip, as a multilingual model hears it (section 2.3 of the paper).

    Args:
        model, states, bias: as in `greedy`.
    """
    names, start = language_tokens(model.generation_config), [[model.generation_config.decoder_start_token_id]]
    chosen = greedy(model, states, start * len(states), bias, allowed=list(names), max_new_tokens=1)
    return [names[tokens[0]] for tokens in chosen]

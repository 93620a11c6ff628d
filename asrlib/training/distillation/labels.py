"""Pseudo-labels: a teacher's transcripts, and which of them are near enough to the true ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from asrlib import AsrlibError, audio, scoring
from asrlib import text as texts
from asrlib.decoding import guards, search
from asrlib.io import files
from asrlib.io.progress import track
from asrlib.training.distillation.states import EncoderStates

__all__ = ["rate", "repeated_ngrams", "write"]


def repeated_ngrams(text: str, n: int = 5) -> int:
    """Count the runs of n words that have occurred before in a text: the measure 5-Dup of Gandhi et al. 2023, section 6.3.

    A text of a single word said k times has k - n of them; one that never repeats n words has none. Normalise it first.

    Args:
        text: words, separated by white space.
        n: words in a run.
    """
    words = text.split()
    runs = Counter(zip(*(words[first:] for first in range(n)), strict=False))
    return runs.total() - len(runs)


def write(states: EncoderStates, teacher: Any, prompt: list[int], label: str) -> None:
    """Let a teacher transcribe shard by shard, greedily and without timestamps, what is not transcribed yet.

    Its tokens are kept, not its text: the published multilingual tokenizer splits words that begin with t anew (notebook 06).

    Args:
        states: of the clips; each shard gets a file beside it.
        teacher: in the precision in which it computes.
        prompt: tokens before each label.
        label: shown in the progress line; none is shown without it.
    """
    shards = states.shards.items()
    for number, names in track(shards, label, len(states.shards), "shards") if label else shards:
        path = states.folder / f"{number:06d}.jsonl"
        if path.is_file():
            continue
        tokens: list[list[int]] = []
        if names:
            encoder_states, bias = states.batch(names)
            bias = bias if bias is None else bias.to(teacher.device, teacher.dtype)
            most = guards.most_tokens(max(states.places[name][2] for name in names) / audio.SAMPLING_RATE)
            encoder_states = encoder_states.to(teacher.device, teacher.dtype)
            tokens = search.greedy(teacher, encoder_states, [prompt] * len(names), bias, max_new_tokens=most)
        rows = ({"id": name, "tokens": list(row)} for name, row in zip(names, tokens, strict=True))
        files.write_jsonl(path, rows)


def rate(
    states: EncoderStates, ids: Sequence[str], transcripts: Sequence[str], tokenizer: Any, language: str
) -> tuple[dict[str, list[int]], list[dict[str, Any]]]:
    """Compare each label with the transcript of its clip.

    Returns:
        (tokens of each clip's label, rows with ``id``, ``text`` and ``error_percent`` in the order of ``ids``): the error is
        the WER, and the CER in a language without spaces between words.
    """
    found = [row for path in states.folder.glob("*.jsonl") for row in files.read_jsonl(path)]
    labels = {row["id"]: row["tokens"] for row in found}
    if labels.keys() != set(ids):
        raise AsrlibError(
            f"{states.folder} does not hold the labels of these clips: let all processes see the same folder, and delete "
            "it if it is of other clips."
        )
    written = [tokenizer.decode(labels[name], skip_special_tokens=True).strip() for name in ids]
    score = scoring.score(transcripts, written, normalizer=texts.normalizer(language))
    errors = (100 * score.errors / np.maximum(score.lengths, 1)).round(2).tolist()
    rated = zip(ids, written, errors, strict=True)
    return labels, [{"id": name, "text": text, "error_percent": error} for name, text, error in rated]

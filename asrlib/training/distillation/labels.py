"""Pseudo-labels: a teacher's transcripts, and which of them can be believed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from asrlib import AsrlibError, audio, scoring, whisper
from asrlib import text as texts
from asrlib.decoding import guards, search, timestamps
from asrlib.io import files
from asrlib.io.progress import track
from asrlib.training.distillation.states import EncoderStates

__all__ = ["Label", "rate", "read", "repeated_ngrams", "write"]


@dataclass(frozen=True)
class Label:
    """A teacher's transcript of a clip.

    Attributes:
        tokens: with their times, if these were asked for; without prompt and end.
        text: the words.
        logprob: mean log-probability of the tokens.
    """

    tokens: list[int]
    text: str
    logprob: float


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


def write(
    states: EncoderStates, teacher: Any, languages: Mapping[str, str], *, timed: bool = False, label: str = ""
) -> None:
    """Let a teacher transcribe shard by shard, greedily, what is not transcribed yet.

    Its tokens are kept, not its text: the published multilingual tokenizer splits words that begin with t anew (notebook 06).

    Args:
        states: of the clips; each shard gets a file beside it.
        teacher: in the precision in which it computes.
        languages: id -> code of the language that is spoken.
        timed: whether times are written too.
        label: shown in the progress line; none is shown without it.
    """
    generation, shards = teacher.generation_config, states.shards.items()
    for number, names in track(shards, label, len(states.shards), "shards") if label else shards:
        path = states.folder / f"{number:06d}{'-timed' if timed else ''}.jsonl"
        if path.is_file():
            continue
        found: list[search.Found] = []
        if names:
            encoder_states, bias = states.batch(names)
            bias = bias if bias is None else bias.to(teacher.device, teacher.dtype)
            prompts = [whisper.prompt(generation, languages[name], timestamps=timed) for name in names]
            found = search.search(
                teacher, encoder_states.to(teacher.device, teacher.dtype), prompts, bias, scores=True,
                rules=timestamps.Rules(generation, len(prompts[0])) if timed else None,
                max_new_tokens=[
                    guards.most_tokens(states.places[name][2] / audio.SAMPLING_RATE, languages[name]) for name in names
                ],
            )  # fmt: skip
        rows = zip(names, found, strict=True)
        files.write_jsonl(path, ({"id": name, "tokens": one.tokens, "logprob": one.logprob} for name, one in rows))


def read(states: EncoderStates, tokenizer: Any, *, timed: bool = False) -> dict[str, Label]:
    """Return the label of each clip that could be read.

    Raises:
        AsrlibError: labels of other clips, or not of all.
    """
    rows: Iterator[dict[str, Any]] = (
        row
        for path in states.folder.glob("*.jsonl")
        if path.stem.endswith("-timed") == timed
        for row in files.read_jsonl(path)
    )
    found = {row["id"]: row for row in rows}
    if found.keys() != set(states.ids):
        raise AsrlibError(
            f"{states.folder} does not hold the labels of these clips: let all processes see the same folder, and delete "
            "it if it is of other clips."
        )
    return {
        name: Label(row["tokens"], tokenizer.decode(row["tokens"], skip_special_tokens=True).strip(), row["logprob"])
        for name, row in found.items()
    }


def rate(labels: Sequence[Label], transcripts: Sequence[str], language: str, threshold: float) -> list[dict[str, Any]]:
    """Judge labels of one language: by their transcripts where there are such, else by themselves.

    Args:
        labels: of clips.
        transcripts: of the same clips; empty where nobody has written one.
        language: of all.
        threshold: labels with a larger error are dropped (%).

    Returns:
        For each label ``text``, ``error_percent`` (WER; CER in a language without spaces between words; None without a transcript)
        and ``dropped``: why it is not learnt from, or "".
    """
    errors: Iterator[float] = iter(())
    if spoken := [
        (transcript, label.text) for label, transcript in zip(labels, transcripts, strict=True) if transcript
    ]:
        score = scoring.score(*zip(*spoken, strict=True), normalizer=texts.normalizer(language))
        errors = iter((100 * score.errors / np.maximum(score.lengths, 1)).round(2).tolist())
    rows = []
    for label, transcript in zip(labels, transcripts, strict=True):
        error, dropped = None, _doubts(label)
        if transcript:
            error = next(errors)
            dropped = "differs from the transcript" if error > threshold else ""
        rows.append({"text": label.text, "error_percent": error, "dropped": dropped})
    return rows


def _doubts(label: Label) -> str:
    """Return why a label without a transcript is not believed, by the limits of section 3.8 of the Whisper paper."""
    if not label.text:
        return "no words"
    if guards.compression(label.text) > guards.COMPRESSION:
        return "repeats itself"
    return "improbable" if label.logprob < guards.LOGPROB else ""

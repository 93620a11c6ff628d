"""WER of a model on a corpus of any size, in one process or in many, at constant memory."""

from __future__ import annotations

import functools
import heapq
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asrlib import AsrlibError, scoring, text
from asrlib.decoding.batching import Hypothesis
from asrlib.decoding.outcomes import Failed
from asrlib.io import files
from asrlib.tasks import sharding
from asrlib.tasks.sharding import Row

__all__ = ["Evaluation", "evaluate", "worst"]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` has found.

    Attributes:
        unreadable: clips whose audio cannot be read.
        rtfx, tokens_per_second: seconds of audio, and tokens of the transcripts, per second that a process computes.
        clips: the file with all clips.
    """

    score: scoring.Score
    normalizer: str
    unreadable: int
    rtfx: float
    tokens_per_second: float
    clips: Path


def evaluate(
    table: Any,
    transcribe: Callable[[Iterable[tuple[str, Any]]], Iterable[Hypothesis | Failed]],
    folder: Path | str,
    *,
    language: str,
    run: Row,
    tokens: Callable[[str], int],
    label: str = "",
) -> Evaluation | None:
    """Transcribe and score a corpus; to be called alike in each process (`asrlib.tasks.sharding`).

    The folder gets a file for each shard and ``predictions.jsonl``: id, errors, words, reference and hypothesis of each
    readable clip, in the corpus's order. Clips that an earlier run could not read are tried again.

    Args:
        table: rows with ``id``, ``audio``, ``text``, ``seconds`` and ``speaker``, as `asrlib.corpora.load` returns them.
        transcribe: makes one outcome of each (id, audio source), in their order, as `outcomes.transcripts` does.
        folder: for this run and nothing else, the same for all its processes.
        language: code, of the normaliser.
        run: what the hypotheses depend on besides the rows, such as the model and the options of its search.
        tokens: counts those of a text; special tokens and times, which only some runtimes write, do not count.
        label: shown in the progress line; none is shown without it.

    Returns:
        The result; None in all processes but the first.

    Raises:
        AsrlibError: a folder of another run, a full disk, or no clip that can be read.
    """
    sharding.fill(folder, table, functools.partial(_rows, transcribe), {**run, "language": language}, label)
    if not sharding.first_process():
        return None
    tally = scoring.Tally(text.normalizer(language))
    times = {"audio": 0.0, "compute": 0.0, "unreadable": 0, "tokens": 0}
    clips = files.write_jsonl(Path(folder) / "predictions.jsonl", _scored(folder, table, tally, times, tokens))
    if times["unreadable"] == len(table):
        raise AsrlibError(f"None of the {len(table)} clips could be read: nothing was scored.")
    speeds = (times[kind] / times["compute"] for kind in ("audio", "tokens"))
    return Evaluation(tally.score(), tally.normalizer.name, times["unreadable"], *speeds, clips)


def _rows(transcribe: Callable[..., Iterable[Hypothesis | Failed]], rows: list[Row]) -> Iterator[Row]:
    """Yield what is written down of each clip of a shard. A clip may be listed twice, so its place is its name here."""
    for outcome in transcribe((str(place), row["audio"]) for place, row in enumerate(rows)):
        if isinstance(outcome, Failed):
            yield {"failed": outcome.reason}
        else:
            yield {"hypothesis": outcome.text, "seconds": [outcome.seconds_audio, outcome.seconds_compute]}


def _scored(
    folder: Path | str, table: Any, tally: scoring.Tally, times: dict[str, Any], tokens: Callable[[str], int]
) -> Iterator[Row]:
    """Yield what is kept of each readable clip while tally and times (seconds, tokens, unreadable clips) add it up."""
    place = 0
    for rows, made in sharding.merged(folder, table):
        blocks = [sys.intern(row["speaker"]) or at for at, row in enumerate(rows, place)]
        place += len(rows)
        read = [triple for triple in zip(rows, made, blocks, strict=True) if not triple[1].get("failed")]
        times["unreadable"] += len(rows) - len(read)
        references, hypotheses = [row["text"] for row, *_ in read], [done["hypothesis"] for _, done, _ in read]
        counts = tally.add(references, hypotheses, [block for *_, block in read])
        for (row, done, _), (*errors, words) in zip(read, counts.tolist(), strict=True):
            for kind, seconds in zip(("audio", "compute"), done["seconds"], strict=True):
                times[kind] += seconds
            times["tokens"] += tokens(done["hypothesis"])
            texts = {"reference": row["text"], "hypothesis": done["hypothesis"]}
            yield {"id": row["id"], "errors": sum(errors), "words": words, **texts}


def worst(found: Evaluation, number: int) -> list[Row]:
    """Return the clips with the most errors, most first; none without an error."""
    wrong = (clip for clip in files.read_jsonl(found.clips) if clip["errors"])
    return heapq.nlargest(number, wrong, key=lambda clip: clip["errors"])

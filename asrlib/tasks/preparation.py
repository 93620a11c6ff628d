"""A speech data set from long recordings of one's own: cut at pauses, labelled by a model, and filtered (`asrlib.tasks.labelling`)."""

from __future__ import annotations

import functools
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from asrlib import AsrlibError, audio, text
from asrlib.decoding import vad
from asrlib.decoding.outcomes import Outcomes, whole
from asrlib.io import files
from asrlib.tasks import dataset
from asrlib.tasks.labelling import Labeller, Limits, rejection

__all__ = ["Prepared", "cut", "prepare"]

PAUSE = 300  # milliseconds of silence at which speech may be cut
PAD = 100  # milliseconds of sound kept around speech, so that no consonant is lost
JOIN = 1.0  # seconds over which a piece that is too short is joined to its neighbour


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made of its recordings.

    Attributes:
        pieces, kept: how many.
        seconds, kept_seconds: how long they are together.
        splits: split -> kept pieces.
        dropped: reason -> pieces.
        failed: recording -> why it could not be read.
    """

    pieces: int
    kept: int
    seconds: float
    kept_seconds: float
    splits: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def cut(samples: np.ndarray, limits: Limits | None = None) -> list[tuple[int, int]]:
    """Return (first sample, sample after the last) of the pieces of a recording between pauses, by Silero VAD.

    A piece that is too short is joined to the one before it, or takes the next, if no more than `JOIN` seconds lie between.
    One may stay too short; none is too long.

    Args:
        samples: mono float32 at 16 kHz, shape (samples,).
        limits: ``shortest`` and ``longest`` count here.

    Raises:
        AsrlibError: faster-whisper, which carries the VAD, is not installed.
    """
    limits, rate = limits or Limits(), audio.SAMPLING_RATE
    options = {"min_silence_duration_ms": PAUSE, "speech_pad_ms": PAD, "min_speech_duration_ms": PAD}
    pieces: list[tuple[int, int]] = []
    for start, end in vad.speech(samples, max_speech_duration_s=limits.longest, **options):
        if pieces:
            first, last = pieces[-1]
            short = min(last - first, end - start) < limits.shortest * rate
            if short and start - last <= JOIN * rate and end - first <= limits.longest * rate:
                pieces[-1] = (first, end)
                continue
        pieces.append((start, end))
    return pieces


def prepare(
    sources: Iterable[Path | str],
    output: Path | str,
    *,
    model: str = "openai/whisper-base",
    second: str | None = None,
    language: str | None = None,
    limits: Limits | None = None,
) -> Prepared:
    """Make a data set of recordings, which ``corpora.load("folder", root=output)`` reads, or add recordings to it.

    The folder gets ``clips/*.flac`` (the pieces that are kept, 16 kHz), ``labels/*.jsonl`` (all pieces of a recording, with
    their measures), ``outcomes.jsonl`` and at last ``metadata.csv``, with ``listen.html`` to correct it. A recording is known by
    its content: a killed run goes on with the first whose labels are not complete, and one that has changed takes the place of
    what it was. Its name stands in ``speaker``, and all its clips are in one split (`asrlib.tasks.dataset.divide`). A row that
    is in ``metadata.csv`` stays as it is there, corrected or not, and one that was taken out stays out.

    Args:
        sources: audio files; what cannot be read is named on stderr and left out.
        output: a new folder, or one that an earlier call with the same settings has written.
        model: writes the labels; a Hub id or a folder.
        second: another model, for the second transcripts; without it the first gets each piece again, 10 % faster.
        language: code or name; by default the model finds it, for each recording.
        limits: default: `Limits`.

    Returns:
        What the whole folder holds now, and which of these sources failed.

    Raises:
        AsrlibError: models that `transcription.load` refuses, a folder with other content or of other settings, or no piece that
            is kept, or a ``metadata.csv`` that cannot be read. What was finished stays.
    """
    output, limits = files.user_path(output), limits or Limits()
    language = language and text.language_code(language)
    run = {"model": str(model), "second": second or "", "language": language or "", "limits": asdict(limits)}
    with files.lock(output):
        if output.is_file():
            raise AsrlibError(f"{output} is a file: name a folder for the data set.")
        others = {path.name for path in output.glob("*")}  # a killed run may have left the lock, or half of run.json
        if "run.json" not in others and any("run.json" not in name for name in others):
            raise AsrlibError(f"{output} holds other files: name a new folder for the data set.")
        files.reserve(output, run, "model, language or limits")
        dataset.read(output)  # an error in it shows before the work, not after
        made, labeller = Outcomes(output), functools.cache(lambda: Labeller(model, second, language))
        failed = {}
        for source in map(files.user_path, sources):
            if reason := _prepare_one(source, output, made, labeller, limits):
                failed[str(source)] = reason
        return _written(output, made, failed)


def _prepare_one(source: Path, output: Path, made: Outcomes, labeller: Callable[[], Labeller], limits: Limits) -> str:
    """Cut, label and write one recording unless that is done; return why it cannot be read, or nothing."""
    stem = source.stem.encode(errors="backslashreplace").decode()  # a name that is no UTF-8 has no place in a table
    content = made.content(source)[:8]
    known = [path.stem for path in sorted((output / "labels").glob(f"*-{content}.jsonl"))]  # under another name
    name = known[0] if known else f"{stem}-{content}"
    if not _finished(output, name):
        try:
            samples = audio.load(source)
        except AsrlibError as error:
            print(f"asrlib: {error}", file=sys.stderr)
            earlier = made.of.get(whole(source), {}).get("name", "")  # what was made of it before it broke is not lost
            made.add(source, failed=str(error), name=earlier)
            return str(error)
        files.write_jsonl(_listing(output, name), _pieces(samples, output, name, labeller(), limits))
    if not made.done(source, name=name):
        made.add(source, name=name)
    return ""


def _listing(output: Path, name: str) -> Path:
    return output / "labels" / f"{name}.jsonl"


def _finished(output: Path, name: str) -> bool:
    """Tell whether a recording's labels, which are written last, and all its clips are there."""
    listing = _listing(output, name)
    return listing.is_file() and all(
        (output / row["clip"]).is_file() for row in files.read_jsonl(listing) if row["clip"]
    )


def _pieces(
    samples: np.ndarray, output: Path, name: str, labeller: Labeller, limits: Limits
) -> Iterator[dict[str, Any]]:
    """Write the pieces of one recording that are kept, and yield a row of each piece."""
    spans, rate = cut(samples, limits), audio.SAMPLING_RATE
    long = [(first, last) for first, last in spans if last - first >= limits.shortest * rate]
    labels = dict(zip(long, labeller.label([samples[first:last] for first, last in long], name), strict=True))
    for number, (first, last) in enumerate(spans, 1):
        found = labels.get((first, last))
        dropped = rejection(found, limits) if found else "too short"
        clip = "" if dropped else f"clips/{name}-{number:04}.flac"
        if clip:
            stream = io.BytesIO()
            soundfile.write(stream, samples[first:last], rate, format="FLAC", subtype="PCM_16")
            files.write_atomic(output / clip, stream.getvalue())
        times = {"start": round(first / rate, 3), "end": round(last / rate, 3)}
        yield {
            "clip": clip,
            "recording": name,
            **times,
            "dropped": dropped,
            **(asdict(found) if found else {"text": ""}),
        }


def _written(output: Path, made: Outcomes, failed: dict[str, str]) -> Prepared:
    """Bring the table up to date with the recordings of this and of earlier calls, and count the pieces."""
    names = dict.fromkeys(row["name"] for row in made.of.values() if row.get("name"))
    pieces = {name: list(files.read_jsonl(_listing(output, name))) for name in names if _finished(output, name)}
    place, rows = output / "splits.json", dataset.read(output)
    listed = files.read_json(place) if place.is_file() else {}  # recording -> split, of those that the table has or had
    seconds = {name: _seconds(piece for piece in pieces[name] if piece["clip"]) for name in pieces}
    have: Counter[str] = Counter()
    for name in listed.keys() & pieces.keys():
        have[listed[name]] += seconds[name]
    splits = dataset.divide({name: length for name, length in seconds.items() if length and name not in listed}, have)
    table = {row["file_name"]: row for row in rows or () if _is_current(row["file_name"], output, names)}
    for name, split in (splits if rows is not None else listed | splits).items():
        for piece in pieces.get(name, ()):
            if piece["clip"]:
                table.setdefault(piece["clip"], _row(piece, split))
    everything = [piece for found in pieces.values() for piece in found]
    if not table:
        raise AsrlibError(f"None of {len(everything)} pieces of speech can be kept: {output / 'labels'} says why.")
    dataset.write(output, table.values(), {piece["clip"]: piece["logprob"] for piece in everything if piece["clip"]})
    files.write_atomic(place, json.dumps(listed | splits, indent=1))  # last: a killed run lists its recordings again
    left = [piece for piece in everything if piece["clip"] in table]
    counts = Counter(row.get("split", "") for row in table.values())
    dropped = Counter(piece["dropped"] for piece in everything if piece["dropped"])
    return Prepared(
        len(everything), len(left), _seconds(everything), _seconds(left), dict(counts), dict(dropped), failed
    )


def _is_current(clip: str, output: Path, names: Container[str]) -> bool:
    """Tell whether a clip is not of a recording that has since changed; one that people have added is none."""
    name = Path(clip).stem.rpartition("-")[0]
    return name in names or not _listing(output, name).is_file()


def _row(piece: dict[str, Any], split: str) -> dict[str, str]:
    values = (piece["clip"], piece["text"], piece["language"], piece["recording"], split)
    return dict(zip(dataset.COLUMNS, values, strict=True))


def _seconds(rows: Iterable[dict[str, Any]]) -> float:
    return sum(row["end"] - row["start"] for row in rows)

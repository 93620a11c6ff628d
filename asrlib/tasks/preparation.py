"""A speech data set from long recordings of one's own: cut at pauses, labelled by a model, and filtered.

The labels are pseudo-labels: nobody has listened to them. Each piece gets five measures of how likely its label is wrong: the mean
log-probability of the label, its compression ratio and the probability of no speech, as in the Whisper paper (arXiv:2212.04356,
section 4.5); the probability that the piece is in the language of the label; and the disagreement with a second transcript. Pieces
beyond a limit of one of them are dropped; `prepare` writes the measures of all, so that a limit can be chosen anew.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asrlib import AsrlibError, audio, scoring, text, whisper
from asrlib.decoding import network, search, transcription
from asrlib.decoding.outcomes import Outcomes
from asrlib.io import files
from asrlib.io.progress import track
from asrlib.whisper import WINDOW_SECONDS

if TYPE_CHECKING:
    import torch

__all__ = ["Label", "Limits", "Prepared", "cut", "label", "prepare", "rejection"]

PAUSE = 300  # milliseconds of silence at which speech may be cut
PAD = 100  # milliseconds of sound kept around speech, so that no consonant is lost
JOIN = 1.0  # seconds over which a piece that is too short is joined to its neighbour
BATCH = 8  # pieces labelled together
FASTER = 1.1  # speed of the sound when the same model transcribes it again
ASKED = 8  # pieces whose votes decide the language of a recording


@dataclass(frozen=True)
class Limits:
    """What a piece must keep to.

    Attributes:
        shortest, longest: seconds of a piece; no label can be learnt from more than a window of 30.
        logprob: mean log-probability of the label's tokens that is at least needed, in nats.
        compression: bytes of the label over those of its zlib compression; more means a loop of repeated text.
        no_speech: probability of no speech that is at most allowed.
        in_language: probability of the label's language, among all languages, that is at least needed: a model that is told a
            wrong language writes fluent nonsense, or translates.
        disagreement: WER (%) of the second transcript against the label that is at most allowed; CER in a language without
            spaces between words.

    The paper's limits, -1 and 2.4, say when a decoder should try again. Labels to learn from are better chosen more strictly;
    notebook 11 shows what each limit lets through.
    """

    shortest: float = 2.0
    longest: float = 30.0
    logprob: float = -0.6
    compression: float = 2.4
    no_speech: float = 0.6
    in_language: float = 0.1
    disagreement: float = 25.0

    def __post_init__(self) -> None:
        if not 0 <= self.shortest < self.longest <= WINDOW_SECONDS:
            raise AsrlibError(
                f"Pieces are from 0 to {WINDOW_SECONDS} s long: {self.shortest:g} to {self.longest:g} s is no such range."
            )


@dataclass(frozen=True)
class Label:
    """What a model wrote for a piece, and how sure it was; the attributes are those of `Limits`."""

    text: str
    language: str
    logprob: float
    compression: float
    no_speech: float
    in_language: float = 1.0
    disagreement: float = 0.0


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made of its recordings.

    Attributes:
        pieces, kept: how many.
        seconds, kept_seconds: how long they are together.
        dropped: reason -> pieces.
        failed: recording -> why it could not be read.
    """

    pieces: int
    kept: int
    seconds: float
    kept_seconds: float
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
    try:
        from faster_whisper.vad import VadOptions, get_speech_timestamps
    except ImportError:
        raise AsrlibError("Speech is found by the VAD in faster-whisper: pip install 'asrlib[peers]' first.") from None
    limits, rate = limits or Limits(), audio.SAMPLING_RATE
    options = VadOptions(
        min_silence_duration_ms=PAUSE,
        speech_pad_ms=PAD,
        max_speech_duration_s=limits.longest,
        min_speech_duration_ms=PAD,
    )
    pieces: list[tuple[int, int]] = []
    for span in get_speech_timestamps(samples, options):
        start, end = span["start"], span["end"]
        if pieces:
            first, last = pieces[-1]
            short = min(last - first, end - start) < limits.shortest * rate
            if short and start - last <= JOIN * rate and end - first <= limits.longest * rate:
                pieces[-1] = (first, end)
                continue
        pieces.append((start, end))
    return pieces


def label(model: Any, processor: Any, pieces: Sequence[np.ndarray], language: str) -> Iterator[Label]:
    """Transcribe pieces greedily, without timestamps, and yield each label with the model's own confidence.

    Args:
        model: a ``WhisperForConditionalGeneration`` in eval mode.
        processor: its ``WhisperProcessor``.
        pieces: arrays of at most 30 s at 16 kHz.
        language: code of the language.
    """
    start = whisper.prompt(model.generation_config, language)
    for first in range(0, len(pieces), BATCH):
        states = _encode(model, processor, pieces[first : first + BATCH])
        tokens = search.greedy(model, states, [start] * len(states))
        measures = _confidence(model, states, start, tokens)
        for row, (logprob, no_speech, in_language) in zip(tokens, measures, strict=True):
            written = processor.tokenizer.decode(row, skip_special_tokens=True).strip()
            yield Label(written, language, logprob, _compression(written), no_speech, in_language)


def _encode(model: Any, processor: Any, pieces: Sequence[np.ndarray]) -> torch.Tensor:
    """Return the encoder's states of some pieces, (pieces, positions, width)."""
    features = processor(list(pieces), sampling_rate=audio.SAMPLING_RATE, return_tensors="pt").input_features
    return network.encode(model, features.to(model.device, model.dtype))[0]


def _confidence(
    model: Any, states: torch.Tensor, start: list[int], tokens: Sequence[list[int]]
) -> Iterator[tuple[float, float, float]]:
    """Yield each label's mean log-probability, its end token included, and the probabilities of no speech and of its language.

    One pass over what was written. No speech is a token that could have come in the place of the language.
    """
    import torch

    generation = model.generation_config
    end, longest = min(whisper.end_tokens(generation)), max(map(len, tokens))
    filled = [start + row + [end] * (longest - len(row)) for row in tokens]
    with torch.inference_mode():
        read = torch.tensor(filled, device=states.device)
        hidden = model.model.decoder(input_ids=read, encoder_hidden_states=states, use_cache=False).last_hidden_state
        for outputs, row in zip(hidden, tokens, strict=True):  # one by one: a vocabulary is wide
            chosen = torch.tensor([*row, end], device=states.device)
            steps = outputs[len(start) - 1 :][: len(chosen)]
            found = model.proj_out(steps).float().log_softmax(dim=-1).gather(1, chosen[:, None])
            first = model.proj_out(outputs[0]).float().softmax(dim=-1)
            silent = first[whisper.no_speech_token(generation)].item()
            yield found.mean().item(), silent, _share(first, start, generation)


def _share(first: torch.Tensor, start: list[int], generation: Any) -> float:
    """Return the given language's part in the probability of all languages; 1 for a model that knows only one."""
    if not whisper.is_multilingual(generation):
        return 1.0
    return (first[start[1]] / first[list(whisper.language_tokens(generation))].sum()).item()


def _compression(written: str) -> float:
    data = written.encode()
    return len(data) / len(zlib.compress(data))


def rejection(found: Label, limits: Limits) -> str:
    """Return why a label is dropped, in a few words; empty where it keeps to all limits."""
    reasons = {
        "no words": not found.text,
        "no speech": found.no_speech > limits.no_speech,
        "repeated text": found.compression > limits.compression,
        "another language": found.in_language < limits.in_language,
        "improbable": found.logprob < limits.logprob,
        "transcripts differ": found.disagreement > limits.disagreement,
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


class _Labeller:
    """A model that labels pieces, and a second transcript to compare with: another model's, or its own of the sound played faster.

    The same model must get another input if it is to disagree: faster sound moves each of its frames, merged padding hardly any.
    """

    def __init__(self, model: str, second: str | None, language: str | None) -> None:
        self.first = transcription.load(model)
        self.second = transcription.load(second) if second else self.first
        self.faster = 1.0 if second else FASTER
        for name, (loaded, _) in {model: self.first, second or model: self.second}.items():
            if not hasattr(loaded, "proj_out"):
                raise AsrlibError(f"{name} was exported to ONNX: label with the checkpoint that it came from.")
            if language:
                whisper.prompt(loaded.generation_config, language)  # an English-only model refuses other languages
        self.language = language if whisper.is_multilingual(self.first[0].generation_config) else "en"

    def label(self, pieces: Sequence[np.ndarray], name: str) -> list[Label]:
        """Label the pieces of one recording, whose name goes before the progress."""
        if not pieces:
            return []
        language = self.language or self._vote(pieces[:ASKED])
        labels = list(track(label(*self.first, pieces, language), f"{name}: pieces labelled", len(pieces)))
        again = track(self._again(pieces, labels), f"{name}: second transcripts", len(pieces))
        return [
            replace(found, disagreement=_disagreement(found.text, other, language))
            for found, other in zip(labels, again, strict=True)
        ]

    def _again(self, pieces: Sequence[np.ndarray], labels: Sequence[Label]) -> Iterator[str]:
        """Yield a second transcript of labelled pieces.

        No token is less than a byte: a transcript of more tokens than the label has bytes differs already, so it ends there.
        """
        import soxr

        model, processor = self.second
        start = whisper.prompt(model.generation_config, labels[0].language)
        for first in range(0, len(pieces), BATCH):
            batch = [soxr.resample(piece, self.faster, 1) for piece in pieces[first : first + BATCH]]
            most = 20 + max(len(found.text.encode()) for found in labels[first : first + BATCH])
            states = _encode(model, processor, batch)
            tokens = search.greedy(model, states, [start] * len(batch), max_new_tokens=most)
            yield from processor.batch_decode(tokens, skip_special_tokens=True)

    def _vote(self, pieces: Sequence[np.ndarray]) -> str:
        """Return the language that most pieces are taken for."""
        votes = search.detect_language(self.first[0], _encode(*self.first, pieces))
        return Counter(votes).most_common(1)[0][0]


def _disagreement(first: str, second: str, language: str) -> float:
    """Return the WER (%) of a second transcript against the first; the CER in a language without spaces between words."""
    normalize = text.normalizer(language)
    first, second = (" ".join(text.units(normalize(side), language)) for side in (first, second))
    if not first:
        return 0.0
    pairs = scoring.align(first, second).pairs
    return 100 * sum(kind != "equal" for kind, *_ in pairs) / len(first.split())


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
    their measures), ``outcomes.jsonl`` and at last ``metadata.csv``. A recording is known by its content: a killed run goes on
    with the first whose labels are not complete, and one that has changed takes the place of what it was. All clips are of the
    split ``train``, since a model cannot be tested with labels of its own kind; a recording's name stands in ``speaker``.

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
            is kept. What was finished stays.
    """
    output, limits = files.user_path(output), limits or Limits()
    language = language and text.language_code(language)
    run = {"model": str(model), "second": second or "", "language": language or "", "limits": asdict(limits)}
    with files.lock(output):
        _reserve(output, run)
        made, failed, labeller = Outcomes(output), {}, None
        for source in map(files.user_path, sources):
            name = f"{source.stem}-{made.content(source)[:8]}"
            if not _finished(output, name):
                try:
                    samples = audio.load(source)
                except AsrlibError as error:
                    print(f"asrlib: {error}", file=sys.stderr)
                    failed[str(source)] = str(error)
                    made.add(source, failed=str(error))
                    continue
                labeller = labeller or _Labeller(model, second, language)
                _prepare_one(samples, output, name, labeller, limits)
            if not made.done(source, name=name):
                made.add(source, name=name)
        return _written(output, made, failed)


def _written(output: Path, made: Outcomes, failed: dict[str, str]) -> Prepared:
    """Write the table of the pieces that are kept, of this and of earlier calls, and count them."""
    names = dict.fromkeys(row["name"] for row in made.of.values() if not row["failed"])
    rows = [row for name in names if _finished(output, name) for row in files.read_jsonl(_listing(output, name))]
    kept = [row for row in rows if not row["dropped"]]
    if not kept:
        raise AsrlibError(f"None of {len(rows)} pieces of speech can be kept: {output / 'labels'} says why.")
    files.write_atomic(output / "metadata.csv", _table(kept))
    seconds, kept_seconds = (sum(row["end"] - row["start"] for row in some) for some in (rows, kept))
    dropped = Counter(row["dropped"] for row in rows if row["dropped"])
    return Prepared(len(rows), len(kept), seconds, kept_seconds, dict(dropped), failed)


def _reserve(output: Path, run: dict[str, Any]) -> None:
    """Say what a folder is made with, once; refuse one that holds something else."""
    if output.exists() and not output.is_dir():
        raise AsrlibError(f"{output} is a file: name a folder for the data set.")
    known = files.read_json(output / "run.json")
    if not known and output.exists() and any(path.suffix != ".part" for path in output.iterdir()):
        raise AsrlibError(f"{output} holds other files: name a new folder for the data set.")
    if known not in ({}, run):
        other = ", ".join(sorted(key for key in run if known.get(key) != run[key]))
        raise AsrlibError(f"{output} was begun with another {other}: name a new folder, or give the same settings.")
    files.write_atomic(output / "run.json", json.dumps(run))


def _listing(output: Path, name: str) -> Path:
    return output / "labels" / f"{name}.jsonl"


def _finished(output: Path, name: str) -> bool:
    """Tell whether a recording's labels and all its clips are there; the labels were written last."""
    listing = _listing(output, name)
    return listing.is_file() and all(
        (output / row["clip"]).is_file() for row in files.read_jsonl(listing) if row["clip"]
    )


def _prepare_one(samples: np.ndarray, output: Path, name: str, labeller: _Labeller, limits: Limits) -> None:
    """Cut, label and write one recording."""
    spans, rate = cut(samples, limits), audio.SAMPLING_RATE
    long = [span for span in spans if span[1] - span[0] >= limits.shortest * rate]
    labels = dict(zip(long, labeller.label([samples[first:last] for first, last in long], name), strict=True))
    rows = []
    for number, (first, last) in enumerate(spans, 1):
        found = labels.get((first, last))
        dropped = rejection(found, limits) if found else "too short"
        clip = "" if dropped else f"clips/{name}-{number:04}.flac"
        if clip:
            files.write_atomic(output / clip, _flac(samples[first:last]))
        scores = asdict(found) if found else {"text": ""}
        times = {"start": round(first / rate, 3), "end": round(last / rate, 3)}
        rows.append({"clip": clip, "recording": name, **times, "dropped": dropped, **scores})
    files.write_jsonl(_listing(output, name), rows)


def _flac(samples: np.ndarray) -> bytes:
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, samples, audio.SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def _table(rows: Iterable[dict[str, Any]]) -> str:
    """Return ``metadata.csv`` as `asrlib.corpora` reads it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["file_name", "transcription", "language", "speaker", "split"])
    writer.writerows([row["clip"], row["text"], row["language"], row["recording"], "train"] for row in rows)
    return stream.getvalue()

"""A speech data set from long recordings of one's own: cut at pauses, labelled by a model, and filtered by doubt.

The labels are pseudo-labels: nobody has listened to them. What can be had without a listener is doubt, and each piece gets five
kinds of it: the mean log-probability of the label, its compression ratio and the probability of no speech, as in the Whisper paper
(arXiv:2212.04356, section 4.5); the probability that the piece is in the language of the label; and the disagreement with a second
hearing. Pieces that raise one of them are left out; `prepare` writes what all of them were, so that a limit can be chosen anew.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asrlib import AsrlibError, audio, scoring, text
from asrlib.decoding import guards, network, search, transcription, vad, words
from asrlib.io import files
from asrlib.io.progress import track

if TYPE_CHECKING:
    import torch

__all__ = ["Label", "Limits", "Prepared", "cut", "doubt", "label", "prepare"]

WINDOW = 30.0  # seconds that a model hears at once
PAUSE = 300  # milliseconds of silence at which speech may be cut
PAD = 100  # milliseconds of sound kept around speech, so that no consonant is lost
JOIN = 1.0  # seconds over which a piece that is too short is joined to its neighbour
BATCH = 8  # pieces labelled together
FASTER = 1.1  # speed of a second hearing by the same model
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
        disagreement: WER (%) of the second hearing against the label that is at most allowed.

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
        if not 0 <= self.shortest < self.longest <= WINDOW:
            raise AsrlibError(
                f"Pieces are from 0 to {WINDOW:g} s long: {self.shortest:g} to {self.longest:g} s is no such range."
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
    """

    pieces: int
    kept: int
    seconds: float
    kept_seconds: float
    dropped: dict[str, int] = field(default_factory=dict)


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


def label(model: Any, processor: Any, pieces: Sequence[np.ndarray], language: str) -> Iterator[Label]:
    """Transcribe pieces greedily, without timestamps, and yield each label with the model's own confidence.

    Args:
        model: a ``WhisperForConditionalGeneration`` in eval mode.
        processor: its ``WhisperProcessor``.
        pieces: arrays of at most 30 s at 16 kHz.
        language: code of the language.
    """
    start = words.prompt(model, language)
    for first in range(0, len(pieces), BATCH):
        states = _encode(model, processor, pieces[first : first + BATCH])
        tokens = search.greedy(model, states, [start] * len(states))
        for said, (logprob, silent, told) in zip(tokens, _confidence(model, states, start, tokens), strict=True):
            written = processor.tokenizer.decode(said, skip_special_tokens=True).strip()
            yield Label(written, language, logprob, guards.compression(written), silent, told)


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
    end, silence = generation.eos_token_id, generation.no_timestamps_token_id - 1
    longest = max(map(len, tokens))
    filled = [start + said + [end] * (longest - len(said)) for said in tokens]
    with torch.inference_mode():
        read = torch.tensor(filled, device=states.device)
        hidden = model.model.decoder(input_ids=read, encoder_hidden_states=states, use_cache=False).last_hidden_state
        for row, said in zip(hidden, tokens, strict=True):  # one by one: a vocabulary is wide
            chosen = torch.tensor([*said, end], device=states.device)
            steps = row[len(start) - 1 :][: len(chosen)]
            found = model.proj_out(steps).float().log_softmax(dim=-1).gather(1, chosen[:, None])
            first = model.proj_out(row[0]).float().softmax(dim=-1)
            yield found.mean().item(), first[silence].item(), _share(first, start, generation)


def _share(first: torch.Tensor, start: list[int], generation: Any) -> float:
    """Return the told language's part in the probability of all languages; 1 for a model that knows only one."""
    if not getattr(generation, "is_multilingual", True):
        return 1.0
    return (first[start[1]] / first[list(generation.lang_to_id.values())].sum()).item()


def doubt(found: Label, limits: Limits) -> str:
    """Return why a label is not to be believed, in a few words; empty where nothing speaks against it."""
    reasons = {
        "no words": not found.text,
        "no speech": found.no_speech > limits.no_speech,
        "repeated text": found.compression > limits.compression,
        "another language": found.in_language < limits.in_language,
        "improbable": found.logprob < limits.logprob,
        "hearings differ": found.disagreement > limits.disagreement,
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


class _Hearing:
    """A model that labels pieces, and a second opinion: another model's, or its own of the sound played faster.

    The same model must hear something else if it is to disagree: faster sound moves each of its frames, merged padding hardly any.
    """

    def __init__(self, model: str, second: str | None, language: str | None) -> None:
        self.first = transcription.load(model)
        self.second = transcription.load(second) if second else self.first
        self.faster = 1.0 if second else FASTER
        for name, (loaded, _) in {model: self.first, second or model: self.second}.items():
            if not hasattr(loaded, "proj_out"):
                raise AsrlibError(f"{name} was exported to ONNX: label with the checkpoint that it came from.")
            if language:
                words.prompt(loaded, language)  # an English-only model refuses other languages
        multilingual = getattr(self.first[0].generation_config, "is_multilingual", True)
        self.language = language if multilingual else "en"

    def hear(self, pieces: Sequence[np.ndarray], name: str) -> list[Label]:
        """Label the pieces of one recording, whose name goes before the progress."""
        if not pieces:
            return []
        language = self.language or self._vote(pieces[:ASKED])
        labels = list(track(label(*self.first, pieces, language), f"{name}: pieces labelled", len(pieces)))
        again = track(self._again(pieces, labels), f"{name}: second hearing", len(pieces))
        normalize = text.normalizer(language)
        return [
            replace(found, disagreement=_disagreement(normalize(found.text), normalize(other)))
            for found, other in zip(labels, again, strict=True)
        ]

    def _again(self, pieces: Sequence[np.ndarray], labels: Sequence[Label]) -> Iterator[str]:
        """Yield what the second hearing makes of labelled pieces.

        No token is less than a byte: a hearing of more tokens than the label has bytes differs already, so it ends there and
        need not go round in its loop.
        """
        import soxr

        model, processor = self.second
        start = words.prompt(model, labels[0].language)
        for first in range(0, len(pieces), BATCH):
            batch = [soxr.resample(piece, self.faster, 1) for piece in pieces[first : first + BATCH]]
            most = 20 + max(len(found.text.encode()) for found in labels[first : first + BATCH])
            states = _encode(model, processor, batch)
            tokens = search.greedy(model, states, [start] * len(batch), max_new_tokens=most)
            yield from processor.batch_decode(tokens, skip_special_tokens=True)

    def _vote(self, pieces: Sequence[np.ndarray]) -> str:
        """Return the language that most pieces are taken for."""
        generation = self.first[0].generation_config
        start, codes = [[generation.decoder_start_token_id]] * len(pieces), generation.lang_to_id
        states = _encode(*self.first, pieces)
        votes = search.greedy(self.first[0], states, start, allowed=list(codes.values()), max_new_tokens=1)
        names = {token: name.strip("<|>") for name, token in codes.items()}
        return Counter(names[vote[0]] for vote in votes).most_common(1)[0][0]


def _disagreement(first: str, second: str) -> float:
    """Return the WER (%) of a second hearing against the first."""
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
    """Make a data set of recordings, which ``corpora.load("folder", root=output)`` reads.

    The folder gets ``clips/*.flac`` (the pieces that are kept, 16 kHz), ``labels/*.jsonl`` (all pieces of a recording, with
    what speaks against them) and at last ``metadata.csv``. A recording is known by its content: a killed run goes on with the
    first whose labels are not complete, and a later call with more recordings adds them. All clips are of the split ``train``,
    since a model cannot be tested with labels of its own kind; a recording's name stands in the column ``speaker``.

    Args:
        sources: audio files.
        output: a new folder, or one that an earlier call with the same settings has written.
        model: writes the labels; a Hub id or a folder.
        second: another model, for a second hearing; without it the first hears each piece again, 10 % faster.
        language: code or name; by default the model finds it, for each recording.
        limits: default: `Limits`.

    Raises:
        AsrlibError: a source that `audio.load` refuses, models that `transcription.load` refuses, a folder with other content
            or of other settings, or no piece that is kept. What was finished stays.
    """
    output, limits = files.user_path(output), limits or Limits()
    language = language and text.language_code(language)
    sources = [files.user_path(source) for source in sources]
    for source in sources:
        audio.duration(source)  # what is no audio at all is told before the models are loaded
    names = {f"{source.stem}-{files.sha256(source)[:8]}": source for source in sources}
    run = {"model": str(model), "second": second or "", "language": language or "", "limits": asdict(limits)}
    with files.lock(output):
        _reserve(output, run)
        hearing = None
        for name in names:
            if not _finished(output, name):
                hearing = hearing or _Hearing(model, second, language)
                _prepare_one(names[name], output, name, hearing, limits)
        rows = [row for name in names for row in files.read_jsonl(_listing(output, name))]
        kept = [row for row in rows if not row["dropped"]]
        if not kept:
            raise AsrlibError(f"None of {len(rows)} pieces of speech can be kept: {output / 'labels'} says why.")
        files.write_atomic(output / "metadata.csv", _table(kept))
    length = [row["end"] - row["start"] for row in rows]
    kept_length = sum(row["end"] - row["start"] for row in kept)
    dropped = Counter(row["dropped"] for row in rows if row["dropped"])
    return Prepared(len(rows), len(kept), sum(length), kept_length, dict(dropped))


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


def _prepare_one(source: Path, output: Path, name: str, hearing: _Hearing, limits: Limits) -> None:
    """Cut, label and write one recording."""
    samples, rate = audio.load(source), audio.SAMPLING_RATE
    spans = cut(samples, limits)
    long = [span for span in spans if span[1] - span[0] >= limits.shortest * rate]
    labels = dict(zip(long, hearing.hear([samples[first:last] for first, last in long], name), strict=True))
    rows = []
    for number, (first, last) in enumerate(spans, 1):
        found = labels.get((first, last))
        dropped = doubt(found, limits) if found else "too short"
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

"""Transcripts that several systems have written, side by side against one reference: of one long file, or of many."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from asrlib import AsrlibError, alignment, scoring, text
from asrlib.io import files
from asrlib.scoring import Difference, Score
from asrlib.uncertainty import MIN_UNITS

__all__ = ["STRETCH", "SUFFIXES", "Comparison", "compare", "read"]

STRETCH = 15  # words of the stretches of a long text that are resampled
SUFFIXES = (".txt", ".srt", ".vtt", ".json")
TIMES = re.compile(r"^[\d:.,]+\s*-->\s*\d")
WORD_TIME = re.compile(r"<[\d:.]+>")
TAG = re.compile(r"</?[a-z][^>]*>|<[\d:.]+>")  # of subtitles: speakers, styles, times of words


@dataclass(frozen=True)
class Comparison:
    """Systems against one reference.

    Attributes:
        scores: by system, the lowest WER first.
        first: the system that was named first, with which the others are compared: the best of the same words would look
            better than it is.
        differences: of each other system, its WER minus that of the first, both with loops capped.
        unit: what is resampled: ``stretch`` or ``recording``.
        normalizer: its name.
    """

    scores: dict[str, Score]
    first: str
    differences: dict[str, Difference]
    unit: str
    normalizer: str


def read(path: Path) -> str:
    """Return the words of a transcript: plain text, SRT, WebVTT, or JSON with ``text`` or ``segments``.

    Raises:
        AsrlibError: a file that cannot be read as its name says.
    """
    if not path.exists():
        raise AsrlibError(f"There is no {path}: give a file of text or of subtitles, or a folder of them.")
    if path.suffix.lower() == ".json":
        content = files.read_json(path)
        if isinstance(content.get("text"), str):
            return content["text"]
        try:
            return " ".join(segment["text"] for segment in content["segments"])
        except (KeyError, TypeError):
            raise AsrlibError(f"{path} holds no transcript: a JSON file needs text, or segments with text.") from None
    try:
        said = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AsrlibError(f"{path} cannot be read as text in UTF-8 ({error}): check the file.") from None
    return _spoken(said) if path.suffix.lower() in (".srt", ".vtt") else said


def _spoken(subtitles: str) -> str:
    """Return the words of subtitles: of each block, what follows the line with its times.

    Automatic captions, which have a time at each word, roll up: a block begins with the last line of the block before it, and a
    line with a space in it does not end it.
    """
    rolls, words = bool(WORD_TIME.search(subtitles)), []
    for block in re.split(r"\n\n+" if rolls else r"\n\s*\n", subtitles.replace("\r", "")):
        lines = [TAG.sub("", line).strip() for line in block.split("\n")]
        times = next((place for place, line in enumerate(lines) if TIMES.match(line)), None)
        shown = [line for line in lines[times + 1 :] if line] if times is not None else []
        words += shown[1:] if rolls and words and shown[:1] == words[-1:] else shown
    return html.unescape(" ".join(words))


def compare(reference: Path, hypotheses: Sequence[Path], language: str, *, seed: int = 0) -> Comparison:
    """Score what systems have written.

    Ten recordings and more are resampled whole; of fewer, stretches of `STRETCH` words are, as if they were independent.

    Args:
        reference: a file, or a folder of files.
        hypotheses: for each system a file, or a folder with a file of the same stem for each of the references.
        language: code, of the normaliser.
        seed: of the bootstrap.

    Raises:
        AsrlibError: files that are missing or cannot be read, or a reference without words.
    """
    normalize = text.normalizer(language)
    said = {stem: normalize(read(path)) for stem, path in _texts(reference).items()}
    if empty := [stem for stem, words in said.items() if not words.strip()]:
        raise AsrlibError(f"The reference {empty[0]} in {reference} holds no word: take it out.")
    unit = "recording" if len(said) >= MIN_UNITS else "stretch"
    scores = {}
    for name, place in zip(_names(hypotheses), hypotheses, strict=True):
        written = _texts(place)
        if missing := [stem for stem in said if stem not in written]:
            if place.is_dir() or reference.is_dir():
                raise AsrlibError(f"{place} has no transcript of {missing[0]}: each reference needs one of its name.")
            written = dict(zip(said, written.values(), strict=True))  # two files need not have the same name
        cut = [
            (stem, *pair)
            for stem in said
            for pair in alignment.stretches(said[stem], normalize(read(written[stem])), STRETCH)
        ]
        stems, references, heard = zip(*cut, strict=True)
        blocks = stems if unit == "recording" else None
        scores[name] = scoring.score(references, heard, blocks=blocks, seed=seed)
    (first, base), *others = scores.items()
    differences = {name: scoring.compare(score.capped, base.capped, seed=seed) for name, score in others}
    scores = dict(sorted(scores.items(), key=lambda pair: pair[1].wer))
    return Comparison(scores, first, differences, unit, normalize.name)


def _texts(place: Path) -> dict[str, Path]:
    """Return the transcripts of a place by their stems."""
    if not place.is_dir():
        return {place.stem: place}
    found = [path for path in sorted(place.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not found:
        raise AsrlibError(f"{place} holds no transcript ({', '.join(SUFFIXES)}): name another folder.")
    stems = [path.stem for path in found]
    if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise AsrlibError(f"{place} holds {twice} in several forms: keep one.")
    return dict(zip(stems, found, strict=True))


def _names(places: Iterable[Path]) -> list[str]:
    """Return what systems are called: as short as tells them apart."""
    places = list(places)
    for name in (lambda path: path.stem, lambda path: path.name, str):
        if len({name(path) for path in places}) == len(places):
            return [name(path) for path in places]
    raise AsrlibError("A system is named twice: name each of its transcripts once.")

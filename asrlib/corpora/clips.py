"""A clip of a packaged corpus: where it lies, and what exactly was said in it."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Clip", "Clips", "clean", "fingerprint"]

_QUOTES = str.maketrans({"’": "'", "‘": "'", **dict.fromkeys('"“”„«»‹›', "")})
_EMPTY_BRACKETS = re.compile(r"\[\W*\]|\(\W*\)")  # "dash [-]" names the key that is spelled
_ELLIPSIS = re.compile(r"…|\.{2,}")  # the prompt goes on in another clip
# A question mark within a word or before a small letter was an accented letter once; "name-of-prompt:" inside a transcript is
# the beginning of the next one.
_DAMAGED = re.compile(r"\ufffd|\w\?\w|\w-[\w-]+:")
_QUESTION = re.compile(r"\?\s+(\w)")
_BRACKETS = re.compile(r"[\[\](){}<>]")
_SYMBOLS = re.compile(r"[*#$€¥£%&+=@/\\]")


@dataclass(frozen=True)
class Clip:
    """A recording and what its publisher says of it.

    Attributes:
        path: file that holds it.
        text: transcript as published, or None.
        translation: the same in English, or None.
        speaker: as far as the publisher tells speakers apart.
        span: first byte and size, where the file holds many clips.
    """

    path: Path
    text: str | None
    translation: str | None = None
    speaker: str = ""
    span: tuple[int, int] | None = None


Clips = dict[str, Clip]  # by name inside the corpus


def clean(text: str | None) -> tuple[str, str | None]:
    """Return a transcript as it is spoken, and the reason to leave the clip out, or None.

    Quotation marks and ellipses go, apostrophes become straight, Unicode is composed (NFC). Nothing is guessed: a transcript with
    remarks in brackets, or with symbols that the speaker had to put into words, is left out.
    """
    text = unicodedata.normalize("NFC", text or "").translate(_QUOTES)
    text = " ".join(_ELLIPSIS.sub(" ", _EMPTY_BRACKETS.sub(" ", text)).split()).strip("- ")
    if not re.search(r"\w", text):
        return text, "no transcript"
    if re.fullmatch(r"\W*\w\W*", text):
        return text, "a single letter"
    if _DAMAGED.search(text) or any(letter.islower() for letter in _QUESTION.findall(text)):
        return text, "a damaged transcript"
    if _BRACKETS.search(text):
        return text, "a remark or a figure in brackets"
    if _SYMBOLS.search(text):
        return text, "a symbol that is read aloud"
    return text, None


def fingerprint(data: bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256: enough to tell a changed file from the published one."""
    return hashlib.sha256(data).hexdigest()[:16]

"""Which clips of a corpus are kept, what exactly was said in them, and how they are split without leaks.

Pure functions of texts and names: the same input gives the same splits on every machine. `asrlib.corpora` applies them; the
results are committed in ``data/splits``.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from fnmatch import fnmatchcase

__all__ = ["assign_splits", "clean", "excluded_by_length", "excluded_by_name", "families", "fingerprint"]

MIN_SECONDS, MAX_SECONDS = 0.3, 30.0  # shorter is a click; longer does not fit Whisper's window
MAX_LETTERS_PER_SECOND = 20  # fast speech here reaches 18; beyond 20 the recording holds only a part of the transcript

MAX_TEST, MAX_TEST_SHARE = 200, 0.30  # clips; enough for an interval of a few points of WER
MAX_VALIDATION, MAX_VALIDATION_SHARE = 80, 0.10
MAX_EVALUATED_FAMILY = 10  # a larger family would decide a score by one template: it may only be learned from
MIN_SPLIT = 50  # a smaller corpus is for testing only

_QUOTES = str.maketrans({"’": "'", "‘": "'", **dict.fromkeys('"“”„«»‹›', "")})
_EMPTY_BRACKETS = re.compile(r"\[\W*\]|\(\W*\)")  # "dash [-]" names the key that is spelled
_ELLIPSIS = re.compile(r"…|\.{2,}")  # the prompt goes on in another clip
# A question mark within a word or before a small letter was an accented letter once; "name-of-prompt:" inside a transcript is
# the beginning of the next one.
_DAMAGED = re.compile(r"\ufffd|\w\?\w|\w-[\w-]+:")
_QUESTION = re.compile(r"\?\s+(\w)")
_BRACKETS = re.compile(r"[\[\](){}<>]")
_SYMBOLS = re.compile(r"[*#$€¥£%&+=@/\\]")


def excluded_by_name(name: str, patterns: Mapping[str, list[str]]) -> str | None:
    """Return the reason for which a clip is left out by its name, or None.

    Args:
        name: the clip's name inside its corpus, for example ``digits/5``.
        patterns: reason -> shell patterns.
    """
    return next((reason for reason, globs in patterns.items() if any(fnmatchcase(name, glob) for glob in globs)), None)


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


def excluded_by_length(text: str, seconds: float) -> str | None:
    """Return why a recording of this length is left out, or None."""
    if seconds < MIN_SECONDS:
        return f"shorter than {MIN_SECONDS} s"
    if seconds > MAX_SECONDS:
        return f"longer than {MAX_SECONDS:.0f} s"
    too_fast = sum(map(str.isalpha, text)) > MAX_LETTERS_PER_SECOND * seconds
    return "more text than is spoken" if too_fast else None


def fingerprint(data: bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256: enough to tell a changed file from the published one."""
    return hashlib.sha256(data).hexdigest()[:16]


def _content_words(text: str) -> list[str]:
    """Return the words of three letters and more: digits, spelled letters and most articles are slots of a template."""
    words = re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", text).casefold())
    return [word for word in words if len(word) >= 3] or words


def families(texts: Mapping[str, str]) -> dict[str, str]:
    """Group transcripts that are the same, or come from one template.

    Two transcripts are related when at least half of their different content words are common to both, or when they share four
    content words in a row; a family is everything that such relations connect.

    Args:
        texts: clip id -> transcript.

    Returns:
        Clip id -> family, named by its first clip in alphabetical order.
    """
    ids = sorted(texts)
    parent = {clip: clip for clip in ids}

    def root(clip: str) -> str:
        while parent[clip] != clip:
            parent[clip] = parent[parent[clip]]
            clip = parent[clip]
        return clip

    def join(one: str, other: str) -> None:
        first, second = sorted((root(one), root(other)))
        parent[second] = first

    words = {clip: _content_words(texts[clip]) for clip in ids}
    seen: dict[tuple[str, ...], str] = {}
    for clip in ids:
        run = words[clip]
        for piece in {tuple(run), *(tuple(run[start : start + 4]) for start in range(len(run) - 3))}:
            join(clip, seen.setdefault(piece, clip))
    holders = defaultdict(list)  # content word -> clips before this one that have it
    for clip in ids:
        own = set(words[clip])
        for other, common in Counter(other for word in own for other in holders[word]).items():
            if 2 * common >= len(own | set(words[other])):
                join(clip, other)
        for word in own:
            holders[word].append(clip)
    return {clip: root(clip) for clip in ids}


def assign_splits(family: Mapping[str, str]) -> dict[str, str]:
    """Give whole families to test, validation or train, in an order decided by a hash.

    Test takes up to 200 clips but at most 30 % of the corpus, validation up to 80 but at most 10 %, train the rest; families of
    more than ten clips go to train. A corpus of fewer than 50 clips is all test.

    Args:
        family: clip id -> family.

    Returns:
        Clip id -> ``"train"``, ``"validation"`` or ``"test"``.
    """
    if len(family) < MIN_SPLIT:
        return dict.fromkeys(family, "test")
    members = defaultdict(list)
    for clip, name in family.items():
        members[name].append(clip)
    room = Counter(
        test=min(MAX_TEST, int(MAX_TEST_SHARE * len(family))),
        validation=min(MAX_VALIDATION, int(MAX_VALIDATION_SHARE * len(family))),
        train=len(family),
    )
    splits = {}
    for name in sorted(members, key=lambda name: hashlib.sha256(name.encode()).digest()):
        size = len(members[name])
        choices = ("test", "validation", "train") if size <= MAX_EVALUATED_FAMILY else ("train",)
        split = next(choice for choice in choices if room[choice] >= size)
        room[split] -= size
        splits.update(dict.fromkeys(members[name], split))
    return splits

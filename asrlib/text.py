"""Text normalisation before scoring.

The Whisper paper (Radford et al. 2022, appendix C) scores English with a normaliser of its own and every other language
with a basic one. The basic one replaces all combining marks by spaces, which deletes the vowels of Hindi, Tamil or Thai and
can turn a wrong sentence into a right one (Manohar et al. 2024, arXiv:2409.02449). The normaliser here keeps marks.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from asrlib import AsrlibError
from asrlib.io.files import data_file, read_toml

__all__ = ["Normalizer", "basic", "english", "language_code", "normalizer", "training_hours", "unicode_aware"]

_BRACKETED = re.compile(r"[<\[][^>\]]*[>\]]|\(([^)]+?)\)")


@dataclass(frozen=True)
class Normalizer:
    """A named function from text to text; the name goes into every record.

    >>> normalizer("fr")("L'été (rires), enfin !")
    'l été enfin'
    """

    name: str
    function: Callable[[str], str]

    def __call__(self, text: str) -> str:
        """Return the normalised text: lower case, single spaces, no punctuation."""
        return self.function(text)

    def __repr__(self) -> str:
        return f"Normalizer({self.name!r})"


@functools.cache
def english() -> Normalizer:
    """Return Whisper's English normaliser: numbers, contractions, British spellings, fillers, punctuation."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    spelling = json.loads(data_file("english_spelling.json").read_text(encoding="utf-8"))
    function = EnglishTextNormalizer(spelling)
    return Normalizer("whisper-english-1", lambda text: " ".join(function(text).split()))


def _unicode_aware(text: str) -> str:
    text = _BRACKETED.sub("", text.lower())
    text = unicodedata.normalize("NFKC", text)
    # Symbols and punctuation part words; marks (categories M*) belong to their letter and stay.
    text = "".join(" " if unicodedata.category(letter)[0] in "SP" else letter for letter in text).lower()
    # Zero-width joiners change the look of a conjunct, not the word.
    return unicodedata.normalize("NFKC", " ".join(text.replace("\u200c", "").replace("\u200d", "").split()))


@functools.cache
def unicode_aware() -> Normalizer:
    """Return the normaliser for every language but English: like Whisper's basic one, but combining marks stay."""
    return Normalizer("asrlib-unicode-1", _unicode_aware)


@functools.cache
def basic() -> Normalizer:
    """Return Whisper's basic normaliser, marks replaced by spaces: only to show what that does to a WER."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    function = BasicTextNormalizer()
    return Normalizer("whisper-basic-1", lambda text: " ".join(function(text).split()))


def language_code(language: str) -> str:
    """Return Whisper's code of a language given by code or English name.

    >>> language_code("Romanian")
    'ro'

    Raises:
        AsrlibError: a language that Whisper does not know.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    wanted = language.strip().lower()
    code = TO_LANGUAGE_CODE.get(wanted, wanted)
    if code not in LANGUAGES:
        raise AsrlibError(
            f"Whisper knows no language {language!r}: give a code such as 'en' or a name such as 'romanian'."
        )
    return code


def normalizer(language: str) -> Normalizer:
    """Return the normaliser for scoring a language: Whisper's for English, a mark-keeping one for all others.

    Args:
        language: code or English name.

    Raises:
        AsrlibError: a language that Whisper does not know.
    """
    return english() if language_code(language) == "en" else unicode_aware()


def training_hours() -> dict[str, float]:
    """Return hours of transcribed speech in Whisper's training data by language code (Radford et al. 2022, appendix E)."""
    return read_toml(data_file("training_hours.toml"))

"""Text normalisation before scoring, and the facts of languages that it needs.

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
from dataclasses import dataclass, field

from asrlib import AsrlibError
from asrlib.io.files import data_file, read_toml

__all__ = ["Normalizer", "basic", "english", "language_code", "normalizer", "spaced", "training_hours", "unicode_aware"]

# Written without spaces between words: Unicode Standard Annex 14 (line breaking), classes ID and SA.
UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "km", "my"})
# Names of other lists (ISO 639-3, FLEURS, Common Voice) for Whisper's languages.
OTHER_CODES = {"cmn": "zh", "nb": "no", "jv": "jw", "fil": "tl"}
# Letters that one language writes in two ways, or lower-cases otherwise; keys are of NFC text.
LETTERS = {
    # Unicode SpecialCasing: I is the capital of dotless i, and i has a dotted capital.
    **dict.fromkeys(("tr", "az"), str.maketrans({"I": "ı", "İ": "i"})),
    # Unicode Standard 7.1, "Latin Extended-B": Romanian has a comma below; older encodings had only the cedilla.
    "ro": str.maketrans({"ş": "ș", "Ş": "Ș", "ţ": "ț", "Ţ": "Ț"}),
    # Unicode Standard 9.2, "Arabic": Persian and Urdu have their own yeh and keheh; older keyboards wrote the Arabic letters.
    **dict.fromkeys(("fa", "ur"), str.maketrans({"\u064a": "\u06cc", "\u0649": "\u06cc", "\u0643": "\u06a9"})),
}
# Unicode Standard 6.2, "Apostrophes": typed, typographic, letter apostrophe, and what keyboards offer instead.
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u2018\u201b\u02bc\u02bb\u02b9\uff07\u00b4\u0060", "'"))
# Default_Ignorable_Code_Point that are marks or letters; the others are of category Cf (soft hyphen, joiners, directions). Before
# them the tatweel, which only stretches an Arabic word (Unicode Standard 9.2).
_IGNORABLE = re.compile(
    "[\u0640\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_BRACKETED = re.compile(r"[<\[][^>\]]*[>\]]|\(([^)]+?)\)")


@dataclass(frozen=True)
class Normalizer:
    """A named function from text to text; the name goes into every record.

    >>> normalizer("fr")("L'été (rires), enfin !")
    'l été enfin'
    """

    name: str
    function: Callable[[str], str] = field(repr=False)

    def __call__(self, text: str) -> str:
        """Return the normalised text: lower case, single spaces, no punctuation."""
        return self.function(text)


def _seen(text: str) -> str:
    """Return a text without characters that nobody sees, and with one apostrophe."""
    text = _IGNORABLE.sub("", text.translate(_APOSTROPHES))
    return text if text.isascii() else "".join(letter for letter in text if unicodedata.category(letter) != "Cf")


@functools.cache
def english() -> Normalizer:
    """Return Whisper's English normaliser: numbers, contractions, British spellings, fillers, punctuation.

    Invisible characters and typographic apostrophes, which it takes for letters or spaces, are mended before.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    spelling = json.loads(data_file("english_spelling.json").read_text(encoding="utf-8"))
    function = EnglishTextNormalizer(spelling)
    return Normalizer("whisper-english-2", lambda text: " ".join(function(_seen(text)).split()))


def _unicode_aware(letters: dict[int, str], text: str) -> str:
    text = unicodedata.normalize("NFC", _seen(text)).translate(letters)
    text = unicodedata.normalize("NFKC", _BRACKETED.sub("", text.lower()))
    # Symbols and punctuation part words; marks (categories M*) belong to their letter and stay.
    text = "".join(" " if unicodedata.category(letter)[0] in "SP" else letter for letter in text).lower()
    # The dot of a capital I with a dot is no mark of its own on a small i.
    return unicodedata.normalize("NFKC", " ".join(_seen(text).replace("i\u0307", "i").split()))


@functools.cache
def unicode_aware(language: str = "") -> Normalizer:
    """Return the normaliser for every language but English: like Whisper's basic one, but combining marks stay.

    In a language without spaces between words it sets one between all characters, so that an error rate of "words" is that of
    characters: the headline for such a language (Radford et al. 2022, appendix C).

    Args:
        language: code; Turkish and Azerbaijani lower-case ``I`` otherwise, Romanian writes two letters in two ways.
    """
    words = functools.partial(_unicode_aware, LETTERS.get(language, {}))
    if spaced(language):
        return Normalizer("asrlib-unicode-2", words)
    return Normalizer("asrlib-unicode-2-characters", lambda text: " ".join("".join(words(text).split())))


@functools.cache
def basic() -> Normalizer:
    """Return Whisper's basic normaliser, marks replaced by spaces: only to show what that does to a WER."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    function = BasicTextNormalizer()
    return Normalizer("whisper-basic-1", lambda text: " ".join(function(text).split()))


def base_code(language: str) -> str:
    """Return a language's code without its region: ``zh`` for ``zh-CN`` or ``cmn_hans_cn``'s ``cmn``; a name stays a name."""
    return re.split("[-_]", language.strip().lower())[0]


def language_code(language: str) -> str:
    """Return Whisper's code of a language given by code, with or without a region, or by English name.

    >>> language_code("Romanian"), language_code("zh-CN")
    ('ro', 'zh')

    Raises:
        AsrlibError: a language that Whisper does not know.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    base = base_code(language)
    code = TO_LANGUAGE_CODE.get(language.strip().lower()) or OTHER_CODES.get(base, base)
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
    code = language_code(language)
    return english() if code == "en" else unicode_aware(code)


def spaced(language: str | None) -> bool:
    """Say whether a language puts spaces between its words: if not, characters are counted instead of words.

    Args:
        language: code or English name; None or an empty one counts as spaced.

    Raises:
        AsrlibError: a language that Whisper does not know.
    """
    return not language or language_code(language) not in UNSPACED


def training_hours() -> dict[str, float]:
    """Return hours of transcribed speech in Whisper's training data by language code (Radford et al. 2022, appendix E)."""
    return read_toml(data_file("training_hours.toml"))

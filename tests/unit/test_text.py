import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrlib import AsrlibError, text
from asrlib.io import files

TEXTS = st.text(max_size=60)


@pytest.mark.parametrize(
    "sentence",
    [
        "Mr. Smith's colour is twenty-one o'clock, uh, isn't it?",
        "You have twenty five hundred dollars and five cents (laughs).",
        "I'd've gone to the theatre [noise] on the 3rd of May 2019 for £20",
        "",
    ],
)
def test_english_equals_openai_whisper(sentence):
    from whisper.normalizers import EnglishTextNormalizer

    assert text.normalizer("English")(sentence) == " ".join(EnglishTextNormalizer()(sentence).split())


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_equals_whisper_basic_where_there_are_no_marks(sentence):
    lowered = unicodedata.normalize("NFKC", sentence.lower())
    if any(
        unicodedata.category(letter)[0] == "M" for letter in lowered + unicodedata.normalize("NFKC", lowered.lower())
    ):
        return
    from whisper.normalizers import BasicTextNormalizer

    theirs = unicodedata.normalize("NFKC", BasicTextNormalizer()(sentence).replace("\u200c", "").replace("\u200d", ""))
    assert text.normalizer("ru")(sentence).split() == theirs.split()


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_normalising_twice_changes_nothing(sentence):
    once = text.unicode_aware()(sentence)
    assert not any(unicodedata.category(letter)[0] in "SP" for letter in once)
    assert once == " ".join(once.split())
    assert text.unicode_aware()(once) == once


def test_hindi_keeps_its_vowels_where_whisper_basic_loses_them():
    sentence = "मैं हिन्दी में बोल रहा हूँ।"
    assert text.normalizer("hi")(sentence) == "मैं हिन्दी में बोल रहा हूँ"
    assert text.basic()(sentence) == "म ह न द म ब ल रह ह"


def test_decomposed_and_composed_letters_are_equal():
    assert text.normalizer("fr")("e\u0301te\u0301") == text.normalizer("fr")("été")


def test_languages_by_code_and_name():
    assert text.language_code(" Romanian ") == text.language_code("ro") == "ro"
    with pytest.raises(AsrlibError, match="no language 'klingon'"):
        text.normalizer("klingon")


def test_every_normalizer_has_a_name_of_its_own():
    assert len({text.english().name, text.basic().name, text.unicode_aware().name}) == 3


def test_every_language_of_the_packaged_corpora_has_its_hours_of_training():
    hours = text.training_hours()
    table = files.read_toml(files.data_file("corpora.toml"))
    languages = {code for name in ("telephone", "picture_words") for code in table[name]["languages"]}
    assert languages <= set(hours)
    assert all(hours["en"] >= value > 0 for value in hours.values())

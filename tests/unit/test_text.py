import unicodedata

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.models.whisper.tokenization_whisper import LANGUAGES

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


@settings(max_examples=150)
@given(TEXTS)
def test_equals_whisper_basic_where_there_are_no_marks(sentence):
    from whisper.normalizers import BasicTextNormalizer

    lowered = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", sentence.lower()).lower())
    kinds = {unicodedata.category(letter) for letter in sentence + lowered}
    assume(not any(kind[0] == "M" or kind in ("Cf", "Lm") for kind in kinds))
    theirs = unicodedata.normalize("NFKC", BasicTextNormalizer()(sentence))
    assert text.normalizer("ru")(sentence).split() == theirs.split()


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("tr", "istanbul ışık", "İSTANBUL IŞIK"),
        ("az", "işıq ılıq", "İŞIQ ILIQ"),
        ("de", "istanbul", "\u0130stanbul"),
        ("he", "שלום", "\u200fשלום"),
        ("th", "สวัสดีครับ", "สวัสดี\u200bครับ"),
        ("de", "Autobahn", "Auto\u00adbahn"),
        ("de", "Hallo", "\ufeffHallo"),
        ("en", "hello there", "\u202ahello\u202c\u2060 there\ufe0f"),
        ("ja", "葛城", "葛\U000e0100城"),
        ("fr", "été", "e\u0301te\u0301"),
        ("uk", "п'ять", "пʼять"),
        ("uk", "п'ять", "п’ять"),
        ("haw", "Hawai'i", "Hawaiʻi"),
        ("en", "I don't know", "I don’t know"),
        ("en", "we'll", "we´ll"),
        ("ro", "și ţară", "şi țară"),
        ("ja", "今日はいい天気です", "今日は、いい天気です。"),
        ("ar", "مرحبا", "مرحبـــا"),
        ("fa", "یک", "يك"),
        ("ur", "کی", "كى"),
        ("yue", "今天天气很好", "今天 天气 很好"),
    ],
)
def test_two_ways_to_write_one_text_are_equal(language, one, other):
    normalize = text.normalizer(language)
    assert normalize(one) == normalize(other)


def test_what_differs_in_one_language_is_kept_apart_in_others():
    assert text.normalizer("tr")("ış") != text.normalizer("tr")("is")
    assert text.normalizer("tr")("şey ţ") == "şey ţ"
    assert text.normalizer("de")("ILIK") == "ilik"
    assert text.normalizer("ar")("يك") == "يك"


def test_errors_are_counted_in_words_or_in_characters():
    assert {code for code in LANGUAGES if not text.spaced(code)} == {"zh", "yue", "ja", "th", "lo", "km", "my"}
    assert not text.spaced("Cantonese") and text.spaced(None) and text.spaced("")
    assert text.normalizer("zh-CN")("今天 真，好。") == "今 天 真 好"
    assert text.normalizer("fr")("Il est tard.") == "il est tard"
    assert text.normalizer("zh").name != text.normalizer("fr").name


def test_hindi_keeps_its_vowels_where_whisper_basic_loses_them():
    sentence = "मैं हिन्दी में बोल रहा हूँ।"
    assert text.normalizer("hi")(sentence) == "मैं हिन्दी में बोल रहा हूँ"
    assert text.basic()(sentence) == "म ह न द म ब ल रह ह"


def test_languages_by_code_and_name():
    assert text.language_code(" Romanian ") == text.language_code("ro") == text.language_code("ro-RO") == "ro"
    assert [text.language_code(code) for code in ("zh-CN", "cmn_hans_cn", "en-US", "yue")] == ["zh", "zh", "en", "yue"]
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

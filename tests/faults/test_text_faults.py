"""Texts that no textbook has: every one is normalised, scored, kept and shown, or refused in one sentence."""

import unicodedata
from html.parser import HTMLParser

import jiwer
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asrlib import AsrlibError, scoring, text
from asrlib.course import records
from asrlib.io import files

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)> {{7*7}} \"quoted\" & 'so' on"
CONTROL = "bell\x07 null\x00 escape\x1b[2J\x1b]0;title\x07 separator\x1c line\u2028 next\x85 delete\x7f end"
RIGHT_TO_LEFT = "שלום \u202eevil\u202c עולם \u200fمرحبا بالعالم"
MARKS = "e" + "\u0301" * 500 + " a\u0323\u0308 मैं हिन्दी ก็ 각"
LONG = " ".join(["rain", "snow", "wind", "hail"] * 2500)
STRANGE = {
    "empty": "",
    "spaces": " \t\n\u3000 ",
    "punctuation": ", ?! — « » (…) 。",
    "right to left": RIGHT_TO_LEFT,
    "combining marks": MARKS,
    "marks alone": "\u0301\u0323",
    "control characters": CONTROL,
    "HTML and script": SCRIPT,
    "open bracket": "<" * 200 + "(" * 200 + "[" * 200,
    "emoji": "👩‍👩‍👧‍👦 🇩🇪 ☎️",
    "numbers": "½ ² ٣٤٥ １２３ 1/0 $1,000,000.00 £-5 3rd 1e400 0x10",
    "10,000 words": LONG,
    "one long word": "a" * 60_000,
}
NORMALIZERS = [text.english(), text.unicode_aware(), text.basic()]
STABLE = [text.unicode_aware(language) for language in ("", "tr", "ro")]
ANY = st.text(max_size=40) | st.lists(st.sampled_from([*"0²½$%'-<>()\x1b\u202e\u0301", "one", "half", "a"])).map(
    " ".join
)
strange = pytest.mark.parametrize("said", STRANGE.values(), ids=STRANGE)


# ---- normalisers


def known(test):
    """Try a property on the strange texts before those that Hypothesis finds."""
    for said in STRANGE.values():
        test = example(said)(test)
    return settings(max_examples=100)(test)


@known
@given(ANY)
def test_every_text_is_normalised_to_words_with_single_spaces(said):
    for normalizer in NORMALIZERS:
        found = normalizer(said)
        assert found == " ".join(found.split())
    for normalizer in STABLE:
        once = normalizer(said)
        assert normalizer(once) == once
        kinds = {unicodedata.category(letter) for letter in once} - {"Zs"}
        assert not [kind for kind in kinds if kind[0] in "SP" or kind == "Cf"]


@strange
def test_a_strange_english_text_becomes_what_openai_makes_of_it(said):
    from whisper.normalizers import EnglishTextNormalizer

    seen = "".join(letter for letter in said if unicodedata.category(letter) != "Cf" and letter != "\ufe0f")
    for end in ("", "..."):  # of "..." it leaves a point, as theirs does
        assert text.english()(said + end) == " ".join(EnglishTextNormalizer()(seen + end).split())


# ---- scoring


@settings(max_examples=100)
@given(st.lists(st.tuples(ANY, ANY), min_size=1, max_size=4), st.sampled_from([None, *NORMALIZERS]))
@example([("\x1c", "x"), ("\x85 a", "\u2028")], None)
@example([(said, "a word") for said in STRANGE.values()], NORMALIZERS[1])
@example([("a word", said) for said in STRANGE.values()], None)
@example([(", ?!", "something"), ("", "x")], NORMALIZERS[0])
def test_every_text_is_scored_as_jiwer_scores_it_or_refused(pairs, normalizer):
    references, hypotheses = zip(*pairs, strict=True)
    try:
        found = scoring.score(references, hypotheses, normalizer=normalizer)
    except AsrlibError as error:
        assert str(error).startswith("No reference holds a word") and "\n" not in str(error)
        return
    assert (found.errors == found.kinds.sum(axis=1)).all()
    for (reference, hypothesis), kinds in zip(pairs, found.kinds.tolist(), strict=True):
        reference, hypothesis = ((normalizer or str)(side) for side in (reference, hypothesis))
        if reference.strip():
            theirs = jiwer.process_words(reference, hypothesis)
            assert kinds == [theirs.substitutions, theirs.deletions, theirs.insertions]
        else:
            assert kinds[:2] == [0, 0]


@settings(max_examples=100)
@given(ANY, ANY)
def test_every_pair_is_aligned_with_as_many_errors_as_are_counted(reference, hypothesis):
    kinds = [kind for kind, *_ in scoring.align(reference, hypothesis).pairs]
    counted = scoring.score([reference, "a"], [hypothesis, "a"]).kinds[0].tolist()
    assert [kinds.count(kind) for kind in ("substitute", "delete", "insert")][:2] == counted[:2]


class Page(HTMLParser):
    """What a browser would find: the elements, and the text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, [name for name, _ in attributes]))

    def handle_data(self, data):
        self.text += data


@strange
def test_an_alignment_shows_a_strange_text_and_nothing_of_it_is_read_as_html(said):
    page = Page(scoring.align(said, f"other {said}")._repr_html_())
    assert set(map(str, page.tags)) <= {"('div', [])", "('del', ['style'])", "('ins', ['style'])"}
    for word in said.split():
        assert word in page.text


# ---- records


@strange
def test_a_record_keeps_a_strange_text_unchanged(tmp_path, said):
    record = records.Record("01_one", "smoke", {"LANGUAGE": said}, tmp_path, tmp_path)
    record.add("wer_percent", 8.4, unit="%", model=said)
    record.protocol(decoding=said)
    path = record.save([{"id": said, "hypothesis": said}])
    kept = records.load(path)
    assert kept["metrics"][0]["labels"] == {"model": said}
    assert kept["run"]["parameters"] == {"LANGUAGE": said}
    assert kept["protocol"] == {"decoding": said}
    assert list(files.read_jsonl(tmp_path / "predictions.jsonl")) == [{"id": said, "hypothesis": said}]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.text(), st.text(st.characters()), max_size=3), max_size=5))
@example(rows=[{"\udcff.wav": "\ud800\r\n\x85\u2028"}])  # bytes of a file's name that are no UTF-8; ends of lines
def test_rows_of_any_text_come_back_from_json_lines(tmp_path, rows):
    assert list(files.read_jsonl(files.write_jsonl(tmp_path / "rows.jsonl", rows))) == rows

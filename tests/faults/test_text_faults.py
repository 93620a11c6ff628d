"""Texts that no textbook has: every one is normalised, scored, kept and shown, or refused in one sentence."""

import csv
import json
import re
import unicodedata
from html.parser import HTMLParser

import jiwer
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asrlib import AsrlibError, cli, scoring, text
from asrlib.course import records
from asrlib.decoding.batching import Hypothesis
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
ANY = st.text(max_size=40) | st.lists(st.sampled_from([*"0²½$%'-<>()\x1b\u202e\u0301", "one", "half", "a"])).map(
    " ".join
)
strange = pytest.mark.parametrize("said", STRANGE.values(), ids=STRANGE)


# ---- normalisers


@strange
@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=repr)
def test_a_strange_text_is_normalised_to_words_with_single_spaces(normalizer, said):
    found = normalizer(said)
    assert found == " ".join(found.split())
    assert normalizer(said) == found


@settings(max_examples=300, deadline=None)
@given(ANY)
def test_every_text_is_normalised(said):
    for normalizer in NORMALIZERS:
        found = normalizer(said)
        assert found == " ".join(found.split())


@strange
def test_a_strange_english_text_becomes_what_openai_makes_of_it(said):
    from whisper.normalizers import EnglishTextNormalizer

    for one in (said, f"{said}..."):  # of "..." it leaves a point, as theirs does
        assert text.english()(one) == " ".join(EnglishTextNormalizer()(one).split())


@strange
def test_a_strange_text_that_is_normalised_twice_stays(said):
    once = text.unicode_aware()(said)
    assert text.unicode_aware()(once) == once
    assert not [letter for letter in once if unicodedata.category(letter)[0] in "SP"]


@pytest.mark.parametrize("name", ["empty", "spaces", "punctuation"])
def test_nothing_is_left_of_a_text_without_a_word(name):
    assert [normalizer(STRANGE[name]) for normalizer in NORMALIZERS] == ["", "", ""]


# ---- scoring


@strange
def test_a_strange_reference_and_a_strange_hypothesis_are_counted(said):
    for normalizer in (None, *NORMALIZERS):
        found = scoring.score([said, "a word"], ["a word", said], normalizer=normalizer)
        assert found.errors.sum() == found.substitutions + found.deletions + found.insertions
        assert found.words >= 2
        assert found.wer == found.errors.sum() / found.words
        same = scoring.score([said, "a word"], [said, "a word"], normalizer=normalizer)
        assert same.errors.sum() == 0


@pytest.mark.parametrize("name", ["empty", "spaces", "punctuation"])
def test_references_without_a_word_are_one_sentence(name):
    with pytest.raises(AsrlibError, match="No reference holds a word"):
        scoring.score([STRANGE[name]], ["something"], normalizer=text.normalizer("en"))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(ANY, ANY), min_size=1, max_size=4), st.sampled_from([None, *NORMALIZERS]))
@example([("\x1c", "x"), ("\x85 a", "\u2028")], None)
def test_every_text_is_scored_as_jiwer_scores_it_or_refused(pairs, normalizer):
    references, hypotheses = zip(*pairs, strict=True)
    try:
        found = scoring.score(references, hypotheses, normalizer=normalizer)
    except AsrlibError as error:
        assert "\n" not in str(error)
        return
    assert (found.errors == found.kinds.sum(axis=1)).all()
    for (reference, hypothesis), kinds in zip(pairs, found.kinds.tolist(), strict=True):
        reference, hypothesis = ((normalizer or str)(side) for side in (reference, hypothesis))
        if reference.strip():
            theirs = jiwer.process_words(reference, hypothesis)
            assert kinds == [theirs.substitutions, theirs.deletions, theirs.insertions]
        else:
            assert kinds[:2] == [0, 0]


@settings(max_examples=200, deadline=None)
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


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.text(), st.text(st.characters()), max_size=3), max_size=5))
@example(rows=[{"\udcff.wav": "\ud800\r\n\x85\u2028"}])  # bytes of a file's name that are no UTF-8; ends of lines
def test_rows_of_any_text_come_back_from_json_lines(tmp_path, rows):
    assert list(files.read_jsonl(files.write_jsonl(tmp_path / "rows.jsonl", rows))) == rows


# ---- asrlib evaluate


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys):
    """Return a function that lets `asrlib evaluate` score clips with given transcripts; the model hears the same everywhere."""
    from asrlib.decoding import transcription

    class Model:
        generation_config = type("Config", (), {"is_multilingual": True})()
        config = type("Config", (), {"max_source_positions": 1500})()

    def run(texts, heard):
        def transcribe(model, processor, clips, **options):
            for clip in clips:
                yield Hypothesis(clip["id"], heard, "en", 1.0, 0.5)

        monkeypatch.setattr(transcription, "load", lambda model: (Model, None))
        monkeypatch.setattr(transcription, "transcribe", transcribe)
        with open(tmp_path / "metadata.csv", "w", encoding="utf-8", newline="") as table:
            writer = csv.writer(table)
            writer.writerow(["file_name", "transcription"])
            for number, said in enumerate(texts):
                soundfile.write(tmp_path / f"{number}.wav", 0.1 * np.sin(np.arange(1600) / 9), 16_000)
                writer.writerow([f"{number}.wav", said])
        code = cli.main(["evaluate", str(tmp_path), "--language", "en", "--json"])
        return code, *capsys.readouterr()

    return run


def test_strange_transcripts_of_a_folder_are_scored(evaluate):
    texts = [said for name, said in STRANGE.items() if name != "10,000 words"]
    code, out, _ = evaluate([*texts, LONG], "the word")
    assert code == 0
    clips = json.loads(out)["clips"]
    assert len(clips) == len(STRANGE)
    assert [clip["reference"] for clip in clips][-1] == LONG
    assert clips[-1]["words"] == clips[-1]["errors"] == 10_000


@strange
def test_a_strange_hypothesis_is_scored(evaluate, said):
    code, out, _ = evaluate(["one word", "two"], said)
    assert code == 0
    found = json.loads(out)
    assert found["words"] == 3 and [clip["hypothesis"] for clip in found["clips"]] == [said] * 2


@pytest.mark.parametrize("name", ["empty", "punctuation"])
def test_a_folder_without_a_word_is_one_sentence(evaluate, name):
    code, out, said = evaluate([STRANGE[name]], "something")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"(?s)(.*\r|\s)*asrlib: No reference holds a word: [^\n]*\n", said)


def test_a_transcript_longer_than_a_field_may_be_is_one_sentence(evaluate):
    code, out, said = evaluate([LONG * 3], "something")
    assert (code, out) == (1, "")
    assert "metadata.csv cannot be read as a table of UTF-8 text (field larger than field limit" in said
    assert said.count("\n") == 1

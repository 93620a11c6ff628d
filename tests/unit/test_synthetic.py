"""Synthetic speech for a student: sentences out of WordNet's files, spoken by whatever is called flite."""

import csv
import stat
import sys

import numpy as np
import pytest
import soundfile

from tools import synthetic

HEAD = "  1 This software and database is being provided to you\n"
LINE = "0{n} 03 n 01 word 0 000 @ 0{n} n 0000 | a gloss; {examples}  \n"
FLITE = """#!{python}
import struct, sys, wave
given = sys.argv[1:]
text, stretch = given[given.index("-t") + 1], float(given[given.index("--setf") + 1].partition("=")[2])
with wave.open("{wav}", "wb") as sound:
    sound.setnchannels(1), sound.setsampwidth(2), sound.setframerate(16_000)
    sound.writeframes(struct.pack("<h", len(text)) * round(1000 * stretch))
sys.stdout.buffer.write(open("{wav}", "rb").read())
"""


@pytest.fixture
def wordnet(tmp_path, monkeypatch):
    """WordNet's four files with some examples of use."""
    folder = tmp_path / "wordnet"
    folder.mkdir()
    for part in ("noun", "verb", "adj", "adv"):
        examples = "; ".join(f'"a {part} of the number {word}"' for word in ("one", "two", "three", "four"))
        rest = LINE.format(n=2, examples='"the same, twice"; "in 1914"; "word"; "<b>not this</b>"')
        (folder / f"data.{part}").write_text(HEAD + LINE.format(n=1, examples=examples) + rest)
    monkeypatch.setattr(synthetic, "WORDNET", folder)
    return folder


def test_sentences_are_examples_of_several_words_without_digits_each_once(wordnet):
    found = synthetic.sentences(wordnet)
    assert found[:2] == ["a noun of the number one", "a noun of the number two"]
    assert found.count("the same, twice") == 1
    assert len(found) == 4 * 4 + 1


@pytest.fixture
def flite(tmp_path, monkeypatch):
    """A program that says one number, as often as it was told to stretch."""
    program = tmp_path / "bin" / "flite"
    program.parent.mkdir()
    program.write_text(FLITE.format(python=sys.executable, wav=tmp_path / "said.wav"))
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(synthetic, "AT_ONCE", 1)  # they share a file


def test_neighbours_have_one_voice_and_an_eighth_stays_short(wordnet, flite, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "IN_A_ROW", 4)
    monkeypatch.setattr(sys, "argv", ["synthetic", str(tmp_path / "made")])
    synthetic.main()
    rows = list(csv.DictReader((tmp_path / "made" / "metadata.csv").open()))
    assert [row["split"] for row in rows] == ["train"] * 15 + ["short"] * 2
    assert [row["speaker"] for row in rows[:9]] == ["slt"] * 4 + ["rms"] * 4 + ["awb"]
    assert {row["transcription"] for row in rows} == set(synthetic.sentences(wordnet))
    for row in rows:
        samples, rate = soundfile.read(tmp_path / "made" / row["file_name"], dtype="int16")
        assert rate == 16_000
        assert 850 <= len(samples) <= 1200
        assert np.unique(samples).tolist() == [len(row["transcription"])]


def test_what_is_missing_is_named(wordnet, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["synthetic", str(tmp_path / "made")])
    with pytest.raises(SystemExit, match="install Debian's packages flite and wordnet-base"):
        synthetic.main()
    assert not (tmp_path / "made").exists()

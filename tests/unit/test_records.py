import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from asrlib import AsrlibError, scoring, uncertainty
from asrlib.course import records
from asrlib.io import files

NAME = "01_one"


@pytest.fixture
def folder(course_folder, monkeypatch):
    """Stand in the notebooks' folder, as a kernel does."""
    monkeypatch.chdir(course_folder.root / "notebooks")
    return course_folder


@pytest.fixture
def record(folder):
    return records.Record(NAME, "smoke", {"SEED": 7, "N_CLIPS": 2}, folder.root / "out", folder.root)


def test_a_paired_difference_is_kept_in_points_with_its_interval_and_counts(record):
    references = 4 * ["a b c d", "e f", "g h i"]
    better, worse = (scoring.score(references, heard) for heard in (references, 4 * ["a b x d", "e", "g h i"]))
    found = scoring.compare(worse, better)
    record.difference(found, better, method="int8")
    (metric,) = record.metrics
    assert metric["value"] == pytest.approx(100 * 2 / 9)
    assert metric["interval"] == pytest.approx([100 * end for end in found.interval])
    assert (metric["utterances"], metric["words"], metric["labels"]) == (12, 36, {"method": "int8"})


def test_a_paired_ratio_is_kept_with_its_interval(record):
    record.ratio("times_as_long", uncertainty.paired_ratio([2, 4, 2, 3, 2], [1] * 5), method="int8", against="float32")
    (metric,) = record.metrics
    assert (metric["name"], metric["value"], metric["unit"], metric["interval"]) == ("times_as_long", 2, "x", [2, 4])
    assert metric["labels"] == {"method": "int8", "against": "float32"}


def test_a_score_is_kept_in_percent_with_the_transcripts(record):
    heard = [SimpleNamespace(id=f"{n}", text="ab ce", seconds_audio=1.23456) for n in range(10)]
    record.score(scoring.score(["ab cd"] * 10, ["ab ce"] * 10), heard, model="m")
    wer, cer = record.metrics
    assert (wer["value"], wer["interval"], wer["words"]) == (50, [50, 50], 20)
    assert (cer["value"], cer["interval"], cer["labels"]) == (20, None, {"model": "m"})
    counts = {"substitutions": 1, "deletions": 0, "insertions": 0, "words": 2}
    assert record.rows[3] == {"id": "3", "model": "m", "hypothesis": "ab ce", "seconds": 1.235, **counts}


def test_a_saved_record_reads_back_with_what_was_added(record):
    record.add(
        "wer_percent", np.float64(8.4), unit="%", interval=(np.float32(7), 9.9), utterances=64, words=512, model="m"
    )
    record.protocol(normalizer="whisper-en/1", batch_size=np.int64(8))
    record.input("checkpoint", "openai/whisper-base", sha256="0" * 64)
    path = record.save({"id": i, "hypothesis": "hello", "words": 1} for i in "ab")
    content = records.load(path)
    metric = {"name": "wer_percent", "value": 8.4, "unit": "%", "interval": [7, 9.9], "utterances": 64, "words": 512}
    assert content["metrics"] == [metric | {"labels": {"model": "m"}}]
    assert content["protocol"] == {"normalizer": "whisper-en/1", "batch_size": 8}
    assert content["run"]["parameters"] == {"SEED": 7, "N_CLIPS": 2}
    assert content["predictions"]["rows"] == 2
    assert len((path.parent / "predictions.jsonl").read_text().splitlines()) == 2
    assert content["environment"]["lock_sha256"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        *((lambda record, n=n: record.add("wer_percent", n), "finite") for n in (np.nan, -np.inf, np.float32("inf"))),
        (lambda record: record.add("wer_percent", 1, interval=(2, 1)), "upside down"),
        (lambda record: [record.add("wer_percent", 1, model=name) for name in "aba"], "already"),
        (lambda record: record.protocol(normalizer=object()), "is a object"),
        (lambda record: record.save([{"hypothesis": "b"}]), "'id' and 'hypothesis'"),
        (lambda record: record.save([{"id": "a", "hypothesis": "b", "reference": "c"}]), "never saved"),
        (lambda record: (record.add("WER", 1), record.save()), "metrics/0/name"),
    ],
)
def test_what_a_record_cannot_hold_is_one_sentence(record, wrong, said):
    with pytest.raises(AsrlibError, match=said):
        wrong(record)
    assert not (record.output_dir / "record.json").exists()


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read as JSON"), ("{}", "breaks"), (None, "no record")])
def test_a_damaged_or_missing_record_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "record.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(AsrlibError, match=message):
        records.load(path)


def test_the_source_hash_follows_the_code_alone(folder):
    path = folder.add(NAME, "1 + 1")
    before = records.source_hash(path)
    notebook = json.loads(path.read_text())
    notebook["cells"][0]["source"] = "# Another title"
    path.write_text(json.dumps(notebook))
    assert records.source_hash(path) == before
    folder.add(NAME, "1 + 2")
    assert records.source_hash(path) != before


@pytest.mark.parametrize("content", ["", "[]", '{"cells": 3}', "null"])
def test_a_file_that_is_no_notebook_is_named(tmp_path, content):
    (tmp_path / "x.ipynb").write_text(content)
    with pytest.raises(AsrlibError, match=r"x\.ipynb is not a Jupyter notebook"):
        records.source_hash(tmp_path / "x.ipynb")


def test_a_run_is_dirty_where_library_tables_or_lock_differ_and_not_where_a_notebook_does(tmp_path):
    def git(*arguments):
        own = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", tmp_path, *own, *arguments], check=True, capture_output=True)

    for name in ("asrlib/a.py", "data/a.toml", "notebooks/a.ipynb", "requirements.lock"):
        files.write_atomic(tmp_path / name, "")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    files.write_atomic(tmp_path / "notebooks" / "a.ipynb", "changed")
    assert records._commit(tmp_path)[1] is False
    for name in ("asrlib/a.py", "data/a.toml", "requirements.lock"):
        files.write_atomic(tmp_path / name, "changed")
        assert records._commit(tmp_path)[1] is True
        git("checkout", name)

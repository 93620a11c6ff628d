"""A corpus scored in one process, in two, and when one of two dies: the same to the byte."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from asrlib import AsrlibError, audio, cli, corpora, scoring, text
from asrlib.decoding import batching, outcomes
from asrlib.decoding.outcomes import Failed
from asrlib.io import files
from asrlib.tasks import evaluation, sharding

REPOSITORY = Path(__file__).parents[2]
SAID = ["red green blue", "north south", "rain", "over there", "salt pepper sugar"]


def transcribe(clips):
    """Leave the last word of each clip out; the clips named None cannot be read."""
    for name, words in clips:
        if words is None:
            yield Failed(name, f"{name} is nothing.")
        else:
            yield batching.Hypothesis(name, words.rpartition(" ")[0], "en", 2.0, 0.5)


@pytest.fixture
def table(monkeypatch):
    """Five rows, in shards of two, whose audio is what is said."""
    monkeypatch.setattr(sharding, "WINDOW_CLIPS", 2)
    monkeypatch.delenv("RANK", raising=False)
    speakers = ["a", "a", "b", "b", ""]
    return [
        {"id": f"{place}.wav", "audio": said, "text": said, "seconds": 2.0, "speaker": speaker}
        for place, (said, speaker) in enumerate(zip(SAID, speakers, strict=True))
    ]


def test_the_score_is_that_of_all_clips_at_once(tmp_path, table):
    found = evaluation.evaluate(table, transcribe, tmp_path, language="en", run={}, tokens=len)
    hypotheses = [said.rpartition(" ")[0] for said in SAID]
    whole = scoring.score(SAID, hypotheses, normalizer=text.normalizer("en"), blocks=["a", "a", "b", "b", 4])
    assert (found.score.wer, found.score.cer, found.score.interval) == (whole.wer, whole.cer, whole.interval)
    np.testing.assert_array_equal(found.score.kinds, whole.kinds)
    assert found.score.blocks == whole.blocks
    assert (found.rtfx, found.unreadable) == (4.0, 0)
    assert found.tokens_per_second == sum(map(len, hypotheses)) / 2.5
    rows = list(files.read_jsonl(found.clips))
    assert [(row["id"], row["reference"], row["hypothesis"]) for row in rows] == [
        (row["id"], row["text"], words) for row, words in zip(table, hypotheses, strict=True)
    ]


def test_clips_that_cannot_be_read_are_counted_not_scored_and_tried_again(tmp_path, table):
    spoken = [row["audio"] for row in table]
    for place in (0, 3):
        table[place]["audio"] = None
    for _ in range(2):
        found = evaluation.evaluate(table, transcribe, tmp_path, language="en", run={}, tokens=len)
        assert (found.unreadable, found.score.utterances) == (2, 3)
        assert [row["id"] for row in files.read_jsonl(found.clips)] == ["1.wav", "2.wav", "4.wav"]
    for row, sound in zip(table, spoken, strict=True):
        row["audio"] = sound
    assert evaluation.evaluate(table, transcribe, tmp_path, language="en", run={}, tokens=len).score.utterances == 5
    for row in table:
        row["audio"] = None
    with pytest.raises(AsrlibError, match="None of the 5 clips could be read"):
        evaluation.evaluate(table, transcribe, tmp_path / "silent", language="en", run={}, tokens=len)


@given(st.lists(st.sampled_from(["good", "bad"]), max_size=12), st.integers(1, 4))
def test_each_clip_has_one_outcome_in_its_place_however_far_is_read_ahead(kinds, ahead):
    good, bad = np.ones(16_000, np.float32), np.zeros(16_000, np.float32)  # the silent one is refused

    def read_ahead(clips):
        while batch := list(itertools.islice(clips, ahead)):
            yield from (batching.Hypothesis(clip["id"], "hello", "en", 1.0, 0.1) for clip in batch)

    clips = [(str(place), good if kind == "good" else bad) for place, kind in enumerate(kinds)]
    found = list(outcomes.transcripts(read_ahead, clips))
    assert [item.id for item in found] == [name for name, _ in clips]
    assert ["bad" if isinstance(item, Failed) else "good" for item in found] == kinds


def test_the_worst_clips_come_first_and_right_ones_not_at_all(tmp_path, table):
    table[0]["text"] += " grey"
    table[2]["text"] = ""  # nothing was said and nothing heard
    found = evaluation.evaluate(table, transcribe, tmp_path, language="en", run={}, tokens=len)
    assert [row["errors"] for row in evaluation.worst(found, 3)] == [2, 1, 1]
    assert evaluation.worst(found, 1)[0]["id"] == "0.wav"
    assert len(evaluation.worst(found, 9)) == 4


def test_only_the_first_process_scores(tmp_path, table, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert evaluation.evaluate(table, transcribe, tmp_path, language="en", run={}, tokens=len) is None
    assert not (tmp_path / "predictions.jsonl").exists()


PROGRAM = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from asrlib import cli, hardware
from asrlib.decoding import transcription
from asrlib.tasks import sharding
hardware.best_device, hardware.best_dtype = lambda: "cpu", lambda device=None: torch.float32
sharding.WINDOW_CLIPS = 4
transcribe, fatal = transcription.transcribe, Path("fatal")
def die(*given, **options):
    for hypothesis in transcribe(*given, **options):
        if fatal.is_file() and os.environ.get("RANK") == "1":
            fatal.rename("dead")
            os.kill(os.getpid(), signal.SIGKILL)  # in the middle of its first shard
        yield hypothesis
transcription.transcribe = die
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.weights
def test_two_processes_find_what_one_finds_even_if_one_of_them_dies(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    _write_folder(tmp_path / "speech", 13)
    command = ["program.py", "evaluate", "speech", "--model", "openai/whisper-tiny.en", "--language", "en", "--json"]
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    environment.pop("RANK", None)
    said = {}
    for name, launcher in (("one", []), ("two", several), ("again", several)):
        if name == "again":
            (tmp_path / "fatal").touch()
        done = subprocess.run(
            [sys.executable, *launcher, *command, "--output", name],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said[name] = json.loads(done.stdout)
        assert (tmp_path / "dead").is_file() == (name == "again")
    assert len({(tmp_path / name / "predictions.jsonl").read_bytes() for name in said}) == 1
    assert len(said["one"]["clips"]) == 13
    speeds = ("rtfx", "tokens_per_second")
    rates = [{key: value for key, value in result.items() if key not in speeds} for result in said.values()]
    assert rates[0] == rates[1] == rates[2]


def _write_folder(folder, number):
    """Write a folder with a number of telephone prompts and their metadata."""
    folder.mkdir()
    rows = ["file_name,transcription"]
    for place, row in enumerate(corpora.load("telephone", "en", "test").select(range(number))):
        soundfile.write(folder / f"{place}.flac", audio.load(row["audio"]), 16_000)
        rows.append(f'{place}.flac,"{row["text"]}"')
    (folder / "metadata.csv").write_text("\n".join(rows))


@pytest.mark.weights
def test_each_way_to_search_is_scored_and_told_apart(tmp_path, capsys):
    _write_folder(tmp_path / "speech", 4)
    command = ["evaluate", str(tmp_path / "speech"), "--model", "openai/whisper-tiny.en", "--json"]
    ways = {
        "strict": ["--strict"],
        "drafted": ["--assistant", "openai/whisper-tiny.en", "--batch-size", "1"],
        "beams": ["--engine", "transformers", "--beams", "2", "--strict"],
        "pieces": ["--chunk", "3", "--strict"],
    }
    found = {}
    for name, options in ways.items():
        assert cli.main([*command, *options]) == 0
        found[name] = json.loads(capsys.readouterr().out)
        assert found[name]["wer_percent"] < 50 and found[name]["tokens_per_second"] > 0
    assert found["drafted"]["clips"] == found["strict"]["clips"]
    assert {name: found[name]["options"] for name in found} == {
        name: found["strict"]["options"] | options
        for name, options in {
            "strict": {},
            "drafted": {"assistant": "openai/whisper-tiny.en", "drafts": 4, "batch_size": 1},
            "beams": {"engine": "transformers", "beams": 2},
            "pieces": {"engine": "transformers", "chunk": 3.0},
        }.items()
    }


def test_several_processes_are_asked_for_a_folder_that_all_see(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(tmp_path)])
    assert "several processes need --output FOLDER" in capsys.readouterr().err

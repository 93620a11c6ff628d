"""Shards: cut as a single process reads ahead, filled once by whoever is free, taken over from the dead."""

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asrlib import AsrlibError
from asrlib.decoding import batching, transcription
from asrlib.io import files
from asrlib.tasks import sharding

seconds = st.lists(st.floats(0, 700), max_size=40)


@given(seconds)
@example([1.0] * 600)
def test_each_clip_is_in_one_shard_in_order_and_no_shard_is_larger_than_need_be(lengths):
    shards = sharding.cut(lengths)
    assert [place for places in shards for place in places] == list(range(len(lengths)))
    for places in shards:
        assert sum(lengths[place] for place in places[:-1]) < batching.WINDOW_AUDIO
        assert len(places) <= batching.WINDOW_CLIPS
    for places in shards[:-1]:
        full = sum(lengths[place] for place in places) >= batching.WINDOW_AUDIO
        assert full or len(places) == batching.WINDOW_CLIPS


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 4), st.sampled_from(["full", "merged"]))
def test_the_batches_of_the_shards_are_those_of_the_whole(lengths, batch_size, window):
    with pytest.MonkeyPatch.context() as patch:
        for module in (batching, sharding):
            patch.setattr(module, "WINDOW_CLIPS", 7)
            patch.setattr(module, "WINDOW_AUDIO", 60.0)
        merged = transcription.TorchEngine.width
        engine = SimpleNamespace(fits=lambda clip: clip.seconds <= 30, timestamps=False, features=len, positions=1500)
        engine.window, engine.width = window, lambda clip: merged(engine, clip)
        clips = [{"id": str(place), "audio": np.ones(16_000 * length)} for place, length in enumerate(lengths)]

        def batches(some):
            groups = batching._batches(some, engine, batch_size)
            return [[clip.id for clip in group] for group, _ in groups]

        apart = [batches(clips[places.start : places.stop]) for places in sharding.cut(lengths)]
        assert batches(clips) == [group for groups in apart for group in groups]


@pytest.fixture
def table(monkeypatch):
    """Ten rows, in shards of three."""
    monkeypatch.setattr(sharding, "WINDOW_CLIPS", 3)
    return [{"id": f"clip {place}", "seconds": 1.0, "n": place} for place in range(10)]


def squares(rows):
    return [{"square": row["n"] ** 2} for row in rows]


def test_what_is_made_comes_back_beside_its_rows_and_is_made_once(tmp_path, table):
    seen = []

    def work(rows):
        seen.extend(row["n"] for row in rows)
        return squares(rows)

    sharding.fill(tmp_path, table, work, {"model": "a"})
    pairs = [pair for rows, made in sharding.merged(tmp_path, table) for pair in zip(rows, made, strict=True)]
    assert [row for row, _ in pairs] == table
    assert all(done == {"id": row["id"], "sha256": "", "square": row["n"] ** 2} for row, done in pairs)
    assert not list(tmp_path.glob("0*.lock"))
    (tmp_path / "000001.jsonl").unlink()
    sharding.fill(tmp_path, table, work, {"model": "a"})
    assert seen == [*range(10), 3, 4, 5]


def test_what_failed_or_has_changed_is_made_again_and_nothing_else(tmp_path, table):
    for row in table:
        (tmp_path / f"{row['n']}.wav").write_text(row["id"])
        row["audio"] = str(tmp_path / f"{row['n']}.wav")
    seen, bad = [], {4, 8}

    def work(rows):
        seen.extend(row["n"] for row in rows)
        return [{"failed": "no."} if row["n"] in bad else {"square": row["n"] ** 2} for row in rows]

    def fill():
        seen.clear()
        sharding.fill(tmp_path / "out", table, work, {})
        return seen

    assert fill() == list(range(10))
    assert fill() == [4, 8]
    bad.remove(4)
    (tmp_path / "1.wav").write_text("another clip")
    assert fill() == [1, 4, 8]
    bad.clear()
    assert fill() == [8]
    assert fill() == []
    assert [done["square"] for _, made in sharding.merged(tmp_path / "out", table) for done in made] == [
        n**2 for n in range(10)
    ]


def test_an_error_in_the_work_leaves_no_file_and_frees_the_shard(tmp_path, table):
    def fails(rows):
        yield {}
        raise AsrlibError("no.")

    with pytest.raises(AsrlibError, match=r"no\."):
        sharding.fill(tmp_path, table, fails, {})
    assert not list(tmp_path.glob("*.jsonl"))
    sharding.fill(tmp_path, table, squares, {})


def test_the_folder_of_another_model_or_of_other_clips_is_refused(tmp_path, table):
    sharding.fill(tmp_path, table, squares, {"model": "a"})
    for rows, run in ((table, {"model": "b"}), (table[:-1], {"model": "a"})):
        with pytest.raises(AsrlibError, match="belongs to another model or corpus"):
            sharding.fill(tmp_path, rows, squares, run)
    with pytest.raises(AsrlibError, match=r"000001\.jsonl is of other clips"):
        list(sharding.merged(tmp_path, [row | {"id": row["id"].replace("4", "5")} for row in table]))


HOLD = """
import json, sys
from asrlib.tasks import sharding
sharding.WINDOW_CLIPS = 3
def work(rows):
    print(rows[0]["n"], flush=True)
    sys.stdin.read()
sharding.fill(sys.argv[1], json.loads(sys.argv[2]), work, {})
"""


def test_the_shard_of_a_killed_process_is_taken_by_another_that_waits(tmp_path, table, start):
    holder = start(HOLD, str(tmp_path), json.dumps(table))
    assert holder.stdout.readline() == "0\n"  # it holds the first shard
    others, seen = threading.Event(), []

    def work(rows):
        seen.append(rows[0]["n"])
        if len(seen) == 3:
            others.set()
        return squares(rows)

    living = threading.Thread(target=sharding.fill, args=(tmp_path, table, work, {}), daemon=True)
    living.start()
    assert others.wait(60)
    assert not (tmp_path / "000000.jsonl").exists()
    holder.kill()
    living.join(60)
    assert not living.is_alive()
    assert seen == [3, 6, 9, 0]
    ids = [row["id"] for path in sorted(tmp_path.glob("*.jsonl")) for row in files.read_jsonl(path)]
    assert ids == [row["id"] for row in table]


@pytest.mark.parametrize(
    ("given", "first"),
    [({}, True), ({"RANK": "0"}, True), ({"RANK": "1"}, False), ({"RANK": "0", "SLURM_PROCID": "1"}, True), ({"SLURM_PROCID": "3"}, False)],
)  # fmt: skip
def test_one_process_reports(monkeypatch, given, first):
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert sharding.first_process() is first

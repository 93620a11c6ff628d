import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from asrlib import AsrlibError
from asrlib.io import files


def test_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    target = files.write_atomic(tmp_path / "deep" / "a.txt", "old")
    assert target.read_text() == "old"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AsrlibError, match=r"disk is full while writing .*a\.txt"):
        files.write_atomic(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path):
    path = tmp_path / ("x" * 251 + ".txt")
    assert files.write_atomic(path, "a").read_text() == "a"


def test_a_file_system_whose_files_have_one_owner_will_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    assert files.write_atomic(tmp_path / "a", "a").read_text() == "a"
    with files.new_folder(tmp_path / "b"):
        pass
    assert (tmp_path / "b").is_dir()


def test_what_needs_itself_to_be_made_is_one_sentence(tmp_path):
    with pytest.raises(AsrlibError, match="made needs itself"):
        files.prepared(tmp_path / "made", lambda folder: files.prepared(tmp_path / "made", lambda again: None))


def test_new_folder_appears_whole(tmp_path):
    target = tmp_path / "corpus"
    with files.new_folder(target) as folder:
        (folder / "clip").write_text("x")
        assert not target.exists()
    assert (target / "clip").read_text() == "x"
    with pytest.raises(ZeroDivisionError), files.new_folder(target) as folder:
        (folder / "half").write_text("y")
        raise ZeroDivisionError
    assert sorted(path.name for path in target.iterdir()) == ["clip"]
    (tmp_path / ".corpus~stale.part").mkdir()
    with files.new_folder(target) as folder:
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus"]


def test_a_new_folder_leaves_another_runs_alone(tmp_path):
    with files.new_folder(tmp_path / "whisper-tiny.en") as other:
        with files.new_folder(tmp_path / "whisper-tiny"):
            pass
        with files.new_folder(tmp_path / "whisper-[a-z]*"):
            pass
        assert other.is_dir()


def test_two_runs_at_once_prepare_a_folder_once(tmp_path):
    calls, started = [], threading.Barrier(4)

    def fill(folder):
        calls.append(folder)
        (folder / "file").write_text("whole")

    def run():
        started.wait()
        files.prepared(tmp_path / "checkpoint", fill)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert (tmp_path / "checkpoint" / "file").read_text() == "whole"


def test_cache_dir_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "mit Leerzeichen und ä"))
    assert files.cache_dir() == tmp_path / "mit Leerzeichen und ä"
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("ASRLIB_CACHE", str(blocked / "below"))
    with pytest.raises(AsrlibError, match="set ASRLIB_CACHE"):
        files.cache_dir()
    monkeypatch.setenv("ASRLIB_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(AsrlibError, match="set ASRLIB_CACHE to the whole path"):
        files.cache_dir()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b"{", r"a\.json cannot be read as JSON"),
        ("a.json", b"\xff", r"a\.json cannot be read as JSON"),
        ("a.json", b"[1]", r"a\.json holds no JSON object"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl, line 2, is not valid JSON"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl, line 1, is no JSON object"),
        ("a.toml", b"a = \n", r"a\.toml is not valid TOML"),
    ],
)
def test_a_broken_table_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    read = {"json": files.read_json, "jsonl": lambda path: list(files.read_jsonl(path)), "toml": files.read_toml}
    with pytest.raises(AsrlibError, match=said):
        read[name.partition(".")[2]](tmp_path / name)


def test_tables_are_read_and_an_absent_object_is_empty(tmp_path):
    rows = [{"id": "a", "text": "é"}, {"id": "b"}]
    assert list(files.read_jsonl(files.write_jsonl(tmp_path / "rows.jsonl", rows))) == rows
    assert files.read_json(tmp_path / "absent.json") == {}
    assert files.read_json(files.write_atomic(tmp_path / "a.json", '{"é": 1}')) == {"é": 1}


def test_what_breaks_a_schema_is_named_by_place(tmp_path):
    schema = files.write_atomic(tmp_path / "s.json", '{"properties": {"a": {"items": {"type": "integer"}}}}')
    files.check_schema({"a": [1]}, schema, "The table")
    with pytest.raises(AsrlibError, match=r"^The table breaks .*/s\.json at a/1: 'x' is not of type 'integer'\.$"):
        files.check_schema({"a": [1, "x"]}, schema, "The table")


LIGHT = """
import sys
import asrlib
assert not {"numpy", "torch", "transformers"} & set(sys.modules)
from asrlib.course import chapter, runner
from asrlib.io import files
assert not {"numpy", "torch", "transformers", "jsonschema", "nbformat"} & set(sys.modules)
files.import_jsonschema()
assert "jsonschema" in sys.modules and "rfc3987_syntax" not in sys.modules
"""


def test_asrlib_and_a_chapters_first_line_import_nothing_heavy():
    subprocess.run([sys.executable, "-c", LIGHT], check=True)

import gzip
import hashlib
import io
import os
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrlib import AsrlibError
from asrlib.io import downloads


def test_run_says_what_the_program_said_and_counts_the_bytes_that_come(tmp_path, monkeypatch):
    def step(meter, amount):
        if amount == 1000:
            (tmp_path / "seen").touch()

    monkeypatch.setattr(downloads.Meter, "step", step)
    code = """
import sys
from pathlib import Path
Path("x").write_bytes(bytes(1000))
while not Path("seen").exists(): pass
print("wrong", file=sys.stderr)
sys.exit(3)
"""
    assert downloads.run([sys.executable, "-c", code], tmp_path, "a program", cwd=tmp_path) == (3, "wrong\n")


def archive(*members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content) if kind == tarfile.REGTYPE else 0
            info.linkname = "/etc/passwd"
            tar.addfile(info, io.BytesIO(content))
    buffer.seek(0)
    return buffer


def test_extract_takes_what_is_wanted(tmp_path):
    tar = archive(("./a/b.wav", b"1", tarfile.REGTYPE), ("a/c.txt", b"2", tarfile.REGTYPE))
    count = downloads.extract(tar, tmp_path, lambda name: name if name.endswith(".wav") else None, source="x.tar")
    assert count == 1
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == ["a/b.wav"]


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "a/b/../../../evil", "link/evil", "/evil"])
def test_nothing_lands_outside(tmp_path, name):
    target = tmp_path / "inner"
    target.mkdir()
    (target / "link").symlink_to(tmp_path)
    tar = archive((name, b"x", tarfile.REGTYPE))
    if name == "/evil":  # is taken as a name below the folder
        assert downloads.extract(tar, target, lambda name: name, source="x.tar") == 1
        assert (target / "evil").read_bytes() == b"x"
    else:
        with pytest.raises(AsrlibError, match=r"x\.tar is hostile and was not used"):
            downloads.extract(tar, target, lambda name: name, source="x.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


def test_links_and_devices_are_skipped(tmp_path):
    tar = archive(("link", b"", tarfile.SYMTYPE), ("hard", b"", tarfile.LNKTYPE), ("dev", b"", tarfile.CHRTYPE))
    assert downloads.extract(tar, tmp_path, lambda name: name, source="x.tar") == 0
    assert list(tmp_path.iterdir()) == []


def test_bombs_and_cuts(tmp_path, monkeypatch):
    tar = archive(("a", b"x" * 5000, tarfile.REGTYPE))
    cut = io.BytesIO(tar.getvalue()[: len(tar.getvalue()) // 2])
    with pytest.raises(AsrlibError, match=r"x\.tar is damaged or truncated"):
        downloads.extract(cut, tmp_path, lambda name: name, source="x.tar")
    monkeypatch.setattr(downloads, "MAX_MEMBER_BYTES", 100)
    with pytest.raises(AsrlibError, match="more bytes"):
        downloads.extract(tar, tmp_path, lambda name: name, source="x.tar")
    monkeypatch.setattr(downloads, "MAX_ARCHIVE_BYTES", 250)
    many = archive(*((f"small-{number}", bytes(100), tarfile.REGTYPE) for number in range(3)))
    with pytest.raises(AsrlibError, match="more bytes"):
        downloads.extract(many, tmp_path, lambda name: name, source="x.tar")
    assert len([*tmp_path.glob("small-*")]) == 2


@pytest.mark.parametrize("packed", [False, True])
def test_wherever_an_archive_is_cut_it_is_not_taken_for_whole(tmp_path, packed):
    tar = archive(*((f"{number}", bytes([number]) * 700, tarfile.REGTYPE) for number in range(3))).getvalue()
    whole = tar if packed else gzip.decompress(tar)
    refused = 0
    for cut in range(0, len(whole), 7 if packed else 64):
        try:  # behind the members an archive may end early
            assert downloads.extract(io.BytesIO(whole[:cut]), tmp_path, lambda name: name, source="x.tar") == 3
        except AsrlibError:
            refused += 1
    assert refused >= (len(whole) * 0.7 // 7 if packed else 3 * 1536 / 64)


def header(name, kind, size):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "content",
    [
        header("x", tarfile.XHDTYPE, 1 << 28) + bytes(4096),
        header("x", tarfile.GNUTYPE_LONGNAME, 1 << 28) + bytes(4096),
        500 * (header("x", tarfile.GNUTYPE_LONGNAME, 2) + b"x".ljust(512, b"\0")),
        b"\x1f\x8b\x08",
    ],
    ids=["pax", "long name", "names of names", "three bytes of gzip"],
)
def test_a_header_that_breaks_the_reader_is_one_sentence(tmp_path, content):
    with pytest.raises(AsrlibError, match="damaged or truncated"):
        downloads.extract(io.BytesIO(content), tmp_path, lambda name: name, source="x.tar")


@settings(max_examples=30)
@given(st.binary(max_size=300))
def test_any_bytes_are_an_archive_or_one_sentence(tmp_path_factory, data):
    try:
        downloads.extract(io.BytesIO(data), tmp_path_factory.mktemp("x"), lambda name: name, source="x.tar")
    except AsrlibError as error:
        assert "\n" not in str(error)


CONTENT = bytes(range(256)) * 4000  # 1 MB


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; /cut closes early, /html lies, /404 fails, /torn breaks its own protocol."""

    def do_GET(self):
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        if self.path == "/404":
            return self.send_error(404)
        if start >= len(CONTENT):
            return self.send_error(416)
        if self.path == "/torn":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            return self.wfile.write(b"ffff\r\nonly this")
        body = b"<html>login</html>" if self.path == "/html" else CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/cut" and not start else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    http = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


DIGEST = hashlib.sha256(CONTENT).hexdigest()


def test_download_resumes_after_a_cut(tmp_path, server):
    target = tmp_path / "x.bin"
    with pytest.raises(AsrlibError, match="will resume"):
        downloads.download(f"{server}/cut", target, sha256_hex=DIGEST)
    assert not target.exists()
    assert 0 < target.with_name("x.bin.part").stat().st_size < len(CONTENT)
    assert downloads.download(f"{server}/cut", target, sha256_hex=DIGEST).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin"]


@pytest.mark.parametrize(
    ("page", "said"),
    [("html", "is expected: it was thrown away"), ("404", "answers 404"), ("torn", "cannot be reached")],
)
def test_wrong_answers_are_not_believed(tmp_path, server, page, said):
    with pytest.raises(AsrlibError, match=said):
        downloads.download(f"{server}/{page}", tmp_path / "x.bin", sha256_hex=DIGEST)
    assert not (tmp_path / "x.bin").exists()


def test_a_part_that_is_already_whole_is_checked(tmp_path, server):
    target = tmp_path / "x.bin"
    target.with_name("x.bin.part").write_bytes(bytes(len(CONTENT)))
    with pytest.raises(AsrlibError, match="it was thrown away"):
        downloads.download(f"{server}/x", target, sha256_hex=DIGEST)
    assert list(tmp_path.iterdir()) == []
    target.with_name("x.bin.part").write_bytes(CONTENT)
    assert downloads.download(f"{server}/x", target, sha256_hex=DIGEST).read_bytes() == CONTENT


def test_nobody_answers(tmp_path):
    with pytest.raises(AsrlibError, match="cannot be reached"):
        downloads.download("http://127.0.0.1:9/x", tmp_path / "x.bin", sha256_hex=DIGEST)


def test_a_folder_that_vanishes_while_its_bytes_are_counted_ends_nothing(tmp_path, monkeypatch):
    """pip unpacks into folders of its own and deletes them, while the progress line counts what is there."""
    for name in ("kept", "gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(7))
    scan = os.scandir

    def vanishing(path="."):
        if str(path).endswith("gone"):
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert downloads._bytes(tmp_path) == 7

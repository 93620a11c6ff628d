"""A corpus is fetched whole or not at all, whatever the source, the archive or the moment of the kill."""

import functools
import http.server
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from programs import FETCH, SHARE, build_package, needs_dpkg

from asrlib import AsrlibError, corpora
from asrlib.corpora import catalogue
from asrlib.io import files


def fetch_in_process(world: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", FETCH, str(world / "rows.json")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def nothing_is_left(world: Path) -> bool:
    return not (world / "cache/corpora/audiobook/en").exists() and not list((world / "cache").rglob("*.deb"))


# --- apt --------------------------------------------------------------------------------------------------------------


@needs_dpkg
def test_fetch_from_apt_unpacks_only_what_is_wanted(world):
    (world / "tree" / "usr" / "share" / "other").mkdir()
    (world / "tree" / "usr" / "share" / "other" / "file").write_text("not wanted")
    build_package(world)
    assert len(corpora.load("audiobook")) == 3
    assert not (world / "cache/corpora/audiobook/en/usr/share/other").exists()
    assert corpora.available("audiobook")


@needs_dpkg
def test_stale_package_lists_are_read_anew(world):
    build_package(world)
    (world / "apt" / "stale").touch()
    assert len(corpora.load("audiobook")) == 3


@needs_dpkg
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("cut", r"pocketsphinx-testdata_9_all\.deb is damaged or truncated"),
        ("checksum", "does not have the checksum"),
        ("content", "differs from the list"),
    ],
)
def test_a_wrong_package_is_refused_and_fetched_anew(world, monkeypatch, spoil, said):
    package = build_package(world)
    whole = package.read_bytes()
    with monkeypatch.context() as patch:
        if spoil == "cut":
            package.write_bytes(whole[: len(whole) // 2])
        elif spoil == "checksum":
            patch.setitem(catalogue.table()["debian"], package.name, "0" * 64)
        else:
            soundfile.write(world / "tree" / SHARE / "clip-1.wav", np.ones(16_000) / 2, 16_000)
            build_package(world)
        with pytest.raises(AsrlibError, match=said):
            corpora.fetch("audiobook")
    assert nothing_is_left(world)
    package.write_bytes(whole)
    assert len(corpora.load("audiobook")) == 3


@needs_dpkg
def test_damaged_cache_is_fetched_again(world):
    build_package(world)
    clip = corpora.fetch("audiobook") / SHARE / "clip-0.wav"
    right = clip.read_bytes()
    clip.write_bytes(right[:-100])
    corpora.fetch("audiobook")
    assert clip.read_bytes() == right


@needs_dpkg
def test_what_is_there_is_only_read(world, monkeypatch):
    build_package(world)
    tree = corpora.fetch("audiobook")
    for writer in ("lock", "new_folder", "write_atomic"):
        monkeypatch.delattr(files, writer)  # a cache that is read-only
    assert corpora.available("audiobook")
    assert corpora.fetch("audiobook") == tree
    assert len(corpora.load("audiobook")) == 3


@needs_dpkg
def test_killed_fetch_leaves_nothing_that_is_believed(world):
    build_package(world)
    (world / "apt" / "kill").touch()
    process = fetch_in_process(world)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert list((world / "cache").rglob("half.deb")), "the kill came before the download began"
    assert not corpora.available("audiobook")
    (world / "apt" / "kill").unlink()
    assert len(corpora.load("audiobook")) == 3
    assert not list((world / "cache").rglob("half.deb"))


@pytest.mark.slow
@needs_dpkg
def test_two_fetches_at_once_download_once(world):
    build_package(world)
    processes = [fetch_in_process(world) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [out.strip() for out, _ in outputs] == ["3", "3"], outputs
    assert (world / "apt" / "log").read_text() == "download\n"


# --- upstream ---------------------------------------------------------------------------------------------------------


def upstream_archive(world: Path, *extra: tuple[tarfile.TarInfo, bytes]) -> Path:
    archive = world / "www" / "pocketsphinx-5prealpha.tar.gz"
    archive.parent.mkdir(exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(world / "tree" / SHARE, "pocketsphinx-5prealpha/test/data/librivox")
        for member, content in extra:
            tar.addfile(member, io.BytesIO(content) if content else None)
    return archive


@pytest.fixture
def upstream(world, monkeypatch):
    """Serve an archive as upstream does; return the function that publishes one."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(world / "www"))
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def publish(*extra: tuple[tarfile.TarInfo, bytes], package: Path | None = None) -> None:
        archive = upstream_archive(world, *extra)
        archive = shutil.copy(package, archive.parent / package.name) if package else archive
        facts = catalogue.table()["audiobook"]
        monkeypatch.setitem(facts, "upstream", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        monkeypatch.setitem(facts, "upstream_sha256", files.sha256(archive))

    monkeypatch.setenv("PATH", str(world / "nothing"))
    yield publish
    server.shutdown()


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


@pytest.mark.parametrize("apt", ["offline", "none"])
def test_upstream_serves_where_apt_does_not(world, upstream, monkeypatch, apt):
    if apt == "offline":
        monkeypatch.setenv("PATH", f"{world / 'apt' / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
        (world / "apt" / "offline").touch()
    upstream()
    assert len(corpora.load("audiobook")) == 3


@pytest.fixture
def package(world, monkeypatch):
    """Build a Debian package, which names its files as they are to be called."""
    for key in ("upstream_folder", "upstream_becomes"):
        monkeypatch.setitem(catalogue.table()["audiobook"], key, "")
    return build_package(world)


@needs_dpkg
def test_a_debian_package_is_unpacked_without_its_tools(world, package, upstream):
    upstream(package=package)
    tree = corpora.fetch("audiobook")
    assert len(corpora.load("audiobook")) == 3
    assert [path.name for path in tree.iterdir()] == ["usr"]


@needs_dpkg
@pytest.mark.parametrize("left", [0, 40, 100, 400, -1000])
def test_half_a_debian_package_is_refused(world, package, upstream, left):
    package.write_bytes(package.read_bytes()[:left])
    upstream(package=package)
    with pytest.raises(
        AsrlibError, match=r"testdata_9_all.deb is (no Debian package, or damaged|damaged or truncated)"
    ):
        corpora.fetch("audiobook")
    assert nothing_is_left(world)


def test_wrong_upstream_checksum(upstream, monkeypatch):
    upstream()
    monkeypatch.setitem(catalogue.table()["audiobook"], "upstream_sha256", "0" * 64)
    with pytest.raises(AsrlibError, match="sha256"):
        corpora.fetch("audiobook")


INSIDE = "pocketsphinx-5prealpha/test/data/librivox"


@pytest.mark.parametrize(
    ("hostile", "content"),
    [
        (member(f"{INSIDE}/../../../../../../../../../../escaped", 4), b"evil"),
        (member(f"{INSIDE}/huge.wav", 3 * 1024**3), b""),
    ],
    ids=["traversal", "bomb"],
)
def test_hostile_archive_is_refused(world, upstream, hostile, content):
    upstream((hostile, content))
    with pytest.raises(AsrlibError, match="is hostile and was not used"):
        corpora.fetch("audiobook")
    assert nothing_is_left(world)
    assert not list(world.rglob("escaped"))


def test_links_and_absolute_names_are_not_unpacked(world, upstream):
    secret = world / "secret"
    secret.write_text("secret")
    upstream(
        (member(f"{INSIDE}/link.wav", kind=tarfile.SYMTYPE, link=str(secret)), b""),
        (member(f"{INSIDE}/hard.wav", kind=tarfile.LNKTYPE, link=str(secret)), b""),
        (member(str(world / "absolute"), 4), b"evil"),
    )
    tree = corpora.fetch("audiobook")
    assert not (world / "absolute").exists()
    assert {path.name for path in (tree / SHARE).iterdir()} == {
        "clip-0.wav",
        "clip-1.wav",
        "clip-2.wav",
        "transcription",
    }


# --- no source --------------------------------------------------------------------------------------------------------


def test_without_any_source_one_sentence_says_what_to_do(world, monkeypatch):
    (world / "apt" / "offline").touch()
    with pytest.raises(AsrlibError) as caught:
        corpora.fetch("audiobook")
    message = str(caught.value)
    assert "\n" not in message and "apt-get" in message and "127.0.0.1:9" in message
    assert "Temporary failure" in message or not shutil.which("dpkg-deb")
    assert message.endswith(
        "unpack the Debian packages pocketsphinx-testdata elsewhere and name that folder in ASRLIB_DATA."
    )
    monkeypatch.setenv("PATH", str(world / "nothing"))
    with pytest.raises(AsrlibError, match="apt-get is not on this machine"):
        corpora.fetch("audiobook")


def test_cache_that_cannot_be_written_is_named(world, monkeypatch):
    (world / "file").write_text("")
    monkeypatch.setenv("ASRLIB_CACHE", str(world / "file"))
    with pytest.raises(AsrlibError, match="ASRLIB_CACHE"):
        corpora.fetch("audiobook")

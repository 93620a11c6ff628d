"""Where a packaged corpus comes from: a folder, the cache, the system, ``apt-get download``, the upstream archive."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from asrlib import AsrlibError
from asrlib.corpora import catalogue, packaged
from asrlib.io import downloads, files

__all__ = ["available", "brought", "fetch", "places", "rows_of"]


def _data_folders() -> list[Path]:
    folders = [files.user_path(name) for name in os.environ.get("ASRLIB_DATA", "").split(os.pathsep) if name]
    for folder in folders:
        if not folder.is_dir():
            raise AsrlibError(f"ASRLIB_DATA names {folder}, which is not a folder: correct it, or unset ASRLIB_DATA.")
    return folders


def brought(root: Path | None, names: tuple[str, ...], need: str) -> Path | None:
    """Return ``root``, or a folder with one of these names in those of ``ASRLIB_DATA``, or None."""
    if root is None:
        return next((place for top in _data_folders() for name in names if (place := top / name).is_dir()), None)
    if not root.exists():
        raise AsrlibError(f"{root} does not exist: give root={need}.")
    return root


def _cached(name: str, language: str) -> Path:
    return files.cache_dir() / "corpora" / name / language


def places(name: str, language: str) -> list[Path]:
    """Return the folders that may hold a corpus already: those of ``ASRLIB_DATA``, the cache, the system."""
    return [*_data_folders(), _cached(name, language), Path("/")]


def _find(name: str, language: str) -> tuple[Path, list[dict[str, Any]]] | None:
    for place in places(name, language):
        if rows := packaged.verified(name, language, place):
            return place, rows
    return None


def available(name: str, language: str | None = None) -> bool:
    """Return whether a packaged corpus is on this machine already; nothing is fetched and no checksum computed."""
    language = catalogue.known_language(name, language)
    enough = packaged.ENOUGH * len(catalogue.listed(name, language))
    return any(len(packaged.read(name, language, place)) >= enough for place in places(name, language))


def fetch(name: str, language: str | None = None) -> Path:
    """Bring a packaged corpus to this machine and return the folder that holds its ``usr/share`` tree.

    A second run that wants the same waits for the first. What is fetched is verified clip by clip before it gets its name.

    Raises:
        AsrlibError: unknown name or language, or no source has it; the sentence says what each source answered.
    """
    return rows_of(name, catalogue.known_language(name, language))[0]


def rows_of(name: str, language: str) -> tuple[Path, list[dict[str, Any]]]:
    """Return the folder that `fetch` returns, and the verified rows of its clips."""
    if found := _find(name, language):
        return found
    target, problems = _cached(name, language), []
    with files.lock(target):
        if found := _find(name, language):  # another run brought it while this one waited
            return found
        for source in (_from_apt, _from_upstream):
            try:
                with files.new_folder(target) as folder:
                    source(name, language, folder)
                return target, packaged.verified(name, language, target)
            except files.DiskFullError:
                raise
            except AsrlibError as error:
                problems.append(re.sub(r": [^:]*again[^:]*$", "", str(error)).rstrip("."))  # the advice follows below
    packages = " and ".join(catalogue.facts(name, language)["packages"])
    raise AsrlibError(
        f"The corpus {name}/{language} could not be fetched ({'; '.join(problems)}): connect to the network and try again, or "
        f"unpack the Debian packages {packages} elsewhere and name that folder in ASRLIB_DATA."
    )


@contextlib.contextmanager
def _used(archive: Path, name: str, language: str, folder: Path, *, shared: bool) -> Iterator[None]:
    """Check what was unpacked of an archive, or of a folder of packages, and delete that; what serves other languages too stays,
    if it was good.
    """
    try:
        yield
        if not packaged.verified(name, language, folder):
            raise AsrlibError("what it sent differs from the list in data/splits")
    except BaseException:
        shared = False
        raise
    finally:
        if archive.is_dir() and not shared:
            shutil.rmtree(archive)
        elif not shared:
            archive.unlink(missing_ok=True)


def _apt_download(packages: list[str], folder: Path) -> None:
    """Download Debian packages into ``folder`` without root; the machine's own package lists stay as they are."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise AsrlibError("apt-get is not on this machine")
    label = f"downloading {' and '.join(packages)}"
    options = ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=30"]
    if os.geteuid() == 0:
        options += ["-o", "APT::Sandbox::User=root"]  # else apt warns that its own user cannot write here

    def apt(*command: str) -> tuple[int, str]:
        return downloads.run(
            ["apt-get", *options, *command], folder, label, cwd=folder, env=os.environ | {"LC_ALL": "C"}
        )

    if apt("download", *packages)[0] == 0:
        return
    # The lists are empty or out of date: read fresh ones into a place of our own.
    with tempfile.TemporaryDirectory() as own:
        for part in ("lists/partial", "cache/archives/partial"):
            (Path(own) / part).mkdir(parents=True)
        options += ["-o", f"Dir::State::Lists={own}/lists", "-o", f"Dir::Cache={own}/cache"]
        for command in (["update"], ["download", *packages]):
            code, said = apt(*command)
            if "No space left on device" in said:
                raise files.DiskFullError(folder)
            if code:
                reason = next((line[3:] for line in said.splitlines() if line.startswith("E: ")), "no reason given")
                raise AsrlibError(f"apt-get {command[0]} failed: {reason}")


def _unpack_package(package: Path, folder: Path, wanted: Callable[[str], str | None]) -> None:
    """Unpack chosen files of a Debian package, without root."""
    known = catalogue.table()["debian"].get(package.name)
    if known and files.sha256(package) != known:
        raise AsrlibError(f"{package.name} does not have the checksum in data/corpora.toml")
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            downloads.extract(process.stdout, folder, wanted, source=package.name)
            while process.stdout.read(1 << 20):  # padding after the archive's end
                pass
        finally:
            process.stdout.close()
    if process.returncode:
        raise AsrlibError(f"{package.name} is damaged or truncated")


def _skip_to_files(package: BinaryIO, name: str) -> None:
    """Go to the tar archive of files within a Debian package, which is an ar archive (deb(5))."""
    package.seek(len(b"!<arch>\n"))
    while len(header := package.read(60)) == 60 and (size := header[48:58].strip()).isdigit():
        if header.startswith(b"data.tar"):
            return
        package.seek(int(size) + int(size) % 2, os.SEEK_CUR)
    raise AsrlibError(f"{name} is no Debian package, or damaged")


def _wanted(patterns: list[str], top: str = "", becomes: str = "") -> Callable[[str], str | None]:
    """Return what tells where a member of an archive goes, or None: ``top`` becomes another folder, and the patterns choose."""

    def place(member: str) -> str | None:
        path = becomes + member.removeprefix(top)
        return path if member.startswith(top) and any(fnmatchcase(path, pattern) for pattern in patterns) else None

    return place


def _from_apt(name: str, language: str, folder: Path) -> None:
    facts = catalogue.facts(name, language)
    shared = facts["packages"] == catalogue.table()[name]["packages"]  # no language in their names
    store = files.cache_dir() / "corpora" / "downloads" / "+".join(facts["packages"])
    packages = files.prepared(store, functools.partial(_apt_download, facts["packages"]))
    with _used(packages, name, language, folder, shared=shared):
        for package in sorted(packages.glob("*.deb")):
            _unpack_package(package, folder, _wanted(facts["files"]))


def _from_upstream(name: str, language: str, folder: Path) -> None:
    facts = catalogue.facts(name, language)
    archive = files.cache_dir() / "corpora" / "downloads" / facts["upstream"].rpartition("/")[2]
    with files.lock(archive):
        if not archive.exists():
            downloads.download(facts["upstream"], archive, sha256_hex=facts["upstream_sha256"])
        wanted = _wanted(facts["files"], facts["upstream_folder"], facts["upstream_becomes"])
        shared = facts["upstream"] == catalogue.table()[name]["upstream"]
        with _used(archive, name, language, folder, shared=shared), open(archive, "rb") as stream:
            if archive.suffix == ".deb":  # where there is no dpkg-deb
                _skip_to_files(stream, archive.name)
            downloads.extract(stream, folder, wanted, source=archive.name)

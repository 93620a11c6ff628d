"""Where a packaged corpus comes from: a folder, the cache, the system, ``apt-get download``, the upstream archive."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from asrlib import AsrlibError
from asrlib.corpora import catalogue, packaged
from asrlib.io import downloads, files

__all__ = ["available", "data_folders", "fetch", "places", "rows_of"]


def _cached(name: str, language: str) -> Path:
    return files.cache_dir() / "corpora" / name / language


def data_folders() -> list[Path]:
    """Return the folders of ``ASRLIB_DATA``."""
    folders = [files.user_path(name) for name in os.environ.get("ASRLIB_DATA", "").split(os.pathsep) if name]
    for folder in folders:
        if not folder.is_dir():
            raise AsrlibError(f"ASRLIB_DATA names {folder}, which is not a folder: correct it, or unset ASRLIB_DATA.")
    return folders


def places(name: str, language: str) -> Iterator[Path]:
    """Yield the folders that may hold the corpus already: those of ``ASRLIB_DATA``, the cache, the system."""
    yield from data_folders()
    yield _cached(name, language)
    yield Path("/")


def _find(name: str, language: str) -> tuple[Path, list[dict[str, Any]]] | None:
    for place in places(name, language):
        if rows := packaged.verified(name, language, place):
            return place, rows
    return None


def available(name: str, language: str | None = None) -> bool:
    """Return whether a packaged corpus is on this machine already; nothing is fetched and no checksum computed."""
    language = catalogue.known_language(name, language)
    listed = sum("split" in row for row in catalogue.manifest(name, language))
    return any(
        len(packaged.read(name, language, place)) >= packaged.ENOUGH * listed for place in places(name, language)
    )


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
                    if not packaged.verified(name, language, folder):
                        raise AsrlibError("what it sent differs from the list in data/splits")
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
def _downloads(name: str, language: str, *addresses: str) -> Iterator[Path]:
    """Yield the locked folder for the archives at some addresses, as the table has them.

    Archives that serve all languages are kept for the next one; those of which a language has its own, or that cannot be unpacked,
    are deleted. The part of an interrupted HTTPS download stays, to be resumed.
    """
    shared = not any("{language}" in address for address in addresses)
    store = files.cache_dir() / "corpora" / "downloads" / (name if shared else f"{name}-{language}")
    keep = False
    with files.lock(store):
        try:
            yield store
            keep = shared
        finally:
            if not keep:
                shutil.rmtree(store / "packages", ignore_errors=True)
                for archive in store.glob("*.tar.gz"):
                    archive.unlink()
            with contextlib.suppress(OSError):  # it is not empty
                store.rmdir()


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


def _from_apt(name: str, language: str, folder: Path) -> None:
    facts = catalogue.facts(name, language)

    def wanted(member: str) -> str | None:
        return member if any(fnmatchcase(member, pattern) for pattern in facts["files"]) else None

    with _downloads(name, language, *catalogue.table()[name]["packages"]) as store:
        packages = store / "packages"
        if not packages.exists():
            with files.new_folder(packages) as fresh:
                _apt_download(facts["packages"], fresh)
        for package in sorted(packages.glob("*.deb")):
            _unpack_package(package, folder, wanted)


def _from_upstream(name: str, language: str, folder: Path) -> None:
    facts = catalogue.facts(name, language)
    if not facts["upstream"]:
        raise AsrlibError("its makers offer no archive with the same file")
    top, becomes = facts["upstream_folder"], facts["upstream_becomes"]

    def wanted(member: str) -> str | None:
        path = becomes + member.removeprefix(top)
        kept = member.startswith(top) and any(fnmatchcase(path, pattern) for pattern in facts["files"])
        return path if kept else None

    with _downloads(name, language, catalogue.table()[name]["upstream"]) as store:
        archive = store / facts["upstream"].rpartition("/")[2]
        if not archive.exists():
            downloads.download(facts["upstream"], archive, sha256_hex=facts["upstream_sha256"])
        with open(archive, "rb") as stream:
            downloads.extract(stream, folder, wanted, source=archive.name)

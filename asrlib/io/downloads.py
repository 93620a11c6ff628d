"""Downloads and archives: nothing incomplete, changed or hostile gets its name."""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from asrlib import AsrlibError
from asrlib.io.files import sha256, writing
from asrlib.io.progress import Meter

__all__ = ["download", "extract", "run"]

MAX_MEMBER_BYTES = 2 * 1024**3  # no file of any corpus or checkpoint here is larger
MAX_ARCHIVE_BYTES = 200 * 1024**3  # LibriSpeech and Common Voice archives unpack to less
HTTP_TIMEOUT = 30.0  # seconds without any byte after which a download ends
MAX_NAME_BYTES = 1024**2  # of a member's name, which a header of its own may hold
NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


def download(url: str, target: Path | str, *, sha256_hex: str) -> Path:
    """Download a file over HTTP(S), resuming an earlier attempt, and accept it only with the right checksum.

    Raises:
        AsrlibError: no answer, an HTTP error, a cut connection (what came is kept for the next run), or a wrong checksum
            (what came is thrown away).
    """
    target = Path(target)
    part = target.with_name(target.name + ".part")
    with writing(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        length = _receive(url, part)
        if (found := sha256(part)) == sha256_hex:
            return part.replace(target)
        if (size := part.stat().st_size) < length:
            raise AsrlibError(
                f"The download of {url} was cut at {size:,} bytes: run the same command again, it will resume."
            )
        part.unlink()
    raise AsrlibError(
        f"{url} has sha256 {found[:12]}... where {sha256_hex[:12]}... is expected: it was thrown away; try again later."
    )


def _receive(url: str, part: Path) -> int:
    """Append to ``part`` what it lacks of the file at ``url``; return the length of the whole file, 0 if it is not told."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=HTTP_TIMEOUT) as answer:
            have = have if answer.status == 206 else 0
            length = int(answer.headers.get("Content-Length") or 0)
            with open(part, "ab" if have else "wb") as stream, Meter(part.stem, total=length, unit="B") as meter:
                while piece := answer.read(1 << 20):
                    stream.write(piece)
                    meter.step(len(piece))
        return length and have + length
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send: the part is already whole
            return have
        raise AsrlibError(f"{url} answers {error.code} ({error.reason}): try again later.") from None
    except (urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise AsrlibError(
            f"{url} cannot be reached ({reason}): check the network and run the same command again."
        ) from None


def run(command: list[str], folder: Path, label: str, total: int = 0, **options: Any) -> tuple[int, str]:
    """Run a program that fills ``folder``, and return its exit code and all that it said; it gets no input.

    The progress line, named by ``label``, counts the bytes in the folder, of ``total`` where that is known; ``options`` are
    those of ``subprocess.Popen``, such as ``cwd`` and ``env``.
    """
    with tempfile.TemporaryFile() as log, Meter(label, total, "B") as meter:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, **options)
        try:
            while process.returncode is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
                meter.step(_bytes(folder) - meter.done)
        finally:
            process.kill()  # where the waiting was interrupted
            process.wait()
        log.seek(0)
        return process.returncode, log.read().decode(errors="replace")


def _bytes(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):  # leaves out a folder that the program has just moved, where rglob ends
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(place, name).stat().st_size
    return total


class _Member(tarfile.TarInfo):
    """A member's header; tarfile itself takes one that is missing or damaged for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            found = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # the real end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None
        if found.type in NAMES and found.size > MAX_NAME_BYTES:
            raise tarfile.ReadError("a name of an impossible size")
        return found


def extract(stream: BinaryIO, target: Path, wanted: Callable[[str], str | None], *, source: str) -> int:
    """Unpack chosen regular files of a tar stream below ``target``; links, devices and folders are skipped.

    Args:
        stream: a tar archive, compressed or not; need not be seekable.
        target: an existing folder, which nothing leaves.
        wanted: maps a member's name (without leading ``./``) to its relative target, or None to skip it.
        source: the archive's name, for error messages.

    Returns:
        Number of files written.

    Raises:
        AsrlibError: a damaged or truncated archive, a name that leaves ``target``, or a member of an impossible size.
    """
    written = total = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as archive:
            for member in archive:
                name = wanted(member.name.removeprefix("./"))
                if name is None or not member.isfile():
                    continue
                total += member.size
                if member.size > MAX_MEMBER_BYTES or total > MAX_ARCHIVE_BYTES:
                    raise AsrlibError(
                        f"{source} holds more bytes than any corpus here: the archive is hostile and was not used."
                    )
                with writing(target / name):
                    archive.extract(member.replace(name=name, mtime=time.time()), target, filter="data")
                written += 1
    except tarfile.FilterError as error:
        raise AsrlibError(f"{source} is hostile and was not used: {error}.") from None
    # ValueError: numbers in a forged header. TypeError: a few bytes of gzip. RecursionError: names of names.
    except (tarfile.TarError, EOFError, OSError, ValueError, TypeError, RecursionError) as error:
        raise AsrlibError(
            f"{source} is damaged or truncated ({error}): delete it and run the same command again."
        ) from None
    return written

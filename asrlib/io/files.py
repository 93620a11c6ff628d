"""Files that are never half written: places, atomic writes, locks, checksums, checked tables."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import importlib
import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from asrlib import AsrlibError
from asrlib.io.progress import Meter

__all__ = [
    "DiskFullError",
    "cache_dir",
    "check_schema",
    "data_file",
    "import_jsonschema",
    "link",
    "lock",
    "new_folder",
    "no_room",
    "prepared",
    "read_json",
    "read_jsonl",
    "read_toml",
    "repository",
    "reserve",
    "sha256",
    "user_path",
    "write_atomic",
    "write_jsonl",
    "writing",
]


class DiskFullError(AsrlibError):
    """No room is left where something was to be written: another source of the same thing would not help."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(f"The disk is full while writing {path}: free some space and run the same command again.")


def repository() -> Path | None:
    """Return the root of the course's checkout, or None where asrlib was installed from a wheel."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "notebooks" / "notebooks.toml").is_file() else None


def data_file(name: str) -> Path:
    """Return the path of a data file of the checkout, or of the wheel, such as ``corpora.toml``."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "data", package / "data"):
        if (folder / name).exists():
            return folder / name
    raise AsrlibError(f"The course's data file {name!r} is missing: the installation is damaged, install asrlib again.")


def user_path(path: Path | str) -> Path:
    """Return a path as a person writes it, with ``~`` replaced by the home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise AsrlibError(f"The home folder in {path} is not known: write the whole path instead of `~`.") from None


def cache_dir() -> Path:
    """Return the folder for fetched weights and speech: ``ASRLIB_CACHE``, else the user's cache folder, made when missing."""
    base = os.environ.get("ASRLIB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "asrlib")
    try:
        base = user_path(base)
        base.mkdir(parents=True, exist_ok=True)
    except (AsrlibError, OSError) as error:
        reason = getattr(error, "strerror", None) or "the home folder is not known"
        raise AsrlibError(
            f"The cache folder {base} cannot be made ({reason}): set ASRLIB_CACHE to the whole path of a folder you can write."
        ) from None
    return base.resolve()


def no_room(error: BaseException) -> bool:
    """Tell whether an error says that the disk is full: an ``OSError``, or what libraries in Rust make of one."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or bool(re.search(rf"os error ({errno.ENOSPC}|{errno.EDQUOT})\b", str(error)))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the errors of a full or read-only disk into one sentence that names the place."""
    try:
        yield
    except OSError as error:
        if no_room(error):
            raise DiskFullError(path) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise AsrlibError(
                f"{path} cannot be written ({error.strerror}): choose another folder, with ASRLIB_CACHE for weights and speech."
            ) from None
        raise


def write_atomic(path: Path | str, content: str | bytes | Iterable[str]) -> Path:
    """Write a file, text as UTF-8, so that a reader sees the old content or the new, never a part.

    Raises:
        AsrlibError: disk full, or folder not writable.
    """
    path = Path(path)
    pieces = [content] if isinstance(content, str | bytes) else content
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Cut, for the whole name may have all the bytes that a file system allows.
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:20]}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                for piece in pieces:
                    # The name of a file may hold bytes that are no UTF-8: they become \\udcNN, as in JSON.
                    stream.write(piece.encode(errors="backslashreplace") if isinstance(piece, str) else piece)
                stream.flush()
                os.fsync(stream.fileno())
            with contextlib.suppress(PermissionError):  # a file system whose files have one owner
                Path(name).chmod(0o644)  # mkstemp makes files private; results are to be shared
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    return path


@contextlib.contextmanager
def new_folder(target: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside ``target`` that becomes ``target`` when the block ends without an error.

    A killed run leaves a hidden ``.NAME~*.part`` folder, which the next call removes; so hold ``lock(target)`` around it.

    Raises:
        AsrlibError: disk full, or folder not writable.
    """
    target = Path(target)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # The tilde tells whisper-tiny from whisper-tiny.en, which another run may be writing.
        for stale in target.parent.glob(f".{glob.escape(target.name)}~*.part"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}~", suffix=".part", dir=target.parent))
        try:
            yield temporary
            with contextlib.suppress(PermissionError):
                temporary.chmod(0o755)
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextlib.contextmanager
def lock(target: Path | str, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock beside ``target``, which the operating system drops when its holder dies; yield True.

    Where another run holds it, wait or, with ``wait=False``, yield False.
    """
    import filelock

    path = Path(f"{target}.lock")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        guard = filelock.FileLock(path)
        try:
            guard.acquire(timeout=0)
        except filelock.Timeout:
            if wait:
                with Meter(f"waiting for another run that prepares {Path(target).name}"):
                    try:
                        guard.acquire()
                    except RuntimeError:  # this process itself holds it
                        raise AsrlibError(
                            f"{Path(target).name} needs itself to be made: correct what it names."
                        ) from None
    try:
        yield guard.is_locked
    finally:
        guard.release()


def reserve(folder: Path, run: Mapping[str, Any], owner: str) -> None:
    """Say in ``run.json`` what the results in a folder depend on; those of another ``run`` are an `AsrlibError`.

    ``owner`` names it in the message, such as ``"model or corpus"``.
    """
    path = folder / "run.json"
    with lock(path):
        if read_json(path) not in ({}, run):
            advice = "" if any(folder.glob("metadata.*")) else "delete it, or "  # never a person's recordings
            raise AsrlibError(f"{folder} belongs to another {owner}: {advice}give another folder.")
        write_atomic(path, json.dumps(run) + "\n")


def prepared(target: Path, fill: Callable[[Path], object]) -> Path:
    """Have ``fill`` write a folder that becomes ``target``, once, also where several processes ask for it at the same time."""
    if not target.exists():
        with lock(target):
            if not target.exists():  # another run may have finished it while this one waited
                with new_folder(target) as folder:
                    fill(folder)
    return target


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that is on another file system."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def sha256(path: Path | str) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, read in pieces."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_toml(path: Path | str) -> dict[str, Any]:
    """Read a TOML file; an absent file is an error, and a wrong one becomes one sentence with file, line and column."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise AsrlibError(f"{path} cannot be read ({error.strerror}): restore the file.") from None
    except (ValueError, RecursionError) as error:  # ValueError: wrong syntax, or bytes that are no UTF-8
        raise AsrlibError(f"{path} is not valid TOML: {error}.") from None


def read_json(path: Path | str) -> dict[str, Any]:
    """Read a JSON object; an absent file is an empty one."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise AsrlibError(f"{path} cannot be read as JSON ({error}): copy or save it again.") from None
    if not isinstance(content, dict):
        raise AsrlibError(f"{path} holds no JSON object: copy or save it again.")
    return content


def read_jsonl(path: Path | str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; a broken line is named by its number."""
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                row, problem = json.loads(text), "no JSON object"
            except (ValueError, RecursionError) as error:
                row, problem = None, f"not valid JSON ({getattr(error, 'msg', error)})"
            if not isinstance(row, dict):
                raise AsrlibError(f"{path}, line {number}, is {problem}: restore the file.")
            yield row


def check_schema(content: Any, schema: Path, name: str) -> None:
    """Check plain data, called ``name``, against a JSON schema; an `AsrlibError` names the place that breaks it."""
    import_jsonschema()
    from jsonschema.exceptions import best_match

    if error := best_match(_validator(schema).iter_errors(content)):
        place = "/".join(map(str, error.absolute_path)) or "top level"
        raise AsrlibError(f"{name} breaks {schema.parent.name}/{schema.name} at {place}: {error.message[:200]}.")


@functools.cache
def _validator(schema: Path) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))


def import_jsonschema() -> None:
    """Import jsonschema without the package for the format ``iri``: that takes a second, and no schema here has it."""
    if "jsonschema" not in sys.modules and "rfc3987_syntax" not in sys.modules:
        sys.modules["rfc3987_syntax"] = None  # its import fails, which jsonschema allows
        importlib.import_module("jsonschema")
        del sys.modules["rfc3987_syntax"]


def write_jsonl(path: Path | str, rows: Iterable[dict[str, Any]]) -> Path:
    """Write objects as JSON lines, atomically, keys in the given order."""
    return write_atomic(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

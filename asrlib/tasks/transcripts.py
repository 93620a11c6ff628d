"""Which files ``asrlib transcribe`` and ``asrlib prepare`` read, and what the transcripts of these are called."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from asrlib import AsrlibError
from asrlib.decoding.outcomes import Outcomes, whole
from asrlib.io.sound import SUFFIXES

__all__ = ["audio_files", "names"]


def audio_files(places: Iterable[Path], output: Path | None = None) -> list[Path]:
    """Return the files among some places and, of folders, the audio files below them, sorted, each once.

    What a folder holds besides is named on stderr; what is in ``output``, made by an earlier call, is passed over. ``-`` is the
    standard input. A place that does not exist is returned too: it fails when its turn comes.

    Raises:
        AsrlibError: no place exists, or none holds audio.
    """
    places = [Path("/dev/stdin") if str(place) == "-" else place for place in places]
    if not any(place.exists() for place in places):
        raise AsrlibError(f"{places[0]} does not exist: check the path.")
    found: dict[str, Path] = {}
    for place in places:
        if not place.is_dir():
            path = _spooled(place) if place.exists() and not place.is_file() else place
            found.setdefault(whole(path), path)
            continue
        below = output and Path(whole(place)) in Path(whole(output)).parents
        for path in sorted(path for path in place.rglob("*") if path.is_file()):
            if below and Path(whole(output)) in Path(whole(path)).parents:
                continue
            if reason := _left_out(path):
                print(f"asrlib: {path} is left out: {reason}.", file=sys.stderr)
            else:
                found.setdefault(whole(path), path)
    if not found:
        raise AsrlibError(f"{places[0]} holds no audio file ({', '.join(sorted(SUFFIXES))}): name another folder.")
    return list(found.values())


def _spooled(pipe: Path) -> Path:
    """Return a file, until this process ends, of what comes out of a pipe: that can be read only once."""
    folder = tempfile.mkdtemp(prefix="asrlib-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / pipe.name
    with open(pipe, "rb") as stream, open(path, "wb") as file:
        shutil.copyfileobj(stream, file)
    return path


def _left_out(path: Path) -> str:
    """Return why a file of a folder is not taken for a recording, or nothing."""
    if path.name.startswith("."):
        return "a hidden file"
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return ""
    kind = f"{suffix} is no ending of a sound or video file" if suffix else "its name has no ending"
    return f"{kind}: name the file itself to have it read"


def names(paths: Sequence[Path], suffix: str, outcomes: Outcomes) -> dict[Path, str]:
    """Return what the transcript of each file is called in a folder: no two files ever share a name there, nor a file that is there.

    A file keeps the name that it was given before, also where its folder was moved since. The others are called by their stem, as
    long as all of those differ; else by their whole name, else by their path below the folder that they share, else by their whole
    path.

    Args:
        paths: different files.
        suffix: ending of the transcripts, without its dot.
        outcomes: of the folder's earlier runs.
    """
    outcomes.follow(paths)
    made = {file: row["made"] for file, row in outcomes.of.items() if row.get("made", "").endswith(f".{suffix}")}
    files = {path: whole(path) for path in paths}
    new = [file for file in files.values() if file not in made]
    folder = outcomes.path.parent  # where files of the user's own may lie too
    taken = {str(path.relative_to(folder)).casefold() for path in folder.rglob(f"*.{suffix}")}
    taken |= {name.casefold() for name in made.values()}
    shared = os.path.commonpath([Path(file).parent for file in new]) if new else ""
    ways = (
        lambda file: Path(file).stem,
        lambda file: Path(file).name,
        lambda file: os.path.relpath(file, shared),
        lambda file: file.lstrip(os.sep),
    )
    for way in ways:
        called = {file: f"{way(file)}.{suffix}" for file in new}
        if len(taken | {name.casefold() for name in called.values()}) == len(taken) + len(new):
            break
    return {path: (made | called)[file] for path, file in files.items()}

"""Which files ``asrlib transcribe`` and ``asrlib prepare`` read, and what the transcripts of these are called."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from asrlib import AsrlibError, audio
from asrlib.decoding.outcomes import Outcomes, whole
from asrlib.io import sound

__all__ = ["audio_files", "names"]


def audio_files(places: Iterable[Path], output: Path | None = None) -> list[Path]:
    """Return the files among some places and, of folders, the audio files below them, sorted, each once.

    What a folder holds besides is named on stderr; what is in ``output`` is passed over. A place that does not exist is returned
    too: it fails when its turn comes.

    Raises:
        AsrlibError: no place exists, or none holds audio.
    """
    found: dict[str, Path] = {}
    places = list(places)
    if not any(place.exists() for place in places):
        raise AsrlibError(f"{places[0]} does not exist: check the path.")
    for place in places:
        taken, skipped = audio.find(place) if place.is_dir() else ([place], {})
        made = Path(whole(output)) if output else None  # what an earlier call has made is neither heard nor named
        for path in taken:
            if made is None or made not in Path(whole(path)).parents:
                found.setdefault(whole(path), path)
        for path, reason in skipped.items():
            if made is None or made not in Path(whole(path)).parents:
                print(f"asrlib: {path} is left out: {reason}.", file=sys.stderr)
    if not found:
        raise AsrlibError(
            f"{places[0]} holds no audio file ({', '.join(sorted(sound.SUFFIXES))}): name another folder."
        )
    return list(found.values())


def names(paths: Sequence[Path], suffix: str, outcomes: Outcomes) -> dict[Path, str]:
    """Return what the transcript of each file is called in a folder: no two files ever share a name there, nor a file that is there.

    A file keeps the name that it was given before. The others are called by their stem, as long as all of those differ; else by
    their whole name, else by their path below the folder that they share, else by their whole path.

    Args:
        paths: different files.
        suffix: ending of the transcripts, without its dot.
        outcomes: of the folder's earlier runs.
    """
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

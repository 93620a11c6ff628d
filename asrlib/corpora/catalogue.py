"""What ``data/corpora.toml`` and ``data/splits`` say of the corpora."""

from __future__ import annotations

import functools
from typing import Any

from asrlib import AsrlibError
from asrlib.io import files

__all__ = ["FOREIGN", "PACKAGED", "facts", "known_language", "manifest", "names", "table"]

PACKAGED = ("telephone", "picture_words", "audiobook", "dialogue", "untranscribed")
FOREIGN = ("librispeech", "fleurs", "common_voice", "folder")


@functools.cache
def table() -> dict[str, Any]:
    """Return ``data/corpora.toml``."""
    return files.read_toml(files.data_file("corpora.toml"))


def names() -> dict[str, list[str]]:
    """Return the packaged corpora and their languages."""
    return {name: sorted(table()[name]["languages"]) for name in PACKAGED}


def known_language(name: str, language: str | None) -> str:
    """Return the language, which may be left out where a packaged corpus has only one."""
    if name not in PACKAGED:
        raise AsrlibError(f"{name!r} is not a packaged corpus: choose one of {', '.join(PACKAGED)}.")
    known = names()[name]
    language = known[0] if language is None and len(known) == 1 else language
    if language not in known:
        raise AsrlibError(f"The corpus {name!r} has no language {language!r}: choose one of {', '.join(known)}.")
    return language


def facts(name: str, language: str | None = None) -> dict[str, Any]:
    """Return what the table says of a corpus, merged with what it says of the language; placeholders are filled in."""
    if name not in PACKAGED + FOREIGN:
        raise AsrlibError(f"There is no corpus {name!r}: choose one of {', '.join(PACKAGED + FOREIGN)}.")
    found = dict(table()[name])
    if name in FOREIGN:
        return found
    languages = found.pop("languages")
    found |= languages[language]
    values = {"language": language, "voice": found.get("voice", "")}
    for key in ("packages", "files"):
        found[key] = [text.format(**values) for text in found[key]]
    for key in ("upstream", "upstream_becomes"):
        found[key] = found.get(key, "").format(**values)
    return found


def manifest(name: str, language: str) -> list[dict[str, Any]]:
    """Return the committed rows of a corpus: accepted clips with split and checksums, others with the reason.

    A line with ``clips`` (name -> seconds) stands for many clips of one file, whose checksum it has.
    """
    rows = []
    for line in files.read_jsonl(files.data_file(f"splits/{name}-{language}.jsonl")):
        clips = line.pop("clips", {"": line.get("seconds")})
        for clip, seconds in clips.items():
            rows.append(
                line | {"id": f"{line['id']}/{clip}".rstrip("/")} | ({} if seconds is None else {"seconds": seconds})
            )
    return rows

"""The clips of a packaged corpus: found in a tree of files, and compared with the committed list."""

from __future__ import annotations

import contextlib
import functools
import gzip
import re
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asrlib import AsrlibError
from asrlib.corpora import catalogue, dialogue, untranscribed
from asrlib.corpora.clips import Clip, Clips, clean, fingerprint
from asrlib.io import files

__all__ = ["read", "spoken", "verified"]

ENOUGH = 0.9  # a source is believed when at least this share of the listed clips is there, unchanged


def _read_telephone(share: Path, language: str, voice: str) -> Clips:
    root = share / "asterisk" / "sounds" / voice
    repairs = files.read_toml(files.data_file("repairs_it.toml")) if language == "it" else {}
    texts: dict[str, str] = {}
    for line in _telephone_lines(share / f"doc/asterisk-core-sounds-{language}", root, f"core-sounds-{language}.txt"):
        key, colon, text = line.partition(":")
        if colon and not line.startswith(";"):
            text = text.strip().removeprefix(f"{key}:")  # one Russian prompt repeats its name
            texts.setdefault(key.strip().casefold(), text.replace(*repairs.get(key, ("", ""))))
    clips = {path.relative_to(root).with_suffix("").as_posix(): path for path in root.rglob("*.wav")}
    return {name: Clip(path, texts.get(name.casefold()), speaker=voice) for name, path in clips.items()}


def _telephone_lines(package: Path, upstream: Path, name: str) -> list[str]:
    """Return the lines of the list of transcripts: Debian ships it compressed, upstream beside the recordings."""
    packed = package / f"{name}.gz"
    with contextlib.suppress(OSError, EOFError, zlib.error):
        data = gzip.decompress(packed.read_bytes()) if packed.is_file() else (upstream / name).read_bytes()
        return data.decode("utf-8-sig", "replace").splitlines()
    return []  # damaged or missing: clips without transcripts are not the listed ones, so this place is passed over


def _read_picture_words(share: Path, language: str, voice: str) -> Clips:
    root = share / "tuxpaint" / "stamps"
    clips: Clips = {}
    for path in root.rglob(f"*_desc_{language}.ogg*"):  # one file ends in .ogg.ogg
        stem = path.name.partition(f"_desc_{language}.ogg")[0]
        notes = path.with_name(f"{stem}.txt")
        lines = notes.read_text("utf-8-sig", "replace").splitlines() if notes.is_file() else []
        text = next((line.partition("=")[2] for line in lines if line.startswith(f"{language}.utf8=")), None)
        clips[path.with_name(stem).relative_to(root).as_posix()] = Clip(path, text)
    return clips


def _read_audiobook(share: Path, language: str, voice: str) -> Clips:
    root = share / "pocketsphinx/test/data/librivox"
    if not (root / "transcription").is_file():
        return {}
    lines = re.findall(r"<s> (.*) </s> \((.*)\)", (root / "transcription").read_text("utf-8", "replace"))
    return {name: Clip(path, text) for text, name in lines if (path := root / f"{name}.wav").is_file()}


READERS: dict[str, Callable[[Path, str, str], Clips]] = {
    "telephone": _read_telephone,
    "picture_words": _read_picture_words,
    "audiobook": _read_audiobook,
    "dialogue": dialogue.read,
    "untranscribed": untranscribed.read,
}


def read(name: str, language: str, tree: Path) -> Clips:
    """Return the clips below a folder that holds ``usr/share`` or ``share``."""
    share = next((share for share in (tree / "usr/share", tree / "share") if share.is_dir()), None)
    if share is None:
        return {}
    try:
        return READERS[name](share, language, catalogue.facts(name, language).get("voice", ""))
    except AsrlibError as error:
        warnings.warn(f"{name}/{language} is looked for elsewhere: {error}", stacklevel=2)
        return {}


def spoken(clip: Clip) -> str:
    """Return what a list of clips has the checksum of: the transcript as spoken, and its translation."""
    text = clean(clip.text)[0]
    return text if clip.translation is None else f"{text}\n{clip.translation}"


def verified(name: str, language: str, tree: Path) -> list[dict[str, Any]] | None:
    """Return the rows of the clips that are the listed ones, byte for byte and word for word; None if too few are."""
    clips, listed, rows = read(name, language, tree), catalogue.listed(name, language), []

    @functools.lru_cache(maxsize=1)  # one file may hold many clips
    def content(path: Path) -> tuple[bytes, str]:
        data = path.read_bytes()
        return data, fingerprint(data)

    for row in listed:
        clip = clips.get(row["id"].split("/", 2)[2])
        if clip is None:
            continue
        data, digest = content(clip.path)
        words = fingerprint(spoken(clip).encode()) if clip.text else ""
        if (digest, words) != (row["sha256"], row.get("text_sha256", "")):
            continue
        sound = {"path": str(clip.path), "bytes": None}
        if clip.span:
            start, size = clip.span
            sound = {"path": f"{row['id'].rpartition('/')[2]}.mp3", "bytes": data[start : start + size]}
        speaker = clip.speaker or f"{name}-{language}"
        known = {"text": clean(clip.text)[0], "translation": clip.translation, "speaker": speaker}
        rows.append(row | known | {"audio": sound})
    return rows if rows and len(rows) >= ENOUGH * len(listed) else None

"""Sets that the reader brings: LibriSpeech and Common Voice as they are downloaded, and any folder of recordings."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError, audio
from asrlib.corpora import metadata
from asrlib.corpora.rows import dataset, lengths
from asrlib.corpora.sources import brought
from asrlib.io import downloads, files
from asrlib.text import base_code

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["common_voice", "folder", "librispeech_rows"]


def _measured(rows: list[dict[str, Any]], root: Path) -> list[dict[str, Any]]:
    """Return rows with the length of their recordings: 0 of those that cannot be read, which a warning counts."""
    problems = []

    def seconds(path: Path) -> float | None:
        try:
            return audio.duration(path)
        except AsrlibError as error:
            problems.append(str(error))
            return None

    found = lengths([Path(row["audio"]["path"]) for row in rows], root, seconds)
    if problems and not any(found):
        raise AsrlibError(problems[0])
    if problems:
        said = f"{root}: {found.count(None)} of {len(rows)} recordings cannot be read, and have no length; the first: {problems[0]}"
        warnings.warn(said, stacklevel=2)
    return [row | {"seconds": length or 0.0} for row, length in zip(rows, found, strict=True)]


def librispeech_rows(root: Path, split: str) -> list[dict[str, Any]]:
    """Return the rows of one of LibriSpeech's folders, in ``root`` or in its ``LibriSpeech``."""
    rows = []
    for transcripts in sorted(
        table for above in (".", "LibriSpeech") for table in root.glob(f"{above}/{split}/*/*/*.trans.txt")
    ):
        for line in transcripts.read_text("utf-8", "replace").splitlines():
            clip, _, text = line.partition(" ")
            sound, speaker = {"path": str(transcripts.with_name(f"{clip}.flac"))}, clip.partition("-")[0]
            rows.append(
                {"id": clip, "audio": sound, "text": text, "language": "en", "speaker": speaker, "split": split}
            )
    return _measured(rows, root / split)


def common_voice(language: str | None, splits: list[str], root: Path | None) -> Dataset:
    """Common Voice as its site ships it: ``LANGUAGE/{train,dev,test}.tsv`` and ``clips/``, unpacked or still a tar.gz."""
    need = "the downloaded archive (cv-corpus-...-LANGUAGE.tar.gz) or the folder it unpacks to"
    place = brought(root, ("common_voice",), need)
    if place is None:
        raise AsrlibError(
            f"Common Voice asks each reader to agree to its terms: download a language from its site and give root={need}."
        )
    if place.is_file():
        place = _unpacked_common_voice(place)
    folders = _common_voice_folders(place, language)
    if not folders:
        raise AsrlibError(f"{place} holds no test.tsv{f' for {language!r}' if language else ''}: give root={need}.")
    if len(folders) > 1:
        raise AsrlibError(f"{place} holds several languages ({', '.join(one.name for one in folders)}): give one.")
    return dataset(row for split in splits for row in _common_voice_rows(folders[0], split, language))


def _common_voice_folders(place: Path, language: str | None) -> list[Path]:
    """Return the folders of a language: the one named so, else that of the language without its region, else of any region."""
    if (place / "test.tsv").is_file():
        return [place]
    base = base_code(language or "")
    for code in (language, base, f"{base}-*") if language else ("*",):
        if found := sorted(table.parent for above in (".", "*") for table in place.glob(f"{above}/{code}/test.tsv")):
            return found
    return []


def _common_voice_rows(folder: Path, split: str, language: str | None) -> list[dict[str, Any]]:
    table = folder / f"{split.replace('validation', 'dev')}.tsv"
    if not table.is_file():
        raise AsrlibError(f"{table} is missing: unpack the Common Voice archive again.")
    rows = [
        {
            "id": Path(row["path"]).stem,
            "audio": {"path": str(folder / "clips" / row["path"])},
            "text": row["sentence"],
            "language": base_code(language or row.get("locale") or folder.name),
            "speaker": row["client_id"],
            "split": split,
        }
        for row in metadata.common_voice(table)
    ]
    return _measured(rows, folder / split)


def _unpacked_common_voice(archive: Path) -> Path:
    """Return the folder with the archive's tables and the clips that they name for train, validation and test; no others."""

    def unpack(folder: Path, wanted: Callable[[str], bool]) -> None:
        with open(archive, "rb") as stream:
            downloads.extract(stream, folder, lambda name: name if wanted(name) else None, source=str(archive))

    def fill(folder: Path) -> None:
        unpack(folder, lambda name: name.endswith(".tsv"))
        tables = [table for name in ("train", "dev", "test") for table in folder.rglob(f"{name}.tsv")]
        clips = {row["path"] for table in tables for row in metadata.common_voice(table)}
        unpack(folder, lambda name: name.rpartition("/")[2] in clips)

    facts = archive.stat()  # another release, or what was downloaded anew, may have the same name
    name = f"{archive.name.partition('.tar')[0]}-{facts.st_size}-{facts.st_mtime_ns}"
    return files.prepared(files.cache_dir() / "corpora" / "common_voice" / name, fill)


def folder(language: str | None, splits: list[str], root: Path | None) -> Dataset:
    """Any folder of audio with a table: file_name, transcription (or text, sentence); optional language, speaker, split."""
    if root is None:
        raise AsrlibError("The corpus 'folder' needs root=the folder that holds your audio and metadata.csv.")
    if not root.is_dir():
        raise AsrlibError(f"There is no folder {root}: check the path.")
    rows = [
        {
            "id": row["file_name"],
            "audio": {"path": str(root / row["file_name"])},
            "text": row["transcription"],
            "language": base_code(language or row.get("language", "")),
            "speaker": row.get("speaker", ""),
            "split": row.get("split") or "test",
        }
        for row in metadata.folder(root)
    ]
    return dataset(_measured(rows, root))

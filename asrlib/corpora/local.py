"""Sets that the reader brings: LibriSpeech and Common Voice as they are downloaded, and any folder of recordings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError, audio
from asrlib.corpora import lengths, metadata
from asrlib.corpora.rows import brought, dataset
from asrlib.io import downloads, files
from asrlib.io.progress import track

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["common_voice", "folder", "librispeech_rows"]


def _measured(rows: list[dict[str, Any]], root: Path) -> Iterator[dict[str, Any]]:
    """Yield rows with the length of their recordings; one that cannot be read has none, and a warning counts them."""
    problems = []

    def seconds(path: Path) -> float | None:
        try:
            return audio.duration(path)
        except AsrlibError as error:
            problems.append(str(error))
            return None

    def read(paths: list[Path]) -> list[float | None]:
        return [seconds(path) for path in track(paths, f"lengths of {root.name}", unit="clips")]

    found = lengths.kept([Path(row["path"]) for row in rows], root, read)
    if problems and len(problems) == len(rows):
        raise AsrlibError(problems[0])
    if problems:
        said = f"{root}: {len(problems)} of {len(rows)} recordings cannot be read, and have no length; the first: {problems[0]}"
        warnings.warn(said, stacklevel=2)
    for row, length in zip(rows, found, strict=True):
        yield row | {"seconds": length or 0.0}


def librispeech_rows(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of one of LibriSpeech's folders."""
    rows = []
    for transcripts in sorted(folder.glob("*/*/*.trans.txt")):
        for line in transcripts.read_text("utf-8").splitlines():
            clip, _, text = line.partition(" ")
            path = str(transcripts.with_name(f"{clip}.flac"))
            speaker = clip.partition("-")[0]
            rows.append({"id": clip, "path": path, "text": text, "language": "en", "speaker": speaker, "split": split})
    return _measured(rows, folder)


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
    codes = [language, f"{language}-*"] if language else ["*"]  # zh is there as zh-CN
    patterns = ["test.tsv", *(f"{above}{code}/test.tsv" for code in codes for above in ("", "*/"))]
    tables = sorted(table for pattern in patterns for table in place.glob(pattern))
    if not tables:
        raise AsrlibError(f"{place} holds no test.tsv{f' for {language!r}' if language else ''}: give root={need}.")
    if len(tables) > 1:
        raise AsrlibError(
            f"{place} holds several languages ({', '.join(table.parent.name for table in tables)}): give one."
        )
    folder = tables[0].parent
    return dataset(row for split in splits for row in _common_voice_rows(folder, split, language))


def _common_voice_rows(folder: Path, split: str, language: str | None) -> Iterator[dict[str, Any]]:
    table = folder / f"{split.replace('validation', 'dev')}.tsv"
    if not table.is_file():
        raise AsrlibError(f"{table} is missing: unpack the Common Voice archive again.")
    rows = [
        {
            "id": Path(row["path"]).stem,
            "path": str(folder / "clips" / row["path"]),
            "text": row["sentence"],
            "language": language or row.get("locale") or folder.name,
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

    return files.prepared(files.cache_dir() / "corpora" / "common_voice" / archive.name.partition(".tar")[0], fill)


def folder(language: str | None, splits: list[str], root: Path | None) -> Dataset:
    """Any folder of audio with a table: file_name, transcription (or text, sentence); optional language, speaker, split."""
    if root is None:
        raise AsrlibError("The corpus 'folder' needs root=the folder that holds your audio and metadata.csv.")
    if not root.is_dir():
        raise AsrlibError(f"There is no folder {root}: check the path.")
    _, column, lines = metadata.folder(root)
    rows = [
        {
            "id": row["file_name"],
            "path": str(root / row["file_name"]),
            "text": row[column],
            "language": language or row.get("language") or "",
            "speaker": row.get("speaker") or "",
            "split": row.get("split") or "test",
        }
        for _, row in lines
    ]
    return dataset(_measured(rows, root))

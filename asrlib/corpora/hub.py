"""Sets as parquet files, from a folder or from the Hub, which keeps every public set so."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError, audio
from asrlib.corpora import catalogue, lengths, local
from asrlib.corpora.rows import COLUMNS, brought, dataset
from asrlib.io import files, hub
from asrlib.io.progress import track
from asrlib.text import OTHER_CODES

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["PARQUET_BRANCH", "fleurs", "librispeech"]

PARQUET_BRANCH = "refs/convert/parquet"  # there the Hub keeps every public set, without loading scripts

Parts = dict[str, list[Path]]  # split -> parquet files


def librispeech(language: str | None, splits: list[str], root: Path | None) -> Dataset:
    """LibriSpeech as OpenSLR ships it, or as the Hub's parquet files; the transcripts are upper case."""
    if language not in (None, "en"):
        raise AsrlibError(f"LibriSpeech is English: it has no language {language!r}.")
    place = brought(root, ("LibriSpeech", "librispeech"), "the folder that holds LibriSpeech/test-clean")
    parts = {split: _librispeech_part(split) for split in splits}
    parquet = _parquet(place, parts) if place else _from_hub("librispeech", parts)
    if parquet:
        return _table(parquet, {"id": "id", "text": "text", "speaker": "speaker_id"}, "en")
    folders = {
        split: next((base / split for base in (place / "LibriSpeech", place) if (base / split).is_dir()), None)
        for split in splits
    }
    if not any(folders.values()):
        raise AsrlibError(
            f"{place} holds none of LibriSpeech's folders {', '.join(splits)} and no parquet files: give root=the unpacked folder."
        )
    return dataset(row for split, folder in folders.items() if folder for row in local.librispeech_rows(folder, split))


def _librispeech_part(split: str) -> str:
    """Return configuration and split as the Hub names them, for example ``clean/train.100`` for ``train-clean-100``."""
    kind, condition, *size = split.split("-")
    return "/".join([condition, ".".join([kind.replace("dev", "validation"), *size])])


def fleurs(language: str | None, splits: list[str], root: Path | None) -> Dataset:
    """FLEURS as parquet; the text is its normalised transcription, and speakers are not told apart."""
    known = {name.partition("_")[0]: name for name in catalogue.facts("fleurs")["configurations"].split()}
    known |= {code: known[other] for other, code in OTHER_CODES.items() if other in known}  # as Whisper names them
    if language not in known:
        raise AsrlibError(f"FLEURS has no language {language!r}: choose one of {', '.join(sorted(known))}.")
    place = brought(root, ("fleurs",), "the folder that holds FLEURS's parquet files")
    parts = {split: f"{known[language]}/{split}" for split in splits}
    parquet = _parquet(place, parts) if place else _from_hub("fleurs", parts)
    if not parquet:
        raise AsrlibError(
            f"{place} holds no parquet files like {known[language]}/{splits[0]}*.parquet: give root=the folder that does."
        )
    return _table(parquet, {"id": "id", "text": "transcription"}, language)


def _parquet(place: Path, parts: Mapping[str, str]) -> Parts:
    """Return split -> parquet files whose path has the split's configuration and name, as the Hub lays them out."""
    # Links below the folder keep their names: the Hub's cache is made of them.
    everything = sorted(place.resolve().rglob("*.parquet"))
    found: Parts = {}
    for split, wanted in parts.items():
        configuration, _, part = wanted.partition("/")
        pattern = re.compile(rf"/{re.escape(configuration)}/(.*/)?{re.escape(part)}[-/.][^/]*(/[^/]*)?$")
        if chosen := [path for path in everything if pattern.search(path.as_posix())]:
            found[split] = chosen
    return found


def _from_hub(name: str, parts: Mapping[str, str]) -> Parts:
    """Return split -> parquet files from the cache, brought from the Hub when they are not there yet."""
    store = files.cache_dir() / "corpora" / name
    folders = {
        split: files.prepared(store / part, functools.partial(_fill_from_hub, name, part))
        for split, part in parts.items()
    }
    return {split: sorted(folder.glob("*.parquet")) for split, folder in folders.items()}


def _fill_from_hub(name: str, part: str, folder: Path) -> None:
    """Fill a folder with the parquet files of one part, such as ``clean/test``: all of them, or it does not come to be."""
    repository = catalogue.facts(name)["hub"]
    offered = hub.listing(repository, PARQUET_BRANCH, "dataset")
    if offered is None:
        raise AsrlibError(
            f"{repository} ({part}) is not on this machine and the Hub cannot be reached: connect to the network, or download its "
            "parquet files and give root=their folder."
        )
    wanted = [file for file in offered if fnmatchcase(file, f"{part}/*.parquet")]
    if not wanted:
        raise AsrlibError(
            f"The Hub has no parquet files {part} of {repository}: download the set and give root=its folder."
        )
    snapshot = hub.snapshot(repository, wanted, online=True, revision=PARQUET_BRANCH, kind="dataset")
    for file in wanted:
        if not (snapshot / file).is_file():  # the Hub went away in between, and its cache holds another part
            raise AsrlibError(f"The download of {repository} ({part}) ended early: run the same command again.")
        files.link(snapshot / file, folder / Path(file).name)


def _table(parts: Parts, columns: Mapping[str, str], language: str) -> Dataset:
    from datasets import concatenate_datasets

    return concatenate_datasets([_renamed(paths, columns, language, split) for split, paths in parts.items()])


def _read(paths: list[Path]) -> Dataset:
    from datasets import Audio, Dataset

    # Not load_dataset: it tells a server of its makers what was loaded, and how often.
    table = Dataset.from_parquet([str(path) for path in paths])
    if "audio" in table.column_names:
        table = table.cast_column("audio", Audio(sampling_rate=audio.SAMPLING_RATE, decode=False))
    return table


def _renamed(paths: list[Path], columns: Mapping[str, str], language: str, split: str) -> Dataset:
    """Return parquet files with the columns of all corpora; the audio bytes stay in the memory-mapped file."""
    table = _read(paths)
    missing = {"audio", *columns.values()} - set(table.column_names)
    if missing:
        raise AsrlibError(
            f"The parquet files of {split} lack the columns {', '.join(sorted(missing))}: is this the right set?"
        )
    if "num_samples" in table.column_names:  # FLEURS counts them, at 16 kHz
        seconds = [count / audio.SAMPLING_RATE for count in table["num_samples"]]
    else:
        seconds = [one for some in lengths.kept(paths, paths[0].parent, _seconds) for one in some]
    values: dict[str, Any] = {"speaker": [""] * len(table)}
    values |= {column: [str(value) for value in table[source]] for column, source in columns.items()}
    values |= {"language": [language] * len(table), "split": [split] * len(table), "seconds": seconds}
    table = table.select_columns(["audio"])
    for column, content in values.items():
        table = table.add_column(column, content)
    return table.select_columns(list(COLUMNS))


def _seconds(paths: list[Path]) -> list[list[float]]:
    """Return the lengths of each file's recordings."""
    return [
        [
            audio.duration(row["audio"])
            for row in track(_read([path]).select_columns(["audio"]), "reading lengths", unit="clips")
        ]
        for path in paths
    ]

"""Sets as parquet files, from a folder or from the Hub, which keeps every public set so."""

from __future__ import annotations

import functools
import glob
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError, audio
from asrlib.corpora import catalogue, local
from asrlib.corpora.rows import COLUMNS, dataset, lengths
from asrlib.corpora.sources import brought
from asrlib.io import files, hub
from asrlib.text import OTHER_CODES, base_code, normalizer

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["PARQUET_BRANCH", "fleurs", "librispeech", "published"]

PARQUET_BRANCH = "refs/convert/parquet"  # there the Hub keeps every public set, without loading scripts
# What published sets call their columns; the first that a set has.
NAMES = {
    "text": ("text", "normalized_text", "transcript", "transcription"),
    "id": ("id", "audio_id", "segment_id", "file_id", "file_number", "speaker_id"),
    "speaker": ("speaker_id", "file_id"),
}
MARKS = {"<comma>": ",", "<period>": ".", "<questionmark>": "?", "<exclamationpoint>": "!"}  # of GigaSpeech
UNSCORED = "ignore_time_segment_in_scoring"  # between the segments of TED-LIUM

Parts = dict[str, list[Path]]  # split -> parquet files


def librispeech(language: str | None, splits: list[str], root: Path | None) -> Dataset:
    """LibriSpeech as OpenSLR ships it, or as the Hub's parquet files; the transcripts are upper case."""
    if base_code(language or "en") != "en":
        raise AsrlibError(f"LibriSpeech is English: it has no language {language!r}.")
    place = brought(root, ("LibriSpeech", "librispeech"), "the folder that holds LibriSpeech/test-clean")
    if parquet := _parquet("librispeech", place, {split: _librispeech_part(split) for split in splits}):
        return _table(parquet, {"id": "id", "text": "text", "speaker": "speaker_id"}, "en")
    rows = [row for split in splits for row in local.librispeech_rows(place, split)]
    if not rows:
        raise AsrlibError(
            f"{place} holds none of LibriSpeech's folders {', '.join(splits)} and no parquet files: give root=the unpacked folder."
        )
    return dataset(rows)


def _librispeech_part(split: str) -> str:
    """Return configuration and split as the Hub names them, for example ``clean/train.100`` for ``train-clean-100``."""
    kind, condition, *size = split.split("-")
    return "/".join([condition, ".".join([kind.replace("dev", "validation"), *size])])


def fleurs(language: str | None, splits: list[str], root: Path | None) -> Dataset:
    """FLEURS as parquet; the text is its normalised transcription, and speakers are not told apart."""
    known = {name.partition("_")[0]: name for name in catalogue.facts("fleurs")["configurations"].split()}
    known |= {code: known[other] for other, code in OTHER_CODES.items() if other in known}  # as Whisper names them
    code = base_code(language or "")
    if code not in known:
        raise AsrlibError(f"FLEURS has no language {language!r}: choose one of {', '.join(sorted(known))}.")
    parquet = _found("fleurs", root, {split: f"{known[code]}/{split}" for split in splits})
    return _table(parquet, {"id": "id", "text": "transcription"}, code)


def published(name: str, language: str | None, splits: list[str], root: Path | None) -> Dataset:
    """A set of which the catalogue says where its parquet files lie.

    Texts lose their tags. As in the Open ASR Leaderboard, clips are left out whose text is nothing once it is normalised.
    """
    facts, code = catalogue.facts(name), base_code(language or "en")
    known = facts.get("languages", "en").split()
    if code not in known:
        raise AsrlibError(f"{facts['title']} has no language {language!r}: choose one of {', '.join(known)}.")
    table = _table(_found(name, root, {split: facts["splits"][split].format(code) for split in splits}), None, code)
    texts, normalized = [_spoken(text) for text in table["text"]], normalizer(code)
    kept = [place for place, text in enumerate(texts) if text != UNSCORED and normalized(text)]
    return table.remove_columns("text").add_column("text", texts).select_columns(list(COLUMNS)).select(kept)


def _spoken(text: str) -> str:
    """Return a transcript with marks for its tags of punctuation, without other tags and spaces before 's, 't, 're ..."""
    text = re.sub(r"\s*(<\w+>)", lambda tag: MARKS.get(tag[1].lower(), " "), text)
    return " ".join(re.sub(r"\s+'(?=(s|t|re|ve|m|ll|d|clock|all)\b)", "'", text, flags=re.IGNORECASE).split())


def _found(name: str, root: Path | None, parts: Mapping[str, str]) -> Parts:
    """Return `_parquet` of ``root``, of ``ASRLIB_DATA`` or of the Hub, of which there must be some."""
    place = brought(root, (name,), f"the folder that holds the parquet files of {catalogue.facts(name)['title']}")
    if parquet := _parquet(name, place, parts):
        return parquet
    part = next(iter(parts.values()))
    raise AsrlibError(f"{place} holds no parquet files like {part}*.parquet: give root=the folder that does.")


def _parquet(name: str, place: Path | None, parts: Mapping[str, str]) -> Parts:
    """Return split -> parquet files: below a folder, those whose path has the split's configuration and name, as the Hub
    lays them out; without a folder, those of the cache, taken from the Hub when they are not there yet.
    """
    found: Parts = {}
    # Links below the folder keep their names: the Hub's cache is made of them.
    everything = sorted(place.resolve().rglob("*.parquet")) if place else []
    for split, part in parts.items():
        if place:
            configuration, _, wanted = part.partition("/")
            pattern = re.compile(rf"/{re.escape(configuration)}/(.*/)?{re.escape(wanted)}[-/.][^/]*(/[^/]*)?$")
            chosen = [path for path in everything if pattern.search(path.as_posix())]
        else:
            target = files.cache_dir() / "corpora" / name / part
            chosen = sorted(files.prepared(target, functools.partial(_from_hub, name, part)).glob("*.parquet"))
        if chosen:
            found[split] = chosen
    return found


def _from_hub(name: str, part: str, folder: Path) -> None:
    """Fill a folder with the parquet files of one part, such as ``clean/test``: all of them, or it does not come to be."""
    repository, branch = catalogue.facts(name)["hub"], catalogue.facts(name).get("branch", PARQUET_BRANCH)
    offered = hub.listing(repository, branch, "dataset")
    if offered is None:
        raise AsrlibError(
            f"{repository} ({part}) is not on this machine and the Hub cannot be reached: connect to the network, or download its "
            "parquet files and give root=their folder."
        )
    between = "/" if branch == PARQUET_BRANCH else "-"  # where people upload them, a split has no folder
    wanted = [file for file in offered if fnmatchcase(file, f"{part}{between}*.parquet")]
    if not wanted:
        raise AsrlibError(
            f"The Hub has no parquet files {part} of {repository}: download the set and give root=its folder."
        )
    snapshot = hub.snapshot(repository, wanted, online=True, revision=branch, kind="dataset")
    for file in wanted:
        if not (snapshot / file).is_file():  # the Hub went away in between, and its cache holds another part
            raise AsrlibError(f"The download of {repository} ({part}) ended early: run the same command again.")
        files.link(snapshot / file, folder / Path(file).name)


def _table(parts: Parts, columns: Mapping[str, str] | None, language: str) -> Dataset:
    """Return parquet files with the columns of all corpora; the audio bytes stay in the memory-mapped files.

    Args:
        columns: name here -> name there; None takes those of `NAMES` that there are, and a text.
    """
    from datasets import concatenate_datasets

    tables = []
    for split, paths in parts.items():
        table = _read(paths)
        named = columns or _named(table.column_names)
        missing = {"audio", *named.values()} - set(table.column_names)
        if missing:
            raise AsrlibError(
                f"The parquet files of {split} lack the columns {', '.join(sorted(missing))}: is this the right set?"
            )
        if "num_samples" in table.column_names:  # FLEURS counts them, at 16 kHz
            seconds = [count / audio.SAMPLING_RATE for count in table["num_samples"]]
        else:
            seconds = [length for some in lengths(paths, paths[0].parent, _seconds) for length in some]
        values: dict[str, Any] = dict.fromkeys(COLUMNS, [""] * len(table))
        values["id"] = [str(place) for place in range(len(table))]
        values |= {
            column: ["" if value is None else str(value) for value in table[source]] for column, source in named.items()
        }
        values |= {"language": [language] * len(table), "split": [split] * len(table), "seconds": seconds}
        del values["audio"]
        table = table.select_columns(["audio"])
        for column, content in values.items():
            table = table.add_column(column, content)
        tables.append(table.select_columns(list(COLUMNS)))
    return concatenate_datasets(tables)


def _named(known: Sequence[str]) -> dict[str, str]:
    """Return which of its columns a published set keeps text, id and speaker in, as far as it does."""
    found = {name: [column for column in names if column in known] for name, names in NAMES.items()}
    return {"text": "text"} | {name: columns[0] for name, columns in found.items() if columns}


def _read(paths: list[Path]) -> Dataset:
    from datasets import Audio, Dataset, config, exceptions

    try:  # not load_dataset: it tells a server of its makers what was loaded, and how often
        table = Dataset.from_parquet([glob.escape(str(path)) for path in paths])
    except (ValueError, OSError, exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        if files.no_room(cause):
            raise files.DiskFullError(config.HF_DATASETS_CACHE) from None
        reason = (str(cause).splitlines() or [type(cause).__name__])[0].rstrip(". ")
        raise AsrlibError(
            f"The parquet files in {paths[0].parent} cannot be read ({reason}): fetch them again."
        ) from None
    if "audio" in table.column_names:
        table = table.cast_column("audio", Audio(sampling_rate=audio.SAMPLING_RATE, decode=False))
    return table


def _seconds(path: Path) -> list[float]:
    return [audio.duration(row["audio"]) for row in _read([path]).select_columns(["audio"])]

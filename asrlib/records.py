"""One record for each notebook run: what was measured, how, on what, where, and by which code.

A notebook opens with `settings` (its parameters, completed by the profile) and ends with ``Record.save``, which writes
``record.json`` (checked against ``data/record.schema.json``) and ``predictions.jsonl``. Neither carries reference texts of
a corpus: their licences are their own, and they are joined by id on the reader's machine.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import numbers
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from asrlib import AsrlibError, __version__, files

__all__ = [
    "Record",
    "Settings",
    "earlier",
    "load",
    "notebook_code",
    "predictions",
    "profile_values",
    "settings",
    "source_hash",
]

PACKAGES = ("torch", "transformers", "datasets", "numpy", "jiwer", "soundfile", "soxr", "accelerate", "peft", "bitsandbytes",
            "optimum", "optimum-onnx", "optimum-quanto", "onnxruntime", "openvino", "nncf", "ctranslate2", "faster-whisper", "openai-whisper")  # fmt: skip
FORBIDDEN = {"reference", "references", "text", "transcript", "sentence"}  # keys that would carry a corpus's own text


# --------------------------------------------------------------------------------------------------------------- settings
@dataclass(frozen=True)
class Settings:
    """The completed parameters of one run; each parameter is also an attribute of its own name.

    Attributes:
        notebook: name without suffix, such as ``01_zero_shot_whisper``.
        profile: ``smoke``, ``reference`` or ``paper``.
        parameters: name to value, in the order of the call.
        output_dir: folder for ``record.json`` and ``predictions.jsonl``.
        root: the folder that holds ``notebooks/``.
    """

    notebook: str
    profile: str
    parameters: dict[str, Any]
    output_dir: Path
    root: Path

    @property
    def seed(self) -> int:
        """Return the run's seed, 0 where the notebook draws nothing."""
        return self.parameters.get("SEED", 0)

    @property
    def work_dir(self) -> Path:
        """Return a folder in the cache for what a killed run goes on from: features, checkpoints of a training.

        Other code, parameters or another checkout mean another folder; a notebook deletes it at its end.
        """
        path = self.root / "notebooks" / f"{self.notebook}.ipynb"
        code = source_hash(path) if path.is_file() else ""
        identity = json.dumps([str(self.root.resolve()), self.profile, self.parameters, code])
        folder = files.cache_dir() / "work" / f"{self.notebook}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["parameters"][name]
        except KeyError:
            raise AttributeError(f"This run has no parameter {name}.") from None

    def __repr__(self) -> str:
        width = max(map(len, self.parameters), default=7)
        lines = [
            f"{name:{width}}  {_shown(value)}" for name, value in {"profile": self.profile, **self.parameters}.items()
        ]
        return "\n".join(lines)

    def _repr_markdown_(self) -> str:
        rows = "".join(f"| `{name}` | {_shown(value)} |\n" for name, value in self.parameters.items())
        return f"| parameter | value in profile `{self.profile}` |\n|---|---|\n{rows}"


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def settings(notebook: str, profile: str = "", /, **parameters: Any) -> Settings:
    """Complete a notebook's parameters with its profile.

    A parameter that is ``""``, ``0``, ``0.0`` or ``[]`` takes the profile's value from ``notebooks/profiles.toml``, table
    ``[PROFILE.NOTEBOOK]``; a boolean and ``SEED`` always keep the notebook's own.

    Args:
        notebook: name without suffix.
        profile: ``""`` means the environment's ``ASRLIB_PROFILE``, else ``reference``.
        parameters: every parameter of the notebook's parameter cell except ``PROFILE``.

    Raises:
        AsrlibError: unknown profile, a profile value of another type or for a parameter that the notebook does not have,
            or a parameter that has a value in neither place.
    """
    profile = profile or os.environ.get("ASRLIB_PROFILE") or "reference"
    table, root = _profiles()
    values = profile_values(table, notebook, profile)
    where = f"notebooks/profiles.toml, [{profile}.{notebook}],"
    if extra := sorted(set(values) - set(parameters) | {"SEED"} & set(values)):
        raise AsrlibError(
            f"{where} sets {', '.join(extra)}, which {notebook} does not take from a profile: correct the name."
        )
    completed = {name: _complete(where, name, given, values) for name, given in parameters.items()}
    named = os.environ.get("ASRLIB_OUTPUT")
    output = Path(named) if named else root / "build" / "runs" / profile / notebook
    return Settings(notebook, profile, completed, output, root)


def _complete(where: str, name: str, given: Any, values: Mapping[str, Any]) -> Any:
    if given or isinstance(given, bool) or name == "SEED":
        return given
    if name not in values:
        raise AsrlibError(f"{where} has no value for {name}: add one, or give {name} a value in the notebook.")
    value = values[name]
    if type(value) is not type(given) and not (isinstance(given, float) and type(value) is int):
        raise AsrlibError(f"{where} gives {name} = {value!r}, where the notebook has a {type(given).__name__}.")
    return value


def profile_values(table: Mapping[str, Any], notebook: str, profile: str) -> dict[str, Any]:
    """Return a profile's values for one notebook, out of the parsed ``profiles.toml``; empty where it has none.

    Raises:
        AsrlibError: the profile does not exist.
    """
    if not isinstance(table.get(profile), Mapping):
        raise AsrlibError(f"There is no profile {profile!r}: choose one of {', '.join(table)}.")
    return table[profile].get(notebook, {})


def _profiles() -> tuple[dict[str, Any], Path]:
    """Return the profiles and the folder that holds ``notebooks/``.

    A notebook runs in its own folder, with ``profiles.toml`` beside it; otherwise the checkout's table counts, and where
    asrlib was installed from a wheel, the copy inside it.
    """
    here = Path.cwd()
    if (here / "profiles.toml").is_file():
        return files.read_toml(here / "profiles.toml"), here.parent
    if root := files.repository():
        return files.read_toml(root / "notebooks" / "profiles.toml"), root
    return files.read_toml(files.data_file("profiles.toml")), here


# ----------------------------------------------------------------------------------------------------------------- record
class Record:
    """Collect what a run measured, then save it.

    >>> record = Record(settings("01_zero_shot_whisper", "smoke", SEED=1))  # doctest: +SKIP
    >>> record.add("wer_percent", 8.4, unit="%", interval=(7.1, 9.9), utterances=64, words=512, corpus="telephone")
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics: list[dict[str, Any]] = []
        self.protocol_values: dict[str, Any] = {}
        self.inputs: list[dict[str, Any]] = []
        self.started = datetime.now(UTC)
        self._clock = time.monotonic()

    def add(
        self,
        name: str,
        value: float,
        *,
        unit: str = "",
        interval: tuple[float, float] | None = None,
        utterances: int | None = None,
        words: int | None = None,
        **labels: str | float,
    ) -> None:
        """Add one measured number.

        Args:
            name: metric, snake_case with its unit at the end, such as ``wer_percent`` or ``latency_s``.
            value: a finite number.
            unit: for people: ``%``, ``s``, ``MB``.
            interval: 95 % interval (low, high), in the unit of ``value``.
            utterances: number of clips behind the value.
            words: number of reference words behind the value.
            labels: what tells this value from others of the same name: model, corpus, language, split ...

        Raises:
            AsrlibError: a number that is not finite, an interval upside down, or the same metric and labels twice.
        """
        labels = {key: _plain(label, f"label {key} of {name}") for key, label in labels.items()}
        metric = {"name": name, "value": _plain(value, name), "unit": unit, "interval": None, "labels": labels}
        if interval is not None:
            low, high = (_plain(end, f"the interval of {name}") for end in interval)
            if low > high:
                raise AsrlibError(f"The interval of {name} is upside down: ({low}, {high}).")
            metric["interval"] = [low, high]
        metric |= {key: int(n) for key, n in (("utterances", utterances), ("words", words)) if n is not None}
        if any(known["name"] == name and known["labels"] == labels for known in self.metrics):
            raise AsrlibError(
                f"{name} with labels {labels} is in the record already: give each value a label of its own."
            )
        self.metrics.append(metric)

    def score(self, result: Any, **labels: str | float) -> None:
        """Add the WER and the CER of an `asrlib.scoring.Score`, in percent, with counts and interval.

        Args:
            result: the score.
            labels: what was scored: model, corpus, language, split, window ...
        """
        counts = {"utterances": result.utterances, "words": result.words}
        interval = tuple(100 * bound for bound in result.interval)
        self.add("wer_percent", 100 * result.wer, unit="%", interval=interval, **counts, **labels)
        self.add("cer_percent", 100 * result.cer, unit="%", **counts, **labels)

    def difference(self, result: Any, score: Any, **labels: str | float) -> None:
        """Add a paired difference in WER, in percentage points, with its interval.

        Args:
            result: the `asrlib.scoring.Difference`.
            score: the `asrlib.scoring.Score` of one of its sides, for the counts.
            labels: which system differs; that which it differs from belongs into the protocol.
        """
        counts = {"utterances": score.utterances, "words": score.words}
        interval = tuple(100 * bound for bound in result.interval)
        self.add("wer_difference_points", 100 * result.delta, unit="points", interval=interval, **counts, **labels)

    def protocol(self, **values: Any) -> None:
        """Add how it was measured: normaliser, decoding, batch size, warm-up, repeats ..."""
        self.protocol_values |= {key: _plain(value, f"protocol {key}") for key, value in values.items()}

    def input(self, kind: str, id: str, **details: Any) -> None:
        """Add what went in: ``kind`` is checkpoint or corpus; details are revision, sha256, utterances, seconds ..."""
        self.inputs.append({"kind": kind, "id": id} | {key: _plain(value, key) for key, value in details.items()})

    def save(self, predictions: Iterable[Mapping[str, Any]] = ()) -> Path:
        """Write ``predictions.jsonl``, then ``record.json``, each atomically, to the settings' output folder.

        Args:
            predictions: rows with ``id`` and ``hypothesis``, error counts, words, seconds and labels; never a reference text.

        Returns:
            The path of ``record.json``.

        Raises:
            AsrlibError: a row with a reference text or without an id, a record that breaks the schema, a full disk.
        """
        folder = self.settings.output_dir
        rows = [_prediction(row) for row in predictions]
        listing = files.write_jsonl(folder / "predictions.jsonl", rows)
        content = self.content() | {"predictions": {"rows": len(rows), "sha256": files.sha256(listing)}}
        _validate(content, "This run's record")
        return files.write_atomic(folder / "record.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def content(self) -> dict[str, Any]:
        """Return the record as plain data, without the note on predictions."""
        return {
            "metrics": self.metrics,
            "protocol": self.protocol_values,
            "inputs": self.inputs,
            "environment": _environment(self.settings.root),
            "run": self._run(),
        }

    def _run(self) -> dict[str, Any]:
        path = self.settings.root / "notebooks" / f"{self.settings.notebook}.ipynb"
        commit, dirty = _commit(self.settings.root)
        return {
            "notebook": self.settings.notebook,
            "source_sha256": source_hash(path) if path.is_file() else None,
            "profile": self.settings.profile,
            "parameters": self.settings.parameters,
            "seed": self.settings.seed,
            "commit": commit,
            "dirty": dirty,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 1),
        }


def predictions(heard: Iterable[Any], score: Any, **labels: str) -> Iterator[dict[str, Any]]:
    """Yield rows for `Record.save`: what was heard in each clip, and its errors by kind; no reference text.

    Args:
        heard: `asrlib.transcription.Hypothesis` of each clip.
        score: the `asrlib.scoring.Score` of the same clips in the same order.
        labels: told on each row: model, corpus ...
    """
    for item, kinds, words in zip(heard, score.kinds.tolist(), score.lengths.tolist(), strict=True):
        counts = dict(zip(("substitutions", "deletions", "insertions"), kinds, strict=True))
        seconds = round(item.seconds_audio, 3)
        yield {"id": item.id, **labels, "hypothesis": item.text, **counts, "words": words, "seconds": seconds}


def _plain(value: Any, what: str) -> Any:
    """Turn numpy numbers into Python's, and refuse what JSON cannot hold."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) or type(value).__module__ == "numpy":
        if not math.isfinite(value):
            raise AsrlibError(f"{what} is {value}: a record holds finite numbers only.")
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(item, what) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, what) for key, item in value.items()}
    raise AsrlibError(f"{what} is a {type(value).__name__}: a record holds numbers and text only.")


def _prediction(row: Mapping[str, Any]) -> dict[str, Any]:
    if carried := FORBIDDEN & set(row):
        raise AsrlibError(
            f"A prediction carries {', '.join(sorted(carried))!r}: reference texts are never saved, leave them out."
        )
    if not {"id", "hypothesis"} <= set(row):
        raise AsrlibError(
            f"A prediction needs 'id' and 'hypothesis', this one has {', '.join(map(repr, row)) or 'nothing'}."
        )
    return {key: _plain(value, f"prediction {row['id']}, {key},") for key, value in row.items()}


# ------------------------------------------------------------------------------------------------ where and with which code
def _environment(root: Path) -> dict[str, Any]:
    from asrlib import hardware

    lock = root / "requirements.lock"
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {"asrlib": __version__, **{name: found for name in PACKAGES if (found := _version(name))}},
        "lock_sha256": files.sha256(lock) if lock.is_file() else None,
        "hardware": hardware.describe(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _commit(root: Path) -> tuple[str | None, bool | None]:
    """Return the checkout's commit, and whether library, tables or lock differ from it; None where there is no git.

    The notebook itself may differ: its code is told by ``source_sha256``, its parameters are in the record.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", root, *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "asrlib", "data", "requirements.lock")
        return git("rev-parse", "HEAD").strip(), bool(changed.strip())
    except (OSError, subprocess.SubprocessError):
        return None, None


def notebook_code(path: Path) -> list[str]:
    """Return the sources of a notebook's code cells, without what papermill injected and what only Colab executes.

    Raises:
        AsrlibError: the file is missing or no notebook.
    """
    try:
        return [
            "".join(cell["source"])
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == "code"
            and not {"injected-parameters", "colab"} & set(cell["metadata"].get("tags", ()))
        ]
    except FileNotFoundError:
        raise AsrlibError(f"{path} is missing: restore it, or take it out of notebooks.toml.") from None
    except (ValueError, KeyError, TypeError):  # not JSON, not text, or JSON of another form
        raise AsrlibError(f"{path} is not a Jupyter notebook: restore the file.") from None


def source_hash(path: Path) -> str:
    """Return the SHA-256 of a notebook's code: prose and outputs do not count."""
    return hashlib.sha256(json.dumps(notebook_code(path)).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------------------- read
def load(path: Path | str) -> dict[str, Any]:
    """Read a record and check it against the schema.

    Raises:
        AsrlibError: no such file, not JSON, or not a valid record.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AsrlibError(f"There is no record {path}: run the notebook first, with `asrlib run`.") from None
    except (ValueError, RecursionError):
        raise AsrlibError(f"{path} is not valid JSON: delete it and run the notebook again.") from None
    _validate(content, str(path))
    return content


def earlier(settings: Settings, notebook: str) -> Path:
    """Return the folder with record and predictions of another notebook: of the same profile's last run, else as published.

    Raises:
        AsrlibError: there is neither.
    """
    for folder in (settings.output_dir.parent / notebook, settings.root / "results" / notebook):
        if (folder / "record.json").is_file():
            return folder
    raise AsrlibError(f"This notebook needs the results of {notebook}: run that first, `asrlib run {notebook[:2]}`.")


@functools.cache
def _schema() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(files.data_file("record.schema.json").read_text(encoding="utf-8")))


def _validate(content: Any, name: str) -> None:
    from jsonschema.exceptions import best_match

    if error := best_match(_schema().iter_errors(content)):
        place = "/".join(map(str, error.absolute_path)) or "top level"
        raise AsrlibError(f"{name} breaks data/record.schema.json at {place}: {error.message[:200]}.")

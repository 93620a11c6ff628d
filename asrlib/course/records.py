"""One record for each notebook run: what was measured, how, on what, where, and by which code.

A notebook opens with `asrlib.course.chapter.start`, which returns a `Record` that knows the notebook's parameters, and ends with
writing ``record.json`` (checked against ``data/record.schema.json``) and ``predictions.jsonl``. Neither carries reference
texts of a corpus: their licences are their own, and they are joined by id on the reader's machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from asrlib import AsrlibError, __version__
from asrlib.io import files

PACKAGES = ("torch", "transformers", "datasets", "numpy", "jiwer", "soundfile", "soxr", "accelerate", "peft", "bitsandbytes",
            "optimum", "optimum-onnx", "optimum-quanto", "onnxruntime", "openvino", "nncf", "ctranslate2", "faster-whisper", "openai-whisper")  # fmt: skip
SCHEMA = "record.schema.json"
FORBIDDEN = {"reference", "references", "text", "transcript", "sentence"}  # keys that would carry a corpus's own text


# ----------------------------------------------------------------------------------------------------------------- record
class Record:
    """Collect what a run measured, then save it.

    Attributes:
        notebook: name without suffix, such as ``01_zero_shot_whisper``.
        profile: ``smoke``, ``reference``, ``colab`` or ``paper``.
        parameters: name to value.
        output_dir: folder for ``record.json`` and ``predictions.jsonl``.
        root: the folder that holds ``notebooks/``.
    """

    def __init__(
        self, notebook: str, profile: str, parameters: Mapping[str, Any], output_dir: Path, root: Path
    ) -> None:
        self.notebook, self.profile, self.parameters = notebook, profile, dict(parameters)
        self.output_dir, self.root = output_dir, root
        self.metrics: list[dict[str, Any]] = []
        self.findings: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
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
            utterances, words: numbers of clips and of reference words behind the value.
            labels: what distinguishes this value from others of the same name: model, corpus, language, split ...

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

    @property
    def seed(self) -> int:
        """Return the run's seed, 0 where the notebook draws nothing."""
        return self.parameters.get("SEED", 0)

    def score(self, result: Any, hypotheses: Iterable[Any] = (), /, **labels: str | float) -> None:
        """Add the WER and the CER of an `asrlib.scoring.Score`, in percent, with counts and interval, and the transcripts.

        Args:
            result: the score.
            hypotheses: `asrlib.decoding.batching.Hypothesis` of each scored clip, in the same order; kept as predictions.
            labels: what was scored: model, corpus, language, split, window ...
        """
        counts = {"utterances": result.utterances, "words": result.words}
        self.add("wer_percent", 100 * result.wer, unit="%", interval=_percent(result.interval), **counts, **labels)
        self.add("cer_percent", 100 * result.cer, unit="%", **counts, **labels)
        if hypotheses:
            self.rows += predictions(hypotheses, result, **labels)

    def difference(self, result: Any, score: Any, **labels: str | float) -> None:
        """Add a paired difference in WER, an `asrlib.scoring.Difference`, in percentage points with its interval.

        Args:
            result: the difference.
            score: the `asrlib.scoring.Score` of one of its sides, for the counts.
            labels: which system differs, and ``against`` which one; without it, the protocol says.
        """
        counts = {"interval": _percent(result.interval), "utterances": score.utterances, "words": score.words}
        self.add("wer_difference_points", 100 * result.delta, unit="points", **counts, **labels)

    def ratio(self, name: str, result: Any, **labels: str | float) -> None:
        """Add a paired ratio, an `asrlib.uncertainty.Ratio`, with its interval.

        Args:
            name: metric, such as ``times_as_long``.
            result: the ratio.
            labels: which system it is of, and which it is compared with.
        """
        self.add(name, result.value, unit="x", interval=result.interval, **labels)

    def protocol(self, **values: Any) -> None:
        """Add how it was measured: normaliser, decoding, batch size, warm-up, repeats ..."""
        self.protocol_values |= {key: _plain(value, f"protocol {key}") for key, value in values.items()}

    def input(self, kind: str, id: str, **details: Any) -> None:
        """Add what went in: ``kind`` is checkpoint or corpus; details are revision, sha256, utterances, seconds ..."""
        self.inputs.append({"kind": kind, "id": id} | {key: _plain(value, key) for key, value in details.items()})

    def finding(self, found: Any, *, main: bool = False) -> None:
        """Keep a finding.

        Args:
            found: an `asrlib.course.findings.Finding`.
            main: it is the chapter's answer, which the first screen of the published notebook shows.
        """
        numbers = {key: _plain(value, key) for key, value in found.numbers.items()}
        self.findings.append({"text": found.text, "kind": found.kind, "main": main, "numbers": numbers})

    def save(self, predictions: Iterable[Mapping[str, Any]] = ()) -> Path:
        """Write ``predictions.jsonl``, then ``record.json``, each atomically, to the output folder.

        Args:
            predictions: more rows than `score` has kept, with ``id`` and ``hypothesis``, error counts, words, seconds and labels; never a reference text.

        Returns:
            The path of ``record.json``.

        Raises:
            AsrlibError: a row with a reference text or without an id, a record that breaks the schema, a full disk.
        """
        folder = self.output_dir
        rows = [_prediction(row) for row in (*self.rows, *predictions)]
        listing = files.write_jsonl(folder / "predictions.jsonl", rows)
        content = {
            "metrics": self.metrics,
            "findings": self.findings,
            "protocol": self.protocol_values,
            "inputs": self.inputs,
            "environment": _environment(self.root),
            "run": self._run(),
            "predictions": {"rows": len(rows), "sha256": files.sha256(listing)},
        }
        files.check_schema(content, files.data_file(SCHEMA), "This run's record")
        return files.write_atomic(folder / "record.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def _run(self) -> dict[str, Any]:
        path = self.root / "notebooks" / f"{self.notebook}.ipynb"
        commit, dirty = _commit(self.root)
        return {
            "notebook": self.notebook,
            "source_sha256": source_hash(path) if path.is_file() else None,
            "profile": self.profile,
            "parameters": self.parameters,
            "seed": self.seed,
            "commit": commit,
            "dirty": dirty,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 1),
        }


def predictions(hypotheses: Iterable[Any], score: Any, **labels: str) -> Iterator[dict[str, Any]]:
    """Yield rows for `Record.save`: the hypothesis of each clip, and its errors by kind; no reference text.

    Args:
        hypotheses: `asrlib.decoding.batching.Hypothesis` of each clip.
        score: the `asrlib.scoring.Score` of the same clips in the same order.
        labels: of each row: model, corpus ...
    """
    for item, kinds, words in zip(hypotheses, score.kinds.tolist(), score.lengths.tolist(), strict=True):
        counts = dict(zip(("substitutions", "deletions", "insertions"), kinds, strict=True))
        seconds = round(item.seconds_audio, 3)
        yield {"id": item.id, **labels, "hypothesis": item.text, **counts, "words": words, "seconds": seconds}


def number(value: float) -> str:
    """Return a number as tables show it: a whole or large one in full, another with four significant digits."""
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 10_000 else f"{value:.4g}"


def _percent(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return an interval in percent; too few clips have none."""
    return interval and (100 * interval[0], 100 * interval[1])


def _plain(value: Any, what: str) -> Any:
    """Turn numpy's numbers into Python's, and refuse what JSON cannot hold."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [_plain(item, what) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, what) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise AsrlibError(f"{what} is {value}: a record holds finite numbers only.")
    if value is None or isinstance(value, str | int | float):
        return value
    raise AsrlibError(f"{what} is a {type(value).__name__}: a record holds numbers and text only.")


def _prediction(row: Mapping[str, Any]) -> dict[str, Any]:
    if carried := FORBIDDEN & set(row):
        raise AsrlibError(
            f"A prediction carries {', '.join(sorted(carried))!r}: leave it out, reference texts are never saved."
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
        "packages": {"asrlib": __version__, **{name: found for name in PACKAGES if (found := version(name))}},
        "lock_sha256": files.sha256(lock) if lock.is_file() else None,
        "hardware": hardware.describe(),
    }


def version(package: str) -> str:
    """Return the version of an installed package, empty where it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _commit(root: Path) -> tuple[str | None, bool | None]:
    """Return the checkout's commit, and whether library, tables or lock differ from it; None where there is no git.

    The notebook itself may differ: the record has its ``source_sha256`` and its parameters.
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


def notebook_cells(path: Path) -> list[dict[str, Any]]:
    """Return a notebook's cells, each with its ``source`` as one text and a list of its ``tags``.

    Raises:
        AsrlibError: the file is missing or no notebook.
    """
    try:
        return [
            cell | {"source": "".join(cell["source"]), "tags": cell["metadata"].get("tags", [])}
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        ]
    except FileNotFoundError:
        raise AsrlibError(f"{path} is missing: restore it, or take it out of notebooks.toml.") from None
    except (ValueError, KeyError, TypeError, AttributeError):  # not JSON, not text, or JSON of another form
        raise AsrlibError(f"{path} is not a Jupyter notebook: restore the file.") from None


def notebook_code(path: Path) -> list[str]:
    """Return the sources of a notebook's code cells, without what papermill injected and what only Colab executes."""
    code = [cell for cell in notebook_cells(path) if cell["cell_type"] == "code"]
    return [cell["source"] for cell in code if not {"injected-parameters", "colab"} & set(cell["tags"])]


def parameter_cell(path: Path) -> str:
    """Return the source of the cell with the tag ``parameters``.

    Raises:
        AsrlibError: there is not exactly one.
    """
    found = [cell["source"] for cell in notebook_cells(path) if "parameters" in cell["tags"]]
    if len(found) != 1:
        raise AsrlibError(f"{path.name} has {len(found)} cells with the tag 'parameters': it needs exactly one.")
    return found[0]


def source_hash(path: Path) -> str:
    """Return the SHA-256 of a notebook's code: prose and outputs do not count."""
    return hashlib.sha256(json.dumps(notebook_code(path)).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------------------- read
def load(path: Path | str) -> dict[str, Any]:
    """Read a record and check it against the schema.

    Raises:
        AsrlibError: no such file, not JSON, or not a valid record.
    """
    if not Path(path).is_file():
        raise AsrlibError(f"There is no record {path}: run the notebook first, with `asrlib run`.")
    content = files.read_json(path)
    files.check_schema(content, files.data_file(SCHEMA), str(path))
    return content


def earlier(run: Record, notebook: str) -> Path:
    """Return the folder with record and predictions of another notebook: of the same profile's last run, else as published.

    Raises:
        AsrlibError: there is neither.
    """
    for folder in (run.output_dir.parent / notebook, run.root / "results" / notebook):
        if (folder / "record.json").is_file():
            return folder
    raise AsrlibError(f"This notebook needs the results of {notebook}: run that first, `asrlib run {notebook[:2]}`.")

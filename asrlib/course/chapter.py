"""A notebook's run, from its first line, ``run = chapter.start("01_zero_shot_whisper")``, to its last, ``run.close("LS-")``."""

from __future__ import annotations

import hashlib
import html
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from asrlib import AsrlibError, hardware
from asrlib.course import claims, parameters
from asrlib.course.records import Record, load, parameter_cell, source_hash
from asrlib.io import files

SOURCES = {"notebook": "as in the cell above", "profile": "profile", "you": "given"}


class Run(Record):
    """What `start` returns: the record of this run, its parameters, and where its files belong."""

    def __init__(self, *arguments: Any, sources: Mapping[str, str]) -> None:
        super().__init__(*arguments)
        self.sources = dict(sources)

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

    def finding(self, found: Any, *, main: bool = False) -> None:
        """Keep a finding and show it below the cell; arguments as for `asrlib.course.records.Record.finding`."""
        super().finding(found, main=main)
        _show(found)

    def used(self, models: Iterable[str], speech: Mapping[str, Any]) -> None:
        """Keep what went in.

        Args:
            models: ids or folders of checkpoints, as `asrlib.models.checkpoints.fetch` takes them.
            speech: rows by name of the corpus, such as ``"telephone/en test"``, with a column ``seconds``.
        """
        from asrlib.models import checkpoints

        for model in dict.fromkeys(models):
            told = checkpoints.provenance(checkpoints.fetch(model))
            self.input("checkpoint", model, **{key: told[key] for key in ("revision", "sha256") if told.get(key)})
        for name, rows in speech.items():
            self.input("corpus", name, utterances=len(rows), seconds=sum(rows["seconds"]))

    def close(self, *prefixes: str, **protocol: Any) -> Closing:
        """Write record and predictions; return what was found, and the verdicts on published claims, for the last cell to show.

        Args:
            prefixes: of the ids of the claims that this notebook checks, such as ``"LS-"``.
            protocol: how it was measured: normaliser, decoding, batch size, timing ...

        Raises:
            AsrlibError: what `asrlib.course.records.Record.save` refuses.
        """
        self.protocol(**protocol, seed=self.seed)
        saved = load(self.save())
        wanted = [claim for claim in claims.load() if claim["id"].startswith(prefixes)]
        return Closing([item["text"] for item in self.findings], claims.Table(claims.judge(wanted, [saved])))

    def __repr__(self) -> str:
        shown = {"PROFILE": self.profile, **self.parameters}
        width = max(map(len, shown))
        return "\n".join(f"{name:{width}}  {_shown(value)}" for name, value in shown.items())

    def _repr_markdown_(self) -> str:
        source = {**SOURCES, "profile": f"profile `{self.profile}`"}
        lines = [f"Profile `{self.profile}`:", "", "| parameter | value | from |", "|---|---|---|"]
        for name, value in self.parameters.items():
            lines.append(f"| `{name}` | {_shown(value)} | {source[self.sources[name]]} |")
        return "\n".join(lines)


class Closing:
    """The end of a notebook: its findings, and published claims beside our values."""

    def __init__(self, findings: list[str], verdicts: claims.Table) -> None:
        self.findings, self.verdicts = findings, verdicts

    def __repr__(self) -> str:
        return "\n".join([*self.findings, repr(self.verdicts)])

    def _repr_html_(self) -> str:
        found = "".join(f"<li>{html.escape(text)}</li>" for text in self.findings)
        listed = f"<p><b>What was found</b></p><ul>{found}</ul>" if found else ""
        return listed + (self.verdicts._repr_html_() if self.verdicts.verdicts else "")


def start(notebook: str, names: dict[str, Any] | None = None) -> Run:
    """Complete the parameters of a notebook, put them in its names, show them, and return its run.

    The values are those of the parameter cell, changed by the profile: ``PROFILE`` of that cell, else the environment's
    ``ASRLIB_PROFILE``, else ``reference``. What somebody has changed in the cell, or has given to papermill, stays. Of several GPUs the
    first is used, unless ``CUDA_VISIBLE_DEVICES`` names others.

    Args:
        notebook: name without suffix.
        names: the notebook's global names; default: those of the cell that calls this.

    Raises:
        AsrlibError: an unknown profile or parameter, a value of another type, a profile without its machine, or a notebook
            that is not among those of this installation.
    """
    names = sys._getframe(1).f_globals if names is None else names
    # A Trainer takes all GPUs that it sees, and as many times the batch.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    table, root = parameters.read_profiles()
    profile = names.get("PROFILE") or os.environ.get("ASRLIB_PROFILE") or parameters.REFERENCE
    changes = parameters.profile_values(table, notebook, profile) | _cuts(notebook, profile)
    known = parameters.declared(_parameter_cell(notebook, root), notebook)
    given = parameters.injected(names.get("In", ()))
    completed = parameters.complete(notebook, known, names, given, changes)
    values = {name: value for name, (value, _) in completed.items()}
    named = os.environ.get("ASRLIB_OUTPUT")
    output = Path(named) if named else root / "build" / "runs" / profile / notebook
    names.update(values)
    sources = {name: source for name, (_, source) in completed.items()}
    run = Run(notebook, profile, values, output, root, sources=sources)
    _show(run)
    return run


def _show(what: Any) -> None:
    """Show something below the cell; outside a notebook nothing happens."""
    if "IPython" in sys.modules:
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython():
            display(what)


def _cuts(notebook: str, profile: str) -> dict[str, Any]:
    """Return what a rehearsal of a profile cuts, so that a test can run it on two cores; else ask for the profile's machine.

    ``ASRLIB_REHEARSAL`` names a TOML file of tables ``[PROFILE.NOTEBOOK]``.
    """
    if rehearsal := os.environ.get("ASRLIB_REHEARSAL"):
        return files.read_toml(Path(rehearsal)).get(profile, {}).get(notebook, {})
    if profile in ("colab", "paper") and hardware.best_device() == "cpu":
        raise AsrlibError(
            f"Profile {profile} needs a GPU, and PyTorch sees none here: on Colab choose Runtime > Change runtime type > T4 "
            'GPU; anywhere, PROFILE = "reference" needs none.'
        )
    return {}


def _parameter_cell(notebook: str, root: Path) -> str:
    """Return the source of a notebook's parameter cell as committed: beside the kernel, in the checkout, or in the wheel."""
    path = root / "notebooks" / f"{notebook}.ipynb"
    if not path.is_file():
        path = files.data_file(f"notebooks/{notebook}.ipynb")
    return parameter_cell(path)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

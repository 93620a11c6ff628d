"""Run the course's notebooks through papermill, each in a process of its own.

The runner starts a child (this module again), which executes the notebook and reports its progress in small files; so a
notebook that dies, hangs or runs out of memory ends neither the runner nor the other notebooks.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from asrlib import AsrlibError
from asrlib.course import records, registry
from asrlib.course.registry import Notebook, Outcome
from asrlib.io import files

POLL = 0.25  # seconds between two looks at a running notebook
ROOM = 2**20  # bytes; where fewer are free, a process that died has died of that


def run(
    root: Path,
    chosen: Sequence[str] = (),
    *,
    profile: str = "reference",
    given: Mapping[str, str] | None = None,
    force: bool = False,
    timeout: float = 3600,
    output: Path | None = None,
) -> list[Outcome]:
    """Run notebooks one after the other; one that fails does not stop those that do not need it.

    Args:
        root: the checkout.
        chosen: numbers or names, default all.
        profile: a table of ``profiles.toml``.
        given: parameter texts that override the profile, for every chosen notebook.
        force: run also what is finished and unchanged.
        timeout: seconds after which a notebook is ended.
        output: folder for ``PROFILE/NAME/``, default ``build/runs``. What a notebook needs must have finished in the same
            folder: runs with other parameters lie in another one, and neither reads the other's results.

    Raises:
        AsrlibError: wrong notebook, profile or parameter, found before the first notebook starts.
    """
    jobs = []
    output = output and output.resolve()  # the notebook runs in a folder of its own
    for book in registry.select(root, chosen):
        registry.stamp(root, book, profile)  # a missing file or an unknown profile shows here
        jobs.append(_Job(root, book, profile, registry.check_parameters(book, given or {}), output))
    outcomes: dict[str, Outcome] = {}
    for job in jobs:
        outcomes[job.book.name] = outcome = _outcome(job, outcomes, force, timeout)
        print(outcome, flush=True)
    return list(outcomes.values())


@dataclass(frozen=True)
class _Job:
    root: Path
    book: Notebook
    profile: str
    values: dict[str, Any]
    output: Path | None = None
    key: str = ""

    @property
    def folder(self) -> Path:
        return self.folder_of(self.book.name)

    @property
    def aside(self) -> Path:
        """Return where the run before is kept while this one lasts."""
        return self.folder.with_name(f".{self.folder.name}.before")

    def folder_of(self, name: str) -> Path:
        return registry.run_folder(self.root, self.profile, name, self.output)

    def outcome(self, status: str, **details: Any) -> Outcome:
        return Outcome(self.book.name, status, self.key, os.path.relpath(self.folder), **details)


def _outcome(job: _Job, earlier: Mapping[str, Outcome], force: bool, timeout: float) -> Outcome:
    """Run one notebook, or say why that is not needed or not possible."""
    keys = []
    for need in job.book.needs:
        found = earlier.get(need) or registry.result(job.folder_of(need))
        if found is None or not found.good:
            error = f"It needs {need}, which has not finished: run that first."
            return Outcome(job.book.name, "not run", error=error)
        keys.append(found.key)
    job = replace(job, key=registry.key(job.root, job.book, job.profile, job.values, keys))
    with files.lock(job.folder):
        if not (job.folder / "result.json").is_file():  # a killed run's
            _restore(job)
        before = registry.result(job.folder)
        if not force and before and before.good and before.key == job.key and _unwritten(job) is None:
            return job.outcome("unchanged", seconds=before.seconds)
        return _execute(job, timeout, before.seconds if before and before.good else None)


def _unwritten(job: _Job) -> str | None:
    """Return what is wrong with the files that a run had to leave, or None."""
    for name in job.book.writes:
        if not (job.folder / name).is_file():
            return f"The notebook ran to its end but did not write {name}."
    try:
        if "record.json" in job.book.writes:
            records.load(job.folder / "record.json")
    except AsrlibError as error:
        return str(error)
    return None


def _execute(job: _Job, timeout: float, expected: float | None) -> Outcome:
    """Run a notebook in a child process, from an empty folder to ``result.json``."""
    shutil.rmtree(job.aside, ignore_errors=True)
    if expected is not None:  # it was finished before
        job.folder.rename(job.aside)
    elif job.folder.exists():
        shutil.rmtree(job.folder)
    started = time.monotonic()
    try:
        task = {"notebook": str(job.book.path), "parameters": job.values}
        files.write_atomic(job.folder / "task.json", json.dumps(task))
        ended = _watch(job, started + timeout, expected)
    except BaseException:
        try:
            _conclude(job, {"status": "interrupted", "error": "The run was stopped from outside."}, started)
        finally:
            _restore(job)
        raise
    outcome = _conclude(job, ended, started)
    shutil.rmtree(job.aside, ignore_errors=True)
    return outcome


def _restore(job: _Job) -> None:
    """Put back the finished run, if there is one, that a repetition had put aside and did not live to replace."""
    if job.aside.exists():
        shutil.rmtree(job.folder, ignore_errors=True)
        job.aside.rename(job.folder)


def _conclude(job: _Job, ended: dict[str, Any], started: float) -> Outcome:
    """Complete what is known of an ended run and write ``result.json``, the last file of all."""
    position = files.read_json(job.folder / "position.json")
    if ended["status"] == "finished" and (wrong := _unwritten(job)):
        ended = ended | {"status": "failed", "error": wrong}
    if ended["status"] != "finished":
        ended |= {"cell": position.get("cell"), "heading": position.get("heading", "")}
    outcome = job.outcome(seconds=round(time.monotonic() - started, 1), **ended)
    for scratch in ("task.json", "position.json", "progress.txt", "ended.json"):
        (job.folder / scratch).unlink(missing_ok=True)
    files.write_atomic(job.folder / "result.json", json.dumps(asdict(outcome), indent=1) + "\n")
    return outcome


def _watch(job: _Job, deadline: float, expected: float | None) -> dict[str, Any]:
    """Start the child, show its progress until it ends, and say how it ended."""
    command = [sys.executable, "-m", "asrlib.course.runner", str(job.folder)]
    with (
        open(job.folder / "log.txt", "wb") as log,
        subprocess.Popen(
            command,
            cwd=job.book.path.parent,
            env=_child_environment(job),
            stdin=subprocess.PIPE,  # stays open as long as this process lives: its end stops the child
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends child and kernel
        ) as child,
    ):
        try:
            started = time.monotonic()
            while child.poll() is None:
                if time.monotonic() > deadline:
                    return {"status": "timed out", "error": "It ran longer than --timeout allows."}
                _show(_progress(job, time.monotonic() - started, expected))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(POLL)
        finally:
            _show("")
            if child.poll() is None:
                _end(child.pid)
    if ended := files.read_json(job.folder / "ended.json"):
        return ended
    if shutil.disk_usage(job.folder).free < ROOM:
        error = f"The disk with {os.path.relpath(job.folder)} is full: free some space and run it again."
    else:
        cause = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
        error = f"The process that ran it died ({cause}); perhaps memory ran out."
    return {"status": "failed", "error": error}


def _child_environment(job: _Job) -> dict[str, str]:
    silent = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
    environment = os.environ | dict.fromkeys(silent, "1")
    environment |= {"HF_HUB_OFFLINE": "1"} if job.profile == "smoke" else {}
    return environment | {
        "ASRLIB_PROFILE": job.profile,
        "ASRLIB_OUTPUT": str(job.folder),
        "ASRLIB_HEADLESS": "1",
        "ASRLIB_PROGRESS": str(job.folder / "progress.txt"),
        "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not one of the same name in the user's home
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a debugger's warning in every log
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm misses ipywidgets, whose state would bloat the outputs
    }


def _progress(job: _Job, elapsed: float, expected: float | None) -> str:
    """Return the line that a person sees: cells done, seconds, rest time, and what the current cell reports."""
    position = files.read_json(job.folder / "position.json")
    done, cells = position.get("cell", 1) - 1, position.get("cells", 0)
    if expected is None and done:
        expected = elapsed * cells / done
    rest = f", about {max(1, expected - elapsed):.0f} s left" if expected else ""
    inner = ""
    with contextlib.suppress(OSError):
        inner = (job.folder / "progress.txt").read_text(encoding="utf-8")
    return f"{job.book.name}: {done}/{cells or '?'} cells, {elapsed:.0f} s{rest}" + (f" | {inner}" if inner else "")


def _show(text: str) -> None:
    """Rewrite the line of a terminal; without a terminal nothing is shown."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[K{text[:width]}", end="", file=sys.stderr, flush=True)


def _end(pid: int) -> None:
    """End a child and everything that it started; a kernel is in a session of its own, so it is found by parentage."""
    import psutil

    try:
        child = psutil.Process(pid)
        family = [child, *child.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for signal_name in ("terminate", "kill"):
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(process, signal_name)()
        _, family = psutil.wait_procs(family, timeout=5)


# --------------------------------------------------------------------------------------------------------------- the child
def _child(folder: Path) -> None:
    """Execute the notebook that ``task.json`` names and write how it ended to ``ended.json``."""
    files.import_jsonschema()  # before papermill does
    import papermill
    from nbclient.exceptions import DeadKernelError

    threading.Thread(target=_end_with_parent, daemon=True).start()
    task = files.read_json(folder / "task.json")
    ended: dict[str, Any] = {"status": "finished"}
    try:
        papermill.execute_notebook(
            _literal(task["notebook"]),
            _literal(str(folder / "notebook.ipynb")),
            parameters=task["parameters"],
            kernel_name="python3",
            cwd=str(Path(task["notebook"]).parent),
            progress_bar=False,
            start_timeout=120,
            autosave_cell_every=60,
            coalesce_streams=True,
            iopub_timeout=60,
            store_widget_state=False,
            on_cell_start=_Position(Path(task["notebook"]), folder),
        )
    except papermill.PapermillExecutionError as error:
        ended = {"status": "failed", "error": _sentence(error.ename, error.evalue)}
    except DeadKernelError:
        ended = {"status": "kernel died", "error": "The kernel was killed, most often because memory ran out."}
    except Exception as error:
        ended = {"status": "failed", "error": _sentence(type(error).__name__, str(error))}
    unit = 2**20 if sys.platform == "darwin" else 2**10
    ended["peak_rss_mib"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit, 1)
    files.write_atomic(folder / "ended.json", json.dumps(ended))


def _literal(path: str) -> str:
    """Guard a path against papermill, which fills in ``{...}`` as a parameter."""
    return path.replace("{", "{{").replace("}", "}}")


def _sentence(name: str, message: str) -> str:
    """Return an exception as one line; asrlib's own messages stand for themselves."""
    line = (message.strip().splitlines() or [""])[0][:400]
    return line if name == "AsrlibError" else f"{name}: {line}"


class _Position:
    """Note, at the start of each code cell, its number and the heading above it, for the parent to read."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.folder = folder
        self.cells = len(records.notebook_code(source))
        self.cell = 0
        self.heading = ""

    def __call__(self, cell: Any, cell_index: int) -> None:
        if cell.cell_type == "markdown":
            self.heading = [self.heading, *re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE)][-1]
        elif cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", ()):
            self.cell += 1
            (self.folder / "progress.txt").unlink(missing_ok=True)  # what the cell before reported
            place = {"cell": self.cell, "cells": self.cells, "heading": self.heading}
            files.write_atomic(self.folder / "position.json", json.dumps(place))


def _end_with_parent() -> None:
    """Stop when the runner is gone, even killed: its end of the pipe closes with it, and the kernel follows this process."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _child(Path(sys.argv[1]))

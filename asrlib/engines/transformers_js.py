"""Transformers.js, ONNX Runtime driven from JavaScript: what a page in a browser runs, here under Node.js on the CPU."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from asrlib import AsrlibError
from asrlib.decoding.batching import Result
from asrlib.engines.runtime import Runtime, segments
from asrlib.io import downloads, files
from asrlib.models import checkpoints

__all__ = ["Script", "TransformersJs", "node", "packages"]

NODE_VERSION = 20  # the oldest that is still maintained
NPM_VERSION = "4.3.2"  # of @huggingface/transformers
NPM_BYTES = 485_000_000  # of it and all that it needs; most of them are ONNX Runtime for every system


class TransformersJs(Runtime):
    """It decodes greedily, clip by clip, cannot detect the language, and has no tests of what it wrote.

    A long recording is cut every 20 s into pieces of 30 s, whose texts are joined where they overlap.
    """

    precisions = ("int8", "float32")

    def _load(self) -> None:
        program, modules = node(), packages()
        self.files = checkpoints.fetch(self.checkpoint, format="onnx" if self.precision == "float32" else "onnx-int8")
        self.script = Script(program, modules)
        self.script.ask(model=str(self.files), threads=self.threads)

    def _engine(self) -> TransformersJs:
        if self.multilingual and not self.language:
            raise AsrlibError("Transformers.js cannot detect the language: name it, or choose another engine.")
        return self

    def _transcribe(self, samples: np.ndarray, times: bool) -> Result:
        options = {"language": self.known_language, "task": "transcribe"} if self.multilingual else {}
        if times:
            options |= {"return_timestamps": True, "chunk_length_s": 30}
        with tempfile.TemporaryDirectory() as folder:  # a line of JSON would hold a long recording four times
            sound = Path(folder, "sound.f32")
            samples.astype("<f4", copy=False).tofile(sound)
            found = self.script.ask(sound=str(sound), options=options)
        parts = segments((*part["timestamp"], part["text"]) for part in found.get("chunks", ()))
        return found["text"].strip(), self.known_language, parts


class Script:
    """``transformers_js.mjs`` in a process of Node.js, which holds the model and ends with this object."""

    def __init__(self, program: str, modules: Path) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        command = [program, str(Path(__file__).with_name("transformers_js.mjs")), str(modules)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        # A session of its own: Ctrl-C at the terminal interrupts the notebook's clip, not the model.
        self.process = subprocess.Popen(command, **pipes, text=True, encoding="utf-8", start_new_session=True)
        weakref.finalize(self, _end, self.process)
        self.number = 0

    def ask(self, **question: Any) -> dict[str, Any]:
        """Return the answer to a question, both as the script describes them."""
        self.number += 1
        with contextlib.suppress(BrokenPipeError):  # it has died, and gives no answer
            self.process.stdin.write(json.dumps({"number": self.number, **question}) + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            answer = json.loads(line)
            if answer["number"] < self.number:  # the caller was interrupted while it waited for this one
                continue
            if "error" not in answer:
                return answer
            raise AsrlibError(f"Transformers.js failed ({answer['error']}): choose another engine for this.")
        self.errors.seek(0)
        printed = self.errors.read().decode(errors="replace").strip() or "without a message"
        raise AsrlibError(f"Node.js ended before it answered ({printed.splitlines()[-1]}): load the engine again.")


def _end(process: subprocess.Popen) -> None:
    """Stop a process, wait for its end and close its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # a question that nobody read
            pipe.close()


def node() -> str:
    """Return the path of Node.js."""
    path = shutil.which("node")
    printed = subprocess.run([path, "--version"], capture_output=True, text=True).stdout if path else ""
    version = re.match(r"v(\d+)", printed)
    if not version or int(version[1]) < NODE_VERSION:
        raise AsrlibError(
            f"Transformers.js needs Node.js {NODE_VERSION} or newer: install it, or choose another engine."
        )
    return path


def packages() -> Path:
    """Return the folder in asrlib's cache that holds Transformers.js and what it needs."""
    return files.prepared(files.cache_dir() / "npm" / f"transformers-{NPM_VERSION}", _fill)


def _fill(folder: Path) -> None:
    """Let npm, with the user's own settings, install Transformers.js into a folder; no package may run a script."""
    if shutil.which("npm") is None:
        raise AsrlibError("Transformers.js comes through npm, which is not installed: install it beside Node.js.")
    pins = {"private": True, "dependencies": {"@huggingface/transformers": NPM_VERSION}}
    (folder / "package.json").write_text(json.dumps(pins))
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    code, printed = downloads.run(command, folder, "installing Transformers.js with npm", NPM_BYTES, cwd=folder)
    if code:
        reason = re.search(r"^npm (?:error|ERR!) (.+)", printed, re.MULTILINE)
        raise AsrlibError(
            f"Transformers.js could not be had through npm ({reason[1] if reason else f'exit code {code}'}): check the network "
            "and `npm ping`, then try again."
        )

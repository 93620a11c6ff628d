"""Cells that run in the environment of optimum-onnx, which asks for an older transformers (`asrlib.io.environment`).

A second Jupyter kernel lives there as long as this process and keeps its variables. In a notebook,
``%load_ext asrlib.models.optimum_env`` adds the cell magic ``%%optimum path rows``: it hands the variables ``path`` and
``rows`` over and runs its cell there; ``session().take("sizes")`` brings a variable back. All that is exchanged is JSON.
"""

from __future__ import annotations

import ast
import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

from asrlib import AsrlibError
from asrlib.io import environment

__all__ = ["OptimumError", "Session", "load_ipython_extension", "session"]

TICK = 1.0  # seconds of silence after which is checked that the kernel lives
_shared: Session | None = None


class OptimumError(AsrlibError):
    """Source failed in the environment of optimum-onnx; ``kind`` is the exception's type, such as ``"ValueError"``."""

    def __init__(self, kind: str, message: str, traceback: list[str]) -> None:
        first = (message.splitlines() or ["it says nothing more"])[0].rstrip(".")
        super().__init__(
            f"The environment of optimum-onnx raised {kind} ({first}): mend what was sent there, or its input."
        )
        self.kind, self.traceback = kind, traceback

    def _render_traceback_(self) -> list[str]:
        """Let IPython show the traceback from there."""
        return [*self.traceback, str(self)]


class _Manager(KernelManager):
    python = Path(sys.executable)

    @property
    def kernel_spec(self) -> KernelSpec:
        quiet = ["--HistoryManager.enabled=False", "--log-level=CRITICAL"]
        return KernelSpec(argv=[str(self.python), "-m", "ipykernel_launcher", "-f", "{connection_file}", *quiet])


class Session:
    """A kernel in the environment of optimum-onnx; it ends with `close`, or with this process however that ends."""

    def __init__(self) -> None:
        self.manager = _Manager()
        self.manager.python = environment.optimum_python()
        if "google.colab" in sys.modules and not self.manager.python.exists():  # nobody runs `make` there
            self.manager.python = environment.set_up_optimum()
        try:
            # What is printed comes as messages; to the terminal it would go twice.
            self.manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.client = self.manager.blocking_client()
            self.client.start_channels()
            self.client.wait_for_ready()
        except (OSError, RuntimeError) as error:  # RuntimeError: it died at once
            raise AsrlibError(
                f"optimum-onnx has an environment of its own, whose Python does not start at {self.manager.python} ("
                f"{getattr(error, 'strerror', error)}): run `make`, or `{environment.SET_UP}`."
            ) from None
        # asrlib stands behind all else: what is there was chosen for an older transformers.
        self.run("import sys; sys.path.append(root)", {"root": Path(__file__).parents[2]})

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the kernel."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, source: str, given: Mapping[str, Any] | None = None, wanted: Iterable[str] = ()) -> dict[str, Any]:
        """Run a piece of Python source there; what it prints appears here as it is printed.

        Args:
            source: as a cell of a notebook; the value of a last expression is printed.
            given: variables that are set before, by name; a path arrives as its text.
            wanted: names of variables to return.

        Returns:
            The wanted variables.

        Raises:
            OptimumError: the source raised an exception, or a wanted variable is missing or is no JSON; the kernel goes on.
            AsrlibError: a variable that is given is no JSON, or the kernel died, now or before.
        """
        try:
            values = json.dumps(dict(given or {}), default=os.fspath)
        except TypeError as error:
            raise AsrlibError(
                f"What goes to optimum-onnx's process must be JSON, or a path ({error}): hand over less."
            ) from None
        if given:
            self._execute(f"globals().update(__import__('json').loads({values!r}))")
        fields = "".join(f"{name!r}: {name}, " for name in wanted)
        return json.loads(self._execute(source, f"__import__('json').dumps({{{fields}}})"))

    def take(self, name: str) -> Any:
        """Return one variable of the other process."""
        return self.run("", wanted=[name])[name]

    def _execute(self, source: str, value: str = "''") -> str:
        """Run source, show what it prints, and return the text that an expression has afterwards."""
        if not self.manager.has_kernel:
            raise AsrlibError("This process of optimum-onnx has ended: begin another with optimum_env.session().")
        asked = self.client.execute(source, store_history=False, user_expressions={"value": value}, allow_stdin=False)
        try:
            self._show(asked)
        except KeyboardInterrupt:  # Ctrl-C stops the source; a second one ends the process
            self.manager.interrupt_kernel()
            try:
                self._show(asked)
            except KeyboardInterrupt:
                self.close()
            raise
        reply = self._message(self.client.get_shell_msg, asked)["content"]
        result = reply["user_expressions"]["value"] if reply["status"] == "ok" else reply
        if result["status"] != "ok":
            raise OptimumError(result["ename"], result["evalue"], result["traceback"])
        return ast.literal_eval(result["data"]["text/plain"])

    def _show(self, asked: str) -> None:
        """Show what the kernel prints until it has done what it was asked."""
        while True:
            message = self._message(self.client.get_iopub_msg, asked)
            content = message["content"]
            if content.get("execution_state") == "idle":
                return
            if "name" in content and "text" in content:
                stream = getattr(sys, content["name"])
                stream.write(content["text"])
                stream.flush()
            elif "data" in content:
                print(content["data"]["text/plain"], flush=True)

    def _message(self, receive: Callable[..., dict[str, Any]], asked: str) -> dict[str, Any]:
        """Return the next message about what was asked; messages left by an interrupted request are dropped."""
        while True:
            try:
                message = receive(timeout=TICK)
            except queue.Empty:
                if not self.manager.is_alive():
                    self.close()
                    raise AsrlibError(
                        "The process of optimum-onnx ended, and its variables are lost: free some memory if it ran short, then "
                        "run what was sent there again from the start."
                    ) from None
                continue
            if message["parent_header"].get("msg_id") == asked:
                return message


def session() -> Session:
    """Return the session that this process shares; it begins where it is first asked for, or where the last one died."""
    global _shared
    if _shared is None or not _shared.manager.has_kernel:
        _shared = Session()
    return _shared


def load_ipython_extension(shell: Any) -> None:
    """Add the cell magic ``%%optimum``: what ``%load_ext asrlib.models.optimum_env`` calls."""

    def optimum(line: str, cell: str) -> None:
        """Run a cell in the environment of optimum-onnx, with the variables that the line names."""
        if unknown := [name for name in line.split() if name not in shell.user_ns]:
            raise AsrlibError(
                f"The notebook has no variable {unknown[0]} to hand over to %%optimum: correct the line's names."
            )
        session().run(cell, {name: shell.user_ns[name] for name in line.split()})

    shell.register_magic_function(optimum, "cell")

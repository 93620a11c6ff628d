"""The one door to optimum-onnx, which asks for an older transformers and so has an environment of its own.

Its code runs there in a process that lives as long as this one and keeps its variables, like the kernel of a notebook::

    other = optimum_env.session()
    found = other.run("from importlib import metadata; version = metadata.version(name)", {"name": "optimum-onnx"}, ["version"])

In a notebook, ``%load_ext asrlib.models.optimum_env`` adds a cell magic. ``%%optimum path rows`` runs its cell there, after it has
handed over the notebook's variables ``path`` and ``rows``; ``session().take("sizes")`` brings one back. What goes through the
door is JSON: numbers, texts, lists, and mappings with texts as keys; a path arrives as its text.

`asrlib.io.environment` says where that environment lies, and makes it.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from asrlib import AsrlibError
from asrlib.io import environment

__all__ = ["OptimumError", "Session", "load_ipython_extension", "session"]

CHILD = Path(__file__).with_name("optimum_child.py")
PATIENCE = 5.0  # seconds in which the process is to end once its parent has left
CHUNK = 1 << 16  # bytes read at once
_shared: Session | None = None


class OptimumError(AsrlibError):
    """Source failed in the environment of optimum-onnx.

    Attributes:
        kind: the exception's type, such as ``"ValueError"``.
        traceback: its traceback there.
    """

    def __init__(self, kind: str, message: str, traceback: str) -> None:
        first = (message.splitlines() or ["it says nothing more"])[0].rstrip(".")
        super().__init__(
            f"The environment of optimum-onnx raised {kind} ({first}): mend what was sent there, or its input."
        )
        self.kind, self.traceback = kind, traceback

    def _render_traceback_(self) -> list[str]:
        """Let IPython show the traceback of the cell, not that of the door."""
        return [*self.traceback.splitlines(), "", str(self)]


class Session:
    """A process in the environment of optimum-onnx; it ends with this object, or with this process however that ends."""

    def __init__(self) -> None:
        python = environment.optimum_python()
        if "google.colab" in sys.modules and not python.exists():  # nobody runs `make` there
            python = environment.set_up_optimum()
        self.link, there = socket.socketpair()
        command = [str(python), "-u", "-P", str(CHILD), str(there.fileno())]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
        # A session of its own: Ctrl-C reaches it through `run` alone, and it can be ended with all that it has started.
        try:
            with there:
                self.process = subprocess.Popen(command, **pipes, pass_fds=[there.fileno()], start_new_session=True)
        except OSError as error:
            self.link.close()
            raise AsrlibError(
                f"optimum-onnx has an environment of its own, whose Python does not start at {python} ({error.strerror}): run "
                f"`make`, or `{environment.SET_UP}`."
            ) from None
        self.number, self.received = 0, b""
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.link, selectors.EVENT_READ)
        for stream, name in ((self.process.stdout, "stdout"), (self.process.stderr, "stderr")):
            os.set_blocking(stream.fileno(), False)
            self.selector.register(
                stream, selectors.EVENT_READ, (name, codecs.getincrementaldecoder("utf-8")("replace"))
            )
        self.close = weakref.finalize(self, _end, self.process, self.link, self.selector)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, source: str, given: Mapping[str, Any] | None = None, wanted: Iterable[str] = ()) -> dict[str, Any]:
        """Run a piece of Python source there; what it prints appears here as it is printed.

        Args:
            source: as a cell of a notebook; the value of a last expression is printed.
            given: variables that are set before, by name.
            wanted: names of variables to return.

        Returns:
            The wanted variables.

        Raises:
            OptimumError: the source raised an exception, or a wanted variable is missing or is no JSON; the process goes on.
            AsrlibError: a variable that is given is no JSON, or the process died, now or before.
        """
        if not self.close.alive:
            raise AsrlibError("This process of optimum-onnx has ended: begin another with optimum_env.session().")
        self.number += 1
        question = {"number": self.number, "source": source, "given": dict(given or {}), "wanted": list(wanted)}
        try:
            line = json.dumps(question, default=os.fspath).encode() + b"\n"
        except TypeError as error:
            raise AsrlibError(
                f"What goes to optimum-onnx's process must be JSON, or a path ({error}): hand over less."
            ) from None
        try:
            with contextlib.suppress(ConnectionError):  # it has died, and gives no answer
                self.link.sendall(line)
            answer = self._answer()
        except KeyboardInterrupt:
            self._interrupt()
            raise
        if "error" in answer:
            raise OptimumError(answer["error"], answer["message"], answer["traceback"])
        return answer["values"]

    def take(self, name: str) -> Any:
        """Return one variable of the other process."""
        return self.run("", wanted=[name])[name]

    def _answer(self) -> dict[str, Any]:
        """Show what the process prints until it answers, and return the answer."""
        while True:
            for key, _ in self.selector.select():
                if key.data:
                    self._show(key)
                    continue
                piece = self._piece()
                self.received += piece
                if not piece:
                    raise self._died()
            line, newline, rest = self.received.partition(b"\n")
            if not newline:
                continue
            self.received = rest
            answer = json.loads(line)
            if answer["number"] == self.number:  # else the asker was interrupted while it waited for this one
                self._show_rest()
                return answer

    def _piece(self) -> bytes:
        with contextlib.suppress(ConnectionError):
            return self.link.recv(CHUNK)
        return b""

    def _show(self, key: selectors.SelectorKey) -> bool:
        """Write a piece of the process's output to ours; return whether there was one."""
        name, decoder = key.data
        piece = key.fileobj.read(CHUNK)
        if piece == b"":  # its end
            self.selector.unregister(key.fileobj)
        if piece:
            stream = getattr(sys, name)
            stream.write(decoder.decode(piece))
            stream.flush()
        return bool(piece)

    def _show_rest(self) -> None:
        """Show what was printed before the answer, and still lies in the pipes."""
        for key in [key for key in self.selector.get_map().values() if key.data]:
            while self._show(key):
                pass

    def _died(self) -> AsrlibError:
        self._show_rest()
        code = self.process.wait()
        global _shared
        if _shared is self:
            _shared = None
        self.close()
        how = f"by the signal {signal.Signals(-code).name}" if code < 0 else f"with the code {code}"
        return AsrlibError(
            f"The process of optimum-onnx ended {how}, and its variables are lost: free some memory if it ran short, then run "
            "what was sent there again from the start."
        )

    def _interrupt(self) -> None:
        """Pass Ctrl-C on to the source that runs there, and wait until it has stopped; a second one ends the process."""
        try:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(AsrlibError):
                self._answer()
        except KeyboardInterrupt:
            self.close()


def _end(process: subprocess.Popen, link: socket.socket, selector: selectors.BaseSelector) -> None:
    """Leave a process, which then ends; end it where it cannot."""
    selector.close()
    link.close()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdout, process.stderr):
        pipe.close()


def session() -> Session:
    """Return the session that this process shares; it begins where it is first asked for, or where the last one died."""
    global _shared
    if _shared is None or not _shared.close.alive:
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

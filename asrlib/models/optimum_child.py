"""The other end of `asrlib.models.optimum_env`: runs the source that comes through a socket, as long as its parent lives.

It is run as a script, by another environment's Python, so it uses the standard library alone. Each line from the socket is a
question, each line to it an answer, both JSON:

- ``{"number": 1, "source": "b = a + 1", "given": {"a": 1}, "wanted": ["b"]}``
- ``{"number": 1, "values": {"b": 2}}``, or ``{"number": 1, "error": "NameError", "message": "...", "traceback": "..."}``

What the source prints goes to the process's own output, and is all there before the answer is.
"""

import ast
import json
import linecache
import os
import queue
import signal
import socket
import sys
import threading
import traceback
import types
from pathlib import Path
from typing import Any


def main(descriptor: int) -> None:
    """Answer questions until the other end of the socket is closed."""
    link = socket.socket(fileno=descriptor)
    questions: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(link, questions), daemon=True).start()
    # As in IPython, what runs is the module __main__, so that its functions can be sent to further processes.
    space = sys.modules["__main__"] = types.ModuleType("__main__")
    while True:
        question = questions.get()
        answer = _answer(question, vars(space))
        sys.stdout.flush()
        sys.stderr.flush()
        link.sendall(f"{answer}\n".encode())


def _listen(link: socket.socket, questions: queue.SimpleQueue) -> None:
    """Take questions from the socket; at its end the parent is gone, and this process goes with all that it has started."""
    for line in link.makefile("rb"):
        questions.put(json.loads(line))
    os.killpg(os.getpid(), signal.SIGKILL)  # the parent has made it the leader of a group


def _answer(question: dict[str, Any], space: dict[str, Any]) -> str:
    """Return the answer to a question, as JSON; an interrupt reaches the source and nothing else."""
    number = question["number"]
    try:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            space.update(question["given"])
            _run(question["source"], f"<%%optimum {number}>", space)
            values = {name: _known(space, name) for name in question["wanted"]}
            return json.dumps({"number": number, "values": values})
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: the process goes on
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        shown = "".join(traceback.format_exception(type(error), error, trace))
        told = {"error": type(error).__name__, "message": str(error), "traceback": shown}
        return json.dumps({"number": number} | told)


def _known(space: dict[str, Any], name: str) -> Any:
    if name not in space:
        raise NameError(f"name {name!r} is not defined")
    return space[name]


def _run(source: str, name: str, space: dict[str, Any]) -> None:
    """Run source as a cell of a notebook: the value of a last expression is printed."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # for tracebacks
    body = ast.parse(source, name).body
    last = [body.pop()] if body and isinstance(body[-1], ast.Expr) else []
    exec(compile(ast.Module(body, []), name, "exec"), space)
    exec(compile(ast.Interactive(last), name, "single"), space)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path.append(str(Path(__file__).parents[2]))  # asrlib itself, behind all else
    main(int(sys.argv[1]))

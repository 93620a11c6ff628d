"""Progress that a person sees and that leaves no trace in saved outputs.

Three readers: a terminal gets one line that is rewritten; an interactive Jupyter session gets a line that vanishes when the
work is done; the notebook runner gets it through the file named by ``ASRLIB_PROGRESS`` and shows it in its own line.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["Meter", "track"]

INTERVAL = 0.5  # seconds between two updates
T = TypeVar("T")


class Meter:
    """Count steps of a long piece of work.

    >>> with Meter("clips", total=2) as meter:
    ...     meter.step()
    """

    def __init__(self, label: str, total: float = 0, unit: str = "") -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0.0
        self.started = self.shown = time.monotonic()
        self.handle = None

    def __enter__(self) -> Meter:
        self._show()
        return self

    def __exit__(self, *_: object) -> None:
        self._erase()

    def step(self, amount: float = 1) -> None:
        """Add finished work and, at most twice a second, show it."""
        self.done += amount
        if time.monotonic() - self.shown >= INTERVAL:
            self.shown = time.monotonic()
            self._show()

    def text(self) -> str:
        """Return the line a person reads: label, amount done, rest time."""
        if self.unit == "B":
            amount = f"{self.done / 1e6:.0f}" + (f"/{self.total / 1e6:.0f}" if self.total else "") + " MB"
        else:
            amount = (
                f"{self.done:.0f}"
                + (f"/{self.total:.0f}" if self.total else "")
                + (f" {self.unit}" if self.unit else "")
            )
        elapsed = time.monotonic() - self.started
        rest = f", {elapsed * (self.total - self.done) / self.done:.0f} s left" if 0 < self.done < self.total else ""
        return f"{self.label}: {amount}{rest}" if self.done or self.total else self.label

    def _show(self) -> None:
        if path := os.environ.get("ASRLIB_PROGRESS"):
            _report(path, self.text())
        elif _in_jupyter() and not os.environ.get("ASRLIB_HEADLESS"):
            self._display({"text/plain": self.text()})
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{self.text()[:110]}")
            sys.stderr.flush()

    def _display(self, bundle: dict[str, str]) -> None:
        from IPython.display import display

        if self.handle is None:
            self.handle = display(bundle, raw=True, display_id=True)
        else:
            self.handle.update(bundle, raw=True)

    def _erase(self) -> None:
        if path := os.environ.get("ASRLIB_PROGRESS"):
            _report(path, "")
        elif self.handle is not None:
            self._display({"text/plain": ""})
        elif sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _report(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(text)
    except OSError:
        pass  # a progress line that cannot be shown must not end the work


def _in_jupyter() -> bool:
    """Say whether this code runs in a Jupyter kernel: other programs, such as pytest with nbval, import ipykernel too."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def track(items: Iterable[T], label: str, total: int = 0, unit: str = "") -> Iterator[T]:
    """Yield the items of an iterable while a `Meter` counts them."""
    with Meter(label, total or (len(items) if hasattr(items, "__len__") else 0), unit) as meter:
        for item in items:
            yield item
            meter.step()

"""Progress that a person sees and that leaves no trace in saved outputs.

A terminal and an interactive Jupyter session get one line, which vanishes when the work is done; the notebook runner gets it
through the file named by ``ASRLIB_PROGRESS`` and shows it in its own line.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
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
        self._show(self.text())
        return self

    def __exit__(self, *_: object) -> None:
        self._show("")

    def step(self, amount: float = 1) -> None:
        """Add finished work and, at most twice a second, show it."""
        self.done += amount
        if time.monotonic() - self.shown >= INTERVAL:
            self.shown = time.monotonic()
            self._show(self.text())

    def text(self) -> str:
        """Return the line a person reads: label, amount done, rest time."""
        if not self.done and not self.total:
            return self.label
        scale, unit = (1e6, "MB") if self.unit == "B" else (1, self.unit)
        of = f"/{self.total / scale:.0f}" if self.total else ""
        elapsed = time.monotonic() - self.started
        rest = f", {elapsed * (self.total - self.done) / self.done:.0f} s left" if 0 < self.done < self.total else ""
        return f"{self.label}: {self.done / scale:.0f}{of} {unit}".rstrip() + rest

    def _show(self, text: str) -> None:
        if path := os.environ.get("ASRLIB_PROGRESS"):
            with contextlib.suppress(OSError):  # a progress line that cannot be shown must not end the work
                Path(path).write_text(text, encoding="utf-8")
        elif _in_jupyter() and not os.environ.get("ASRLIB_HEADLESS"):
            self._display({"text/plain": text})
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text[:110]}")
            sys.stderr.flush()

    def _display(self, bundle: dict[str, str]) -> None:
        from IPython.display import display

        if self.handle is None:
            self.handle = display(bundle, raw=True, display_id=True)
        else:
            self.handle.update(bundle, raw=True)


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

"""``asrlib doctor``: what this machine has and lacks for the course, one line each."""

from __future__ import annotations

import argparse
import itertools
import math
import platform
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from asrlib.io import files
from asrlib.io.environment import SET_UP, lock_file, optimum_python, pins

PYTHONS = ((3, 11), (3, 13))  # the first and the last that the locks are for
MEMORY, DISK = 12, 8  # GiB, as README asks for
HUB = "https://huggingface.co/api/models/openai/whisper-base"


@dataclass(frozen=True)
class Finding:
    """One line of ``asrlib doctor``: state is OK, MISSING, DIFFERS or NOTE; mend is the command that helps, or empty."""

    state: str
    what: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.state:8} {self.what}" + (f"  ->  {self.mend}" if self.mend else "")


def doctor(options: argparse.Namespace) -> int:
    """Print all findings; 1 where something is to be mended."""
    wrong = 0
    for finding in diagnose(files.repository()):
        wrong += finding.state in ("MISSING", "DIFFERS")
        print(finding, flush=True)
    print(f"\n{wrong} to mend, with the command after the arrow." if wrong else "\nAll is there.")
    return 1 if wrong else 0


def diagnose(root: Path | None) -> Iterator[Finding]:
    """Yield what this machine has and lacks for the course.

    Args:
        root: the checkout, or None where asrlib was installed from a wheel: then the versions are whatever fitted there.
    """
    yield _python()
    if root:
        mend = f"{sys.executable} -m pip install -r requirements.lock"
        yield from _compared(root / "requirements.lock", sys.path, mend)
    else:
        yield Finding("NOTE", "asrlib was installed without the course: versions are not compared with its lock")
    yield from _optimum()
    yield from _hardware()
    yield _disk()
    if root:
        yield from _checkpoints_and_corpora(root)
    yield _hub()


def _python() -> Finding:
    first, last = (".".join(map(str, version)) for version in PYTHONS)
    fits = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
    here = f"Python {platform.python_version()}"
    return Finding("OK", here) if fits else Finding("NOTE", f"{here}: the locks are for {first} to {last}")


def _optimum() -> Iterator[Finding]:
    if (python := optimum_python()).is_file():
        packages = python.parents[1].glob("lib/python*/site-packages")
        yield from _compared(lock_file("environments/optimum.lock"), [*map(str, packages), *sys.path], SET_UP)
    else:
        what = "the environment of optimum-onnx, which asks for transformers below 4.58, is not there"
        yield Finding("MISSING", f"{what}: {python}", SET_UP)


def _compared(lock: Path, path: list[str], mend: str) -> Iterator[Finding]:
    """Compare the packages in some folders, of which the first counts, with a lock."""
    wanted, wrong = pins(lock.read_text(encoding="utf-8")), 0
    for name, version in wanted.items():
        here = next((found.version or "" for found in metadata.distributions(name=name, path=path)), "")
        if here.split("+")[0] != version:
            wrong += 1
            if here:
                yield Finding("DIFFERS", f"package {name} {here}, tested with {version}", mend)
            else:
                yield Finding("MISSING", f"package {name} {version}", mend)
    if not wrong:
        yield Finding("OK", f"{len(wanted)} packages have the versions of {lock.name}")


def _hardware() -> Iterator[Finding]:
    import torch

    from asrlib import hardware

    machine = hardware.describe()
    ratio = hardware.product_seconds(torch.float32) / hardware.product_seconds(torch.bfloat16)
    said = (
        f"multiplies bfloat16 {ratio:.1f} times as fast as float32"
        if 0 < ratio < math.inf
        else "multiplies no bfloat16"
    )
    chosen = str(hardware.best_dtype("cpu")).removeprefix("torch.")
    yield Finding("OK", f"{machine['cpu']}, {machine['cores']} cores, {said}: {chosen} is used on it")
    if machine["gpu"]:
        yield Finding("OK", f"GPU {machine['gpu']}, {machine['gpu_memory_gib']:.0f} GiB")
    else:
        yield Finding("NOTE", "no GPU: profiles smoke and reference need none, colab and paper do")
    memory = f"memory {machine['memory_gib']:.1f} GiB"
    enough = machine["memory_gib"] > 0.95 * MEMORY  # a machine of 12 GiB keeps some for itself
    yield Finding("OK", memory) if enough else Finding("NOTE", f"{memory}, {MEMORY} are advised")


def _disk() -> Finding:
    cache = files.cache_dir()
    fetched = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())  # it needs no room any more
    free, needed = shutil.disk_usage(cache).free / 2**30, max(2.0, DISK - fetched / 2**30)
    what = f"disk: {free:.1f} GiB free at {cache}"
    if free < needed:
        return Finding("MISSING", f"{what}, {needed:.0f} GiB are needed", "export ASRLIB_CACHE=/a/larger/disk")
    return Finding("OK", what)


def _checkpoints_and_corpora(root: Path) -> Iterator[Finding]:
    from asrlib import corpora
    from asrlib.course import registry
    from asrlib.models import checkpoints

    models, speech = registry.inputs(root)
    for model in models:
        yield _present(checkpoints.available(model), f"checkpoint {model}")
    marked = sorted((name, corpora.available(name, language), language) for name, language in speech)
    for (name, there), group in itertools.groupby(marked, lambda item: item[:2]):
        yield _present(there, f"corpus {name} {', '.join(language for *_, language in group)}".rstrip())


def _present(there: bool, what: str) -> Finding:
    return Finding("OK", what) if there else Finding("MISSING", what, "make fetch")


def _hub() -> Finding:
    """Ask the Hub for one small answer; that it does not come is no fault: the course does without."""
    try:
        with urllib.request.urlopen(HUB, timeout=5):
            return Finding("OK", "the Hugging Face Hub answers")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Finding(
            "NOTE", f"the Hugging Face Hub does not answer ({reason}): only profiles colab and paper need it"
        )

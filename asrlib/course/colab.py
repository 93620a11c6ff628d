"""What a notebook's first cell does on Colab, once asrlib itself is installed there: packages, folder, profile.

Colab comes with hundreds of packages, and its kernel has loaded some of them. Those, and what is built for its GPUs, keep
their versions; everything else is whatever fits them within the ranges of pyproject.toml.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from asrlib import AsrlibError
from asrlib.course.records import version
from asrlib.io import files

# Many of Colab's packages need these in the versions that it has; torch is built for its GPUs.
BUILT_IN = ("numpy", "pandas", "pillow", "torch", "torchaudio", "torchvision")
# Colab's own kernel and page are made for the versions that it has, older than a course of one's own would take.
JUPYTER = ("ipykernel", "ipython", "jupyter-client", "prompt-toolkit", "pyzmq", "tornado")
STALE = {"torchao": "0.16"}  # PEFT does without it, and refuses an older one; nothing here needs it
# The versions of what this kernel had imported when it set up the machine for the first time.
_loaded: dict[str, str] = {}


def set_up(folder: str, *extras: str) -> None:
    """Install what a notebook imports, lay out the course's files in a folder, go there, and choose the profile.

    Args:
        folder: where the notebooks, their profiles and the published records are laid out; a run's results go there too.
        extras: of pyproject.toml, whose packages the notebook imports.

    Raises:
        AsrlibError: pip found no versions that fit together, or the runtime must be restarted, because the kernel still
            holds another version of a package than the one installed now.
    """
    _install(extras)
    course = files.repository() or Path(folder)
    shipped = Path(__file__).parents[1] / "checkout"
    if shipped.is_dir():
        shutil.copytree(shipped, course, dirs_exist_ok=True)
    os.chdir(course / "notebooks")
    profile = os.environ.setdefault("ASRLIB_PROFILE", "colab")
    print(f"This machine is set up. The course lies in {course}; the profile is {profile}.")


def _install(extras: Sequence[str]) -> None:
    wanted = [Requirement(line) for line in metadata.requires("asrlib") or ()]
    lines = [
        f"{one.name}{one.specifier}"
        for one in wanted
        if one.name not in JUPYTER
        and (one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)))
    ]
    imported = _imported()
    _loaded.update(imported | _loaded)
    built_in, jupyter = ({name: found for name in names if (found := version(name))} for names in (BUILT_IN, JUPYTER))
    said = _pip(lines, built_in | imported) and _pip(lines, built_in | jupyter) and _pip(lines, built_in)
    if stale := [name for name, least in STALE.items() if (found := version(name)) and Version(found) < Version(least)]:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *stale], check=False)
    importlib.invalidate_caches()
    if said:
        raise AsrlibError(f"pip could not install what this notebook imports: {said}")
    if changed := [name for name, former in _loaded.items() if version(name) != former]:
        raise AsrlibError(
            f"This kernel still holds the former version of {', '.join(changed)}: choose Runtime > Restart session, then run "
            "this cell again."
        )


def _imported() -> dict[str, str]:
    """Return name to version of the distributions that this kernel has imported.

    A namespace package such as ``google`` belongs to many distributions and identifies none.
    """
    homes = metadata.packages_distributions()
    modules = {name for name, module in sys.modules.items() if getattr(module, "__file__", None)}
    names = {name for module in modules & set(homes) for name in homes[module]} - {"asrlib"}
    return {name: metadata.version(name) for name in sorted(names)}


def _pip(lines: Sequence[str], kept: Mapping[str, str]) -> str:
    """Install requirements beside packages that keep their versions; return "", or the error of pip."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "kept.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept.items()), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(constraints), *lines]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip() or "it ended without a message." if done.returncode else ""

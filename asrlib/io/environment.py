"""The tested environments: their locks, and the environment of optimum-onnx, which ``python -m asrlib.io.environment`` sets up.

optimum-onnx asks for a transformers below 4.58, all else here for a newer one. So it has an environment of its own beside
the one that runs, with only those packages that must be older there; whatever it lacks it finds in the one that runs.
"""

from __future__ import annotations

import os
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from asrlib import AsrlibError
from asrlib.io import files

__all__ = ["SET_UP", "lock_file", "optimum_python", "pins", "set_up_optimum"]

SET_UP = f"{sys.executable} -m asrlib.io.environment"


def pins(lock: str) -> dict[str, str]:
    """Return name to version, out of the text of a lock: its lines ``name==version ; marker`` that apply to this machine."""
    lines = (line for line in lock.splitlines() if line and not line.startswith("#"))
    return {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in map(Requirement, lines)
        if pin.marker is None or pin.marker.evaluate()
    }


def lock_file(name: str) -> Path:
    """Return the path of a lock in the checkout or, where asrlib was installed from a wheel, of the copy inside it."""
    return (files.repository() or Path(__file__).parents[1] / "checkout") / name


def optimum_python() -> Path:
    """Return the interpreter of optimum-onnx's environment: ``ASRLIB_OPTIMUM_PYTHON``, else that beside this environment."""
    named = os.environ.get("ASRLIB_OPTIMUM_PYTHON")
    return files.user_path(named) if named else Path(sys.prefix) / "optimum" / "bin" / "python"


def set_up_optimum() -> Path:
    """Make optimum-onnx's environment anew from ``environments/optimum.lock`` and return its interpreter.

    A ``.pth`` file puts the packages of the running environment behind its own, so that torch is there once.

    Raises:
        AsrlibError: pip could not install the lock.
    """
    folder = Path(sys.prefix) / "optimum"
    python = folder / "bin" / "python"
    venv.EnvBuilder(clear=True, symlinks=True).create(folder)
    quiet = ("-qq", "--disable-pip-version-check")
    lock = str(lock_file("environments/optimum.lock"))
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", *quiet, "--no-deps", "-r", lock]
    if subprocess.run(command, check=False).returncode:
        raise AsrlibError(
            f"pip could not install {lock} into {folder}: correct what it reports above, then run `{SET_UP}`."
        )
    own = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
    behind = "".join(f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages())
    files.write_atomic(Path(own) / "behind.pth", behind)
    return python


if __name__ == "__main__":
    try:
        print(f"optimum-onnx is set up: {set_up_optimum()}")
    except AsrlibError as problem:
        raise SystemExit(str(problem)) from None

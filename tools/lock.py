"""Write requirements.lock, environments/optimum.lock and environment.yml: ``python tools/lock.py [--upgrade]``.

uv resolves pyproject.toml for all platforms at once. A version that still fits stays, unless ``--upgrade`` asks for the newest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from uv import find_uv_bin

ROOT = Path(__file__).resolve().parent.parent
SYSTEM = ("cuda-", "nvidia-")  # torch's own wheel names the versions that fit its platform
CONDA = """\
# Made by `python tools/lock.py`: do not edit. Python and pip come from conda, everything else from the lock.
name: asrlib
channels: [conda-forge]
dependencies:
  - python=3.11
  - pip
  - pip:
      - -r requirements.lock
      - -e .[all]
"""
HEAD = """\
# Exact versions of the tested environment for Python 3.11 to 3.13, made by `python tools/lock.py` from pyproject.toml: do not edit.
# No hashes: torch's file differs by platform. The packages of CUDA are left to torch, whose wheel chooses those of its build.
"""
OPTIMUM = """\
# What differs in the environment of optimum-onnx, made by `python tools/lock.py` from pyproject.toml, group optimum: do not edit.
# All other packages are those of the main environment, which lies behind it. Installed by `python -m asrlib.io.environment`.
"""


def resolve(known: Sequence[str], *options: str) -> list[str]:
    """Return the lines ``name==version ; marker`` that pyproject.toml resolves to.

    Args:
        known: lines whose versions are kept where they fit.
        options: of ``uv pip compile``.

    Raises:
        subprocess.CalledProcessError: no versions fit together; uv has said why.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "lock.txt"
        output.write_text("\n".join(known), encoding="utf-8")
        plain = ("--universal", "--quiet", "--no-header", "--no-annotate", "--output-file", str(output))
        subprocess.run(
            [find_uv_bin(), "pip", "compile", *plain, *options], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
        )
        lines = output.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith(SYSTEM)]


def release(line: str) -> str:
    """Return a line without its marker: ``name==version``."""
    return line.partition(" ;")[0]


def main(arguments: Sequence[str]) -> None:
    """Resolve both environments and write the three files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    upgrade = parser.parse_args(arguments).upgrade
    lock, optimum = ROOT / "requirements.lock", ROOT / "environments" / "optimum.lock"
    shared = resolve([] if upgrade else lock.read_text(encoding="utf-8").splitlines(), "--all-extras", "pyproject.toml")
    own = [line for line in resolve(shared, "--group", "optimum") if release(line) not in map(release, shared)]
    lock.write_text(HEAD + "\n".join(shared) + "\n", encoding="utf-8")
    optimum.write_text(OPTIMUM + "\n".join(own) + "\n", encoding="utf-8")
    (ROOT / "environment.yml").write_text(CONDA, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

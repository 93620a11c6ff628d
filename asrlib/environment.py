"""The tested environment: its lock, the conda file made from it, and ``asrlib doctor``.

The maintainer's commands, in a virtual environment that holds what pyproject.toml asks for and passes the tests::

    python -m asrlib.environment lock    # writes requirements.lock: the exact versions found here
    python -m asrlib.environment conda   # writes environment.yml from the lock
    python -m asrlib.environment colab   # writes the first code cell of every notebook
"""

from __future__ import annotations

import itertools
import platform
import shutil
import sys
import tomllib
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from asrlib import AsrlibError, __version__, files

__all__ = ["Finding", "colab_text", "conda_text", "diagnose", "direct_dependencies", "lock_text", "pins"]

PYTHON = "3.11"
EXTRAS = ("methods", "toolkits", "peers", "notebooks", "demo", "site", "workflow", "dev")
COLAB_KEEPS = ("torch", "torchvision", "torchaudio", "numpy", "pandas", "pillow")
FREE = {"triton", "setuptools", "pip"}  # differ by platform, or belong to Python's own tools: pip chooses them
HEAD = """\
# Exact versions of the tested environment, made by `python -m asrlib.environment lock` from pyproject.toml.
# transformers stays below 4.58 because optimum-onnx 0.1.0, its newest release, asks for that.
# gradio stays below 6.18, which asks for huggingface_hub 1, which transformers 4.57 refuses; pillow below 13 because of gradio.
# No hashes: torch's file differs by platform. triton and NVIDIA's packages are left to torch, which knows the platform.
"""
HUB = "https://huggingface.co/api/models/openai/whisper-base"


# ------------------------------------------------------------------------------------------------------------------- lock
def _name(requirement: str) -> str:
    """Return a distribution's normal name: lower case, hyphens."""
    return requirement.lower().replace("_", "-").replace(".", "-")


def direct_dependencies(root: Path) -> list[str]:
    """Return the requirement lines of pyproject.toml: asrlib's own and those of every extra."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    if set(extras) != set(EXTRAS):
        raise AsrlibError(
            f"pyproject.toml has the extras {', '.join(extras)}: bring EXTRAS in asrlib/environment.py up to date."
        )
    return [*project["dependencies"], *(line for extra in extras.values() for line in extra)]


def _needed(requirements: Iterable[str]) -> Iterator[tuple[str, set[str]]]:
    """Yield name and extras of those requirements that apply on this platform."""
    from packaging.requirements import Requirement

    for line in requirements:
        requirement = Requirement(line)
        if _name(requirement.name) not in FREE and not requirement.name.startswith("nvidia-"):
            yield requirement.name, requirement.extras


def _applies(line: str, extras: set[str]) -> bool:
    from packaging.requirements import Requirement

    marker = Requirement(line).marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})


def lock_text(root: Path) -> str:
    """Return requirements.lock: the installed version of every package that pyproject.toml needs, directly or not.

    Raises:
        AsrlibError: a needed package is not installed here.
    """
    versions: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = list(_needed(direct_dependencies(root)))
    while queue:
        name, extras = queue.pop()
        if (key := (_name(name), frozenset(extras))) in seen:
            continue
        seen.add(key)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            raise AsrlibError(f"{name} is not installed here: install asrlib with all its extras, then lock.") from None
        versions[_name(name)] = found.version.split("+")[0]  # torch's local tag names one platform's file
        queue += _needed(line for line in found.requires or () if _applies(line, extras))
    return HEAD + "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


def pins(lock: str) -> dict[str, str]:
    """Return name to version, out of the text of requirements.lock."""
    lines = (line for line in lock.splitlines() if line and not line.startswith("#"))
    return dict(line.split("==") for line in lines)


def conda_text() -> str:
    """Return environment.yml: Python and pip from conda, everything else from the lock, so that both ways agree."""
    return (
        "# Made by `python -m asrlib.environment conda` from requirements.lock and pyproject.toml: do not edit.\n"
        "name: asrlib\n"
        "channels: [conda-forge]\n"
        "dependencies:\n"
        f"  - python={PYTHON}\n"
        "  - pip\n"
        "  - pip:\n"
        "      - -r requirements.lock\n"
        f"      - -e .[{','.join(EXTRAS)}]\n"
    )


# ------------------------------------------------------------------------------------------------------------------ Colab
def colab_text(root: Path, extras: Sequence[str]) -> str:
    """Return a notebook's Colab cell, which installs this release with these extras; elsewhere the cell does nothing.

    What Colab's kernel has imported already, or has built for its GPUs, is left as it is: a constraints file names it.
    The repository's address is that of pyproject.toml, ``[project.urls]``; without one the cell says so.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project.get("urls", {}).get("Repository", "").removesuffix("/")
    wanted = f"asrlib[{','.join(extras)}]" if extras else "asrlib"
    if address:
        kept = "|".join(COLAB_KEEPS)
        lines = [
            f"!pip freeze | grep -E '^({kept})==' > kept.txt",
            f'%pip install -q -c kept.txt "{wanted} @ git+{address}@v{__version__}"',
            'print("This machine is set up.")',
        ]
    else:
        lines = ['raise SystemExit("This copy of the course has no public address: run it on your own machine.")']
    guard = 'if "google.colab" in sys.modules:  # sets up Colab\'s machine; elsewhere nothing happens'
    return "\n".join(["import sys", "", guard, *(f"    {line}" for line in lines)])


def write_colab(root: Path) -> None:
    """Make the generated Colab cell the first code cell of every notebook: outputs stay, cells are counted anew."""
    import nbformat

    from asrlib import course

    for book in course.registry(root).values():
        notebook = nbformat.read(book.path, as_version=4)
        cells = [cell for cell in notebook.cells if "colab" not in cell.metadata.get("tags", ())]
        new = nbformat.v4.new_code_cell(colab_text(root, book.extras), metadata={"tags": ["colab"]}, id="colab")
        first = next(place for place, cell in enumerate(cells) if cell.cell_type == "code")
        notebook.cells = [*cells[:first], new, *cells[first:]]
        course.count(notebook)
        files.write_atomic(book.path, nbformat.writes(notebook) + "\n")


# ----------------------------------------------------------------------------------------------------------------- doctor
@dataclass(frozen=True)
class Finding:
    """One line of ``asrlib doctor``: state is OK, MISSING, DIFFERS or NOTE; mend is the command that helps, or empty."""

    state: str
    what: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.state:8} {self.what}" + (f"  ->  {self.mend}" if self.mend else "")


def diagnose(root: Path | None) -> Iterator[Finding]:
    """Yield what this machine has and lacks for the course.

    Args:
        root: the checkout, or None where asrlib was installed from a wheel: then there is no lock to compare with.
    """
    yield _python()
    if root:
        yield from _versions(root)
    else:
        yield Finding("NOTE", "asrlib was installed without the course: versions have no lock to be compared with")
    yield from _hardware()
    yield from _disk()
    if root:
        yield from _checkpoints_and_corpora(root)
    yield _hub()


def _python() -> Finding:
    version = platform.python_version()
    if version.startswith(f"{PYTHON}."):
        return Finding("OK", f"Python {version}")
    return Finding("NOTE", f"Python {version}: the course was tested with {PYTHON}")


def _versions(root: Path) -> Iterator[Finding]:
    wanted = pins((root / "requirements.lock").read_text(encoding="utf-8"))
    mend = f"{sys.executable} -m pip install -r requirements.lock"
    wrong = 0
    for name, version in wanted.items():
        try:
            found = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            yield Finding("MISSING", f"package {name} {version}", mend)
        else:
            if found == version:
                continue
            yield Finding("DIFFERS", f"package {name} {found}, tested with {version}", mend)
        wrong += 1
    if not wrong:
        yield Finding("OK", f"{len(wanted)} packages have the versions of requirements.lock")


def _hardware() -> Iterator[Finding]:
    from asrlib import hardware

    machine = hardware.describe()
    fast = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512_vnni": "AVX512-VNNI"}
    have = [label for flag, label in fast.items() if flag in machine["cpu_features"]]
    lack = [label for label in fast.values() if label not in have]
    yield Finding(
        "OK" if {"AMX", "AVX512-BF16"} & set(have) else "NOTE",
        f"{machine['cpu']}, {machine['cores']} cores, with {', '.join(have) or 'no fast low precision'}"
        + (f", without {', '.join(lack)}" if lack else ""),
    )
    if machine["gpu"]:
        yield Finding("OK", f"GPU {machine['gpu']}, {machine['gpu_memory_gib']:.0f} GiB")
    else:
        yield Finding("NOTE", "no GPU: profiles smoke and reference need none, paper does")
    memory = machine["memory_gib"]
    yield Finding(
        "OK" if memory >= 4 else "NOTE", f"memory {memory:.1f} GiB" + ("" if memory >= 4 else ", 4 GiB are advised")
    )


def _disk() -> Iterator[Finding]:
    cache = files.cache_dir()
    free = shutil.disk_usage(cache).free / 2**30
    if free < 3:
        yield Finding(
            "MISSING", f"disk: {free:.1f} GiB free at {cache}, 3 GiB are needed", "export ASRLIB_CACHE=/a/larger/disk"
        )
    else:
        yield Finding("OK", f"disk: {free:.0f} GiB free at {cache}")


def _checkpoints_and_corpora(root: Path) -> Iterator[Finding]:
    from asrlib import checkpoints, corpora, course

    models, speech = course.inputs(root)
    for model in models:
        yield _present(checkpoints.available(model), f"checkpoint {model}")
    marked = sorted((name, corpora.available(name, language), language) for name, language in speech)
    for (name, there), group in itertools.groupby(marked, lambda item: item[:2]):
        languages = ", ".join(language for *_, language in group)
        yield _present(there, f"corpus {name} {languages}".rstrip())


def _present(there: bool, what: str) -> Finding:
    return Finding("OK", what) if there else Finding("MISSING", what, "make fetch")


def _hub() -> Finding:
    """Ask the Hub for one small answer; that it does not come is no fault: the course does without."""
    try:
        with urllib.request.urlopen(HUB, timeout=5):
            return Finding("OK", "the Hugging Face Hub answers")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Finding("NOTE", f"the Hugging Face Hub does not answer ({reason}): only profile paper needs it")


def main(arguments: list[str]) -> int:
    """Write the lock, the conda file or the Colab cells of the checkout; the maintainer's command."""
    root = files.repository()
    writers = {
        "lock": lambda: files.write_atomic(root / "requirements.lock", lock_text(root)),
        "conda": lambda: files.write_atomic(root / "environment.yml", conda_text()),
        "colab": lambda: write_colab(root),
    }
    if root is None or len(arguments) != 1 or arguments[0] not in writers:
        print(f"usage, in a checkout: python -m asrlib.environment {'|'.join(writers)}", file=sys.stderr)
        return 2
    writers[arguments[0]]()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

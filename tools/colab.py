"""The course on Colab: ``python -m tools.colab archive`` or ``cells``.

``archive`` (`make colab`) writes build/asrlib-course.zip, which the first cell of a notebook takes where the course has no public
address. ``cells`` writes that first cell into every notebook; it follows pyproject.toml and notebooks.toml.
"""

from __future__ import annotations

import argparse
import copy
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import nbformat

from asrlib import __version__
from asrlib.course import registry
from asrlib.io import files
from tools import publish

NAME = "asrlib-course.zip"
FOLDER = "/content/asrlib-course"
SHIPPED = (
    "LICENSE", "README.md", "asrlib", "data", "environments", "notebooks", "pyproject.toml", "requirements.lock", "results",
)  # fmt: skip
FOLDED = {"tags": ["colab", "hide-input"], "jupyter": {"source_hidden": True}}  # nobody has to read it
GUARD = """\
import sys

if "google.colab" in sys.modules:  # sets up Colab's machine; elsewhere nothing happens
"""
RELEASE = """\
    %pip install -q --no-deps "asrlib @ git+{address}@v{version}"
"""
ARCHIVE = """\
    from pathlib import Path

    from google.colab import drive, files

    archives = [Path("/content/asrlib-course.zip"), Path("/content/drive/MyDrive/asrlib-course.zip")]
    if not any(archive.exists() for archive in archives):
        if input("Is asrlib-course.zip (from `make colab`) in your Google Drive? yes or no: ") == "yes":
            drive.mount("/content/drive")
        else:
            for content in files.upload().values():
                archives[0].write_bytes(content)
    archive = next((archive for archive in archives if archive.exists()), None)
    if archive is None:
        raise SystemExit("asrlib-course.zip is missing: run `make colab`, then this cell again.")
    %pip install -q --no-deps {archive}
"""
REST = """\
    from asrlib.course import colab

    colab.set_up({arguments})"""


def colab_text(root: Path, extras: Sequence[str]) -> str:
    """Return a notebook's Colab cell, which brings asrlib there and calls `asrlib.course.colab.set_up`; elsewhere it does nothing.

    Args:
        root: the checkout. With ``[project.urls] Repository`` in its pyproject.toml the cell installs the tagged release;
            without it, asrlib-course.zip, from Colab's disk, from Google Drive, or uploaded.
        extras: of pyproject.toml, whose packages the notebook imports.
    """
    project = files.read_toml(root / "pyproject.toml")["project"]
    address = project.get("urls", {}).get("Repository", "").removesuffix("/")
    source = RELEASE.format(address=address, version=__version__) if address else ARCHIVE
    arguments = ", ".join(f'"{argument}"' for argument in (FOLDER, *extras))
    return GUARD + source + REST.format(arguments=arguments)


def write_cells(root: Path) -> None:
    """Make the Colab cell the first code cell of every notebook: outputs stay, cells are counted anew."""
    for book in registry.read(root).values():
        notebook = nbformat.read(book.path, as_version=4)
        cells = [cell for cell in notebook.cells if "colab" not in cell.metadata.get("tags", ())]
        new = nbformat.v4.new_code_cell(colab_text(root, book.extras), metadata=copy.deepcopy(FOLDED), id="colab")
        first = next(place for place, cell in enumerate(cells) if cell.cell_type == "code")
        notebook.cells = [*cells[:first], new, *cells[first:]]
        publish.count(notebook)
        files.write_atomic(book.path, nbformat.writes(notebook) + "\n")


def write_archive(root: Path, folder: Path) -> Path:
    """Write the zip from which pip installs asrlib with notebooks, tables and published records, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    shipped = [path for name in SHIPPED for path in (root / name, *(root / name).rglob("*"))]
    with zipfile.ZipFile(folder / NAME, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(shipped):
            inside = path.relative_to(root)
            if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(inside.parts):
                archive.write(path, inside)
    return folder / NAME


def main(arguments: Sequence[str]) -> None:
    """Write the archive, or the cells, of this checkout."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("archive", "cells"))
    root = Path(__file__).resolve().parent.parent
    if parser.parse_args(arguments).what == "cells":
        write_cells(root)
    else:
        made = write_archive(root, root / "build")
        print(
            f"{made} ({made.stat().st_size / 1e6:.1f} MB): put it into your Google Drive, or upload it when a notebook asks."
        )


if __name__ == "__main__":
    main(sys.argv[1:])

"""The parameters of a notebook: what its parameter cell declares, and what a profile or papermill puts in its place.

The parameter cell holds the values of the ``reference`` profile, one a line, as papermill users expect::

    N_CLIPS: int = 40  # test clips to transcribe

``notebooks/profiles.toml`` holds only what the other profiles change, in tables ``[PROFILE.NOTEBOOK]``.
"""

from __future__ import annotations

import ast
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from asrlib import AsrlibError
from asrlib.io import files

REFERENCE = "reference"  # the profile whose values the notebooks themselves hold
INJECTED = "# Parameters"  # first line of the cell that papermill adds
TYPES = {"str": str, "int": int, "float": int | float, "bool": bool, "list": list}


@dataclass(frozen=True)
class Parameter:
    """A line ``NAME: type = literal  # help`` of a notebook's parameter cell."""

    name: str
    type: str
    default: Any
    help: str


def declared(source: str, where: str) -> dict[str, Parameter]:
    """Return the parameters that the source of a parameter cell declares, by name.

    Raises:
        AsrlibError: a line of it has another form; ``where`` names the notebook.
    """
    found = {}
    try:
        tokens = list(tokenize.generate_tokens(StringIO(source).readline))
        lines = ast.parse(source).body
    except (SyntaxError, tokenize.TokenError) as error:
        raise AsrlibError(f"{where}, parameter cell, is not Python ({error.args[0]}): correct it.") from None
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    for line in lines:
        try:
            name, kind, default = line.target.id, ast.unparse(line.annotation), ast.literal_eval(line.value)
            found[name] = Parameter(name, kind, default, comments[line.end_lineno])
        except (AttributeError, ValueError, KeyError):
            form = "NAME: type = literal  # help"
            raise AsrlibError(f"{where}, parameter cell, line {line.lineno}: write it as `{form}`.") from None
    return found


def fits(value: Any, kind: str) -> bool:
    """Say whether a value is of the type that a parameter cell states, such as ``int`` or ``list[str]``."""
    if kind.startswith("list["):
        return isinstance(value, list) and all(fits(item, kind[5:-1]) for item in value)
    return kind in TYPES and isinstance(value, TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))


def check(notebook: str, parameter: Parameter, value: Any, where: str = "") -> Any:
    """Return a value that a parameter may have.

    Raises:
        AsrlibError: it is of another type; ``where`` says who gave it.
    """
    if not fits(value, parameter.type):
        wanted = f"{parameter.name} must be of type {parameter.type}, {value!r} is not ({parameter.help})."
        raise AsrlibError(f"{where}{notebook}: {wanted}")
    return value


def injected(cells: Iterable[str]) -> set[str]:
    """Return the names that papermill's added cell assigns, out of the cells that a kernel has executed."""
    lines = [line for cell in cells if cell.startswith(INJECTED) for line in ast.parse(cell).body]
    return {target.id for line in lines if isinstance(line, ast.Assign) for target in line.targets}


def profile_values(table: Mapping[str, Any], notebook: str, profile: str) -> dict[str, Any]:
    """Return what a profile changes in one notebook, out of the parsed ``profiles.toml``; nothing for ``reference``.

    Raises:
        AsrlibError: the profile does not exist.
    """
    if profile not in (REFERENCE, *table) or not isinstance(table.get(profile, {}), Mapping):
        raise AsrlibError(f"There is no profile {profile!r}: choose one of {', '.join([REFERENCE, *table])}.")
    return table.get(profile, {}).get(notebook, {})


def complete(
    notebook: str, known: Mapping[str, Parameter], found: Mapping[str, Any], given: set[str], profile: Mapping[str, Any]
) -> dict[str, tuple[Any, str]]:
    """Return the value of each parameter and where it comes from: ``notebook``, ``profile`` or ``you``.

    What was given to papermill counts most, then a value that somebody has changed in the parameter cell, then the profile's.

    Args:
        notebook: its name.
        known: what the parameter cell declares as committed.
        found: the notebook's names and their present values.
        given: names that papermill assigned.
        profile: what the profile changes.

    Raises:
        AsrlibError: an unknown name, or a value of another type.
    """
    own = {name for name in given | set(profile) if name != "PROFILE"}
    if unknown := sorted(own - set(known)):
        names = ", ".join(name for name in known if name != "PROFILE")
        raise AsrlibError(f"{notebook} has no parameter {', '.join(unknown)}: correct the name; it has {names}.")
    completed = {}
    for name, parameter in known.items():
        if name == "PROFILE":
            continue
        value, source = found.get(name, parameter.default), "notebook"
        if name in given or value != parameter.default:
            source = "you"
        elif name in profile:
            value, source = profile[name], "profile"
        where = "notebooks/profiles.toml, " if source == "profile" else ""
        completed[name] = check(notebook, parameter, value, where), source
    return completed


def read_profiles() -> tuple[dict[str, Any], Path]:
    """Return the parsed ``profiles.toml`` and the folder that holds ``notebooks/``.

    A notebook runs in its own folder, with ``profiles.toml`` beside it; otherwise the checkout's table counts, and where
    asrlib was installed from a wheel, the copy inside it.
    """
    here = Path.cwd()
    if (here / "profiles.toml").is_file():
        return files.read_toml(here / "profiles.toml"), here.parent
    if root := files.repository():
        return files.read_toml(root / "notebooks" / "profiles.toml"), root
    return files.read_toml(files.data_file("profiles.toml")), here

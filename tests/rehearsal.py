"""What the profiles `colab` and `paper` ask for, and what a rehearsal cuts of it."""

from pathlib import Path
from typing import Any

from asrlib.course import parameters, registry
from asrlib.io import files

ROOT = files.repository()
BOOKS = registry.read(ROOT)
PROFILES = files.read_toml(ROOT / "notebooks" / "profiles.toml")
SHAPES = files.read_toml(files.data_file("architectures.toml"))["architecture"]
CUTS_FILE = Path(__file__).with_name("rehearsal.toml")
CUTS = files.read_toml(CUTS_FILE)


def values(profile: str, name: str) -> dict[str, Any]:
    """Return the parameters of a notebook under a profile, uncut."""
    known = registry.parameters(BOOKS[name].path)
    return {key: item.default for key, item in known.items()} | parameters.profile_values(PROFILES, name, profile)


def librispeech(given: dict[str, Any]) -> bool:
    """Say whether LibriSpeech comes from the Hub."""
    return given.get("LIBRISPEECH") == "hub" or given.get("CORPUS") == "librispeech"


def fleurs(given: dict[str, Any]) -> list[str]:
    """Return the languages of FLEURS that come from the Hub."""
    flat = [item for value in given.values() for item in (value if isinstance(value, list) else [value])]
    named = [item.split("/")[1] for item in flat if isinstance(item, str) and item.startswith("fleurs/")]
    return [*dict.fromkeys(named)] or ([given["LANGUAGE"]] if given.get("CORPUS") == "fleurs" else [])


def models(given: dict[str, Any]) -> list[str]:
    """Return the published Whisper models among a notebook's parameters; ``SHAPES`` are timed without weights."""
    loaded = [value for key, value in given.items() if key != "SHAPES"]
    flat = [item for value in loaded for item in (value if isinstance(value, list) else [value])]
    return [item for item in dict.fromkeys(flat) if item in SHAPES]

"""What a training learns from, as it is written on the command line, and the command line of a training."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from asrlib import AsrlibError
from asrlib.corpora import catalogue
from asrlib.io import files
from asrlib.text import language_code

__all__ = ["Source", "command_line"]

FORM = re.compile(r"(?P<name>\w+)/(?P<language>[\w-]+)(/(?P<split>[\w.-]+?))?(?P<packed>:packed)?(=(?P<share>[\d.]+))?")
SHARED = re.compile(r"(?P<place>.+?)(=(?P<share>[\d.]+))?")


@dataclass(frozen=True)
class Source:
    """A corpus or a folder that is learnt from.

    Attributes:
        name, language, split: as `corpora.load` takes them.
        packed: whether neighbouring clips are joined to windows of 30 s.
        share: of the batches, or of the clips of a batch, relative to the other sources; None for as much as it has clips.
        root: the folder, where the name is ``folder``.
    """

    name: str
    language: str | None
    split: str | None
    packed: bool = False
    share: float | None = None
    root: Path | str | None = None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read ``CORPUS/LANGUAGE/SPLIT``, perhaps with ``:packed`` and ``=SHARE`` behind it.

        Raises:
            AsrlibError: another form, or a share that is no number above zero.
        """
        found = FORM.fullmatch(text)
        if not found or not found["split"]:
            raise AsrlibError(
                f"{text}: write a corpus as CORPUS/LANGUAGE/SPLIT, such as telephone/en/train, perhaps with :packed and "
                "=SHARE behind it."
            )
        share = _number(text, found["share"])
        return cls(found["name"], found["language"], found["split"], bool(found["packed"]), share)

    @classmethod
    def brought(cls, text: str) -> Source:
        """Read ``FOLDER`` or ``CORPUS/LANGUAGE``, perhaps with ``/SPLIT``, perhaps with ``=SHARE`` behind it.

        Raises:
            AsrlibError: neither a folder nor of that form, or a share that is no number above zero.
        """
        folder = SHARED.fullmatch(text)
        if folder and files.user_path(folder["place"]).is_dir():
            return cls("folder", None, None, share=_number(text, folder["share"]), root=folder["place"])
        found = FORM.fullmatch(text)
        known = [name for name in catalogue.PACKAGED + catalogue.FOREIGN if name != "folder"]
        if not found or found["packed"] or found["name"] not in known:
            raise AsrlibError(
                f"{text} is neither a folder nor a corpus: name a folder with metadata.csv, or CORPUS/LANGUAGE, such as "
                f"telephone/it; the corpora are {', '.join(known)}."
            )
        return cls(found["name"], found["language"], found["split"], share=_number(text, found["share"]))

    @property
    def place(self) -> str:
        """Return what is learnt from, without its share."""
        parts = (self.name, self.language, self.split)
        return str(self.root or "/".join(part for part in parts if part)) + (":packed" if self.packed else "")

    @property
    def code(self) -> str:
        """Return Whisper's code of the language."""
        return language_code(self.language)


def _number(text: str, share: str | None) -> float | None:
    try:
        number = float(share) if share else None
    except ValueError:
        number = 0.0
    if number is not None and number <= 0:
        raise AsrlibError(f"{text}: a share is a number above zero, such as 0.5.")
    return number


def command_line(name: str, settings: Any, output: str = "FOLDER") -> str:
    """Return the command line of a training, with all that differs from the defaults.

    Args:
        name: of the command.
        settings: a dataclass whose first field is what the command takes without a flag; the others are called as its flags.
        output: as it is to be written.
    """
    first, *others = fields(settings)
    words = ["asrlib", name, *getattr(settings, first.name)]
    for field in others:
        value, flag = getattr(settings, field.name), f"--{field.name.replace('_', '-')}"
        if value == field.default:
            continue
        if isinstance(value, tuple):
            words += [word for text in value for word in (flag, text)]
        else:
            words += [flag] if value is True else [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join([*words, "--output", output])

"""Acted English dialogue of the adventure game Flight of the Amazon Queen: many voices and no transcripts.

Its one file begins with a table: ``QTBL``, a version, a 16-bit number of entries, and for each entry 21 bytes: a name of 12, a bundle of
one, a 32-bit offset and size, all big-endian. Names that end in ``.SB`` are speech, each an MP3 file of its own.
"""

from __future__ import annotations

import struct
from pathlib import Path

from asrlib import AsrlibError
from asrlib.corpora.clips import Clip, Clips

__all__ = ["read"]

ENTRIES = 13  # place of their number
ENTRY = struct.Struct(">12sBII")


def read(share: Path, language: str, voice: str) -> Clips:
    """Return the clips by name, with their places in the file.

    Raises:
        AsrlibError: a table that is truncated, or names bytes outside the file or twice.
    """
    path = share / "scummvm" / "flight-of-the-amazon-queen" / "queen.1c"
    if not path.is_file():
        return {}
    size = path.stat().st_size
    with open(path, "rb") as stream:
        head = stream.read(ENTRIES + 2)
        count = int.from_bytes(head[ENTRIES:], "big")
        table = stream.read(count * ENTRY.size)
    if head[:4] != b"QTBL" or len(table) < count * ENTRY.size:
        raise AsrlibError(f"{path} has no whole table of contents: fetch it again.")
    clips, first, total = {}, ENTRIES + 2 + len(table), 0
    for name, _, offset, length in ENTRY.iter_unpack(table):
        total += length
        if offset < first or offset + length > size or total > size:
            raise AsrlibError(f"{path} names bytes that it does not hold: it is damaged or hostile, so fetch it again.")
        stem, _, kind = name.rstrip(b"\0").decode("latin-1").rpartition(".")
        if kind == "SB" and stem.isascii() and stem.replace("_", "").isalnum():
            clips[stem] = Clip(path, None, span=(offset, length))
    return clips

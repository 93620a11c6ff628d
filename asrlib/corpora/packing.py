"""Neighbouring clips joined to full windows, as Distil-Whisper joins them before labelling (arXiv:2311.00430, section 4)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from asrlib import audio, text, whisper

__all__ = ["pack"]


def pack(rows: Iterable[Mapping[str, Any]], *, seconds: float = whisper.WINDOW_SECONDS) -> list[dict[str, Any]]:
    """Join neighbouring clips of one speaker to recordings, with a short pause between two; decoded when they are read.

    A full window costs a model no more than a short clip.

    Args:
        rows: clips with ``id``, ``audio``, ``seconds``, ``text``, ``speaker`` and ``language``, as `corpora.load` returns them.
        seconds: of a recording at most; a longer clip is left as it is.

    Returns:
        Rows with the same columns, ``ids`` of the clips, and ``before``: the id of the recording that the same speaker's clips
        fill before it, or "".
    """
    groups: list[list[Mapping[str, Any]]] = []
    used = 0.0
    for row in rows:
        follows = bool(groups) and groups[-1][-1]["speaker"] == row["speaker"]
        if follows and used + audio.PAUSE + row["seconds"] <= seconds:
            groups[-1].append(row)
            used += audio.PAUSE + row["seconds"]
        else:
            groups.append([row])
            used = row["seconds"]
    packed = [_joined(group) for group in groups]
    for first, second in itertools.pairwise(packed):
        second["before"] = first["id"] if first["speaker"] == second["speaker"] else ""
    return packed


def _joined(group: list[Mapping[str, Any]]) -> dict[str, Any]:
    space = " " if text.spaced(group[0]["language"]) else ""
    row = {name: group[0][name] for name in ("speaker", "language", "split") if name in group[0]}
    row |= {"id": f"{group[0]['id']}+{len(group) - 1}", "ids": [row["id"] for row in group], "before": ""}
    row["text"] = space.join(row["text"] for row in group).strip()
    row["seconds"] = sum(row["seconds"] for row in group) + audio.PAUSE * (len(group) - 1)
    return row | {"audio": audio.Joined(tuple(row["audio"] for row in group))}

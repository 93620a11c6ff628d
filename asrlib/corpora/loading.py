"""Every corpus by its name."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from asrlib import AsrlibError
from asrlib.corpora import catalogue, hub, local, sources
from asrlib.corpora.rows import COLUMNS, dataset, only
from asrlib.io import files

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["load"]

LOADERS = {
    "librispeech": hub.librispeech,
    "fleurs": hub.fleurs,
    "common_voice": local.common_voice,
    "folder": local.folder,
} | {name: functools.partial(hub.published, name) for name in catalogue.PUBLISHED}


def load(name: str, language: str | None = None, split: str | None = None, root: Path | str | None = None) -> Dataset:
    """Return a corpus as a table, one row a clip, in a fixed order; what is missing of a packaged corpus is fetched.

    Args:
        name: ``telephone``, ``picture_words``, ``audiobook``, ``dialogue``, ``untranscribed`` (packaged); ``librispeech``, ``fleurs``,
            ``ami``, ``earnings21``, ``earnings22``, ``gigaspeech``, ``meanwhile``, ``rev16``, ``spgispeech``, ``tedlium``,
            ``tedlium_long``, ``voxpopuli`` (from ``root``, a folder of ``ASRLIB_DATA``, or the Hub); ``common_voice`` (``root``: the
            downloaded archive or its folder); ``folder`` (``root``: a folder with ``metadata.csv``, ``.tsv`` or ``.jsonl``).
        language: ISO code such as ``ro``; may be left out where there is only one, and for ``folder``.
        split: ``train``, ``validation``, ``test``, or the corpus's own names; None gives all of them.
        root: where a set that is not packaged lies.

    Returns:
        A table with id, audio (not decoded: path and bytes, for `audio.load`), text (as spoken, not normalised; empty in
        ``untranscribed``), language, seconds, speaker (as far as known) and split; ``dialogue`` has its English ``translation`` too.
        Of the audio, only the 43 MB of ``untranscribed`` are in memory.

    Raises:
        AsrlibError: unknown name, language or split, no source for the corpus, or files that do not have the expected form.
    """
    if name in catalogue.PACKAGED:
        table = _packaged(name, catalogue.known_language(name, language))
    else:
        known = list(catalogue.facts(name).get("splits", []))
        if known and split is not None and split not in known:
            raise AsrlibError(f"The corpus {name!r} has no split {split!r}: choose one of {', '.join(known)}.")
        table = LOADERS[name](language, [split] if split else known, files.user_path(root) if root else None)
    return only(table, name, split) if split else table


def _packaged(name: str, language: str) -> Dataset:
    rows = sources.rows_of(name, language)[1]
    count = len(catalogue.listed(name, language))
    if len(rows) < count:
        warnings.warn(
            f"{name}/{language}: {count - len(rows)} of {count} clips are missing or differ from data/splits and are left out.",
            stacklevel=3,
        )
    columns = (*COLUMNS, "translation") if name == "dialogue" else COLUMNS
    return dataset(({"language": language} | row for row in rows), columns)

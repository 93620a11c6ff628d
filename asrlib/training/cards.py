"""What all model cards of trainings say: what was learnt from, under which licence."""

from __future__ import annotations

from collections.abc import Sequence

from asrlib import corpora
from asrlib.io import files
from asrlib.training.sources import Source

__all__ = ["base_model", "sources_table"]


def base_model(model: str) -> str | None:
    """Return the Hub id for ``base_model`` of a card; None for a folder, with which the Hub would refuse the whole card."""
    return None if files.user_path(model).is_dir() else str(model)


def sources_table(sources: Sequence[Source]) -> str:
    """Return what was learnt from as a Markdown table; of a folder of one's own only its owner knows the licence."""
    rows = ["| learnt from | licence | by |", "|---|---|---|"]
    for source in sources:
        if source.name == "folder":
            rows.append("| own recordings | not stated | |")
            continue
        known = corpora.card(source.name, source.language)
        rows.append(f"| {known.title}, {source.language} | {known.facts['licence']} | {known.facts['attribution']} |")
    return "\n".join(rows)

"""What all model cards of trainings say: what was learnt from, under which licence."""

from __future__ import annotations

from collections.abc import Sequence

from asrlib import corpora
from asrlib.training.sources import Source

__all__ = ["sources_table"]


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

"""What all model cards of trainings say: what was learnt from, under which licence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asrlib import corpora
from asrlib.io import files
from asrlib.training.sources import Source

__all__ = ["base_model", "owner", "sources_table"]

OWN = {"title": "own recordings", "licence": "not stated", "attribution": ""}


def base_model(model: str) -> str | None:
    """Return the Hub id for ``base_model`` of a card; None for a folder, with which the Hub would refuse the whole card."""
    return None if files.user_path(model).is_dir() else str(model)


def owner(source: Source, root: Path | str | None = None) -> dict[str, str]:
    """Return ``title``, ``licence`` and ``attribution`` of what is learnt from.

    Args:
        source: of a folder only its owner knows the licence, who may write the three into its ``corpus.json``.
        root: the folder, where the source does not name it.
    """
    if source.name != "folder":
        card = corpora.card(source.name, source.language)
        return {"title": card.title} | {key: card.facts[key] for key in ("licence", "attribution")}
    stated = files.read_json(files.user_path(source.root or root or ".") / "corpus.json")
    return {key: str(stated.get(key) or unknown) for key, unknown in OWN.items()}


def sources_table(sources: Sequence[Source], root: Path | str | None = None) -> str:
    """Return what was learnt from as a Markdown table, each corpus once; the arguments are those of `owner`."""
    rows = ["| learnt from | licence | by |", "|---|---|---|"]
    for source in sources:
        known = owner(source, root)
        language = "" if source.name == "folder" else f", {source.language}"
        rows.append(f"| {known['title']}{language} | {known['licence']} | {known['attribution']} |")
    return "\n".join(dict.fromkeys(rows))

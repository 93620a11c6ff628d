"""The model card of a student: what the Hub shows of it, and the least that whoever uses it must know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asrlib import __version__
from asrlib.training.cards import base_model, sources_table
from asrlib.training.distillation.settings import Settings

__all__ = ["card"]

CARD = """\
---
library_name: transformers
pipeline_tag: automatic-speech-recognition
{base}language: [{languages}]
tags: [whisper, distillation]
---

# A student of {teacher} with {layers} decoder layers

Distilled by the recipe of Distil-Whisper (arXiv:2311.00430) with asrlib {version}: the encoder is its teacher's, the decoder has
{layers} of its layers, trained for {steps} steps on {kept} pseudo-labels of {words} words.

{sources}

{scores}

    {command}

Scores on the validation clips choose the weights, so they flatter: score the student on speech of your own before you use it,
with `asrlib evaluate FOLDER --model STUDENT`.
"""


def card(settings: Settings, counts: Mapping[str, Any]) -> str:
    """Return the card as Markdown.

    Args:
        settings: of the distillation.
        counts: what `distil` returns.
    """
    best = min(counts["scores"], key=lambda score: score["wer"], default=None)
    validated = ", ".join(text.partition("=")[0] for text in settings.validation)
    score = (
        f"WER on {validated}, loops capped: {best['wer']:.1f} %." if best else "It was not scored while it was trained."
    )
    base = base_model(settings.model)
    return CARD.format(
        teacher=settings.model,
        base=f"base_model: {base}\n" if base else "",
        languages=", ".join(sorted({f'"{source.code}"' for source in settings.sources})),
        version=__version__,
        sources=sources_table(settings.sources, settings.root),
        scores=score,
        command=settings.command(),
        layers=settings.layers,
        **{name: counts[name] for name in ("kept", "words", "steps")},
    )

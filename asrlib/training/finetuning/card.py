"""The model card of a fine-tuned model: what the Hub shows of it, and the least that whoever uses it must know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from asrlib import __version__
from asrlib.training.cards import sources_table
from asrlib.training.finetuning.settings import Settings

__all__ = ["card"]

CARD = """\
---
{head}
---

# {model}, fine-tuned on {places}

Trained with asrlib {version} for {steps} steps of {batch} clips, out of {clips} clips of {minutes:.1f} minutes. {what}

{sources}

| on {scored} validation clips | WER (%) | as written (%) |
|---|---|---|
| {model} | {before[wer]:.1f} | {before[orthographic]:.1f} |
| this model, of step {best[step]} | {best[wer]:.1f} | {best[orthographic]:.1f} |

    {command}

The validation clips chose the step, so their scores flatter: score the model on speech of your own before you use it, with
`asrlib evaluate FOLDER --model MODEL`. What it has forgotten, other languages among it, was not measured.
"""
WHAT = {
    "": "All weights were trained.",
    "lora": "This is a LoRA adapter; load it with PEFT, or merge it into the model.",
    "qlora": "This is a QLoRA adapter, trained on the model in 4 bits; merged into 16 or 32 bits, its words may differ a little.",
    "adalora": "This is an AdaLoRA adapter; load it with PEFT, or merge it into the model.",
}
FROZEN = " The encoder was not trained."


def card(settings: Settings, done: Mapping[str, Any], languages: list[str]) -> str:
    """Return the card as Markdown, with the best score as metadata.

    Args:
        settings: of the fine-tuning.
        done: what `finetune` returns.
        languages: Whisper's codes of what was learnt.
    """
    places = ", ".join(source.place for source in settings.sources)
    task = "automatic-speech-recognition"
    scored = EvalResult(
        task_type=task, dataset_type="validation", dataset_name=places, metric_type="wer", metric_value=round(done["best"]["wer"], 2)
    )  # fmt: skip
    head = ModelCardData(
        language=languages, base_model=str(settings.model), library_name="peft" if settings.adapter else "transformers",
        model_name=f"{settings.model} fine-tuned", pipeline_tag=task, tags=["whisper"], eval_results=[scored],
    )  # fmt: skip
    return CARD.format(
        head=head.to_yaml().strip(),
        model=settings.model,
        places=places,
        version=__version__,
        steps=done["steps"],
        batch=settings.batch_size,
        what=WHAT[settings.adapter] + FROZEN * settings.freeze_encoder,
        sources=sources_table(settings.sources),
        command=settings.command(),
        **{name: done[name] for name in ("clips", "minutes", "scored", "before", "best")},
    )

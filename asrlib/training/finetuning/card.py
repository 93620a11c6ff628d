"""The model card of a fine-tuned model: what the Hub shows of it, and the least that whoever uses it must know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from asrlib import __version__, text
from asrlib.training.cards import base_model, sources_table
from asrlib.training.finetuning.gain import sentence
from asrlib.training.finetuning.settings import Settings

__all__ = ["card"]

CARD = """\
---
{head}
---

# {model}, fine-tuned on {places}

Trained with asrlib {version} for {steps} steps of {batch} clips, out of {clips} clips of {minutes:.1f} minutes. {what}

{sources}

{gains}

    {command}

The weights are those of step {step}. The clips that are scored here chose it, so their scores flatter: score the model on speech of your own before you use it, with
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
    """Return the card as Markdown, with the scores of the saved model as metadata.

    Args:
        settings: of the fine-tuning.
        done: what `finetune` returns.
        languages: Whisper's codes of what was learnt.
    """
    places = ", ".join(source.place for source in settings.sources)
    task = "automatic-speech-recognition"
    scored = [
        EvalResult(
            task_type=task, dataset_type="validation", dataset_name=row["place"], dataset_config=row["language"],
            metric_type="wer" if text.spaced(row["language"]) else "cer", metric_value=round(row["after"]["wer"], 2),
        )
        for row in done["gains"]
    ]  # fmt: skip
    head = ModelCardData(
        language=languages, base_model=base_model(settings.model),
        library_name="peft" if settings.adapter else "transformers",
        model_name=f"{settings.model} fine-tuned", pipeline_tag=task, tags=["whisper"], eval_results=scored,
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
        step=done["best"]["step"],
        gains="\n\n".join(map(sentence, done["gains"])),
        clips=done["clips"],
        minutes=done["minutes"],
    )

"""The Trainer of a fine-tuning: a loss over the tokens of a whole step, transcripts in each clip's language, error rates."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EarlyStoppingCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from asrlib import hardware, scoring, text, whisper
from asrlib.training.finetuning.adapters import Ranks
from asrlib.training.finetuning.settings import Settings
from asrlib.training.processes import PATIENCE

__all__ = ["FineTuner", "Metrics", "arguments", "callbacks_of"]

MOST_TOKENS = 225  # of a transcript while a model is scored, as in the original
WARM_UP = 0.1  # of all steps


def arguments(settings: Settings, output: Path, model: Any, processes: int) -> Seq2SeqTrainingArguments:
    """Return the Trainer's arguments.

    Args:
        settings: of the fine-tuning, as `Settings.fitted` returns them.
        output: folder for checkpoints.
        model: whose longest transcript is asked for.
        processes: that share a step.
    """
    gpu, half = hardware.best_device() != "cpu", hardware.best_dtype()
    clips = settings.batch_size // (processes * settings.accumulate)
    made = Seq2SeqTrainingArguments(
        output_dir=str(output), max_steps=settings.steps, seed=settings.seed, use_cpu=not gpu,
        per_device_train_batch_size=clips, per_device_eval_batch_size=clips, gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate, warmup_steps=math.ceil(WARM_UP * settings.steps), optim="adamw_torch_fused",
        bf16=half == torch.bfloat16, fp16=half == torch.float16, activation_checkpointing=gpu,
        train_sampling_strategy="sequential", dataloader_pin_memory=gpu, dataloader_num_workers=2 * gpu,
        eval_strategy="steps", eval_steps=settings.every, save_steps=settings.every, save_total_limit=2,
        load_best_model_at_end=True, metric_for_best_model="capped", greater_is_better=False,
        predict_with_generate=True, generation_max_length=min(MOST_TOKENS, model.generation_config.max_length),
        restore_callback_states_from_checkpoint=True, logging_steps=1, report_to=[], disable_tqdm=True,
        remove_unused_columns=False, label_names=["labels"], ddp_find_unused_parameters=False,
        ddp_timeout=int(PATIENCE.total_seconds()),
    )  # fmt: skip
    made._n_gpu = min(1, made.n_gpu)  # several GPUs are for several processes
    return made


class FineTuner(Seq2SeqTrainer):
    """transformers' Trainer, with two corrections that Whisper needs.

    Its Whisper takes ``num_items_in_batch`` and ignores it, so that accumulated gradients are a sum of means, and several
    processes average means over unequal numbers of tokens. And it transcribes all clips of an evaluation in one language.
    """

    def __init__(self, *given: Any, ranks: Ranks | None = None, **options: Any) -> None:
        """Take the arguments of a ``Seq2SeqTrainer``, and the ranks of AdaLoRA."""
        super().__init__(*given, **options)
        self.ranks = ranks
        self.model_accepts_loss_kwargs = True  # count the tokens of a step, of all parts and processes

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the cross-entropy as this part's share of the mean over all tokens of the step."""
        outputs = model(**inputs)
        loss = outputs.loss
        if num_items_in_batch is not None:
            own = inputs["labels"].ne(-100).sum()
            loss = (
                loss * own / num_items_in_batch * self.accelerator.num_processes
            )  # gradients are averaged over processes
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None, **options: Any
    ) -> Any:
        """Transcribe each clip in the language that its label names."""
        generation = self.model.generation_config
        if whisper.is_multilingual(generation):
            codes = whisper.language_tokens(generation)
            spoken = [codes[token] for token in inputs["labels"][:, 0].tolist()]
            options = self._gen_kwargs | {"language": spoken, "task": "transcribe"}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **options)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.ranks:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            self.ranks.save(Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.ranks:
            self.ranks.load(Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.ranks:
            self.ranks.load(Path(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()


class Metrics:
    """Error rates of an evaluation, in percent, as ``compute_metrics`` of a Trainer.

    Attributes:
        tokenizer: of the model.
        clips: place and language of each, in the order in which they are evaluated.
        seed: of the bootstrap.
    """

    def __init__(self, tokenizer: Any, clips: Sequence[tuple[str, str]], seed: int) -> None:
        self.tokenizer, self.clips, self.seed = tokenizer, clips, seed

    def __call__(self, prediction: Any) -> dict[str, float]:
        """Return ``wer`` after normalisation and ``orthographic`` as it is written: the means over places and languages.

        ``capped`` is the WER if no clip may count more errors than it has words. It chooses the weights: while a model is trained, one
        clip that it repeats to the limit would outweigh all others.

        In a language without spaces between words both count characters. One place in one language has the interval of its WER too,
        from ``low`` to ``high``, unless the clips are too few; several have a ``wer PLACE LANGUAGE`` each.
        """
        said, heard = (self._texts(ids) for ids in (prediction.label_ids, prediction.predictions))
        scores, written = {}, []
        for group in dict.fromkeys(self.clips):
            chosen = [at for at, clip in enumerate(self.clips) if clip == group]
            pairs = [said[at] for at in chosen], [heard[at] for at in chosen]
            scores[group] = scoring.score(*pairs, normalizer=text.normalizer(group[1]), seed=self.seed)
            plain = scoring.score(*pairs, normalizer=str, seed=self.seed)
            written.append(plain.wer if text.spaced(group[1]) else plain.cer)
        found = {"wer": np.mean([score.wer for score in scores.values()]), "orthographic": np.mean(written)}
        found["capped"] = np.mean([score.capped.wer for score in scores.values()])
        if len(scores) == 1:
            (score,) = scores.values()
            found |= zip(("low", "high"), score.interval or (), strict=False)
        else:
            found |= {f"wer {place} {language}": score.wer for (place, language), score in scores.items()}
        return {name: 100 * float(value) for name, value in found.items()}

    def _texts(self, ids: np.ndarray) -> list[str]:
        kept = np.where(ids == -100, self.tokenizer.pad_token_id, ids)
        return self.tokenizer.batch_decode(kept, skip_special_tokens=True)


class _LastStep(TrainerCallback):
    """Has the model scored after the last step too, whatever its number."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_evaluate |= state.global_step == state.max_steps


class _Said(TrainerCallback):
    """Prints how long the steps take, once, and each score as soon as it is known."""

    def __init__(self) -> None:
        self.steps, self.began = 0, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps += 1
        left = state.max_steps - state.global_step
        if self.steps == 2 and left:  # the first one prepares what the others use
            took = time.monotonic() - self.began
            print(f"a step takes {took:.1f} s: {left * took / 60:.0f} minutes for the {left} that are left", flush=True)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        rates = f"WER {metrics['eval_wer']:.1f} %, with loops capped {metrics['eval_capped']:.1f} %"
        rates += f", as written {metrics['eval_orthographic']:.1f} %"
        print(f"step {state.global_step}: {rates}", flush=True)


def callbacks_of(settings: Settings, first: bool) -> list[TrainerCallback]:
    """Return the callbacks of a training: the last score, the end by patience, and, in the first process, what is printed."""
    patience = [EarlyStoppingCallback(settings.patience)] if settings.patience else []
    return [_LastStep(), *patience, *([_Said()] if first else [])]

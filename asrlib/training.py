"""What fine-tuning needs besides the calls that a notebook shows: a shorter encoder context, progress, going on after a kill.

Whisper reads 30 seconds whatever the clip's length. For a corpus of short clips most of the work of a training step goes into
silence; `cut_context` removes it for good, in a way that the saved model carries along.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, TrainerCallback

from asrlib import AsrlibError, audio, figures, metering
from asrlib.progress import Meter

__all__ = [
    "Collator",
    "Progress",
    "StepMeter",
    "cut_context",
    "history",
    "last_checkpoint",
    "plot_history",
    "prepare",
    "restore_context",
    "show_progress",
]  # fmt: skip

WINDOW_SECONDS = 30  # of a published model
POSITIONS_PER_SECOND = 50  # 100 frames of log-mel a second, halved by the second convolution


def cut_context(model: Any, processor: Any, seconds: int) -> None:
    """Let model and processor read this many seconds instead of 30, in place.

    The encoder's positions are truncated, not interpolated: position k still means second k / 50. The most tokens that
    ``generate`` may write shrink in proportion, which ends a loop of repeated text early. All configurations follow, so that
    what ``save_pretrained`` writes loads and decodes in the same way; `asrlib.transcription` refuses longer audio. Without
    fine-tuning a cut model is worse: it has only heard speech that is followed by silence up to 30 s.

    Args:
        model: a ``WhisperForConditionalGeneration``, before PEFT wraps it.
        processor: its ``WhisperProcessor``.
        seconds: whole seconds, at most the present context.

    Raises:
        AsrlibError: a context that is empty or longer than the model's own.
    """
    old = model.model.encoder.embed_positions.weight
    longest = len(old) // POSITIONS_PER_SECOND
    if not 0 < seconds <= longest:
        raise AsrlibError(
            f"A context of {seconds} s is not possible: this model reads {longest} s, choose from 1 to that."
        )
    _set_context(model, processor, old[: seconds * POSITIONS_PER_SECOND])


def restore_context(model: Any, processor: Any, original: Any) -> None:
    """Give a fine-tuned model the whole context of the published one back, in place.

    Encoder positions are fixed sinusoids that training does not move, so the ones that `cut_context` dropped are still those
    of the published model. The result is an ordinary Whisper model for any program; whether it hears as well as the cut one
    has to be measured, as notebook 02 does.

    Args:
        model: a ``WhisperForConditionalGeneration`` whose context was cut.
        processor: its ``WhisperProcessor``.
        original: the published model that it was made from.
    """
    _set_context(model, processor, original.model.encoder.embed_positions.weight)


def _set_context(model: Any, processor: Any, positions: torch.Tensor) -> None:
    """Set the encoder's positions, (positions, width), and all that follows from their number."""
    encoder, old, count = model.model.encoder, model.model.encoder.embed_positions.weight, len(positions)
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(positions.detach().to(old).clone(), freeze=True)
    encoder.max_source_positions = model.config.max_source_positions = count  # one configuration, shared by all parts
    share = count / (WINDOW_SECONDS * POSITIONS_PER_SECOND)
    model.generation_config.max_length = math.ceil(model.config.max_target_positions * share)
    extractor = processor.feature_extractor
    extractor.chunk_length = count // POSITIONS_PER_SECOND
    extractor.n_samples = extractor.chunk_length * audio.SAMPLING_RATE
    extractor.nb_max_frames = extractor.n_samples // extractor.hop_length


def last_checkpoint(folder: str | Path) -> str | None:
    """Return the newest complete checkpoint of a ``Trainer``, for ``train(resume_from_checkpoint=...)``; None if there is none.

    The trainer writes ``trainer_state.json`` last; a checkpoint without a whole one was cut off by a kill and is deleted.
    """
    found = sorted(Path(folder).glob("checkpoint-*"), key=lambda path: int(re.sub(r"\D", "", path.name)), reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            return str(path)
        except (OSError, ValueError):
            shutil.rmtree(path)
    return None


def prepare(row: dict[str, Any], processor: Any, seconds: int) -> dict[str, Any]:
    """Return ``input_features`` (mel bins, frames) and ``labels`` of a corpus row, as notebook 02 teaches.

    Raises:
        AsrlibError: audio that `audio.load` refuses, or longer than ``seconds``, the context: its transcript would say more
            than can be heard.
    """
    samples = audio.load(row["audio"], max_seconds=seconds)
    features = processor.feature_extractor(samples, sampling_rate=16_000).input_features[0]
    return {"input_features": features, "labels": processor.tokenizer(row["text"]).input_ids}


@dataclass
class Collator:
    """Make a batch of prepared rows, as notebook 02 teaches: labels padded with -100, without the start token.

    Attributes:
        start_token: ``config.decoder_start_token_id``, which the model itself puts in front.
    """

    start_token: int

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return input_features (clips, mel bins, frames), labels (clips, tokens), attention_mask (clips, frames)."""
        batch = {"input_features": torch.tensor(np.stack([row["input_features"] for row in examples]))}
        labels = [torch.tensor(row["labels"]) for row in examples]
        batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=-100)
        if (batch["labels"][:, 0] == self.start_token).all():
            batch["labels"] = batch["labels"][:, 1:]
        batch["attention_mask"] = torch.ones_like(batch["input_features"][:, 0], dtype=torch.long)
        return batch


class Progress(TrainerCallback):
    """Show a person the steps of a ``Trainer``, and the batches of its evaluations; leaves nothing in saved outputs."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.training = self.evaluation = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the line; a resumed run counts from where it goes on."""
        self.training = Meter(self.label, state.max_steps - state.global_step, "steps").__enter__()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Count one optimiser step."""
        self.training.step()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Close the line."""
        self.training.__exit__()

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any) -> None:
        """Count one batch of an evaluation."""
        if self.evaluation is None:
            self.evaluation = Meter(f"{self.label}, evaluation", len(eval_dataloader), "batches").__enter__()
        self.evaluation.step()

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        """Close the evaluation's line."""
        if self.evaluation is not None:
            self.evaluation.__exit__()
            self.evaluation = None

    on_predict = on_evaluate


def show_progress(trainer: Any, label: str) -> None:
    """Replace the log that a trainer with ``disable_tqdm=True`` prints, and so leaves in a notebook, by `Progress`."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress(label))


class StepMeter(TrainerCallback):
    """Time each optimiser step of a ``Trainer``, and count its bytes while gradients exist.

    Attributes:
        seconds: of each step: forward, backward and update, without fetching the batch and without evaluations.
        bytes: as `metering.training_bytes` returns them.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.bytes: dict[str, int] = {}

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_optimizer_step(self, *_: Any, model: Any = None, optimizer: Any = None, **__: Any) -> None:
        """Count what is held now: after the update, before the gradients are dropped."""
        self.bytes = metering.training_bytes(model, optimizer)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop the clock."""
        self.seconds.append(time.perf_counter() - self.started)


def history(trainer: Any) -> pd.DataFrame:
    """Return a trainer's log by step: epoch, train loss, validation loss, and of the validation clips ``wer``, its interval
    from ``low`` to ``high``, and ``orthographic`` WER, as far as ``compute_metrics`` returns them. They are empty where a
    training was too short for an evaluation.
    """
    logs = pd.DataFrame(trainer.state.log_history).groupby("step").first().rename(columns={"loss": "train loss"})
    logs = logs.rename(columns={"eval_loss": "validation loss"}).rename(columns=lambda name: name.removeprefix("eval_"))
    kept = ("epoch", "train loss", "validation loss", "wer", "low", "high", "orthographic")
    unseen = "validation loss" not in logs
    return logs.reindex(columns=[name for name in kept if name in logs or unseen])


def plot_history(log: pd.DataFrame, title: str) -> None:
    """Show losses, and the WER of the validation clips with its interval, against the steps of a training.

    Args:
        log: as `history` returns it, with ``wer``, ``low`` and ``high`` in percent.
        title: what was trained.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3))
    losses, seen = log["train loss"].dropna(), log[log["wer"].notna()]
    left.plot(losses.index, losses, label="training")
    left.plot(seen.index, seen["validation loss"], "s--", label="validation")
    left.set(xlabel="step", ylabel="cross-entropy (nats per token)", yscale="log", title=title)
    left.legend()
    spread = np.abs(seen[["low", "high"]].to_numpy().T - seen["wer"].to_numpy())
    right.errorbar(seen.index, seen["wer"], yerr=spread, fmt="o-", capsize=3)
    right.set(xlabel="step", ylabel="validation WER (%)", ylim=(0, None))
    rates = ", ".join(f"{wer:.0f} % at step {step}" for step, wer in seen["wer"].items())
    figures.show(figure, f"{title}: losses on the left; on the right validation WER with intervals: {rates}.")

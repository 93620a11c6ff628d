"""A Trainer's checkpoints, progress, times and history.

A notebook shows the trainer itself; what it would have to repeat in each chapter is here.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from safetensors import SafetensorError
from transformers import PrinterCallback, TrainerCallback

from asrlib import figures
from asrlib.io import files, noise
from asrlib.io.progress import Meter
from asrlib.training import metering

__all__ = ["Progress", "StepMeter", "history", "last_checkpoint", "plot_history", "saving", "show_progress", "writer"]


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


@contextlib.contextmanager
def saving(folder: str | Path) -> Iterator[None]:
    """Turn what PyTorch and safetensors raise of a full disk, which is no ``OSError``, into one sentence that names the folder.

    Raises:
        AsrlibError: disk full, or folder not writable.
    """
    try:
        with files.writing(Path(folder)):
            yield
    except (RuntimeError, SafetensorError) as error:
        if not files.no_room(error) and not re.search(r"inline_container|PytorchStreamWriter", str(error)):
            raise
        raise files.DiskFullError(folder) from None


def writer(folder: str | Path) -> Any | None:
    """Return a ``SummaryWriter`` for TensorBoard; None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


class Progress(TrainerCallback):
    """Show a person the steps of a ``Trainer``, and the batches of its evaluations; leaves nothing in saved outputs."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.training = self.evaluation = None
        self.quiet = contextlib.ExitStack()  # writing a checkpoint has a bar of its own

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the line; a resumed run counts from where it goes on."""
        self.quiet.enter_context(noise.no_bars())
        self.training = Meter(self.label, state.max_steps - state.global_step, "steps").__enter__()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Count one optimiser step."""
        self.training.step()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Close the line."""
        self.training.__exit__()
        self.quiet.close()

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


def show_progress(trainer: Any, label: str, *, shown: bool = True) -> None:
    """Replace the log that a trainer with ``disable_tqdm=True`` prints, and so leaves in a notebook, by `Progress`, if it is shown."""
    trainer.remove_callback(PrinterCallback)
    if shown:
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
    from ``low`` to ``high``, and ``orthographic_wer``, as far as ``compute_metrics`` returns them. They are empty where a
    training was too short for an evaluation.
    """
    logs = pd.DataFrame(trainer.state.log_history).groupby("step").first().rename(columns={"loss": "train loss"})
    logs = logs.rename(columns={"eval_loss": "validation loss"}).rename(columns=lambda name: name.removeprefix("eval_"))
    kept = ("epoch", "train loss", "validation loss", "wer", "low", "high", "orthographic_wer")
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
    left.set(xlabel="step", ylabel="cross-entropy (nats per token)", ylim=(0, None), title=title)
    left.legend()
    spread = np.abs(seen[["low", "high"]].to_numpy().T - seen["wer"].to_numpy())
    right.errorbar(seen.index, seen["wer"], yerr=spread, fmt="o-", capsize=3)
    right.set(xlabel="step", ylabel="validation WER (%)", ylim=(0, None))
    rates = ", ".join(f"{wer:.0f} % at step {step}" for step, wer in seen["wer"].items())
    figures.show(figure, f"{title}: losses on the left; on the right validation WER with intervals: {rates}.")

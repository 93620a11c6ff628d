"""What fine-tuning needs besides the calls that a notebook shows: a shorter encoder context, progress, going on after a kill.

Whisper reads 30 seconds whatever the clip's length. For a corpus of short clips most of the work of a training step goes into
silence; `cut_context` removes it for good, in a way that the saved model carries along.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, TrainerCallback

import asrlib.quantization  # noqa: F401 - drops the line that importing the Trainer would log, if it comes first
from asrlib import AsrlibError, audio, files
from asrlib.progress import Meter

__all__ = ["Collator", "Progress", "clean_generation_config", "cut_context", "last_checkpoint", "prepare", "restore_context",
           "show_progress"]  # fmt: skip

POSITIONS_PER_SECOND = 50  # 100 frames of log-mel a second, halved by the second convolution


def cut_context(model: Any, processor: Any, seconds: int) -> None:
    """Let model and processor read this many seconds instead of 30, in place.

    The encoder's positions are truncated, not interpolated: position k still means second k / 50. Both configurations
    follow, so that what ``save_pretrained`` writes loads and decodes with the same context; `asrlib.transcription` refuses
    longer audio. Without fine-tuning a cut model is worse: it has only heard speech that is followed by silence up to 30 s.

    Args:
        model: a ``WhisperForConditionalGeneration``, before PEFT wraps it.
        processor: its ``WhisperProcessor``.
        seconds: whole seconds, at most the present context.

    Raises:
        AsrlibError: a context that is empty or longer than the model's own.
    """
    encoder, positions = model.model.encoder, seconds * POSITIONS_PER_SECOND
    old = encoder.embed_positions
    if not 0 < positions <= old.num_embeddings:
        raise AsrlibError(
            f"A context of {seconds} s is not possible: this model reads {old.num_embeddings // POSITIONS_PER_SECOND} s, "
            "choose from 1 to that."
        )
    new = torch.nn.Embedding(positions, old.embedding_dim, device=old.weight.device, dtype=old.weight.dtype)
    new.weight = torch.nn.Parameter(old.weight.detach()[:positions].clone(), requires_grad=old.weight.requires_grad)
    encoder.embed_positions = new
    encoder.max_source_positions = model.config.max_source_positions = (
        positions  # one configuration, shared by all parts
    )
    extractor = processor.feature_extractor
    extractor.chunk_length, extractor.n_samples = seconds, seconds * audio.SAMPLING_RATE
    extractor.nb_max_frames = extractor.n_samples // extractor.hop_length


def restore_context(model: Any, processor: Any, original: Any) -> None:
    """Give a model whose context was cut its whole context back, in place.

    Whisper's encoder positions are fixed sinusoids that training leaves alone, so the dropped ones are those of the
    published model. The result is an ordinary Whisper model of 30 s for any program; whether it hears short clips as well
    as the cut one has to be measured.

    Args:
        model: a ``WhisperForConditionalGeneration`` that `cut_context` cut.
        processor: its ``WhisperProcessor``.
        original: the published model it was cut from.
    """
    embeddings = original.model.encoder.embed_positions
    new = copy.deepcopy(embeddings).to(model.device, model.dtype)
    model.model.encoder.embed_positions = new
    model.model.encoder.max_source_positions = model.config.max_source_positions = embeddings.num_embeddings
    _read(processor, embeddings.num_embeddings // POSITIONS_PER_SECOND)


def _read(processor: Any, seconds: int) -> None:
    """Let a feature extractor pad and cut audio to this many seconds."""
    extractor = processor.feature_extractor
    extractor.chunk_length, extractor.n_samples = seconds, seconds * audio.SAMPLING_RATE
    extractor.nb_max_frames = extractor.n_samples // extractor.hop_length


def clean_generation_config(folder: str | Path) -> None:
    """Put the originals' version into the ``generation_config.json`` that ``save_pretrained`` has written.

    A version of 4.50 or later makes every ``generate`` of Whisper log two lines about logits processors which are the
    model's own; the results are the same without it.
    """
    path = Path(folder) / "generation_config.json"
    content = files.read_json(path) | {"transformers_version": "4.31.0"}
    files.write_atomic(path, json.dumps(content, indent=2) + "\n")


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

"""A shorter encoder context for fine-tuning on short clips, and the batches that go with it.

Whisper reads 30 seconds whatever the clip's length. For a corpus of short clips most of the work of a training step goes into
silence; `cut_context` removes it for good, in a way that the saved model carries along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from asrlib import AsrlibError, audio
from asrlib.whisper import POSITIONS, POSITIONS_PER_SECOND

__all__ = ["Collator", "cut_context", "prepare", "restore_context"]


def cut_context(model: Any, processor: Any, seconds: int) -> None:
    """Let model and processor read this many seconds instead of 30, in place.

    The encoder's positions are truncated, not interpolated: position k still means second k / 50. The most tokens that
    ``generate`` may write shrink in proportion, which ends a loop of repeated text early. All configurations follow, so that
    what ``save_pretrained`` writes loads and decodes in the same way; `asrlib.decoding.transcription` refuses longer audio. Without
    fine-tuning a cut model is worse: it was trained on speech that is followed by silence up to 30 s only.

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
    of the published model. The result is an ordinary Whisper model for any program; whether it transcribes as well as the cut one
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
    share = count / POSITIONS
    model.generation_config.max_length = math.ceil(model.config.max_target_positions * share)
    extractor = processor.feature_extractor
    extractor.chunk_length = count // POSITIONS_PER_SECOND
    extractor.n_samples = extractor.chunk_length * audio.SAMPLING_RATE
    extractor.nb_max_frames = extractor.n_samples // extractor.hop_length


def prepare(row: dict[str, Any], processor: Any, seconds: int) -> dict[str, Any]:
    """Return ``input_features`` (mel bins, frames) and ``labels`` of a corpus row, as notebook 02 teaches.

    Raises:
        AsrlibError: audio that `audio.load` refuses, or longer than ``seconds``, the context: its transcript would say more
            than the sound holds.
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

"""A shorter encoder context for fine-tuning on short clips, and the batches that go with it.

Whisper reads 30 seconds whatever the clip's length. For a corpus of short clips most of the work of a training step goes into
silence. `reading` leaves it out of one batch; `cut_context` removes it for good, in a way that the saved model carries along.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from asrlib import AsrlibError, audio
from asrlib.whisper import POSITIONS, POSITIONS_PER_SECOND

__all__ = ["Collator", "batches", "cut_context", "prepare", "reading", "restore_context"]


@contextlib.contextmanager
def reading(model: Any, frames: int) -> Iterator[None]:
    """Let a model's encoder read batches of so many frames, not 3,000, within a ``with`` block.

    As with `cut_context`, position k still means second k / 50. No weight changes, so a checkpoint written outside the block is that of a
    model with the whole context.

    Args:
        model: a ``WhisperForConditionalGeneration``; its ``forward`` and ``generate`` then take features of this length.
        frames: of the batch, an even number (`Collator` makes such batches).

    Raises:
        AsrlibError: an odd number, none, or more than the model reads.
    """
    positions = model.model.encoder.embed_positions
    whole = positions.num_embeddings
    if frames % 2 or not 0 < frames <= 2 * whole:
        raise AsrlibError(f"{frames} frames cannot be read: this model takes an even number up to {2 * whole}.")
    positions.num_embeddings = model.config.max_source_positions = frames // 2
    try:
        yield
    finally:
        positions.num_embeddings = model.config.max_source_positions = whole


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
    """Return ``input_features`` (mel bins, frames of the context) and ``labels`` of a corpus row.

    Raises:
        AsrlibError: audio that `audio.load` refuses, or longer than ``seconds``, the context: its transcript would say more
            than the sound holds.
    """
    samples = audio.load(row["audio"], max_seconds=seconds)
    features = processor.feature_extractor(samples, sampling_rate=16_000).input_features[0]
    return {"input_features": features, "labels": processor.tokenizer(row["text"]).input_ids}


def batches(clips: Sequence[int], size: int, steps: int, seed: int) -> list[list[int]]:
    """Return the clips of each step of a training, so that clips of like length share a batch and little is padding.

    Args:
        clips: their places, the shortest first; the longest are left out where the last batch would not be full.
        size: clips of a batch.
        steps: of the training; after all batches each comes again, in a new order.
        seed: of the order.

    Raises:
        AsrlibError: fewer clips than a batch has.
    """
    cut = [list(clips[first : first + size]) for first in range(0, len(clips) - size + 1, size)]
    if not cut:
        raise AsrlibError(f"{len(clips)} clips make no batch of {size}: choose a smaller batch, or more clips.")
    generator = np.random.default_rng(seed)
    rounds = (generator.permutation(len(cut)) for _ in range(math.ceil(steps / len(cut))))
    return [cut[place] for place in itertools.chain(*rounds)][:steps]


@dataclass
class Collator:
    """Make a batch of prepared rows, as notebook 02 teaches: labels padded with -100, without the start token.

    Features are filled up with silence to those of the longest clip, an even number of frames.

    Attributes:
        start_token: ``config.decoder_start_token_id``, which the model itself puts in front.
        frames: the least number of them, even.
    """

    start_token: int
    frames: int = 2

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return input_features (clips, mel bins, frames), labels (clips, tokens), attention_mask (clips, frames)."""
        sounds = [torch.tensor(np.array(row["input_features"])) for row in examples]
        longest = max(self.frames, *(sound.shape[1] + sound.shape[1] % 2 for sound in sounds))
        # Silence is 2 below a clip's loudest feature: so Whisper's own padding has it.
        filled = [pad(x, (0, longest - x.shape[1]), value=float(x.max()) - 2) for x in sounds]
        batch = {"input_features": torch.stack(filled)}
        labels = [torch.tensor(row["labels"]) for row in examples]
        batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=-100)
        if (batch["labels"][:, 0] == self.start_token).all():
            batch["labels"] = batch["labels"][:, 1:]
        batch["attention_mask"] = torch.ones_like(batch["input_features"][:, 0], dtype=torch.long)
        return batch

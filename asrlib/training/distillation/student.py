"""The student before it is trained: a teacher with fewer decoder layers (Shleifer and Rush 2020, arXiv:2010.13002)."""

from __future__ import annotations

import copy

import numpy as np
from transformers import WhisperForConditionalGeneration

__all__ = ["initialise", "spaced"]


def spaced(depth: int, layers: int) -> list[int]:
    """Return which of a teacher's ``depth`` decoder layers make a student: maximally spaced, the last always among them."""
    chosen = np.linspace(0, depth - 1, layers, dtype=int)
    chosen[-1] = depth - 1
    return chosen.tolist()


def initialise(original: WhisperForConditionalGeneration, layers: int) -> WhisperForConditionalGeneration:
    """Return a student: encoder, embeddings and norms of a teacher, and its `spaced` decoder layers.

    Args:
        original: the teacher, in float32, since the student's weights are to be.
        layers: of the student's decoder, from 1 to the teacher's own number.
    """
    config = copy.deepcopy(original.config)
    config.decoder_layers = layers
    student = WhisperForConditionalGeneration(config)
    student.load_state_dict(original.state_dict(), strict=False)  # encoder, embeddings, norms
    chosen = spaced(original.config.decoder_layers, layers)
    for layer, number in zip(student.model.decoder.layers, chosen, strict=True):
        layer.load_state_dict(original.model.decoder.layers[number].state_dict())
    student.generation_config = copy.deepcopy(original.generation_config)
    return student

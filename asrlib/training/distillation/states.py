"""States of a frozen encoder, kept on disk; and decoders of transformers that read them."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from asrlib import AsrlibError, audio, whisper
from asrlib.decoding import network, outcomes
from asrlib.io import files
from asrlib.io.progress import Meter

__all__ = ["EncoderStates", "LiveStates", "attending"]

THREADS = 8  # decoding leaves the interpreter's lock


class EncoderStates:
    """States of a frozen encoder for many clips, kept on disk in bfloat16 and mapped into memory when they are read.

    Clips of like length are encoded together, a shard at a time. A shard is complete or absent, so a killed run goes on where
    it stopped; one whose clips have changed is made again. What is held in memory is one shard while writing and one batch
    while reading. A clip of a second takes 0.3 MB with 512 numbers a state, one of 30 seconds 1.5 MB.

    Attributes:
        shards: number of each shard that this process has made, or of all once `complete` was called, and the ids in it.
        failed: id -> why a clip cannot be read; it is named on stderr too, and tried again by each run.
    """

    def __init__(
        self,
        folder: Path | str,
        model: Any,
        processor: Any,
        clips: Any,
        *,
        window: str = "merged",
        clips_per_shard: int = 32,
        share: tuple[int, int] = (0, 1),
        label: str = "",
    ) -> None:
        """Encode what is not there yet.

        Args:
            folder: for these clips and this model, and for nothing else.
            model: a ``WhisperForConditionalGeneration`` in eval mode.
            processor: its ``WhisperProcessor``.
            clips: rows with ``id``, ``audio`` and ``seconds``: a corpus as `corpora.load` returns it, or a list.
            window: ``"merged"``, or ``"full"`` for all 1,500 positions of each clip (1.5 MB at 512 numbers a state).
            clips_per_shard: clips encoded together.
            share: (r, N): of all shards only r, r + N, r + 2N, ... are made and known here, as one process of N does, until
                `complete` is called.
            label: shown in the progress line; none is shown without it.

        Raises:
            AsrlibError: an id that occurs twice, a full disk, or a folder with the states of other clips.
        """
        if window not in ("full", "merged"):
            raise AsrlibError(f"There is no window {window!r}: choose 'full' or 'merged'.")
        self.folder, self.window, self.positions = Path(folder), window, model.config.max_source_positions
        self.places: dict[str, tuple[int, int, int]] = {}  # id -> shard, first row, samples
        self.shards: dict[int, list[str]] = {}
        self.failed: dict[str, str] = {}
        table = hasattr(clips, "column_names")
        ids, seconds = (list(clips[name]) if table else [row[name] for row in clips] for name in ("id", "seconds"))
        if twice := [name for name, count in Counter(ids).items() if count > 1]:
            raise AsrlibError(f"The clip {twice[0]} occurs twice: give each clip an id of its own.")
        order = np.argsort(seconds, kind="stable").tolist()
        cut = [order[first : first + clips_per_shard] for first in range(0, len(order), clips_per_shard)]
        self._names = [[ids[place] for place in places] for places in cut]  # of all shards
        mine = range(share[0], len(cut), share[1])
        with Meter(label, sum(len(cut[n]) for n in mine), "clips") if label else contextlib.nullcontext() as meter:
            for number in mine:
                rows = [clips[place] for place in cut[number]]
                if not self._is_made(number, rows):
                    self._make(number, model, processor, rows)
                self.shards[number] = self._read(number)
                if meter:
                    meter.step(len(rows))

    @property
    def ids(self) -> list[str]:
        """Return the ids of the clips that can be read, the shortest first."""
        return [name for names in self._names for name in names if name in self.places]

    def complete(self) -> None:
        """Take over the shards that the other processes have made, once all of them have."""
        self.shards = {number: self.shards.get(number) or self._read(number) for number in range(len(self._names))}

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"{number:06d}.{suffix}"

    def _is_made(self, number: int, rows: Sequence[Any]) -> bool:
        """Say whether a shard holds these clips as they are now; a clip that failed is tried again."""
        if not (listing := files.read_json(self._path(number, "json"))):
            return False
        if listing["ids"] != self._names[number]:
            raise AsrlibError(
                f"{self.folder} holds the encoder states of other clips: delete it, or give another folder."
            )
        if listing["sha256"] != [outcomes.content(row["audio"]) for row in rows]:
            return False
        return not any(isinstance(self._load(row), np.ndarray) for row in rows if row["id"] in listing["failed"])

    def _load(self, row: Any) -> np.ndarray | str:
        """Return the samples of a clip, or why it cannot be encoded."""
        try:
            samples = audio.load(row["audio"])
            if len(samples) <= self.positions * whisper.SAMPLES_PER_POSITION:
                return samples
            seconds = self.positions / whisper.POSITIONS_PER_SECOND
            raise AsrlibError(f"{row['id']} is longer than the model's context of {seconds:g} s: leave it out.")
        except AsrlibError as error:
            print(f"asrlib: {error}", file=sys.stderr)
            return str(error)

    def _make(self, number: int, model: Any, processor: Any, rows: Sequence[Any]) -> None:
        """Write a shard: states of all clips below each other, as bits. The list is written last: it says that all is there."""
        for path in self.folder.rglob(f"{number:06d}*"):  # what was made of the clips as they were
            path.unlink()
        with ThreadPoolExecutor(THREADS) as pool:
            hashes = list(pool.map(lambda row: outcomes.content(row["audio"]), rows))
            loaded = list(pool.map(self._load, rows))
        clips = [samples for samples in loaded if isinstance(samples, np.ndarray)]
        stream = io.BytesIO()
        np.save(stream, self._encode(model, processor, clips) if clips else np.empty(0))
        files.write_atomic(self._path(number, "npy"), stream.getvalue())
        listing = {
            "ids": self._names[number],
            "sha256": hashes,
            "samples": [0 if isinstance(samples, str) else len(samples) for samples in loaded],
            "failed": {row["id"]: why for row, why in zip(rows, loaded, strict=True) if isinstance(why, str)},
        }
        files.write_atomic(self._path(number, "json"), json.dumps(listing))

    def _encode(self, model: Any, processor: Any, clips: Sequence[np.ndarray]) -> np.ndarray:
        states, _ = self._states(model, processor, clips)
        kept = [row[: len(self._weights(len(samples)))] for row, samples in zip(states, clips, strict=True)]
        return torch.cat(kept).to("cpu", torch.bfloat16).view(torch.int16).numpy()

    def _states(
        self, model: Any, processor: Any, clips: Sequence[np.ndarray]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        features = processor.feature_extractor(
            clips, sampling_rate=audio.SAMPLING_RATE, return_tensors="pt"
        ).input_features
        lengths = [len(samples) for samples in clips] if self.window == "merged" else None
        return network.encode(model, features.to(model.device, model.dtype), lengths)

    def _read(self, number: int) -> list[str]:
        """Note where the clips of a shard lie, and return those that can be read."""
        listing, at, found = files.read_json(self._path(number, "json")), 0, []
        if listing.get("ids") != self._names[number]:
            raise AsrlibError(f"{self.folder} lacks shard {number}: let all processes see the same folder.")
        for name, samples in zip(listing["ids"], listing["samples"], strict=True):
            if samples:
                self.places[name] = number, at, samples
                at += len(self._weights(samples))
                found.append(name)
        self.failed |= listing["failed"]
        return found

    def _weights(self, samples: int) -> torch.Tensor:
        """Return how many positions each state of a clip stands for, (states,)."""
        if self.window == "full":
            return torch.ones(self.positions)
        return network.merge_padding([samples], self.positions)[1][0]

    def batch(self, ids: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the states of some clips and their bias, as `network.encode` does.

        Returns:
            (states, bias): bfloat16, (clips, positions, width); float32, (clips, 1, 1, positions), minus infinity behind the
            states of a shorter clip, None for the full window. Positions are a multiple of `network.STEP`, for oneDNN makes
            kernels of each width anew, and keeps them.
        """
        states, weights = [], []
        for name in ids:
            number, first, samples = self.places[name]
            weights.append(self._weights(samples))
            shard = np.load(self._path(number, "npy"), mmap_mode="r")
            states.append(torch.from_numpy(shard[first : first + len(weights[-1])].copy()).view(torch.bfloat16))
        batch = pad_sequence(states, batch_first=True)
        if self.window == "full":
            return batch, None
        filling = -batch.shape[1] % network.STEP
        bias = pad(pad_sequence(weights, batch_first=True), (0, filling)).log()[:, None, None, :]
        return pad(batch, (0, 0, 0, filling)), bias


class LiveStates(EncoderStates):
    """The same states, computed each time they are asked for: for more speech than the disk holds, where a GPU encodes fast."""

    def __init__(self, folder: Path | str, model: Any, processor: Any, clips: Any, **options: Any) -> None:
        """Take the same arguments as `EncoderStates`; a clip that cannot be read is found out here."""
        self.model, self.processor = model, processor
        self.rows = {row["id"]: row for row in clips}
        super().__init__(folder, model, processor, clips, **options)

    def _encode(self, model: Any, processor: Any, clips: Sequence[np.ndarray]) -> np.ndarray:
        return np.empty(0)

    def batch(self, ids: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what `EncoderStates.batch` does, in the model's precision and on its device."""
        with ThreadPoolExecutor(THREADS) as pool:
            clips = list(pool.map(lambda name: audio.load(self.rows[name]["audio"]), ids))
        states, bias = self._states(self.model, self.processor, clips)
        return (
            states.clone(),
            bias if bias is None else bias.clone(),
        )  # made in inference mode, of which no gradient comes


@contextlib.contextmanager
def attending(bias: torch.Tensor | None, *models: Any) -> Iterator[None]:
    """Let the cross-attention of some models add a bias to its logits within a ``with`` block.

    Args:
        bias: (clips, 1, 1, positions) as `EncoderStates.batch` returns it; None changes nothing.
        models: ``WhisperForConditionalGeneration``; they are called with ``encoder_outputs``, and without a cache.
    """

    def add(module: Any, arguments: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        hidden = arguments[0]
        reduced = torch.is_autocast_enabled(hidden.device.type)
        kind = torch.get_autocast_dtype(hidden.device.type) if reduced else hidden.dtype
        return arguments, options | {"attention_mask": bias.to(hidden.device, kind)}

    layers = [layer.encoder_attn for model in models for layer in model.model.decoder.layers if bias is not None]
    handles = [layer.register_forward_pre_hook(add, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""A Whisper that Optimum has exported to ONNX, run by ONNX Runtime alone, as `asrlib.decoding.search.greedy` drives it.

The encoder's graph turns features into states. The decoder's joins two forms by an ``If``: one reads a prompt and returns the
keys and values of both attentions; the other takes them, reads one more token, and returns those of self-attention with one
more position.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import GenerationConfig, WhisperConfig

from asrlib import AsrlibError
from asrlib.io import files

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["DECODER", "ENCODER", "ExportedWhisper", "GraphDecoder", "encoder", "load", "megabytes", "session_options"]

ENCODER, DECODER = "encoder_model.onnx", "decoder_model_merged.onnx"
PAST = "past_key_values"  # the decoder's inputs are called so; its outputs, ``present``


def session_options() -> onnxruntime.SessionOptions:
    """Return ONNX Runtime's settings: as many threads as PyTorch takes, and no remarks on its own optimiser's choices."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    return options


def load(folder: Path, options: onnxruntime.SessionOptions | None = None) -> ExportedWhisper:
    """Load the graphs of a folder on the CPU; the options are `session_options` by default.

    Raises:
        AsrlibError: a file is missing or damaged, or ONNX Runtime is not installed.
    """
    try:
        from onnxruntime.capi import onnxruntime_pybind11_state as errors
    except ImportError:
        raise AsrlibError(
            f"{folder} holds ONNX graphs, which ONNX Runtime runs: pip install 'asrlib[methods]' first."
        ) from None
    if not (folder / DECODER).is_file():
        raise AsrlibError(
            f"{folder} is not a complete Whisper checkpoint, it lacks {DECODER}: copy it again, or export with use_merged=True."
        )
    if "no_timestamps_token_id" not in files.read_json(folder / "generation_config.json"):
        raise AsrlibError(f"{folder} lacks generation_config.json: copy it from the model that was exported.")
    try:
        return ExportedWhisper(folder, options or session_options())
    except (errors.InvalidProtobuf, errors.InvalidGraph, errors.Fail, errors.NoSuchFile) as error:
        raise AsrlibError(
            f"{folder} holds a damaged or incomplete ONNX graph ({str(error).splitlines()[0]}): copy or export it again."
        ) from None


def encoder(folder: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from log-mel features, (clips, mel bins, frames), to states, by the encoder's graph in a folder.

    Clips are encoded one by one, so that none has a part in the range by which another is rounded.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ENCODER, session_options(), providers=["CPUExecutionProvider"])
    return lambda features: torch.cat([_states(session, clip) for clip in features.split(1)])


def megabytes(folder: Path) -> dict[str, float]:
    """Return the size of ``encoder``, ``decoder`` and ``both``, with weights that lie beside a graph."""
    found = {part: folder.glob(f"{name}*") for part, name in (("encoder", ENCODER), ("decoder", DECODER))}
    sizes = {part: sum(file.stat().st_size for file in group) / 1e6 for part, group in found.items()}
    return sizes | {"both": sum(sizes.values())}


def _states(session: onnxruntime.InferenceSession, features: torch.Tensor) -> torch.Tensor:
    (states,) = session.run(["last_hidden_state"], {"input_features": features.numpy()})
    return torch.from_numpy(states)


class ExportedWhisper:
    """The two graphs of an export.

    Attributes:
        config, generation_config: as a ``WhisperForConditionalGeneration`` has them.
        device, dtype: the CPU, and the precision of what goes in.
    """

    def __init__(self, folder: Path, options: onnxruntime.SessionOptions) -> None:
        import onnxruntime

        self.config = WhisperConfig.from_pretrained(folder)
        self.generation_config = GenerationConfig.from_pretrained(folder)
        self.encoder_session, self.decoder_session = (
            onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
            for name in (ENCODER, DECODER)
        )
        half = self.encoder_session.get_inputs()[0].type == "tensor(float16)"
        self.device, self.dtype = torch.device("cpu"), torch.float16 if half else torch.float32

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """Return the encoder's states, (clips, positions, width), of log-mel features, (clips, mel bins, frames)."""
        return _states(self.encoder_session, features)

    def decoder(self, states: torch.Tensor) -> GraphDecoder:
        """Return a decoder that has read nothing yet, for the encoder's states (clips, positions, width)."""
        return GraphDecoder(self.decoder_session, states)


class GraphDecoder:
    """A decoder's graph with the keys and values of a batch, which stay ONNX Runtime's own from step to step."""

    def __init__(self, session: onnxruntime.InferenceSession, states: torch.Tensor) -> None:
        self.session = session
        past = {put.name: put.shape for put in session.get_inputs() if put.name.startswith(PAST)}
        self.own = [name for name in past if ".decoder." in name]
        self.cross = [name for name in past if ".encoder." in name]
        states = states.numpy()
        # The shape is (clips, heads, positions, size of a head); those of the first step are there for form's sake.
        nothing = {name: (len(states), shape[1], 0, shape[3]) for name, shape in past.items()}
        empty = {name: np.empty(shape, states.dtype) for name, shape in nothing.items()}
        self.feed = _values(empty | {"encoder_hidden_states": states, "use_cache_branch": np.array([False])})

    def step(self, tokens: torch.Tensor, places: int | list[int] = -1) -> torch.Tensor:
        """Read tokens (clips, new), the prompt first, then one at a time; return logits as `network.Decoder.step` does."""
        first = "input_ids" not in self.feed
        grown = self.own + self.cross if first else self.own
        self.feed |= _values({"input_ids": tokens.numpy()})
        wanted = ["logits", *(name.replace(PAST, "present") for name in grown)]
        logits, *caches = self.session.run_with_ort_values(wanted, self.feed)
        self.feed |= dict(zip(grown, caches, strict=True))
        if first:
            self.feed |= _values({"use_cache_branch": np.array([True])})
        return torch.from_numpy(logits.numpy()[:, places])

    def keep(self, rows: torch.Tensor) -> None:
        """Drop the clips that are finished."""
        names = [*self.own, *self.cross, "encoder_hidden_states"]
        self.feed |= _values({name: self.feed[name].numpy()[rows.numpy()] for name in names})


def _values(arrays: dict[str, Any]) -> dict[str, Any]:
    """Return arrays as ONNX Runtime's values, which share their memory."""
    from onnxruntime import OrtValue

    return {name: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

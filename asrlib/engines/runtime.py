"""What all runtimes have in common: the settings of a call, and the methods of `asrlib.decoding.batching.Engine`."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import GenerationConfig, WhisperProcessor
from transformers.utils import logging

from asrlib import AsrlibError, whisper
from asrlib.decoding import batching
from asrlib.decoding.batching import Clip, Hypothesis, Result
from asrlib.io.files import read_json
from asrlib.models import architectures, checkpoints, folders
from asrlib.text import language_code

__all__ = ["Runtime", "quiet", "segments"]

WEIGHTS = (".safetensors", ".bin", ".pt", ".onnx", ".onnx_data")


class Runtime(batching.Engine):
    """A loaded runtime.

    Attributes:
        precisions: what it can compute in; the first is the default.
        on_gpu: whether it can compute on a GPU, too.
        batch_size: clips that it decodes together; may be set.
        files: what it reads from disk, a file or a folder.
        strict: whether a call decodes without tests of what it wrote.
    """

    precisions: ClassVar[tuple[str, ...]] = ("float32",)
    on_gpu: ClassVar[bool] = False
    batch_size: int = 1
    files: Path
    language: str | None = None
    strict: bool = True

    def __init__(self, checkpoint: str, precision: str, beams: int, device: str) -> None:
        self.checkpoint, self.precision, self.beams, self.device = checkpoint, precision, beams, device
        self.threads = torch.get_num_threads()
        self.folder = checkpoints.fetch(checkpoint)
        with self._complete():
            self.generation = GenerationConfig.from_pretrained(self.folder)
        self.multilingual = whisper.is_multilingual(self.generation)
        self._load()

    def _load(self) -> None:
        raise NotImplementedError

    def _complete(self) -> contextlib.AbstractContextManager[None]:
        return folders.one_sentence(f"{self.checkpoint} is not a complete Whisper checkpoint", "fetch or save it again")

    @functools.cached_property
    def processor(self) -> Any:
        """Return its ``WhisperProcessor``."""
        with self._complete():
            return WhisperProcessor.from_pretrained(self.folder)

    def _refuse_added_words(self, name: str) -> None:
        """Refuse a model whose special tokens are not those that follow from its vocabulary's size, as this runtime has them."""
        size = read_json(self.folder / "config.json")["vocab_size"]
        if architectures.special_tokens(size)["<|notimestamps|>"] != self.generation.no_timestamps_token_id:
            raise AsrlibError(
                f"{name} knows Whisper's special tokens by the size of the vocabulary, and words were added to {self.checkpoint}: "
                "choose another engine."
            )

    @property
    def bytes(self) -> int:
        """Return the size of its weights on disk."""
        found = [self.files] if self.files.is_file() else self.files.iterdir()
        return sum(path.stat().st_size for path in found if path.suffix in WEIGHTS)

    def transcribe(
        self,
        clips: Iterable[Any],
        *,
        language: str | None = None,
        timestamps: bool = False,
        strict: bool = True,
        label: str = "",
    ) -> Iterator[Hypothesis]:
        """Transcribe clips in order, as `asrlib.decoding.transcription.transcribe` does.

        Args:
            clips, language, timestamps, label: as there.
            strict: the same plain search in every runtime, to compare them; else each tests what it wrote for silence and
                loops and decodes it again, by the thresholds of the Whisper paper, section 3.8, as far as it can.

        Raises:
            AsrlibError: unknown language, or another language than English for an English-only model.
        """
        call = copy.copy(self)  # shares the weights; the settings are those of this call
        call.language, call.timestamps, call.strict = language and language_code(language), timestamps, strict
        whisper.prompt(self.generation, call.language or "en")  # an English-only model refuses others
        return batching.run(call._engine(), clips, batch_size=self.batch_size, label=label)

    def _engine(self) -> batching.Engine:
        """Return what transcribes with the settings of this call."""
        return self

    def decode(self, clips: Sequence[Clip], features: Any) -> list[Result]:
        """Return (text, language, segments) of each clip."""
        return [self._transcribe(clip.samples, self.timestamps or not self.fits(clip)) for clip in clips]

    def _transcribe(self, samples: np.ndarray, times: bool) -> Result:
        raise NotImplementedError

    @property
    def known_language(self) -> str | None:
        """Return the language where it need not be detected."""
        return self.language if self.multilingual else "en"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let transformers report errors only."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def segments(parts: Iterable[tuple[float | None, float | None, str]]) -> tuple[tuple[float, float, str], ...]:
    """Return segments as plain numbers and texts; a time that a runtime left open is the last one before it."""
    found, last = [], 0.0
    for start, end, text in parts:
        begin = last if start is None else float(start)
        last = begin if end is None else float(end)
        if text.strip():
            found.append((begin, last, text.strip()))
    return tuple(found)

"""What a fine-tuning is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asrlib.training.sources import Source, command_line
from asrlib.whisper import WINDOW_SECONDS

__all__ = ["ADAPTERS", "Settings"]

ADAPTERS = ("lora", "qlora", "adalora")
FULL_RATE, ADAPTER_RATE = 1e-5, 1e-3  # of notebooks 02 and 04, which follow the originals


@dataclass(frozen=True)
class Settings:
    """What a fine-tuning is made of.

    Attributes:
        speech: one or more folders or corpora, each as `Source.brought` reads it; of a corpus the split ``train``, unless another is
            named. Clips of several are mixed in each batch.
        validation: likewise, on which the model is scored while it is trained; without it the split ``validation`` of what is
            learnt from, or, where there is none, a tenth of its texts, which are then not learnt from.
        model: a Hub id or a folder.
        language: of folders whose table does not state it; code or name.
        root: where a corpus lies that is not packaged.
        context: seconds that the encoder reads while it is trained (`asrlib.training.context`); longer clips are left out. The
            saved model reads all 30 again.
        adapter: one of `ADAPTERS`: small matrices are trained beside the frozen model, not the model; empty for the model.
        freeze_encoder: train the decoder alone, or adapters in the decoder alone.
        steps: of the optimizer, each on ``batch_size`` clips, which the processes share.
        accumulate: parts in which a process takes its clips of a step, one after another: less memory, the same step.
        learning_rate: its highest value; None for 1e-5, or 1e-3 with an adapter.
        every: steps from one score on the validation clips, and one checkpoint, to the next.
        patience: scores without a better one after which the training ends; 0 for never.
        seed: of the division by text, the order of clips, adapters and dropout.
        stream: make features when a batch needs them, and keep none on disk.
    """

    speech: tuple[str, ...]
    validation: tuple[str, ...] = ()
    model: str = "openai/whisper-base"
    language: str | None = None
    root: Path | str | None = None
    context: int = WINDOW_SECONDS
    adapter: str = ""
    freeze_encoder: bool = False
    steps: int = 400
    batch_size: int = 16
    accumulate: int = 1
    learning_rate: float | None = None
    every: int = 100
    patience: int = 0
    seed: int = 0
    stream: bool = False

    @property
    def sources(self) -> list[Source]:
        """Return what is learnt from."""
        return [Source.brought(text) for text in self.speech]

    @property
    def rate(self) -> float:
        """Return the highest learning rate."""
        return self.learning_rate or (ADAPTER_RATE if self.adapter else FULL_RATE)

    def command(self, output: str = "FOLDER") -> str:
        """Return the command line of such a run, with all that differs from the defaults."""
        return command_line("finetune", self, output)

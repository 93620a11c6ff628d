"""What a fine-tuning is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from asrlib.training.sources import Source, command_line
from asrlib.whisper import WINDOW_SECONDS

__all__ = ["ADAPTERS", "Settings"]

ADAPTERS = ("lora", "qlora", "adalora")
# A fortieth of the highest rates of the training from scratch, by width of the model (Whisper paper, appendix F; the fraction is the
# one that Hugging Face's fine-tuning event recommended): tiny, base, small, medium, large.
RATES = {384: 1.5e-3 / 40, 512: 1e-3 / 40, 768: 5e-4 / 40, 1024: 2.5e-4 / 40, 1280: 1.75e-4 / 40}
ADAPTER_RATE = 1e-3  # of notebook 04, which follows PEFT's examples
STEPS, BATCH, ROUNDS, SCORES = 400, 16, 20, 4


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
        steps: of the optimizer, each on ``batch_size`` clips, which the processes share; None for 400, or fewer where each clip
            would be seen more than 20 times.
        batch_size: None for 16, or as many as there are clips to learn from if these are fewer.
        accumulate: parts in which a process takes its clips of a step, one after another: less memory, the same step.
        learning_rate: its highest value; None for a fortieth of that of the training from scratch, or 1e-3 with an adapter.
        every: steps from one score on the validation clips, and one checkpoint, to the next; None for a quarter of all.
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
    steps: int | None = None
    batch_size: int | None = None
    accumulate: int = 1
    learning_rate: float | None = None
    every: int | None = None
    patience: int = 0
    seed: int = 0
    stream: bool = False

    @property
    def sources(self) -> list[Source]:
        """Return what is learnt from."""
        return [Source.brought(text) for text in self.speech]

    def fitted(self, clips: int, width: int, parts: int) -> Settings:
        """Return these settings with a number for each that was left open.

        Args:
            clips: that are learnt from.
            width: of the model.
            parts: in which the processes together take the clips of a step; a batch is a multiple of it.
        """
        batch = self.batch_size or parts * max(1, min(BATCH, clips) // parts)
        steps = self.steps or min(STEPS, -(-ROUNDS * clips // batch))
        rate = self.learning_rate
        if rate is None:
            rate = ADAPTER_RATE if self.adapter else RATES[min(RATES, key=lambda known: abs(known - width))]
        every = self.every or max(1, steps // SCORES)
        return replace(self, batch_size=batch, steps=steps, learning_rate=rate, every=every)

    def command(self, output: str = "FOLDER") -> str:
        """Return the command line of such a run, with all that differs from the defaults."""
        return command_line("finetune", self, output)

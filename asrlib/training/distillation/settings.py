"""What a distillation is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asrlib import AsrlibError
from asrlib.training.sources import Source, command_line

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """What a distillation is made of.

    Attributes:
        corpus: one or more, each as `Source` reads it.
        validation: likewise, on which the student is scored while it is trained; none for no scoring.
        model: the teacher, a Hub id or a folder.
        root: where a corpus lies that is not packaged.
        clips: of each corpus, chosen by the seed among those of at most 30 s, before they are packed; None takes all of these.
        layers: of the student's decoder.
        published: train the whole decoder on the two losses over the whole vocabulary, as Distil-Whisper did; otherwise only
            the layers, without their keys and values for the encoder's states, over the tokens that occur in labels.
        threshold: labels with a larger WER (%) are left out; CER in a language without spaces between words. Labels without a
            transcript are left out where the guards of transcription would not believe them.
        timestamps: probability that a label keeps its times.
        previous: probability that a packed label follows the text of the recording before it.
        steps: of the optimizer, each on ``batch_size`` clips of one corpus, which the processes share.
        learning_rate: its highest value.
        kl: weight of the divergence from the teacher's distribution; that of the cross-entropy with the label is 1.
        hidden: weight of the squared distance to the teacher's last states.
        mask: share of the encoder states that are hidden from the student, in spans (SpecAugment, Park et al. 2019).
        dropout: in the student's layers.
        every: steps from one score on the validation clips to the next.
        patience: scores without a better one after which the training ends; 0 for never.
        seed: of the choice of clips, the order of batches, and all chance in a step.
        live: encode each batch anew, and keep no states of the encoder.
    """

    corpus: tuple[str, ...]
    validation: tuple[str, ...] = ()
    model: str = "openai/whisper-base"
    root: Path | str | None = None
    clips: int | None = None
    layers: int = 2
    published: bool = False
    threshold: float = 10.0
    timestamps: float = 0.0
    previous: float = 0.0
    steps: int = 400
    batch_size: int = 6
    learning_rate: float = 5e-4
    kl: float = 0.8
    hidden: float = 1.0
    mask: float = 0.0
    dropout: float = 0.0
    every: int = 100
    patience: int = 0
    seed: int = 0
    live: bool = False

    def __post_init__(self) -> None:
        """Refuse what another setting would leave without effect.

        Raises:
            AsrlibError: says which, and what to do.
        """
        if self.published and self.hidden != Settings.hidden:
            raise AsrlibError("--hidden weighs a loss that --published leaves out: leave out one of them.")
        if self.previous and not any(source.packed for source in self.sources):
            raise AsrlibError("--previous is for packed labels: write :packed behind a corpus, or leave it out.")

    @property
    def sources(self) -> list[Source]:
        """Return the corpora to learn from."""
        return [Source.parse(text) for text in self.corpus]

    def command(self, output: str = "FOLDER") -> str:
        """Return the command line of such a run, with all that differs from the defaults."""
        return command_line("distil", self, output)

"""The steps of a student's training, shared by processes; a killed one goes on from its last checkpoint."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from transformers import get_linear_schedule_with_warmup

from asrlib.io import files
from asrlib.io.progress import track
from asrlib.text import language_code
from asrlib.training.distillation.losses import WEIGHTS, TrainingSet

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["Settings", "train"]

CHECKPOINT_STEPS = 50  # from one checkpoint to the next
WARM_UP = 0.1  # of all steps


@dataclass(frozen=True)
class Settings:
    """What a distillation is made of.

    Attributes:
        corpus: ``CORPUS/LANGUAGE/SPLIT``, as `corpora.load` takes them; its transcripts decide which labels are kept.
        model: the teacher, a Hub id or a folder.
        root: where a corpus lies that is not packaged.
        clips: how many, chosen by the seed among those of at most 30 s; None takes all of these.
        layers: of the student's decoder.
        threshold: labels with a larger WER (%) are left out; CER in a language without spaces between words.
        steps: of the optimizer, each on ``batch_size`` clips, which the processes share.
        learning_rate: its highest value.
        seed: of the choice of clips and the order of batches.
    """

    corpus: str
    model: str = "openai/whisper-base"
    root: Path | str | None = None
    clips: int | None = None
    layers: int = 2
    threshold: float = 10.0
    steps: int = 240
    batch_size: int = 12
    learning_rate: float = 1e-4
    seed: int = 0

    @property
    def language(self) -> str:
        """Return the code of the corpus's language."""
        return language_code(self.corpus.split("/")[1])


def batches(names: Sequence[str], size: int, seed: int) -> Iterator[Sequence[str]]:
    """Yield batches of clips of like length without end, in a new order each epoch."""
    generator = np.random.default_rng(seed)
    groups = [names[first : first + size] for first in range(0, len(names), size)]
    while True:
        for number in generator.permutation(len(groups)):
            yield groups[number]


class _Training:
    """Student, optimizer, schedule and losses so far: what a checkpoint holds."""

    def __init__(self, student: Any, learning_rate: float, steps: int, path: Path, run: str) -> None:
        self.student, self.path, self.run = student, path, run
        student.requires_grad_(False)
        student.model.decoder.requires_grad_(True)
        self.trained = {name: part for name, part in student.named_parameters() if part.requires_grad}
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=learning_rate, weight_decay=0.0, fused=True)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, math.ceil(steps * WARM_UP), steps)
        self.log: list[dict[str, float]] = []

    def save(self) -> None:
        optimizer = self.optimizer.state_dict()
        tensors = {f"student.{name}": part.detach() for name, part in self.trained.items()}
        tensors |= {f"{n}.{key}": part for n, state in optimizer["state"].items() for key, part in state.items()}
        facts = {"run": self.run, "log": self.log, "groups": optimizer["param_groups"]}
        facts["schedule"] = self.schedule.state_dict()
        files.write_atomic(self.path, safetensors.torch.save(tensors, {"training": json.dumps(facts)}))

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one of this training."""
        if not self.path.is_file():
            return
        with safetensors.safe_open(self.path, "pt", device=str(self.student.device)) as file:
            facts = json.loads(file.metadata()["training"])
            if facts["run"] != self.run:
                return
            tensors = {tuple(key.split(".", 1)): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
        state: dict[str, dict[str, torch.Tensor]] = {}
        for (owner, name), tensor in tensors.items():
            state.setdefault(owner, {})[name] = tensor
        self.log = facts["log"]
        self.student.load_state_dict(state.pop("student"), strict=False)
        moments = {int(number): part for number, part in state.items()}
        self.optimizer.load_state_dict({"state": moments, "param_groups": facts["groups"]})
        self.schedule.load_state_dict(facts["schedule"])

    def step(self, data: TrainingSet, names: Sequence[str], weights: torch.Tensor, processes: PartialState) -> None:
        """Take one step on a batch, of which this process has a part, and note the losses of the whole."""
        from accelerate.utils import reduce

        losses = torch.zeros(2, device=self.student.device)
        if mine := names[processes.process_index :: processes.num_processes]:
            losses = data.losses(self.student, mine) / data.targets(names)
            (losses @ weights).backward()
        trained = list(self.trained.values())
        gradients = [torch.zeros_like(part) if part.grad is None else part.grad for part in trained]
        losses, *gradients = reduce([losses.detach(), *gradients], "sum")
        for part, gradient in zip(trained, gradients, strict=True):
            part.grad = gradient
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.log.append(dict(zip(("cross_entropy", "kl"), losses.tolist(), strict=True)))


def train(
    student: Any,
    data: TrainingSet,
    names: Sequence[str],
    settings: Settings,
    checkpoint: Path,
    run: str,
    processes: PartialState,
) -> list[dict[str, float]]:
    """Train a student's decoder and return both losses of each step, means over the tokens of the batch.

    Each process takes its part of a batch and divides by the tokens of the whole one; gradients are added up, not averaged
    as by DistributedDataParallel. A process without a clip, in a small last batch, adds nothing.

    Args:
        student: in float32; its decoder is trained, in place.
        data: states and labels.
        names: of the clips to learn from, the shortest first.
        settings: of the steps.
        checkpoint: file for what is needed to go on, written every `CHECKPOINT_STEPS` by the first process.
        run: `outcomes.fingerprint` of all that the weights depend on: a checkpoint of another run is not taken up.
        processes: that share each batch.
    """
    training = _Training(student, settings.learning_rate, settings.steps, checkpoint, run)
    training.resume()
    weights = torch.tensor([WEIGHTS["labels"], WEIGHTS["kl"]], device=student.device)
    left = itertools.islice(batches(names, settings.batch_size, settings.seed), len(training.log), settings.steps)
    if processes.is_main_process:
        left = track(left, "student", settings.steps - len(training.log), "steps")
    for batch in left:
        training.step(data, batch, weights, processes)
        if processes.is_main_process and len(training.log) % CHECKPOINT_STEPS == 0:
            training.save()
    return training.log

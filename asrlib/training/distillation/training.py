"""The steps of a student's training, shared by processes; a killed one goes on from its last checkpoint."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from transformers import get_linear_schedule_with_warmup

from asrlib import audio, scoring, text
from asrlib.decoding import guards, search
from asrlib.io import files
from asrlib.io.progress import track
from asrlib.training.distillation.losses import LOSSES, TrainingSet
from asrlib.training.distillation.settings import Settings
from asrlib.training.distillation.states import EncoderStates

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["Group", "Training", "Validation", "batches", "choose"]

CHECKPOINT_STEPS = 100  # from one checkpoint to the next
WARM_UP = 0.1  # of all steps


@dataclass(frozen=True)
class Group:
    """The clips of one corpus that are learnt from, the shortest first, and how often they are drawn."""

    names: Sequence[str]
    share: float | None = None


def batches(groups: Sequence[Group], size: int, seed: int) -> Iterator[Sequence[str]]:
    """Yield batches of clips of one corpus and of like length, without end; each corpus in a new order each time it is through."""
    generator = np.random.default_rng(seed)
    cut = [[group.names[at : at + size] for at in range(0, len(group.names), size)] for group in groups]
    shares = np.array([group.share or len(parts) for group, parts in zip(groups, cut, strict=True)], float)
    left: list[list[Sequence[str]]] = [[] for _ in groups]
    while True:
        number = generator.choice(len(groups), p=shares / shares.sum()) if len(groups) > 1 else 0
        if not left[number]:
            left[number] = [cut[number][place] for place in generator.permutation(len(cut[number]))]
        yield left[number].pop()


def choose(student: Any, published: bool) -> dict[str, torch.Tensor]:
    """Let the parts of a student's decoder learn that a distillation trains, in place; return them by name.

    Without ``published`` the token table, the positions, and the keys and values for the encoder's states stay the teacher's: a small
    model's table has most of its weights, and training on few words spoils it for all others.
    """
    student.requires_grad_(False)
    decoder = student.model.decoder
    decoder.requires_grad_(True)
    if not published:
        crossing = [layer.encoder_attn for layer in decoder.layers]
        fixed = [decoder.embed_tokens, decoder.embed_positions]
        for part in (*fixed, *(linear for attend in crossing for linear in (attend.k_proj, attend.v_proj))):
            part.requires_grad_(False)
    return {name: part for name, part in student.named_parameters() if part.requires_grad}


@dataclass
class Validation:
    """Clips on which a student is scored while it is trained.

    Attributes:
        states: of the clips.
        prompts: tokens before the text of each.
        references: what was said, by id, or what the teacher wrote where nobody has written it down.
        tokenizer: of both models.
        language: of all.
    """

    states: EncoderStates
    prompts: Mapping[str, list[int]]
    references: Mapping[str, str]
    tokenizer: Any
    language: str

    def write(self, model: Any) -> dict[str, str]:
        """Return what a model writes, greedily, by id."""
        written = {}
        for names in self.states.shards.values():
            if not names:
                continue
            encoder_states, bias = self.states.batch(names)
            bias = bias if bias is None else bias.to(model.device, model.dtype)
            seconds = [self.states.places[name][2] / audio.SAMPLING_RATE for name in names]
            most = [guards.most_tokens(length, self.language) for length in seconds]
            encoder_states = encoder_states.to(model.device, model.dtype)
            prompts = [self.prompts[name] for name in names]
            tokens = search.greedy(model, encoder_states, prompts, bias, max_new_tokens=most)
            texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            written |= zip(names, texts, strict=True)
        return written

    def score(self, model: Any) -> scoring.Score:
        """Return the WER of a model on the clips; in a language without spaces between words, the CER."""
        written = self.write(model)
        references = [self.references[name] for name in written]
        return scoring.score(references, list(written.values()), normalizer=text.normalizer(self.language))


@dataclass
class Training:
    """Student, optimizer, schedule, losses and scores so far: what a checkpoint holds.

    Attributes:
        student: in float32, on its device; changed in place.
        settings: of the steps.
        log: losses of each step, means over the tokens of its batch.
        scores: ``step`` and ``wer`` (%, loops capped) of each validation.
        best: the trained weights at the best of these.
    """

    student: Any
    settings: Settings
    log: list[dict[str, float]] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Choose what is trained, and make the optimizer."""
        settings = self.settings
        self.trained = choose(self.student, settings.published)
        for layer in self.student.model.decoder.layers:
            layer.dropout = settings.dropout
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )
        warm_up = math.ceil(settings.steps * WARM_UP)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, warm_up, settings.steps)
        weights = (1.0, settings.kl, 0.0 if settings.published else settings.hidden)
        self.weights = torch.tensor(weights, device=self.student.device)

    def save(self, path: Path, run: str) -> None:
        """Write a checkpoint."""
        optimizer = self.optimizer.state_dict()
        tensors = {f"student.{name}": part.detach() for name, part in self.trained.items()}
        tensors |= {f"best.{name}": part for name, part in self.best.items()}
        tensors |= {f"{n}.{key}": part for n, state in optimizer["state"].items() for key, part in state.items()}
        facts = {"run": run, "log": self.log, "scores": self.scores, "groups": optimizer["param_groups"]}
        facts["schedule"] = self.schedule.state_dict()
        files.write_atomic(path, safetensors.torch.save(tensors, {"training": json.dumps(facts)}))

    def resume(self, path: Path, run: str) -> None:
        """Go on from a checkpoint, if there is one of this training."""
        if not path.is_file():
            return
        with safetensors.safe_open(path, "pt", device=str(self.student.device)) as file:
            facts = json.loads(file.metadata()["training"])
            if facts["run"] != run:
                return
            tensors = {tuple(key.split(".", 1)): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
        state: dict[str, dict[str, torch.Tensor]] = {"best": {}}
        for (owner, name), tensor in tensors.items():
            state.setdefault(owner, {})[name] = tensor
        self.log, self.scores = facts["log"], facts["scores"]
        self.student.load_state_dict(state.pop("student"), strict=False)
        self.best = state.pop("best")
        moments = {int(number): part for number, part in state.items()}
        self.optimizer.load_state_dict({"state": moments, "param_groups": facts["groups"]})
        self.schedule.load_state_dict(facts["schedule"])

    def step(self, data: TrainingSet, names: Sequence[str], processes: PartialState | None = None) -> None:
        """Take one step on a batch, of which this process has a part, and note the losses of the whole.

        Each process divides by the tokens of the whole batch; gradients are added up, not averaged as by
        DistributedDataParallel. A process without a clip, in a small last batch, adds nothing. Chance is drawn anew at each step from
        the seed and its number, so that a resumed training goes on as an uninterrupted one would.
        """
        place, number = (processes.process_index, processes.num_processes) if processes else (0, 1)
        torch.manual_seed(1_000_000 * self.settings.seed + len(self.log))
        self.student.train(self.settings.dropout > 0)
        losses = torch.zeros(len(LOSSES), device=self.student.device)
        if mine := names[place::number]:
            losses = data.losses(self.student, mine, self.settings.mask) / data.targets(names)
            (losses @ self.weights).backward()
        trained = list(self.trained.values())
        for part in trained:
            part.grad = torch.zeros_like(part) if part.grad is None else part.grad
        losses = losses.detach()
        if number > 1:
            losses = _summed(losses, trained)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.log.append(dict(zip(LOSSES, losses.tolist(), strict=True)))

    def validate(self, validation: Sequence[Validation]) -> None:
        """Score the student, and keep its weights where it is the best so far: the mean WER over the corpora counts.

        Loops are capped: one clip that a student repeats to the limit would outweigh all others.
        """
        self.student.eval()
        wer = float(np.mean([100 * one.score(self.student).capped.wer for one in validation]))
        if not self.scores or wer < min(score["wer"] for score in self.scores):
            self.best = {name: part.detach().clone() for name, part in self.trained.items()}
        self.scores.append({"step": len(self.log), "wer": wer})

    @property
    def exhausted(self) -> bool:
        """Say whether the last scores, as many as the patience, brought no better one."""
        patience, rates = self.settings.patience, [score["wer"] for score in self.scores]
        return 0 < patience < len(rates) and min(rates[-patience:]) >= min(rates[:-patience])

    def finish(self) -> Any:
        """Return the student with its best weights, or the last where none were scored."""
        self.student.load_state_dict(self.best, strict=False)
        return self.student.eval()

    @property
    def due(self) -> bool:
        """Say whether the student is to be scored after the last step."""
        return len(self.log) % self.settings.every == 0 or len(self.log) == self.settings.steps

    def run(
        self,
        data: TrainingSet,
        groups: Sequence[Group],
        validation: Sequence[Validation] = (),
        *,
        checkpoint: Path | None = None,
        name: str = "",
        processes: PartialState | None = None,
        label: str = "",
        seen: Callable[[Training], None] | None = None,
    ) -> Any:
        """Take all steps that are left; return the student.

        Args:
            data: states, labels and the teacher's part of the losses.
            groups: clips to learn from.
            validation: to score on every ``settings.every`` steps, and at the end; the best student is returned. The first process
                scores for all.
            checkpoint: file for what is needed to go on, written every `CHECKPOINT_STEPS`; None for none.
            name: `outcomes.fingerprint` of all that the weights depend on: a checkpoint of another run is not taken up.
            processes: that share each batch; None for this one alone.
            label: shown in the progress line; none is shown without it.
            seen: called after each step, by the first process.
        """
        if checkpoint:
            self.resume(checkpoint, name)
        if validation and _agreed(self.exhausted, processes):  # killed after its last step
            return self.finish()
        first, done, total = processes is None or processes.is_main_process, len(self.log), self.settings.steps
        drawn = itertools.islice(batches(groups, self.settings.batch_size, self.settings.seed), done, total)
        for names in track(drawn, label, total - done, "steps") if label else drawn:
            self.step(data, names, processes)
            if first and validation and self.due:
                self.validate(validation)
            if first and seen:
                seen(self)
            if first and checkpoint and len(self.log) % CHECKPOINT_STEPS == 0:
                self.save(checkpoint, name)
            if validation and self.due and _agreed(self.exhausted, processes):
                break
        return self.finish()


def _summed(losses: torch.Tensor, trained: Sequence[torch.Tensor]) -> torch.Tensor:
    """Add up gradients, in place, and losses of all processes; return the losses."""
    from accelerate.utils import reduce

    losses, *gradients = reduce([losses, *(part.grad for part in trained)], "sum")
    for part, gradient in zip(trained, gradients, strict=True):
        part.grad = gradient
    return losses


def _agreed(ends: bool, processes: PartialState | None) -> bool:
    """Return what the first process says."""
    if processes is None or processes.num_processes == 1:
        return ends
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([ends])[0]

"""Fine-tuning side by side: the original recipe against this course's, step for step on the same clips. ``make bench`` runs it.

The original trains in float32 on 30 seconds of padded audio; the course trains with the encoder context cut to the corpus and,
where the processor is fast in it, in 16 bits. Both start from the same weights and see the same batches with the same
optimiser and learning rates. They take turns, so that a change of the machine's speed meets both; the ratio is the median over
the steps, the first one left out. Every few steps both transcribe the validation clips, each with its own context.

Writes ``build/bench/finetune_step.json`` and ``finetune_step.png``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from asrlib import audio, corpora, figures, hardware, scoring, text
from asrlib.decoding import transcription
from asrlib.io import files
from asrlib.models import checkpoints
from asrlib.training import context

MODEL, LANGUAGE = "openai/whisper-base", "ro"
CONTEXT = 5  # seconds
LEARNING_RATE, WARMUP = 5e-5, 5  # notebook 02 has this rate too
ORIGINAL, OURS = "original: float32, 30 s", f"this course: context of {CONTEXT} s, fast precision"


class Recipe:
    """A model in training, with its own context and precision."""

    def __init__(self, seconds: int, fast: bool) -> None:
        self.model, self.processor = transcription.load(MODEL, dtype=torch.float32)
        self.processor.tokenizer.set_prefix_tokens(language=LANGUAGE, task="transcribe")
        context.cut_context(self.model, self.processor, seconds)
        self.half = hardware.best_dtype(str(self.model.device)) if fast else torch.float32
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0, fused=True)
        self.warmup = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1 / WARMUP, total_iters=WARMUP)

    def batch(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return features and labels, as notebook 02 collates them."""
        clips = [audio.load(row["audio"]) for row in rows]
        features = self.processor.feature_extractor(clips, sampling_rate=16_000, return_tensors="pt").input_features
        labels = [torch.tensor(self.processor.tokenizer(row["text"]).input_ids[1:]) for row in rows]
        return {
            "input_features": features,
            "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
        }

    def step(self, batch: dict[str, torch.Tensor]) -> float:
        """Make one optimiser step and return its seconds; features are ready before."""
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        self.model.train()
        started = time.perf_counter()
        with torch.autocast(self.model.device.type, self.half, enabled=self.half != torch.float32):
            loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()  # a GPU has finished when this is known
        seconds = time.perf_counter() - started
        self.warmup.step()
        return seconds

    def score(self, rows: Any) -> scoring.Score:
        """Transcribe and score, in float32."""
        heard = transcription.transcribe(self.model.eval(), self.processor, rows, language=LANGUAGE)
        return scoring.score(rows["text"], [item.text for item in heard], normalizer=text.normalizer(LANGUAGE))


def speech(batch_size: int) -> tuple[Iterator[list[dict[str, Any]]], Any]:
    """Return endless training batches in a fixed random order, and the validation clips, all within the cut context."""
    rows = {
        split: corpora.load("picture_words", LANGUAGE, split).filter(
            lambda seconds: seconds <= CONTEXT, input_columns="seconds"
        )
        for split in ("train", "validation")
    }

    def batches() -> Iterator[list[dict[str, Any]]]:
        seed = 0
        while True:
            shuffled = rows["train"].shuffle(seed=seed)
            for first in range(0, len(shuffled) - batch_size + 1, batch_size):
                yield [shuffled[index] for index in range(first, first + batch_size)]
            seed += 1

    return batches(), rows["validation"]


def race(
    recipes: dict[str, Recipe], batches: Iterator[Any], validation: Any, steps: int, every: int
) -> tuple[dict, dict]:
    """Train all recipes in turn on the same batches; return the seconds of each step, and scores by step."""
    seconds = {name: [] for name in recipes}
    scores: dict[str, dict[int, scoring.Score]] = {name: {} for name in recipes}
    for step, rows in zip(range(1, steps + 1), batches, strict=False):
        for name, recipe in recipes.items():
            seconds[name].append(recipe.step(recipe.batch(rows)))
            if step % every == 0 or step == steps:
                scores[name][step] = recipe.score(validation)
                print(f"step {step}: {name}: {seconds[name][-1]:.1f} s a step, {scores[name][step]}", flush=True)
    return seconds, scores


def summary(seconds: dict[str, list[float]], scores: dict[str, dict[int, scoring.Score]]) -> dict[str, Any]:
    """Return the ratio of the steps' times, WERs by step, and the step at which each reaches the original's last WER."""
    ratios = [a / b for a, b in zip(seconds[ORIGINAL][1:], seconds[OURS][1:], strict=True)]
    last = max(scores[ORIGINAL])
    goal = scores[ORIGINAL][last].wer

    def reached(name: str) -> int | None:
        return next((step for step, score in scores[name].items() if score.wer <= goal), None)

    return {
        "times_faster_per_step": statistics.median(ratios),
        "seconds_per_step": {name: statistics.median(spent[1:]) for name, spent in seconds.items()},
        "wer_percent": {
            name: {step: 100 * score.wer for step, score in by_step.items()} for name, by_step in scores.items()
        },
        "difference_at_last_step": str(scoring.compare(scores[OURS][last], scores[ORIGINAL][last])),
        "goal_wer_percent": 100 * goal,
        "steps_to_goal": {name: reached(name) for name in scores},
        "clips": scores[OURS][last].utterances,
        "words": scores[OURS][last].words,
    }


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw WER against training time."""
    import matplotlib.pyplot as plt

    figures.use_style()
    figure, axes = plt.subplots(figsize=(7, 3))
    for name, by_step in result["wer_percent"].items():
        minutes = [step * result["seconds_per_step"][name] / 60 for step in by_step]
        axes.plot(minutes, list(by_step.values()), "o-", label=name)
    axes.set(xlabel="training time, evaluations left out (min)", ylabel="validation WER (%)", xscale="log")
    axes.legend()
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Race, print, write record and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--every", type=int, default=10, help="steps between two evaluations")
    options = parser.parse_args()
    batches, validation = speech(options.batch_size)
    machine = hardware.describe()
    print(f"{MODEL}, {options.steps} steps of {options.batch_size} clips, {machine['cpu']}, {machine['cores']} cores")
    recipes = {ORIGINAL: Recipe(30, fast=False), OURS: Recipe(CONTEXT, fast=True)}
    result = summary(*race(recipes, batches, validation, options.steps, options.every))
    print(f"\n{result['times_faster_per_step']:.1f} times faster per step; {result['seconds_per_step']}")
    print(f"difference in WER after {options.steps} steps: {result['difference_at_last_step']}")
    print(f"steps to {result['goal_wer_percent']:.1f} % WER: {result['steps_to_goal']}")
    folder = (files.repository() or Path.cwd()) / "build" / "bench"
    record = {
        "machine": machine,
        "checkpoint": checkpoints.provenance(checkpoints.fetch(MODEL)),
        **vars(options),
        **result,
    }
    files.write_atomic(folder / "finetune_step.json", json.dumps(record, indent=1) + "\n")
    plot(result, folder / "finetune_step.png")
    print(f"\nrecord and plot: {folder}")


if __name__ == "__main__":
    main()

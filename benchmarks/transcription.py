"""Transcription side by side: the same clips, one run, ratios. ``make bench`` runs it.

Every system hears the same real telephone prompts with whisper-base, greedily, in English. Times include features, encoder,
decoder and reading nothing from disk: audio is decoded once, before. Systems take turns, three rounds, so that a change of
the machine's speed meets all of them; medians and their ratios are reported, never single seconds.

The WER of each system carries an interval, its difference to the transformers pipeline a paired one. Writes
``build/bench/transcription.json`` and ``transcription.png``.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from asrlib import audio, checkpoints, corpora, figures, files, hardware, scoring, text, transcription

MODEL = "openai/whisper-base"
BASELINE = "transformers pipeline, float32, batch 1"
PEER = "faster-whisper int8, greedy"


def systems() -> dict[str, Callable[[list], list[str]]]:
    """Return name to function from clips (arrays) to transcripts; each has its model loaded."""
    from faster_whisper import WhisperModel
    from transformers import pipeline

    cores = hardware.describe()["cores"]
    exact, processor = transcription.load(MODEL, device="cpu", dtype=torch.float32)
    fast, _ = transcription.load(MODEL, device="cpu")
    options = {"language": "en", "task": "transcribe"}
    plain = pipeline(
        "automatic-speech-recognition",
        model=exact,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
    )
    folder = str(checkpoints.fetch(MODEL, format="ctranslate2"))
    peer = WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=cores)

    def pipeline_one(clips: list) -> list[str]:
        return [plain({"raw": clip, "sampling_rate": 16_000}, generate_kwargs=options)["text"] for clip in clips]

    def faster_whisper(clips: list) -> list[str]:
        settings = {"beam_size": 1, "temperature": 0.0, "without_timestamps": True, "condition_on_previous_text": False}
        heard = (peer.transcribe(clip, language="en", **settings)[0] for clip in clips)
        return [" ".join(segment.text.strip() for segment in segments) for segments in heard]

    def ours(model: object, window: str) -> Callable[[list], list[str]]:
        def run(clips: list) -> list[str]:
            heard = transcription.transcribe(model, processor, clips, language="en", window=window)
            return [hypothesis.text for hypothesis in heard]

        return run

    precision = str(fast.dtype).removeprefix("torch.")
    return {
        BASELINE: pipeline_one,
        PEER: faster_whisper,
        "asrlib float32, full window": ours(exact, "full"),
        f"asrlib {precision}, full window": ours(fast, "full"),
        f"asrlib {precision}, merged window": ours(fast, "merged"),
    }


def measure(clips: list, rounds: int) -> tuple[dict[str, list[str]], dict[str, list[float]]]:
    """Run every system in turn; return transcripts of the last round and seconds of each."""
    running = systems()
    heard, seconds = {}, {name: [] for name in running}
    for system in running.values():
        system(clips[:2])  # warm up: allocate, choose kernels
    for number in range(rounds):
        for name, system in running.items():
            started = time.perf_counter()
            heard[name] = system(clips)
            seconds[name].append(time.perf_counter() - started)
            print(f"round {number + 1}: {name}: {seconds[name][-1]:.1f} s", flush=True)
    return heard, seconds


def table(rows: object, heard: dict, seconds: dict) -> list[dict]:
    """Score every system against the references and against the baseline, clip by clip."""
    normalizer = text.normalizer("en")
    scores = {name: scoring.score(rows["text"], texts, normalizer=normalizer) for name, texts in heard.items()}
    length = sum(rows["seconds"])

    def ratio(name: str, to: str) -> float:
        return statistics.median(b / a for a, b in zip(seconds[name], seconds[to], strict=True))

    return [
        {
            "system": name,
            "wer_percent": 100 * score.wer,
            "interval": [100 * bound for bound in score.interval],
            "difference_to_pipeline": str(scoring.compare(score, scores[BASELINE])),
            "rtfx": length / statistics.median(seconds[name]),
            "times_pipeline": ratio(name, BASELINE),
            "times_faster_whisper": ratio(name, PEER),
        }
        for name, score in scores.items()
    ]


def plot(rows: list[dict], path: Path) -> None:
    """Draw throughput as bars."""
    import matplotlib.pyplot as plt

    figures.use_style()
    figure, axes = plt.subplots(figsize=(7, 3))
    axes.barh([row["system"] for row in rows][::-1], [row["rtfx"] for row in rows][::-1], color=figures.BLUE)
    axes.set(xlabel="RTFx (seconds of speech per second of computing)", ylabel="system")
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Measure, print a table, write record and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logging.getLogger("faster_whisper").setLevel(logging.ERROR)
    rows = corpora.load("telephone", "en", "test")
    step = max(1, len(rows) // arguments.clips)
    rows = rows.select(range(0, len(rows), step)[: arguments.clips])
    clips = [audio.load(row["audio"]) for row in rows]
    machine = hardware.describe()
    print(f"{len(clips)} clips, {sum(rows['seconds']):.0f} s of speech, {machine['cpu']}, {machine['cores']} cores")
    results = table(rows, *measure(clips, arguments.rounds))
    print(f"\n{'system':42}{'WER % [95 %]':>20}{'RTFx':>7}{'x pipeline':>12}{'x faster-whisper':>18}")
    for row in results:
        rate = f"{row['wer_percent']:.1f} [{row['interval'][0]:.1f}, {row['interval'][1]:.1f}]"
        print(
            f"{row['system']:42}{rate:>20}{row['rtfx']:7.1f}{row['times_pipeline']:12.2f}{row['times_faster_whisper']:18.2f}"
        )
    folder = (files.repository() or Path.cwd()) / "build" / "bench"
    record = {"machine": machine, "clips": list(rows["id"]), "rounds": arguments.rounds, "systems": results}
    files.write_atomic(folder / "transcription.json", json.dumps(record, indent=1) + "\n")
    plot(results, folder / "transcription.png")
    print(f"\nrecord and plot: {folder}")


if __name__ == "__main__":
    main()

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
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from asrlib import audio, corpora, engines, figures, files, hardware, kernels, scoring, text, transcription

MODEL = "openai/whisper-base"
BASELINE = "transformers pipeline, float32, batch 1"
PEER = "faster-whisper int8, greedy"


def systems() -> dict[str, Callable[[list], list[str]]]:
    """Return name to function from clips (arrays) to transcripts; each has its model loaded."""
    precision = str(hardware.best_dtype("cpu")).removeprefix("torch.")
    loaded = {
        BASELINE: engines.load("transformers", MODEL),
        PEER: engines.load("faster-whisper", MODEL),
        "openai-whisper float32": engines.load("openai-whisper", MODEL),
        "whisper.cpp float16": engines.load("whisper.cpp", MODEL),
        "CTranslate2 int8, batch 8": engines.load("ctranslate2", MODEL),
        "ONNX Runtime int8, batch 8": engines.load("onnxruntime", MODEL),
        "asrlib float32, full window": engines.load("asrlib", MODEL, precision="float32"),
        f"asrlib {precision}, full window": engines.load("asrlib", MODEL),
    }

    def run(engine: engines.Runtime) -> Callable[[list], list[str]]:
        return lambda clips: [heard.text for heard in engine.transcribe(clips, language="en")]

    model, processor = transcription.load(MODEL, device="cpu")

    def merged(clips: list) -> list[str]:
        return [
            heard.text for heard in transcription.transcribe(model, processor, clips, language="en", window="merged")
        ]

    return {name: run(engine) for name, engine in loaded.items()} | {f"asrlib {precision}, merged window": merged}


def encoder_share(rounds: int = 5) -> dict[str, float]:
    """Return the encoder's rate of arithmetic beside that of one large matrix product, in the fastest precision, in TFLOP/s."""
    model, _ = transcription.load(MODEL, device="cpu")
    config, positions = model.config, model.config.max_source_positions
    width, batch = config.d_model, 8
    layer = 4 * width**2 + 2 * width * config.encoder_ffn_dim + 2 * positions * width  # multiply-adds for each position
    stem = 3 * width * (2 * config.num_mel_bins + width)
    flops = 2 * batch * positions * (config.encoder_layers * layer + stem)
    features = torch.randn(batch, config.num_mel_bins, 2 * positions).to(model.dtype)
    square = torch.nn.Linear(2048, 2048).to(model.dtype)
    x = torch.randn(4096, 2048).to(model.dtype)
    taken: dict[str, list[float]] = {"encoder": [], "matrix product": []}
    work = {
        "encoder": lambda: transcription.encode(model, features),
        "matrix product": lambda: kernels.linear(square, x),
    }
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for name, run in work.items():
                started = time.perf_counter()
                run()
                taken[name].append(time.perf_counter() - started)
    best = {name: min(times[1:]) for name, times in taken.items()}
    rates = {
        "encoder": flops / best["encoder"] / 1e12,
        "matrix product": 2 * 4096 * 2048**2 / best["matrix product"] / 1e12,
    }
    return rates | {"share": rates["encoder"] / rates["matrix product"]}


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
    figure, axes = plt.subplots(figsize=(7, 3.6))
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
    rates = encoder_share()
    print(f"\nencoder {rates['encoder']:.2f} of {rates['matrix product']:.2f} TFLOP/s: {100 * rates['share']:.0f} %")
    record = {
        "machine": machine,
        "clips": list(rows["id"]),
        "rounds": arguments.rounds,
        "systems": results,
        "rates": rates,
    }
    files.write_atomic(folder / "transcription.json", json.dumps(record, indent=1) + "\n")
    plot(results, folder / "transcription.png")
    print(f"\nrecord and plot: {folder}")


if __name__ == "__main__":
    main()

"""Transcription side by side: the same speech, one run, ratios. ``make bench`` runs it.

Every system hears the same real telephone prompts with whisper-base, greedily, in English: first clip by clip, then joined to
recordings of several windows. Times include features, encoder, decoder and reading nothing from disk: audio is decoded once,
before. Systems take turns, five rounds, so that a change of the machine's speed meets all of them; ratios are reported, with
their intervals, never single seconds.

The WER of each system carries an interval, its difference to the transformers pipeline a paired one. Writes
``build/bench/transcription.json`` and ``transcription.png``.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import importlib.metadata
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import WhisperConfig

from asrlib import audio, corpora, engines, figures, hardware, scoring, text, uncertainty
from asrlib.decoding import kernels, network, transcription
from asrlib.engines.runtime import Runtime
from asrlib.io import files
from asrlib.models import checkpoints

MODEL = "openai/whisper-base"
BASELINE = "transformers pipeline, float32, batch 1"
PEER = "faster-whisper int8, greedy"
PRECISION = str(hardware.best_dtype("cpu")).removeprefix("torch.")
MERGED = {f"asrlib {PRECISION}, merged window": None, "asrlib int8, merged window": torch.int8}
DIRECT = "CTranslate2 int8, batch 8"  # it and merged windows know a single window
PIECES = "faster-whisper int8, batched pieces"  # a clip is one piece
GENAI = "OpenVINO GenAI, weights in int8"
RECORDING = 45.0  # seconds: two windows
FOLDER = (files.repository() or Path.cwd()) / "build" / "bench"
System = Callable[[list], list[str]]


def systems() -> dict[str, System]:
    """Return name to function from sounds (arrays) to transcripts; each has its model loaded."""
    loaded = {
        BASELINE: engines.load("transformers", MODEL),
        PEER: engines.load("faster-whisper", MODEL),
        PIECES: engines.load("faster-whisper-batched", MODEL),
        f"transformers pipeline, {PRECISION}, batch 8": engines.load("transformers", MODEL, precision=PRECISION),
        "openai-whisper float32": engines.load("openai-whisper", MODEL),
        f"whisper.cpp float16, {built_here()}": engines.load("whisper.cpp", MODEL),
        DIRECT: engines.load("ctranslate2", MODEL),
        "ONNX Runtime int8, batch 8": engines.load("onnxruntime", MODEL),
        "asrlib float32, full window": engines.load("asrlib", MODEL, precision="float32"),
        f"asrlib {PRECISION}, full window": engines.load("asrlib", MODEL),
        "asrlib int8, full window": engines.load("asrlib", MODEL, precision="int8"),
    }

    loaded[f"transformers pipeline, {PRECISION}, batch 8"].batch_size = 8

    def run(engine: Runtime) -> System:
        return lambda sounds: [heard.text for heard in engine.transcribe(sounds, language="en")]

    def merged(dtype: torch.dtype | None) -> System:
        model, processor = transcription.load(MODEL, device="cpu", dtype=dtype)
        options = {"language": "en", "window": "merged", "strict": True}
        return lambda clips: [heard.text for heard in transcription.transcribe(model, processor, clips, **options)]

    ours = {name: merged(dtype) for name, dtype in MERGED.items()}
    return {name: run(engine) for name, engine in loaded.items()} | {GENAI: genai()} | ours


def built_here() -> str:
    """Build whisper.cpp for this processor once, where CMake and a compiler are; return which build is imported.

    The wheel on PyPI is compiled for any processor and knows nothing of AVX2.
    """
    folder, version = FOLDER / "whisper.cpp", importlib.metadata.version("pywhispercpp")
    if not (folder / "pywhispercpp").is_dir() and shutil.which("cmake"):
        print("building whisper.cpp for this processor: some minutes, once", flush=True)
        install = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-binary", "pywhispercpp"]
        subprocess.run([*install, "--target", str(folder), f"pywhispercpp=={version}"], check=False)
    libraries = [folder / f"lib{name}.so" for name in ("ggml-base", "ggml-cpu", "ggml", "whisper")]
    if not all(path.is_file() for path in libraries):
        return "generic wheel"
    for path in libraries:  # each needs those before it, and the module knows no folder of theirs
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    return "built here"


def genai() -> System:
    """Return OpenVINO GenAI's own pipeline, with weights in 8 bits."""
    import nncf
    import openvino_genai

    from asrlib.models import openvino_graphs

    openvino_graphs.quiet_nncf()
    model, processor = transcription.load(MODEL, device="cpu", dtype=torch.float32)
    made = {"encoder": openvino_graphs.encoder(model), "decoder": openvino_graphs.decoder(model)}
    graphs = {
        part: nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM) for part, graph in made.items()
    }
    shutil.rmtree(FOLDER / "openvino", ignore_errors=True)
    openvino_graphs.save(FOLDER / "openvino", graphs, checkpoints.fetch(MODEL), processor)
    pipe = openvino_genai.WhisperPipeline(FOLDER / "openvino", "CPU", INFERENCE_NUM_THREADS=torch.get_num_threads())

    def transcribe(sounds: list) -> list[str]:
        told = {"language": "<|en|>", "task": "transcribe"}
        answers = (
            pipe.generate(sound.tolist(), return_timestamps=len(sound) > 30 * audio.SAMPLING_RATE, **told)
            for sound in sounds
        )
        return [answer.texts[0].strip() for answer in answers]

    return transcribe


def recordings(rows: object, number: int) -> list[audio.Recording]:
    """Join rows to so many recordings; each begins where the last one ended."""
    made, first = [], 0
    for _ in range(number):
        if first == len(rows):
            raise SystemExit(f"The corpus gives {len(made)} recordings of {RECORDING:g} s: ask for no more.")
        made.append(audio.stitch(rows.skip(first), seconds=RECORDING))
        first += len(made[-1].ids)
    return made


def fastest_round(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Run some work in turn; return the seconds of each one's fastest round, after one of warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for name, run in work.items():
                started = time.perf_counter()
                run()
                taken[name].append(time.perf_counter() - started)
    return {name: min(times[1:]) for name, times in taken.items()}


def encoder_flops(config: WhisperConfig) -> int:
    """Return the additions and multiplications of an encoder's products over one window."""
    width, positions = config.d_model, config.max_source_positions
    layer = 4 * width**2 + 2 * width * config.encoder_ffn_dim + 2 * positions * width  # multiply-adds for each position
    stem = 3 * width * (2 * config.num_mel_bins + width)
    return 2 * positions * (config.encoder_layers * layer + stem)


def encoder_share(rounds: int = 5) -> dict[str, float]:
    """Return the encoder's rate of arithmetic beside that of one large matrix product, in the fastest precision, in TFLOP/s."""
    model, _ = transcription.load(MODEL, device="cpu")
    config, batch = model.config, 8
    features = torch.randn(batch, config.num_mel_bins, 2 * config.max_source_positions).to(model.dtype)
    square = torch.nn.Linear(2048, 2048).to(model.dtype)
    x = torch.randn(4096, 2048).to(model.dtype)
    work = {
        "encoder": lambda: network.encode(model, features),
        "matrix product": lambda: kernels.linear(square, x),
    }
    with kernels.laid_out():
        best = fastest_round(work, rounds)
    rates = {
        "encoder": batch * encoder_flops(config) / best["encoder"] / 1e12,
        "matrix product": 2 * 4096 * 2048**2 / best["matrix product"] / 1e12,
    }
    return rates | {"share": rates["encoder"] / rates["matrix product"]}


def attention_gain(rounds: int = 5) -> float:
    """Return how many times as fast as PyTorch's fused attention our own is, over a whole window in the fastest precision."""
    x = torch.randn(2, 1500, 8, 64).to(hardware.best_dtype("cpu")).transpose(1, 2)
    attend = {"fused": torch.nn.functional.scaled_dot_product_attention, "ours": kernels.attention}
    best = fastest_round({name: functools.partial(run, x, x, x) for name, run in attend.items()}, rounds)
    return best["fused"] / best["ours"]


def measure(
    running: dict[str, System], sounds: list, rounds: int
) -> tuple[dict[str, list[str]], dict[str, list[float]]]:
    """Run every system in turn; return transcripts of the last round and seconds of each."""
    heard, seconds = {}, {name: [] for name in running}
    for system in running.values():
        system(sounds[:2])  # warm up: allocate, choose kernels
    for number in range(rounds):
        for name, system in running.items():
            started = time.perf_counter()
            heard[name] = system(sounds)
            seconds[name].append(time.perf_counter() - started)
            print(f"round {number + 1}: {name}: {seconds[name][-1]:.1f} s", flush=True)
    return heard, seconds


def table(references: list[str], length: float, heard: dict, seconds: dict) -> list[dict]:
    """Score every system against the references and against the baseline, sound by sound."""
    normalizer = text.normalizer("en")
    scores = {name: scoring.score(references, texts, normalizer=normalizer) for name, texts in heard.items()}

    def ratio(name: str, to: str) -> dict[str, object]:
        found = uncertainty.paired_ratio(seconds[to], seconds[name])
        return {"value": found.value, "interval": found.interval}

    return [
        {
            "system": name,
            "wer_percent": 100 * score.wer,
            "interval": score.interval and [100 * bound for bound in score.interval],
            "difference_to_pipeline": str(scoring.compare(score, scores[BASELINE])),
            "rtfx": length / statistics.median(seconds[name]),
            "times_pipeline": ratio(name, BASELINE),
            "times_faster_whisper": ratio(name, PEER),
        }
        for name, score in scores.items()
    ]


def times(ratio: dict) -> str:
    """Return a ratio with its interval, where there is one."""
    ends = " [{:.2f}, {:.2f}]".format(*ratio["interval"]) if ratio["interval"] else ""
    return f"{ratio['value']:.2f}{ends}"


def told(record: dict) -> str:
    """Return a record as the lines that a person reads."""
    machine, rates = record["machine"], record["rates"]
    lines = [f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['cpu_features'])}; {record['model']}"]
    for kind in ("clips", "recordings"):
        number, length = record["heard"][kind]
        title = f"{number} {kind}, {length:.0f} s"
        lines.append(f"\n{title:41}{'WER % [95 %]':>18}{'RTFx':>6}{'x pipeline':>20}{'x faster-whisper':>20}")
        for row in record[kind]:
            rate = f"{row['wer_percent']:.1f} " + (
                "[{:.1f}, {:.1f}]".format(*row["interval"]) if row["interval"] else "[-]"
            )
            ratios = "".join(f"{times(row[to]):>20}" for to in ("times_pipeline", "times_faster_whisper"))
            lines.append(f"{row['system']:41}{rate:>18}{row['rtfx']:6.1f}{ratios}")
    share = f"{rates['encoder']:.2f} of {rates['matrix product']:.2f} TFLOP/s: {100 * rates['share']:.0f} %"
    return "\n".join(
        [*lines, f"\nencoder {share}", f"attention {record['attention_gain']:.1f} times as fast as PyTorch's"]
    )


def plot(tables: dict[str, list[dict]], path: Path) -> None:
    """Draw throughput as bars, a panel for each kind of speech."""
    import matplotlib.pyplot as plt

    figures.use_style()
    figure, panels = plt.subplots(1, len(tables), figsize=(12, 3.6))
    for axes, (kind, rows) in zip(panels, tables.items(), strict=True):
        axes.barh([row["system"] for row in rows][::-1], [row["rtfx"] for row in rows][::-1], color=figures.BLUE)
        axes.set(title=kind, xlabel="RTFx (seconds of speech per second of computing)", ylabel="system")
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Measure, print tables, write record and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--recordings", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    corpus = corpora.load("telephone", "en", "test")
    step = max(1, len(corpus) // arguments.clips)
    rows = corpus.select(range(0, len(corpus), step)[: arguments.clips])
    joined = recordings(corpus, arguments.recordings)
    heard = {
        "clips": (len(rows), sum(rows["seconds"])),
        "recordings": (len(joined), sum(one.seconds for one in joined)),
    }
    running = systems()
    few = {name: system for name, system in running.items() if name != PIECES}
    long = {name: system for name, system in running.items() if name not in (DIRECT, *MERGED)}
    on_clips = measure(few, [audio.load(row["audio"]) for row in rows], arguments.rounds)
    on_recordings = measure(long, [one.audio for one in joined], arguments.rounds)
    tables = {
        "clips": table(list(rows["text"]), heard["clips"][1], *on_clips),
        "recordings": table([one.text for one in joined], heard["recordings"][1], *on_recordings),
    }
    record = {
        "machine": hardware.describe(), "model": MODEL, "rounds": arguments.rounds, "heard": heard,
        "clip_ids": list(rows["id"]), "recording_ids": [list(one.ids) for one in joined], **tables,
        "rates": encoder_share(), "attention_gain": attention_gain(),
    }  # fmt: skip
    print(f"\n{told(record)}")
    files.write_atomic(FOLDER / "transcription.json", json.dumps(record, indent=1) + "\n")
    files.write_atomic(FOLDER / "transcription.txt", told(record) + "\n")  # docs/speed.md shows a committed one
    plot(tables, FOLDER / "transcription.png")
    print(f"\nrecord and plot: {FOLDER}")


if __name__ == "__main__":
    main()

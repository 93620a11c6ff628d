"""End-to-end latency of the published architectures on a GPU, with random weights: how long it takes depends on shapes only.

Each model encodes a window of 30 seconds and writes a fixed number of tokens by ``generate`` in float16 with PyTorch's fused
attention, at batch 1 and 16; the end token is barred until they are written. The encoder alone and single steps of the decoder
are timed beside it. All are warmed up and take turns, round by round, so that a change of the machine's speed meets all of them.
The seconds of every round are kept, so that ratios can be taken round by round.

It needs torch, transformers, and this checkout on the path, no weights, no speech, no network::

    PYTHONPATH=. python benchmarks/gpu_shapes.py

Writes ``benchmarks/records/gpu_shapes.json``, which notebook 07 reads, after every round; after ``--seconds`` no round begins.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from asrlib.io import files
from asrlib.models import architectures

SHAPES = [
    "openai/whisper-large-v2",
    "distil-whisper/distil-large-v2",
    "openai/whisper-medium.en",
    "distil-whisper/distil-medium.en",
    "openai/whisper-small.en",
    "distil-whisper/distil-small.en",
]
BATCHES = [1, 16]
TOKENS = [25, 128]  # of a clip of the published benchmark (1,169 words in 73 clips), and the most that it allows
STEPS = 10  # of the decoder, timed together
OUTPUT = Path(__file__).parent / "records" / "gpu_shapes.json"


class Row(NamedTuple):
    """What is timed: ``work`` returns the seconds of one call; ``seconds`` collects those of the rounds."""

    model: str
    part: str
    batch: int
    tokens: int
    work: Callable[[], float]
    seconds: list[float]

    def __str__(self) -> str:
        return f"{self.model:32} {self.part:12} batch {self.batch:2}, {self.tokens:3} tokens"

    def plain(self) -> dict[str, Any]:
        """Return the row as the record has it, with median and interval of a call's seconds."""
        told = {"model": self.model, "part": self.part, "batch": self.batch, "tokens": self.tokens}
        median = statistics.median(self.seconds)
        return told | {"median_s": median, "interval_s": interval(self.seconds), "seconds": self.seconds}


def interval(values: list[float]) -> list[float] | None:
    """Return the interval of a median between two of the ordered values (Thompson 1936) at 95 %; None under six values."""
    n, tail, cut = len(values), 0.0, 0
    while tail + math.comb(n, cut) / 2**n <= 0.025:
        tail, cut = tail + math.comb(n, cut) / 2**n, cut + 1
    ordered = sorted(values)
    return [ordered[cut - 1], ordered[n - cut]] if cut else None


def build(name: str, device: str, dtype: torch.dtype) -> WhisperForConditionalGeneration:
    """Return a published architecture with random weights."""
    shape = architectures.config(name)
    with torch.device(device):
        model = WhisperForConditionalGeneration._from_config(shape, dtype=dtype, attn_implementation="sdpa")
    tokens = architectures.special_tokens(shape.vocab_size)
    model.generation_config = GenerationConfig.from_dict(architectures.generation(tokens, shape.max_target_positions))
    return model.eval()


def clock(run: Callable[[], Any], device: str) -> float:
    """Return the seconds of one call, until the GPU has finished."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def rows(name: str, model: WhisperForConditionalGeneration, batch: int, tokens: list[int]) -> list[Row]:
    """Return what is timed of one model at one batch size: end to end, the encoder, and a step of the decoder."""
    config, device = model.config, str(model.device)
    shape = (batch, config.num_mel_bins, 2 * config.max_source_positions)
    features = torch.randn(shape, dtype=model.dtype, device=device)
    mask = torch.ones(shape[0], shape[2], dtype=torch.long, device=device)
    known = inspect.signature(model.forward).parameters
    cache = "cache" if "cache" in known else "past_key_values"  # transformers has renamed it
    spoken = {"language": "en", "task": "transcribe"} if model.generation_config.is_multilingual else {}

    def end_to_end(n: int) -> float:
        written = {}

        def run() -> None:
            limits = {"min_new_tokens": n, "max_new_tokens": n, "num_beams": 1, "do_sample": False}
            written["tokens"] = model.generate(features, attention_mask=mask, **spoken, **limits)

        seconds = clock(run, device)
        if not n <= written["tokens"].shape[1] <= n + 4:  # with or without the prompt
            raise SystemExit(f"{name} wrote {written['tokens'].shape[1]} tokens, not {n}: these times compare nothing.")
        return seconds

    def encoder() -> float:
        return clock(lambda: model.model.encoder(features), device)

    def step() -> float:
        states = BaseModelOutput(model.model.encoder(features).last_hidden_state)
        token = torch.full((batch, 1), config.decoder_start_token_id, device=device)
        kept = {cache: EncoderDecoderCache(DynamicCache(), DynamicCache())}  # each call adds its position to it

        def run(steps: int) -> None:
            for _ in range(steps):
                model(encoder_outputs=states, decoder_input_ids=token, use_cache=True, **kept)

        run(1)  # computes the keys and values of the encoder's states
        return clock(lambda: run(STEPS), device) / STEPS

    whole = [Row(name, "end to end", batch, n, functools.partial(end_to_end, n), []) for n in tokens]
    return [*whole, Row(name, "encoder", batch, 0, encoder, []), Row(name, "decoder step", batch, 1, step, [])]


def decoders(timed: list[Row]) -> list[Row]:
    """Return what is left of each end-to-end time without the encoder's of the same round."""
    encoders = {(row.model, row.batch): row.seconds for row in timed if row.part == "encoder"}
    rest = [
        (row, [whole - own for whole, own in zip(row.seconds, encoders[row.model, row.batch], strict=True)])
        for row in timed
        if row.part == "end to end"
    ]
    return [row._replace(part="decoder", seconds=seconds) for row, seconds in rest]


def machine(device: str) -> dict[str, Any]:
    """Return what the times were measured on."""
    if not device.startswith("cuda"):
        return {"gpu": "", "cpu": platform.processor() or platform.machine(), "python": platform.python_version()}
    found = torch.cuda.get_device_properties(device)
    told = {"gpu": found.name, "gpu_memory_gib": round(found.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    return told | {"python": platform.python_version()}


def main(arguments: list[str] | None = None) -> None:
    """Measure round by round, print the seconds, write the record after each round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=200, help="no round begins after so many")
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    given = parser.parse_args(arguments)
    started = time.perf_counter()
    dtype = torch.float16 if given.device.startswith("cuda") else torch.float32
    timed: list[Row] = []
    with torch.inference_mode():
        for name in given.shapes:
            model = build(name, given.device, dtype)
            timed += [row for batch in given.batches for row in rows(name, model, batch, given.tokens)]
            print(f"{time.perf_counter() - started:6.1f} s: {name} built", flush=True)
        for row in timed:
            first = row.work()  # warm up: kernels are chosen, memory is taken
            print(f"warm-up: {row}: {first:.4f} s", flush=True)
        for number in range(given.rounds):
            if number and time.perf_counter() - started > given.seconds:
                break
            for row in timed:
                row.seconds.append(row.work())
            spent = time.perf_counter() - started
            protocol = {
                "weights": "random", "dtype": str(dtype), "attention": "sdpa", "decoding": "greedy, tokens fixed",
                "warm_up": 1, "rounds": number + 1, "order": "in turn", "audio_s": 30, "steps_timed_together": STEPS,
            }  # fmt: skip
            record = {
                "machine": machine(given.device), "torch": torch.__version__, "transformers": transformers.__version__,
                "protocol": protocol, "rows": [row.plain() for row in [*timed, *decoders(timed)]],
            }  # fmt: skip
            files.write_atomic(given.output, json.dumps(record, indent=1) + "\n")
            print(f"{spent:6.1f} s: round {number + 1} written to {given.output}", flush=True)
    for row in timed:
        print(f"{row}: {statistics.median(row.seconds):.4f} s")


if __name__ == "__main__":
    main()

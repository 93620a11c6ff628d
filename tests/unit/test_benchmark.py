"""The benchmark's own arithmetic and files, with two systems whose answers and times are known."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from asrlib import scoring

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FRAGMENTS = Path(__file__).parents[2] / "docs" / "_fragments"


def script(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small(heads=2, layers=1, hidden=16, bins=80):
    """Return the configuration of a model with an encoder of 20 positions."""
    return WhisperConfig(
        vocab_size=8, d_model=8 * heads, encoder_layers=layers, decoder_layers=1, encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=hidden,
        num_mel_bins=bins, max_source_positions=20, pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip


@settings(max_examples=10)
@given(heads=st.integers(1, 3), layers=st.integers(1, 3), hidden=st.integers(1, 99), bins=st.sampled_from([80, 128]))
def test_the_encoder_computes_what_torch_counts(heads, layers, hidden, bins):
    config = small(heads, layers, hidden, bins)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        WhisperEncoder(config).eval()(torch.zeros(1, bins, 40))
    assert script("transcription").encoder_flops(config) == counted.get_total_flops()


def test_fine_tuning_is_compared_step_by_step(tmp_path):
    bench = script("finetune_step")

    def score(*heard):
        return scoring.score(["a b c d", "e f"], list(heard))

    seconds = {bench.ORIGINAL: [99.0, 20.0, 24.0, 22.0], bench.OURS: [1.0, 2.0, 2.0, 2.0]}
    scores = {
        bench.ORIGINAL: {2: score("x x x x", "e f"), 4: score("a b x x", "e f")},
        bench.OURS: {2: score("a b x x", "e f"), 4: score("a b c x", "e f")},
    }
    result = bench.summary(seconds, scores)
    assert result["times_faster_per_step"] == 11.0  # the median of 10, 12 and 11: the first step warms up
    assert result["steps_to_goal"] == {bench.ORIGINAL: 4, bench.OURS: 2}
    assert result["goal_wer_percent"] == pytest.approx(100 * 2 / 6)
    bench.plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.weights
def test_a_recipe_learns_from_real_clips():
    bench = script("finetune_step")
    batches, validation = bench.speech(batch_size=2)
    assert max(validation["seconds"]) <= bench.CONTEXT
    recipe = bench.Recipe(bench.CONTEXT, fast=True)
    batch = recipe.batch(next(batches))
    prompt = recipe.processor.tokenizer.convert_ids_to_tokens(batch["labels"][0, :3].tolist())
    assert prompt == ["<|ro|>", "<|transcribe|>", "<|notimestamps|>"]
    assert batch["input_features"].shape == (2, 80, 100 * bench.CONTEXT)
    before = recipe.model.proj_out.weight.clone()
    assert recipe.step(batch) > 0
    assert not before.equal(recipe.model.proj_out.weight)


def test_the_part_of_the_first_process_does_not_shrink_with_their_number():
    simulated = {"hours": 100.0, "shared_s": 40.0, "alone_s": 8.0}
    measured = {"computing_s": 6.0, "speech_s": 60.0, "loading_s": 2.0}
    found = script("scale").project(simulated, measured, [1, 10])
    assert found["hours"] == pytest.approx({1: (36_040 + 10) / 3600, 10: (3_604 + 10) / 3600})
    assert found["even_at"] == pytest.approx(3_604)


def test_the_lines_in_the_documentation_are_those_of_the_committed_records():
    names = ("scale", "transcription", "transcription_bfloat16", "growth")
    records = {name: json.loads((FRAGMENTS / f"{name}.json").read_text()) for name in names}
    bench = {name: script(name) for name in ("scale", "transcription", "growth")}
    shown = {name: (FRAGMENTS / f"{name}.txt").read_text() for name in records}
    assert shown["scale"] == bench["scale"].told(records["scale"]) + "\n"
    for name in ("transcription", "transcription_bfloat16"):
        assert shown[name] == bench["transcription"].told(records[name]) + "\n"
    assert shown["growth"].splitlines() == [bench["growth"].line(row) for row in records["growth"]["sizes"]]
    record = records["scale"]
    expected = bench["scale"].project(record["sizes"][-1], record["real"], bench["scale"].PROCESSES)
    assert record["projected"]["hours"] == pytest.approx({str(key): value for key, value in expected["hours"].items()})


@pytest.mark.weights
def test_simulated_hours_go_through_the_real_pipeline():
    found = script("scale").pipeline(0.2)
    assert 0.2 <= found["hours"] < 0.21
    assert 5 < found["wer_percent"] < 20  # every tenth clip is left out
    assert found["shared_s"] > 0 < found["alone_s"]

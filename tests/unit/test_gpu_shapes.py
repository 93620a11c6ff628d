"""The latency of architectures, measured on the CPU with tiny shapes: the record, its rounds, and how many tokens are written."""

import json
import statistics
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_benchmark import BENCHMARKS, script
from transformers import WhisperConfig

from asrlib import uncertainty

SMALL = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_source_positions": 20,
}  # fmt: skip


@pytest.fixture
def bench(monkeypatch):
    module = script("gpu_shapes")
    real = module.architectures.config
    monkeypatch.setattr(
        module.architectures, "config", lambda name: WhisperConfig.from_dict(real(name).to_dict() | SMALL)
    )
    return module


def test_every_round_of_every_model_is_in_the_record(bench, tmp_path, capsys):
    shapes, record = bench.SHAPES[1:3], tmp_path / "record.json"  # one that knows languages, one that does not
    given = ["--device", "cpu", "--rounds", "2", "--shapes", *shapes, "--batches", "1", "2", "--tokens", "3", "5"]
    bench.main([*given, "--output", str(record)])
    found = json.loads(record.read_text())
    assert {"machine", "torch", "transformers", "protocol", "rows"} == set(found)
    assert found["protocol"]["rounds"] == 2
    parts = [("end to end", 3), ("end to end", 5), ("encoder", 0), ("decoder step", 1)]
    expected = [(name, part, batch, n) for name in shapes for batch in (1, 2) for part, n in parts]
    expected += [(name, "decoder", batch, n) for name in shapes for batch in (1, 2) for n in (3, 5)]
    assert [(row["model"], row["part"], row["batch"], row["tokens"]) for row in found["rows"]] == expected
    whole, encoder, rest = (found["rows"][place]["seconds"] for place in (0, 2, 16))
    assert rest == pytest.approx([one - own for one, own in zip(whole, encoder, strict=True)])
    for row in found["rows"]:
        assert len(row["seconds"]) == 2
        assert row["median_s"] == statistics.median(row["seconds"])
        assert row["part"] == "decoder" or min(row["seconds"]) > 0
    assert "round 2 written" in capsys.readouterr().out


def test_a_run_that_has_no_time_left_keeps_its_first_round(bench, tmp_path):
    given = ["--device", "cpu", "--shapes", bench.SHAPES[3], "--batches", "1", "--tokens", "2", "--seconds", "0"]
    bench.main([*given, "--output", str(tmp_path / "record.json")])
    assert json.loads((tmp_path / "record.json").read_text())["protocol"]["rounds"] == 1


def test_an_end_token_does_not_shorten_what_is_timed(bench):
    """A model that would end at once still writes every token."""
    model = bench.build(bench.SHAPES[3], "cpu", torch.float32)
    end = model.generation_config.eos_token_id
    model.proj_out.register_forward_hook(lambda _module, _inputs, logits: logits.index_fill(-1, torch.tensor(end), 1e4))
    ended = model.generate(torch.zeros(1, 80, 40), max_new_tokens=4)
    row = bench.rows(bench.SHAPES[3], model, 1, [4])[0]
    assert ended.shape[1] < 4
    assert row.work() > 0  # it stops the script if there were not four


@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=30))
def test_the_interval_is_the_one_of_the_library(values):
    found = script("gpu_shapes").interval(values)
    if len(values) < 6:
        assert found is None
    else:
        assert tuple(found) == uncertainty.paired_ratio(values, np.ones(len(values))).interval


def test_it_needs_little_more_than_torch_and_transformers():
    """On a rented machine there is no soundfile, jiwer or psutil: with these missing, it still starts."""
    missing = ("soundfile", "av", "jiwer", "soxr", "psutil", "datasets", "pandas", "jsonschema", "ctranslate2", "scipy")
    code = f"import sys; sys.modules.update(dict.fromkeys({missing}))\nsys.argv = ['gpu_shapes.py', '--help']\n"
    code += f"import runpy; runpy.run_path({str(BENCHMARKS / 'gpu_shapes.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--rounds" in done.stdout

"""The benchmark's own arithmetic and files, with two systems whose answers and times are known."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "transcription.py"


@pytest.mark.weights
def test_it_writes_a_record_and_a_plot_with_ratios(monkeypatch, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("benchmark_transcription", SCRIPT)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    silent = ["" for _ in range(3)]
    names = (bench.BASELINE, bench.PEER)
    monkeypatch.setattr(
        bench,
        "measure",
        lambda clips, rounds: (dict.fromkeys(names, silent), {names[0]: [6.0, 8.0], names[1]: [3.0, 2.0]}),
    )
    monkeypatch.setattr(bench.files, "repository", lambda: tmp_path)
    monkeypatch.setattr(sys, "argv", ["transcription.py", "--clips", "3", "--rounds", "2"])
    bench.main()
    record = json.loads((tmp_path / "build" / "bench" / "transcription.json").read_text())
    first, second = record["systems"]
    assert len(record["clips"]) == 3
    assert (first["times_pipeline"], second["times_pipeline"]) == (1.0, 3.0)  # the median of 6/3 and 8/2
    assert first["wer_percent"] == second["wer_percent"] == 100.0
    assert (tmp_path / "build" / "bench" / "transcription.png").read_bytes().startswith(b"\x89PNG")
    assert "x pipeline" in capsys.readouterr().out

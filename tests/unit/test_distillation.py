"""Encoder states on disk, the count of repetitions, and the whole recipe in one process and in two."""

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.modeling_outputs import BaseModelOutput

from asrlib import AsrlibError, cli, hardware
from asrlib.course import records
from asrlib.decoding import network, search, transcription
from asrlib.io import files
from asrlib.training import distillation

REPOSITORY = files.repository()

LENGTHS = {"b": 1.5, "a": 0.4, "c": 3.0}  # seconds


class Processor:
    feature_extractor = WhisperFeatureExtractor()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=0, bos_token_id=0,
        eos_token_id=0, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def clips():
    generator = np.random.default_rng(0)
    sounds = {
        name: generator.normal(0, 0.1, int(16_000 * seconds)).astype(np.float32) for name, seconds in LENGTHS.items()
    }
    return [{"id": name, "audio": sound, "seconds": LENGTHS[name]} for name, sound in sounds.items()]


def states(folder, model, clips, **options):
    return distillation.EncoderStates(folder, model, Processor, clips, clips_per_shard=2, **options)


def direct(model, clips, ids, merged=True):
    rows = {row["id"]: row["audio"] for row in clips}
    heard = [rows[name] for name in ids]
    features = Processor.feature_extractor(heard, sampling_rate=16_000, return_tensors="pt").input_features
    return network.encode(model, features, [len(sound) for sound in heard] if merged else None)


@pytest.mark.parametrize("window", ["merged", "full"])
def test_states_are_those_of_the_encoder_rounded_to_bfloat16(tmp_path, model, clips, window):
    cached, bias = states(tmp_path, model, clips, window=window).batch(["c", "a"])
    exact, weights = direct(model, clips, ["c", "a"], merged=window == "merged")
    assert cached.dtype == torch.bfloat16
    assert (bias is None) == (weights is None)
    seen = torch.ones(2, cached.shape[1], dtype=torch.bool) if bias is None else bias[:, 0, 0].isfinite()
    if bias is not None:
        wide = bias.shape[3]
        assert torch.equal(bias, weights[..., :wide])
        assert weights[..., wide:].isneginf().all()  # the encoder fills up further
        exact = exact[:, :wide]
    torch.testing.assert_close(cached[seen].float(), exact[seen], rtol=1e-2, atol=1e-2)


def test_clips_come_sorted_by_length(tmp_path, model, clips):
    assert states(tmp_path, model, clips).ids == ["a", "b", "c"]


def test_a_table_of_datasets_serves_as_a_list_does(tmp_path, model, clips):
    for row in clips:
        soundfile.write(tmp_path / f"{row['id']}.wav", row["audio"], 16_000, subtype="FLOAT")
    table = Dataset.from_list([row | {"audio": str(tmp_path / f"{row['id']}.wav")} for row in clips])
    found = states(tmp_path / "table", model, table).batch(["b"])[0]
    assert torch.equal(found, states(tmp_path / "list", model, clips).batch(["b"])[0])


def test_a_killed_run_encodes_only_what_is_missing(tmp_path, model, clips, monkeypatch):
    states(tmp_path, model, clips)
    (tmp_path / "000001.json").unlink()  # its states were written, its list was not
    encoded = []
    encode = network.encode
    monkeypatch.setattr(network, "encode", lambda *given: encoded.append(len(given[2])) or encode(*given))
    again = states(tmp_path, model, clips)
    assert encoded == [1]
    assert again.batch(["c"])[0].shape[0] == 1


def test_processes_share_the_shards(tmp_path, model, clips, monkeypatch):
    parts = [states(tmp_path, model, clips, share=(rank, 2)) for rank in range(2)]
    assert [part.shards for part in parts] == [{0: ["a", "b"]}, {1: ["c"]}]
    monkeypatch.setattr(network, "encode", None)  # nothing is left to encode
    assert states(tmp_path, model, clips).ids == ["a", "b", "c"]


def test_a_folder_with_other_clips_is_refused(tmp_path, model, clips):
    states(tmp_path, model, clips)
    with pytest.raises(AsrlibError, match="other clips"):
        states(tmp_path, model, [clips[2], clips[0]])


def test_a_clip_over_the_context_an_id_twice_and_an_unknown_window_are_refused(tmp_path, model, clips):
    long = [{"id": "long", "audio": np.ones(16_000 * 31, np.float32), "seconds": 31.0}]
    with pytest.raises(AsrlibError, match="long is longer than the model's context of 30 s"):
        states(tmp_path / "long", model, long)
    assert not list(tmp_path.rglob("*.json"))
    with pytest.raises(AsrlibError, match="a occurs twice"):
        states(tmp_path / "twice", model, [clips[1], clips[1]])
    with pytest.raises(AsrlibError, match="no window 'half'"):
        states(tmp_path / "half", model, clips, window="half")


def test_each_shard_is_listed_after_it_is_written(tmp_path, model, clips):
    states(tmp_path, model, clips)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000000.json",
        "000000.npy",
        "000001.json",
        "000001.npy",
    ]
    assert json.loads((tmp_path / "000000.json").read_text())["ids"] == ["a", "b"]


def logits(model, states, tokens):
    return model(encoder_outputs=BaseModelOutput(states), decoder_input_ids=tokens, use_cache=False).logits


def test_attending_hides_what_fills_up_a_shorter_clip(model):
    torch.manual_seed(1)
    heard, tokens = torch.randn(1, 5, 16), torch.tensor([[1, 2, 3]])
    filled = torch.cat([heard, torch.randn(1, 3, 16)], dim=1)
    bias = torch.tensor([0.0] * 5 + [-torch.inf] * 3)[None, None, None]
    with torch.no_grad(), distillation.attending(bias, model):
        hidden = logits(model, filled, tokens)
    torch.testing.assert_close(hidden, logits(model, heard, tokens))


def test_attending_counts_a_state_as_often_as_its_weight_says(model):
    torch.manual_seed(2)
    heard, tokens = torch.randn(1, 2, 16), torch.tensor([[1, 2]])
    bias = torch.tensor([1.0, 3.0]).log()[None, None, None]
    with torch.no_grad(), distillation.attending(bias, model):
        weighted = logits(model, heard, tokens)
    torch.testing.assert_close(weighted, logits(model, heard[:, [0, 1, 1, 1]], tokens))


def test_attending_ends_with_its_block_even_after_an_error(model):
    heard, tokens = torch.randn(1, 3, 16), torch.tensor([[1]])
    before = logits(model, heard, tokens)
    with pytest.raises(KeyError), distillation.attending(torch.full((1, 1, 1, 3), -torch.inf), model):
        raise KeyError
    torch.testing.assert_close(logits(model, heard, tokens), before)


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("a b c d e", 0), ("a b c d e a b c d e", 1), ("a " * 7, 2), ("a b c d e x a b c d e", 1)],
)
def test_repeated_runs_of_five_words(text, count):
    assert distillation.repeated_ngrams(text) == count


@given(st.lists(st.sampled_from("ab"), max_size=30), st.integers(1, 6))
def test_repeats_and_different_runs_make_up_all_runs(words, n):
    runs = [tuple(words[first : first + n]) for first in range(len(words) - n + 1)]
    assert distillation.repeated_ngrams(" ".join(words), n) == len(runs) - len(set(runs))


# --- The recipe, in one process and in two ----------------------------------------------------------------------------
def plain(tree, name):
    """Return a function without docstring, annotations and imports."""
    (found,) = (node for node in tree.body if getattr(node, "name", "") == name)
    bare = (part for part in found.body if not isinstance(getattr(part, "value", None), ast.Constant))
    found.body = [part for part in bare if not isinstance(part, ast.Import | ast.ImportFrom)]
    found.returns = None
    for argument in found.args.args:
        argument.annotation = None
    return ast.unparse(found)


@pytest.mark.parametrize("name", ["spaced", "initialise", "divergence"])
def test_the_notebook_teaches_what_the_library_does(name):
    cells = "\n".join(records.notebook_code(files.repository() / "notebooks" / "06_distil_whisper_training.ipynb"))
    assert plain(ast.parse(cells), name) == plain(ast.parse(inspect.getsource(distillation)), name)
    assert f"\nTEMPERATURE = {distillation.TEMPERATURE}\n" in cells
    assert f"\nPAPER, CODE = {json.dumps(distillation.WEIGHTS)}, " in cells


@pytest.mark.parametrize(
    ("depth", "layers", "chosen"), [(6, 2, [0, 5]), (6, 1, [5]), (6, 3, [0, 2, 5]), (4, 4, [0, 1, 2, 3])]
)
def test_layers_of_a_student_are_spaced_and_end_with_the_last(depth, layers, chosen):
    assert distillation.spaced(depth, layers) == chosen


def test_a_student_has_its_teachers_outer_layers_and_all_else(model):
    student = distillation.initialise(model, 1)
    assert student.config.decoder_layers == 1
    taken = student.model.decoder.layers[0].state_dict()
    assert all(torch.equal(taken[name], part) for name, part in model.model.decoder.layers[1].state_dict().items())
    assert torch.equal(student.model.decoder.embed_tokens.weight, model.model.decoder.embed_tokens.weight)
    same = distillation.initialise(model, 2).eval()
    heard, tokens = torch.randn(1, 3, 16), torch.tensor([[1, 2]])
    assert torch.equal(logits(same, heard, tokens), logits(model, heard, tokens))


def test_divergence_is_nothing_for_the_same_and_the_kl_of_softened_distributions_else():
    said, meant = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])
    assert distillation.divergence(meant, meant).item() == pytest.approx(0, abs=1e-6)
    p, q = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))  # the softmax of (1, 0)
    assert distillation.divergence(said, meant).item() == pytest.approx(4 * (p - q) * np.log(p / q), rel=1e-5)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a random teacher that says a or b, 36 clips (two shards) and, of one process, the distilled student."""
    folder = tmp_path_factory.mktemp("world")
    end, start, untimed = _write_tokenizer(folder / "teacher")
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=untimed + 1, d_model=16, encoder_layers=1, decoder_layers=3, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, pad_token_id=end, bos_token_id=end,
        eos_token_id=end, decoder_start_token_id=start, suppress_tokens=None, begin_suppress_tokens=None, init_std=0.5,
    )  # fmt: skip
    teacher = WhisperForConditionalGeneration(config)
    teacher.generation_config = GenerationConfig(
        max_length=10, decoder_start_token_id=start, eos_token_id=end, pad_token_id=end, is_multilingual=False,
        no_timestamps_token_id=untimed, suppress_tokens=[*range(end - 2), start, untimed], begin_suppress_tokens=[end],
    )  # fmt: skip
    teacher.save_pretrained(folder / "teacher")
    generator, lines = np.random.default_rng(0), ["file_name,transcription"]
    (folder / "speech").mkdir()
    for number in range(36):
        seconds = np.arange(16_000 * generator.uniform(0.2, 0.6)) / 16_000
        pitch, pulse = (np.sin(2 * np.pi * generator.uniform(*hertz) * seconds) for hertz in ((100, 3000), (1, 20)))
        sound = 0.3 * pitch * pulse + generator.normal(0, 0.01, len(seconds))
        soundfile.write(folder / "speech" / f"{number}.wav", sound, 16_000)
        # One to ten words a or b are 80 or 90 % wrong against the first text, and at least 100 % against the second.
        lines.append(f"{number}.wav,{'a b' + 8 * ' c' if number < 19 else 'c'}")
    (folder / "speech" / "metadata.csv").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        assert cli.main(command("one")) == 0
    return folder


def enter(folder, patch):
    """Work in a folder, on the CPU and in float32, where two processes compute as one does."""
    patch.chdir(folder)
    patch.setattr(hardware, "best_device", lambda: "cpu")
    patch.setattr(hardware, "best_dtype", lambda device=None: torch.float32)


def _write_tokenizer(folder):
    """Write a tokenizer of bytes, ``a``, ``b`` and three special tokens; return the ids of these."""
    folder.mkdir()
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    tokens = [*bytes_to_unicode().values(), "Ġa", "Ġb", *special]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nĠ a\nĠ b\n")
    tokenizer = WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return tokenizer.convert_tokens_to_ids(special)


def command(output, **options):
    """Return a command line of `asrlib distil`; of 19 labels kept, a last batch has one clip, and one of two processes none."""
    options = {"root": "speech", "model": "./teacher", "threshold": 95, "steps": 8, "batch-size": 3} | options
    return ["distil", "folder/en/test", "--output", output, *(f"--{name}={value}" for name, value in options.items())]


TWO = """
import json, sys, torch
from asrlib import cli, hardware
hardware.best_device, hardware.best_dtype = lambda: "cpu", lambda device=None: torch.float32
codes = []
for arguments in json.loads(sys.argv[1]):
    try:
        codes.append(cli.main(arguments))
    except SystemExit as ended:
        codes.append(ended.code)
sys.exit(codes != [0, 1, 1])
"""


@pytest.mark.slow
def test_two_processes_label_and_train_as_one_does_and_fail_with_one_sentence(world):
    (world / "two.py").write_text(TWO)
    runs = [command("two"), command("two", root="teacher/../speech"), command("three", **{"batch-size": 1})]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "two.py", json.dumps(runs)],
        cwd=world, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("36 clips, 19 labels within 95 % WER, 8 steps: ") == done.stdout.count("\n") == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("asrlib: ")]
    assert len(said) == 2, done.stderr
    assert "two belongs to another teacher or corpus" in said[0]  # which the first process alone finds out
    assert "2 processes cannot share a batch of 1:" in said[1]
    one, two = (world / name for name in ("one", "two"))
    labels = (one / "labels.jsonl").read_bytes()
    assert labels == (two / "labels.jsonl").read_bytes()
    assert [row["id"] for row in files.read_jsonl(one / "labels.jsonl")] == [f"{number}.wav" for number in range(36)]
    assert len({row["text"] for row in files.read_jsonl(one / "labels.jsonl")}) > 1
    losses = [pd.read_json(folder / "losses.jsonl", lines=True) for folder in (one, two)]
    assert len(losses[0]) == 8
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    students = [transcription.load(folder / "student", device="cpu", dtype=torch.float32)[0] for folder in (one, two)]
    assert students[0].config.decoder_layers == 2
    for first, second in zip(*(student.parameters() for student in students), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


def test_the_decoder_alone_is_trained_and_the_student_transcribes(world):
    teacher, _ = transcription.load(world / "teacher", device="cpu", dtype=torch.float32)
    student, processor = transcription.load(world / "one" / "student", device="cpu", dtype=torch.float32)
    before, after = dict(teacher.named_parameters()), dict(student.named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith("model.encoder."))
    assert not torch.equal(after["model.decoder.layer_norm.weight"], before["model.decoder.layer_norm.weight"])
    heard = next(transcription.transcribe(student, processor, [world / "speech" / "0.wav"]))
    assert set(heard.text.split()) <= {"a", "b"}


def test_a_killed_distillation_labels_only_the_shard_that_is_missing(world, monkeypatch, capsys):
    enter(world, monkeypatch)
    shutil.copytree("one", "killed")
    for path in Path("killed").rglob("000001.*"):
        path.unlink()
    Path("killed/labels.jsonl").unlink()
    calls, encode, greedy = [], network.encode, search.greedy
    monkeypatch.setattr(network, "encode", lambda *given: calls.append(len(given[2])) or encode(*given))
    monkeypatch.setattr(search, "greedy", lambda *given: calls.append(len(given[2])) or greedy(*given))
    assert cli.main(command("killed")) == 0
    assert calls == [4, 4]
    assert Path("killed/labels.jsonl").read_bytes() == Path("one/labels.jsonl").read_bytes()
    assert "the student lies in killed/student.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 5}, "Not one of 36 labels is within 5 % WER"),
        ({"layers": 4}, "./teacher has 3 decoder layers"),
        ({"clips": 3}, "holds the encoder states of other clips"),
        ({"root": "nowhere"}, "There is no folder nowhere: check the path"),
    ],
)
def test_what_a_person_can_mend_is_one_sentence(world, monkeypatch, capsys, options, message):
    enter(world, monkeypatch)
    assert cli.main(command("one", **options)) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_labels_that_this_machine_does_not_see_are_missed(world, tmp_path):
    rows = Dataset.from_list([{"id": "0.wav", "text": "a"}])
    with pytest.raises(AsrlibError, match="let all processes see the same folder"):
        distillation._judged(tmp_path, rows, None, str.lower)

"""Encoder states on disk, the count of repetitions, and the whole recipe in one process and in two."""

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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
from asrlib.training.distillation import labels, recipe, training
from asrlib.training.distillation.losses import inputs_and_targets

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
        eos_token_id=0, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None, init_std=0.3,
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
    assert cached.shape == exact.shape  # of the same width, for which the processor's kernels are made once
    assert (bias is None) == (weights is None) == (window == "full")
    read = torch.ones(2, cached.shape[1], dtype=torch.bool) if bias is None else bias[:, 0, 0].isfinite()
    if bias is not None:
        assert torch.equal(bias, weights)
        assert bias.shape[3] % network.STEP == 0
    torch.testing.assert_close(cached[read].float(), exact[read], rtol=1e-2, atol=1e-2)


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
    assert parts[1].ids == ["c"]
    parts[1].complete()
    assert parts[1].ids == ["a", "b", "c"]
    monkeypatch.setattr(network, "encode", None)  # nothing is left to encode
    assert states(tmp_path, model, clips).ids == ["a", "b", "c"]
    (tmp_path / "000001.json").unlink()
    with pytest.raises(AsrlibError, match="lacks shard 1: let all processes see the same folder"):
        parts[0].complete()


def test_a_folder_with_other_clips_is_refused(tmp_path, model, clips):
    states(tmp_path, model, clips)
    with pytest.raises(AsrlibError, match="other clips"):
        states(tmp_path, model, [clips[2], clips[0]])


def test_an_id_twice_and_an_unknown_window_are_refused(tmp_path, model, clips):
    with pytest.raises(AsrlibError, match="a occurs twice"):
        states(tmp_path / "twice", model, [clips[1], clips[1]])
    with pytest.raises(AsrlibError, match="no window 'half'"):
        states(tmp_path / "half", model, clips, window="half")


def test_a_clip_that_fails_is_named_each_time_and_one_that_has_changed_is_encoded_again(
    tmp_path, model, clips, monkeypatch, capsys
):
    encoded, encode = [], network.encode
    monkeypatch.setattr(network, "encode", lambda *given: encoded.append(given[2]) or encode(*given))
    for row in clips:
        soundfile.write(tmp_path / f"{row['id']}.wav", row["audio"], 16_000)
    rows = [row | {"audio": str(tmp_path / f"{row['id']}.wav")} for row in clips]
    rows.append({"id": "long", "audio": np.ones(16_000 * 31, np.float32), "seconds": 31.0})
    (tmp_path / "a.wav").write_bytes(b"no sound")
    for run in range(2):
        found = states(tmp_path / "out", model, rows)
        assert found.ids == ["b", "c"]
        assert found.failed.keys() == {"a", "long"}
        said = capsys.readouterr().err
        assert "a.wav is not audio" in said and "long is longer than the model's context of 30 s" in said
        assert len(encoded) == 2, run  # what failed is tried again, what is done is not
    soundfile.write(tmp_path / "a.wav", clips[1]["audio"], 16_000)
    (tmp_path / "out" / "000000.jsonl").touch()  # labels of the clips as they were
    assert states(tmp_path / "out", model, rows).ids == ["a", "b", "c"]
    assert not (tmp_path / "out" / "000000.jsonl").exists()
    soundfile.write(tmp_path / "c.wav", clips[0]["audio"], 16_000)
    states(tmp_path / "out", model, rows)
    assert [len(lengths) for lengths in encoded] == [1, 1, 2, 1]


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
    module = inspect.getmodule(getattr(distillation, name))
    assert plain(ast.parse(cells), name) == plain(ast.parse(inspect.getsource(module)), name)
    assert f"\nTEMPERATURE = {distillation.TEMPERATURE}\n" in cells
    assert f"\nPAPER, CODE = {json.dumps(distillation.WEIGHTS)}, " in cells


@pytest.mark.parametrize(
    ("depth", "layers", "chosen"), [(6, 2, [0, 5]), (6, 1, [5]), (6, 3, [0, 2, 5]), (4, 4, [0, 1, 2, 3])]
)
def test_layers_of_a_student_are_spaced_and_end_with_the_last(depth, layers, chosen):
    assert distillation.spaced(depth, layers) == chosen


def test_a_student_has_its_teachers_outer_layers_and_all_else(model):
    model.generation_config.alignment_heads = [[1, 0]]
    student = distillation.initialise(model, 1)
    assert student.config.decoder_layers == 1
    assert student.generation_config.alignment_heads is None  # they would name another layer, or none
    taken = student.model.decoder.layers[0].state_dict()
    assert all(torch.equal(taken[name], part) for name, part in model.model.decoder.layers[1].state_dict().items())
    assert torch.equal(student.model.decoder.embed_tokens.weight, model.model.decoder.embed_tokens.weight)
    same = distillation.initialise(model, 2).eval()
    heard, tokens = torch.randn(1, 3, 16), torch.tensor([[1, 2]])
    assert torch.equal(logits(same, heard, tokens), logits(model, heard, tokens))


def test_divergence_is_nothing_for_the_same_and_the_kl_of_softened_distributions_else():
    student_logits, teacher_logits = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])
    assert distillation.divergence(teacher_logits, teacher_logits).item() == pytest.approx(0, abs=1e-6)
    p, q = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))  # the softmax of (1, 0)
    expected = pytest.approx(4 * (p - q) * np.log(p / q), rel=1e-5)
    assert distillation.divergence(student_logits, teacher_logits).item() == expected
    twice = [logits.repeat(3, 1) for logits in (student_logits, teacher_logits)]
    assert distillation.divergence(*twice).item() == expected  # a mean over tokens


def test_the_label_and_its_end_are_targets_and_nothing_else():
    rows = [torch.tensor([50, 51, 52, 7, 8, 9]), torch.tensor([50, 51, 52, 5, 9])]  # three tokens of a prompt; 9 ends
    inputs, targets = inputs_and_targets(rows, 3, 9)
    assert inputs.tolist() == [[50, 51, 52, 7, 8], [50, 51, 52, 5, 9]]
    assert targets.tolist() == [[-100, -100, 7, 8, 9], [-100, -100, 5, 9, -100]]


@pytest.fixture
def training_set(tmp_path, model, clips):
    labels = {"a": [5], "b": [6, 7, 8], "c": []}
    tokenizer = SimpleNamespace(eos_token_id=0)
    return distillation.TrainingSet(model, tokenizer, [1, 2, 3], states(tmp_path, model, clips), labels)


def test_losses_are_those_of_transformers_and_sums_over_the_targets(training_set, model):
    student = distillation.initialise(model, 1).eval()
    names = ["a", "b", "c"]
    assert training_set.targets(names) == 2 + 4 + 1
    with torch.no_grad():
        found = training_set.losses(student, names)
        alone = [training_set.losses(student, [name]) for name in names]
        torch.testing.assert_close(found, sum(alone))
        for name, (cross_entropy, kl) in zip(names, alone, strict=True):
            tokens = training_set.tokens(name)
            encoder_states, bias = training_set.states.batch([name])
            given = {"encoder_outputs": BaseModelOutput(encoder_states.float()), "decoder_input_ids": tokens[None, :-1]}
            with distillation.attending(bias, student, model):
                theirs, teacher = student(**given).logits[0, 2:], model(**given).logits[0, 2:]
            expected = torch.nn.functional.cross_entropy(theirs, tokens[3:], reduction="sum")
            torch.testing.assert_close(cross_entropy, expected)
            p, q = ((logits / 2).double().softmax(-1) for logits in (teacher, theirs))
            assert kl.item() == pytest.approx(4 * (p * (p / q).log()).sum().item(), rel=1e-3)


def test_a_label_longer_than_the_decoder_loses_its_end(training_set, monkeypatch):
    monkeypatch.setattr(training_set.teacher.config, "max_target_positions", 5)
    assert training_set.tokens("b").tolist() == [1, 2, 3, 6, 7, 8]
    assert training_set.tokens("a").tolist() == [1, 2, 3, 5, 0]


def test_labels_end_with_what_the_sound_can_hold(tmp_path, model, clips, monkeypatch):
    limits = []

    def loop(model, states, prompts, bias, *, max_new_tokens):
        limits.append(max_new_tokens)
        return [[5] * max_new_tokens for _ in prompts]

    monkeypatch.setattr(search, "greedy", loop)
    labels.write(states(tmp_path, model, clips), model, [1], "")
    assert limits == [20 + 30, 20 + 60]  # of the longest clip of each shard: 1.5 s and 3 s


@pytest.mark.parametrize(("language", "percents"), [("ko", [0, 100]), ("zh", [0, 25])])
def test_labels_are_judged_by_words_or_by_characters_where_there_are_no_spaces(tmp_path, language, percents):
    files.write_jsonl(tmp_path / "0.jsonl", [{"id": "a", "tokens": ["今天天气"]}, {"id": "b", "tokens": ["今天天汽"]}])
    tokenizer = SimpleNamespace(decode=lambda tokens, **_: "".join(tokens))
    found = labels.rate(SimpleNamespace(folder=tmp_path), ["a", "b"], ["今天天气"] * 2, tokenizer, language)[1]
    assert [row["error_percent"] for row in found] == percents


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
    assert done.stdout.count("36 clips, 19 labels within 95 % errors, 8 steps: ") == done.stdout.count("\n") == 1
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
    monkeypatch.setattr(
        search, "greedy", lambda *given, **limit: calls.append(len(given[2])) or greedy(*given, **limit)
    )
    assert cli.main(command("killed")) == 0
    assert calls == [4, 4]
    assert Path("killed/labels.jsonl").read_bytes() == Path("one/labels.jsonl").read_bytes()
    assert "the student lies in killed/student.\n" in capsys.readouterr().out


def test_a_training_killed_between_checkpoints_ends_with_the_same_weights(world, monkeypatch):
    enter(world, monkeypatch)
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 2)
    shutil.copytree("one", "stopped", ignore=shutil.ignore_patterns("student", "losses.jsonl"))
    step, taken = training._Training.step, []

    def die(self, *given):
        if len(taken) == 5:
            raise KeyboardInterrupt
        taken.append(len(self.log))
        step(self, *given)

    monkeypatch.setattr(training._Training, "step", die)
    assert cli.main(command("stopped")) == 130
    assert Path("stopped/checkpoint.safetensors").is_file()
    monkeypatch.setattr(
        training._Training, "step", lambda self, *given: taken.append(len(self.log)) or step(self, *given)
    )
    taken.clear()
    assert cli.main(command("stopped")) == 0
    assert taken == [4, 5, 6, 7]  # the last checkpoint was that of four steps
    assert not Path("stopped/checkpoint.safetensors").exists()
    for name in ("losses.jsonl", "student/model.safetensors"):
        assert Path("stopped", name).read_bytes() == Path("one", name).read_bytes()


def test_a_checkpoint_of_another_training_is_not_taken_up(world, monkeypatch):
    enter(world, monkeypatch)
    shutil.copytree("one", "other")
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 1)
    monkeypatch.setattr(recipe, "_save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # it stays
    assert cli.main(command("other", steps=2)) == 130
    seen, step = [], training._Training.step
    monkeypatch.setattr(
        training._Training, "step", lambda self, *given: seen.append(len(self.log)) or step(self, *given)
    )
    assert cli.main(command("other", steps=2)) == 130
    assert seen == []
    assert cli.main(command("other", steps=2, seed=1)) == 130
    assert seen == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 5}, "Not one of 36 labels is within 5 % errors"),
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


def test_labels_that_this_machine_does_not_see_are_missed(tmp_path):
    with pytest.raises(AsrlibError, match="let all processes see the same folder"):
        labels.rate(SimpleNamespace(folder=tmp_path), ["0.wav"], ["a"], None, "en")

"""Encoder states on disk, the count of repetitions, and the whole recipe in one process and in two."""

import ast
import dataclasses
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
import yaml
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
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
from asrlib.training.distillation.card import card
from asrlib.training.distillation.labels import Label
from asrlib.training.distillation.losses import TrainingSet, masked
from asrlib.training.distillation.training import Group, batches
from tests import programs

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


@pytest.mark.parametrize("window", ["merged", "full"])
def test_live_states_are_those_of_the_encoder_and_take_no_disk(tmp_path, model, clips, window):
    broken = [*clips, {"id": "broken", "audio": b"no sound", "seconds": 1.0}]
    made = distillation.LiveStates(tmp_path, model, Processor, broken, clips_per_shard=2, window=window)
    assert made.ids == ["a", "b", "c"] and made.failed.keys() == {"broken"}
    for found, wanted in zip(made.batch(["c", "a"]), direct(model, clips, ["c", "a"], window == "merged"), strict=True):
        assert found is wanted is None or torch.equal(found, wanted)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2000


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


GENERATION = SimpleNamespace(
    decoder_start_token_id=1, no_timestamps_token_id=4, eos_token_id=0, is_multilingual=False
)  # earlier text: 2, silence: 3, no times: 4, times: 5 and more


def label(*tokens, text="a", logprob=-0.1):
    return Label(list(tokens), text, logprob)


def test_the_label_and_its_end_are_targets_and_nothing_else():
    rows = [distillation.Example([50, 51, 52, 7, 8, 9], 3), distillation.Example([2, 50, 51, 52, 5, 9], 4)]  # 9 ends
    inputs, targets = distillation.inputs_and_targets(rows, 9)
    assert inputs.tolist() == [[50, 51, 52, 7, 8], [2, 50, 51, 52, 5]]
    assert targets.tolist() == [[-100, -100, 7, 8, 9], [-100, -100, -100, 5, 9]]
    assert [row.targets for row in rows] == [3, 2]
    inputs, targets = distillation.inputs_and_targets([rows[0], distillation.Example([50, 51, 52, 9], 3)], 9)
    assert inputs[1].tolist() == [50, 51, 52, 9, 9]
    assert targets[1].tolist() == [-100, -100, 9, -100, -100]
    assert distillation.vocabulary(dict(enumerate(rows))).tolist() == [5, 7, 8, 9]


def test_times_and_earlier_text_come_by_chance_that_is_drawn_once():
    first, words = 2000, GENERATION.no_timestamps_token_id + 1
    found = {f"{number:03d}": label(words, first + number, words + 50) for number in range(400)}
    spoken, before = dict.fromkeys(found, "en"), {"001": "000", "002": "missing"}

    def made(**options):
        return distillation.examples(found, spoken, GENERATION, 60, before=before, **options)

    assert made()["007"] == distillation.Example([1, 4, first + 7, 0], 2)
    assert made(timestamps=1.0)["007"] == distillation.Example([1, words, first + 7, words + 50, 0], 1)
    assert made(previous=1.0)["001"] == distillation.Example([2, first, 1, 4, first + 1, 0], 4)
    assert made(previous=1.0)["002"].first == 2  # whose recording before has no label
    timed = [len(row.tokens) == 5 for row in made(timestamps=0.5).values()]
    assert 150 < sum(timed) < 250
    assert made(timestamps=0.5) == made(timestamps=0.5) != made(timestamps=0.5, seed=1)


def test_a_clip_is_learnt_in_its_own_language():
    generation = SimpleNamespace(
        decoder_start_token_id=1, lang_to_id={"<|en|>": 10, "<|de|>": 11}, task_to_id={"transcribe": 12},
        no_timestamps_token_id=20, eos_token_id=0, is_multilingual=True,
    )  # fmt: skip
    made = distillation.examples({"a": label(3), "b": label(3)}, {"a": "de", "b": "en"}, generation, 60)
    assert made["a"] == distillation.Example([1, 11, 12, 20, 3, 0], 4)
    assert made["b"] == distillation.Example([1, 10, 12, 20, 3, 0], 4)


@given(st.integers(0, 80), st.integers(0, 80))
def test_an_example_fits_into_the_decoder_and_keeps_its_prompt(size, earlier):
    found = {"a": label(*[3000] * earlier), "b": label(*[4000] * size)}
    row = distillation.examples(found, dict.fromkeys(found, "en"), GENERATION, 40, before={"b": "a"}, previous=1.0)["b"]
    assert len(row.tokens) <= 41
    assert row.tokens[row.first - 2 : row.first] == [1, 4]
    assert row.tokens[1 : row.first - 2] == [3000] * min(earlier, 19)
    assert row.tokens[row.first :] == ([4000] * size + [0])[: 41 - row.first]


@pytest.fixture
def training_set(tmp_path, model, clips):
    stored = states(tmp_path, model, clips)
    rows = {"a": ([1, 2, 3, 5, 0], 3), "b": ([1, 2, 3, 6, 7, 8, 0], 3), "c": ([9, 1, 2, 3, 0], 4)}
    rows = {name: distillation.Example(*row) for name, row in rows.items()}
    teaching = distillation.TeacherStates(stored, model, rows)
    teaching.complete(stored)
    return distillation.TrainingSet(stored, teaching, rows, model.proj_out.weight.detach())


def expected_losses(training_set, student, teacher, name, chosen):
    """Return the losses of a clip by the models' own forward."""
    row = training_set.examples[name]
    tokens = torch.tensor(row.tokens)
    encoder_states, bias = training_set.states.batch([name])
    given = {"encoder_outputs": BaseModelOutput(encoder_states.float()), "decoder_input_ids": tokens[None, :-1]}
    with torch.no_grad(), distillation.attending(bias, student, teacher):
        outputs = [one(**given, output_hidden_states=True) for one in (student, teacher)]
    theirs, taught = (one.logits[0, row.first - 1 :][:, chosen].double() for one in outputs)
    targets = (tokens[row.first :, None] == chosen).nonzero()[:, 1]
    p, q = ((logits / 2).softmax(-1) for logits in (taught, theirs))
    last, wanted = (one.decoder_hidden_states[-1][0, row.first - 1 :] for one in outputs)
    distance = ((last - wanted).norm(dim=1) / wanted.norm(dim=1)).square().sum()
    kl = 4 * (p * (p / q).log()).sum()
    return torch.stack([torch.nn.functional.cross_entropy(theirs, targets, reduction="sum"), kl, distance.double()])


@pytest.mark.parametrize("chosen", [None, [0, 5, 6, 7, 8]])
def test_losses_are_those_of_transformers_and_sums_over_the_targets(training_set, model, chosen):
    vocabulary = None if chosen is None else torch.tensor(chosen)
    training_set = distillation.TrainingSet(
        training_set.states, training_set.teaching, training_set.examples, training_set.whole, vocabulary
    )
    student = distillation.initialise(model, 1).eval()
    names = ["a", "b", "c"]
    assert training_set.targets(names) == 2 + 4 + 1
    with torch.no_grad():
        found = training_set.losses(student, names)
        alone = torch.stack([training_set.losses(student, [name]) for name in names])
    torch.testing.assert_close(found, alone.sum(dim=0))
    rows = torch.arange(60) if chosen is None else vocabulary
    expected = torch.stack([expected_losses(training_set, student, model, name, rows) for name in names])
    torch.testing.assert_close(
        alone.double(), expected, rtol=2e-2, atol=1e-4
    )  # the teacher's states are kept in bfloat16


def test_the_teachers_own_copy_loses_nothing_to_it(training_set, model):
    same = distillation.initialise(model, 2).eval()
    with torch.no_grad():
        _, kl, distance = training_set.losses(same, ["b"]).tolist()
    assert kl < 1e-2 and distance < 1e-3


def test_of_a_teacher_in_float16_a_student_learns_in_float32(training_set, model):
    given = vars(training_set) | {"whole": training_set.whole.half()}
    made = TrainingSet(*(given[field.name] for field in dataclasses.fields(TrainingSet)))
    seen = []
    handle = model.model.decoder.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    found = made.losses(model, ["a", "b"])
    handle.remove()
    assert seen == [False]
    torch.testing.assert_close(found, training_set.losses(model, ["a", "b"]), rtol=1e-2, atol=1e-3)


def test_the_teacher_decodes_each_label_once(training_set, model, monkeypatch):
    monkeypatch.setattr(distillation.losses, "decode", None)
    again = distillation.TeacherStates(training_set.states, model, training_set.examples)
    again.complete(training_set.states)
    assert torch.equal(again.batch(["c", "a"]), training_set.teaching.batch(["c", "a"]))
    with pytest.raises(TypeError):  # another label is decoded
        changed = training_set.examples | {"a": distillation.Example([1, 2, 3, 7, 0], 3)}
        distillation.TeacherStates(training_set.states, model, changed)


@given(st.floats(0, 1), st.integers(1, 200))
def test_spans_of_the_states_are_masked_as_often_as_wanted(share, positions):
    torch.manual_seed(0)
    states = torch.ones(50, positions, 2)
    kept = masked(states, share)
    assert set(kept.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(kept[:, :, 0], kept[:, :, 1])
    for at in range(0, positions, 25):  # half a second goes or stays as a whole
        assert (kept[:, at : at + 25, 0] == kept[:, at : at + 1, 0]).all()
    assert abs(1 - kept.mean().item() - share) < 0.3


def test_batches_are_of_one_corpus_in_the_shares_wanted_and_each_clip_comes_round():
    groups = [Group([f"a{n}" for n in range(10)], 3.0), Group([f"b{n}" for n in range(4)], 1.0)]
    drawn = [names for names, _ in zip(batches(groups, 3, 0), range(800), strict=False)]
    assert all(len({name[0] for name in names}) == 1 for names in drawn)
    of_first = [names for names in drawn if names[0][0] == "a"]
    assert 0.7 < len(of_first) / len(drawn) < 0.8
    for first in range(0, len(of_first) - 4, 4):  # four batches are the corpus
        assert sorted(name for names in of_first[first : first + 4] for name in names) == sorted(groups[0].names)
    even = [
        names[0][0] for names, _ in zip(batches([Group(list("aaaa")), Group(["b"])], 2, 0), range(300), strict=False)
    ]
    assert 0.55 < even.count("a") / 300 < 0.78  # two batches of three
    assert [*zip(batches(groups, 3, 1), range(5), strict=False)] == [
        *zip(batches(groups, 3, 1), range(5), strict=False)
    ]


@pytest.mark.parametrize("published", [False, True])
def test_what_is_trained_is_the_decoder_or_its_layers_without_the_way_to_the_encoder(model, published):
    student = distillation.initialise(model, 1)
    names = set(training.choose(student, published))
    fixed = {name for name, _ in student.named_parameters() if name not in names}
    assert all(name.startswith("model.encoder.") for name in fixed if published)
    assert (
        ("model.decoder.embed_tokens.weight" in names) == ("model.decoder.embed_positions.weight" in names) == published
    )
    crossing = {name for name in fixed | names if "encoder_attn.k_proj" in name or "encoder_attn.v_proj" in name}
    assert (crossing <= names) if published else (crossing <= fixed)
    assert {"model.decoder.layer_norm.weight", "model.decoder.layers.0.encoder_attn.q_proj.weight"} <= names


def test_a_training_ends_when_its_patience_does_and_returns_the_best(training_set, model):
    settings = distillation.Settings(corpus=(), steps=50, batch_size=2, every=2, patience=2)
    course = training.Training(distillation.initialise(model, 1), settings)
    rates, kept = iter([0.5, 0.3, 0.3, 0.4]), []

    class Scripted:
        def score(self, student):
            kept.append(student.model.decoder.layer_norm.weight.detach().clone())
            return SimpleNamespace(capped=SimpleNamespace(wer=next(rates)), wer=5.0)

    student = course.run(training_set, [Group(["a", "b", "c"])], [Scripted()])
    assert [score["step"] for score in course.scores] == [2, 4, 6, 8]  # the last two brought nothing better
    assert torch.equal(student.model.decoder.layer_norm.weight, kept[1])
    assert not torch.equal(kept[1], kept[3])


def test_a_training_killed_after_its_patience_ended_takes_no_further_step(training_set, model, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 2)
    settings = distillation.Settings(corpus=(), steps=50, batch_size=2, every=2, patience=1)
    rates = iter([0.3, 0.4, 0.1])
    scripted = SimpleNamespace(score=lambda student: SimpleNamespace(capped=SimpleNamespace(wer=next(rates))))
    for _ in range(2):
        course = training.Training(distillation.initialise(model, 1), settings)
        given = {"checkpoint": tmp_path / "checkpoint", "name": "x"}
        course.run(training_set, [Group(["a", "b", "c"])], [scripted], **given)
        assert len(course.log) == 4


def test_what_nobody_wrote_down_is_written_by_the_teacher_and_nothing_else(monkeypatch):
    rows = {name: {"text": said} for name, said in {"a": "a b", "b": ""}.items()}
    monkeypatch.setattr(recipe, "clips", lambda *_, **__: rows)
    monkeypatch.setattr(recipe, "EncoderStates", lambda *_, **__: SimpleNamespace(ids=["a", "b"]))
    monkeypatch.setattr(recipe.whisper, "prompt", lambda *_: [])
    monkeypatch.setattr(recipe.Validation, "write", lambda self, teacher: dict.fromkeys(rows, "x"))
    given = distillation.Settings(corpus=()), "folder/en/test", Path(), SimpleNamespace(generation_config=None)
    made = recipe.validate(*given, SimpleNamespace(tokenizer=None))
    assert made.references == {"a": "a b", "b": "x"}


def test_settings_that_would_have_no_effect_are_refused():
    with pytest.raises(AsrlibError, match="--published leaves out"):
        distillation.Settings(("telephone/en/train",), published=True, hidden=10.0)
    with pytest.raises(AsrlibError, match="write :packed"):
        distillation.Settings(("telephone/en/train",), previous=0.2)
    assert distillation.Settings(("telephone/en/train", "untranscribed/en/train:packed"), previous=0.2).previous


def test_the_card_tells_the_steps_that_were_taken_and_languages_that_stay_text():
    settings = distillation.Settings(("fleurs/nb/train",), validation=("fleurs/nb/validation",), steps=400)
    counts = {"steps": 200, "kept": 1, "words": 2, "scores": [{"step": 200, "wer": 9.0}]}
    said = card(settings, counts)
    assert "trained for 200 steps" in said and "loops capped: 9.0 %" in said
    assert yaml.safe_load(said.split("---")[1])["language"] == ["no"]


def test_labels_end_with_what_the_sound_can_hold(tmp_path, model, clips, monkeypatch):
    limits = []

    def loop(model, states, prompts, bias, *, max_new_tokens, scores, rules):
        limits.extend(max_new_tokens)
        return [search.Found([5] * most, -0.5, 0.1) for most in max_new_tokens]

    monkeypatch.setattr(search, "search", loop)
    stored = states(tmp_path, model, clips)
    model.generation_config.is_multilingual, model.generation_config.no_timestamps_token_id = False, 4
    labels.write(stored, model, dict.fromkeys(LENGTHS, "en"))
    assert limits == [20 + 8, 20 + 30, 20 + 60]  # 0.4, 1.5 and 3 s, the shortest first
    read = labels.read(stored, SimpleNamespace(decode=lambda tokens, **_: f" {len(tokens)} "))
    assert read["b"] == Label([5] * 50, "50", -0.5)


@pytest.mark.parametrize(("language", "percents"), [("ko", [0, 100]), ("zh", [0, 25])])
def test_labels_are_judged_by_words_or_by_characters_where_there_are_no_spaces(language, percents):
    found = labels.rate([label(text="今天天气"), label(text="今天天汽")], ["今天天气"] * 2, language, 20)
    assert [row["error_percent"] for row in found] == percents
    assert [row["dropped"] for row in found] == ["", "differs from the transcript"]


def test_labels_without_transcripts_are_judged_by_themselves():
    found = [
        label(text="as sure as can be"), label(text=""), label(text="and so on " * 30), label(text="a b", logprob=-1.01)
    ]  # fmt: skip
    rows = labels.rate(found, [""] * 4, "en", 10)
    assert [row["dropped"] for row in rows] == ["", "no words", "repeats itself", "improbable"]
    assert {row["error_percent"] for row in rows} == {None}


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("telephone/en/train", ("telephone", "en", "train", False, None)),
        ("untranscribed/en/train:packed=3", ("untranscribed", "en", "train", True, 3.0)),
        ("common_voice/zh-CN/test=0.25", ("common_voice", "zh-CN", "test", False, 0.25)),
    ],
)
def test_a_corpus_is_read_with_its_packing_and_its_share(text, source):
    found = distillation.Source.parse(text)
    assert found == distillation.Source(*source)
    assert found.code == source[1].split("-")[0]


@pytest.mark.parametrize(
    "text", ["telephone/en", "telephone", "a/b/c/d", "a/b/c=", "a/b/c=0", "a/b/c=1.2.3", "a/b/c:joined"]
)
def test_what_is_no_corpus_is_refused_in_one_sentence(text):
    with pytest.raises(AsrlibError, match=r"write a corpus as CORPUS/LANGUAGE/SPLIT|a share is a number above zero"):
        distillation.Source.parse(text)


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


@pytest.mark.slow
def test_two_processes_label_and_train_as_one_does_and_fail_with_one_sentence(world):
    (world / "two.py").write_text(programs.TWO)
    runs = [command("two"), command("two", root="teacher/../speech"), command("three", **{"batch-size": 1})]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "two.py", json.dumps(runs), "[0, 1, 1]"],
        cwd=world, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("36 clips, 19 labels of ") == done.stdout.count("\n") == 1
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


def test_a_live_distillation_keeps_no_states(world, monkeypatch):
    enter(world, monkeypatch)
    assert cli.main([*command("live"), "--live"]) == 0
    assert Path("live/student/model.safetensors").is_file()
    listed = [folder / "shards" / "000000.npy" for folder in (world / "live", world / "one")]
    assert listed[0].stat().st_size < 1000 < listed[1].stat().st_size


def test_a_student_has_a_card_its_numbers_and_its_curves(world):
    folder = world / "one"
    facts = files.read_json(folder / "distillation.json")
    assert (facts["clips"], facts["kept"], facts["settings"]["steps"], facts["failed"]) == (36, 19, 8, {})
    words = [row["text"] for row in files.read_jsonl(folder / "labels.jsonl") if not row["dropped"]]
    assert facts["words"] == sum(len(text.split()) for text in words)
    said = (folder / "student" / "README.md").read_text()
    assert "base_model" not in said  # the Hub refuses a folder there
    assert "2 decoder layers" in said and f"19 pseudo-labels of {facts['words']} words" in said
    assert "asrlib distil folder/en/test --model ./teacher --root speech --threshold 95 --steps 8" in said
    events = EventAccumulator(str(folder / "logs")).Reload()
    assert events.Tags()["scalars"] == ["loss/cross_entropy", "loss/kl", "loss/hidden"]
    (last,) = events.Scalars("loss/kl")
    assert last.step == 8 and last.value == pytest.approx(facts["kl"], rel=1e-5)


def test_a_killed_distillation_labels_only_the_shard_that_is_missing(world, monkeypatch, capsys):
    enter(world, monkeypatch)
    shutil.copytree("one", "killed")
    for path in Path("killed").rglob("000001.*"):
        path.unlink()
    Path("killed/labels.jsonl").unlink()
    calls, encode, find = [], network.encode, search.search
    monkeypatch.setattr(network, "encode", lambda *given: calls.append(len(given[2])) or encode(*given))
    monkeypatch.setattr(search, "search", lambda *given, **limit: calls.append(len(given[2])) or find(*given, **limit))
    assert cli.main(command("killed")) == 0
    assert calls == [4, 4]
    assert Path("killed/labels.jsonl").read_bytes() == Path("one/labels.jsonl").read_bytes()
    assert "the student lies in killed/student.\n" in capsys.readouterr().out


def test_a_training_killed_between_checkpoints_ends_with_the_same_weights(world, monkeypatch):
    enter(world, monkeypatch)
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 2)
    for name in ("whole", "stopped"):
        shutil.copytree("one", name, ignore=shutil.ignore_patterns("student", "losses.jsonl"))
    chance = {
        "dropout": 0.1,
        "mask": 0.3,
        "validation": "folder/en/test",
        "every": 3,
    }  # the best is that of step 3 or 6, or the last
    assert cli.main(command("whole", **chance)) == 0
    step, taken = training.Training.step, []

    def die(self, *given):
        if len(taken) == 5:
            raise KeyboardInterrupt
        taken.append(len(self.log))
        step(self, *given)

    monkeypatch.setattr(training.Training, "step", die)
    assert cli.main(command("stopped", **chance)) == 130
    assert len([*Path("stopped").glob("checkpoint-*.safetensors")]) == 1
    monkeypatch.setattr(
        training.Training, "step", lambda self, *given: taken.append(len(self.log)) or step(self, *given)
    )
    taken.clear()
    assert cli.main(command("stopped", **chance)) == 0
    assert taken == [4, 5, 6, 7]  # the last checkpoint was that of four steps
    assert not [*Path("stopped").glob("checkpoint-*.safetensors")]
    assert cli.main(command("stopped", **chance)) == 0  # what is finished is not repeated
    assert taken == [4, 5, 6, 7]
    for name in ("losses.jsonl", "scores.jsonl", "student/model.safetensors"):
        assert Path("stopped", name).read_bytes() == Path("whole", name).read_bytes()


def test_a_checkpoint_of_another_training_is_not_taken_up(world, monkeypatch):
    enter(world, monkeypatch)
    shutil.copytree("one", "other")
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 1)
    monkeypatch.setattr(recipe, "_save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # it stays
    assert cli.main(command("other", steps=2)) == 130
    seen, step = [], training.Training.step
    monkeypatch.setattr(
        training.Training, "step", lambda self, *given: seen.append(len(self.log)) or step(self, *given)
    )
    assert cli.main(command("other", steps=2)) == 130
    assert seen == []
    assert cli.main(command("other", steps=2, seed=1)) == 130
    assert seen == [0, 1]
    assert cli.main(command("other", steps=2)) == 130  # whose own checkpoint is still there
    assert seen == [0, 1]


def test_two_trainings_do_not_write_over_each_other(world, monkeypatch, capsys):
    enter(world, monkeypatch)
    with files.lock(Path("one/training")):
        assert cli.main(command("one")) == 1
    assert "Another run trains in one: wait until it has ended" in capsys.readouterr().err


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


def test_another_teacher_in_the_same_folder_is_refused_and_so_is_live(world, monkeypatch, capsys):
    enter(world, monkeypatch)
    shutil.copytree("teacher", "changed")
    assert cli.main(command("of_changed", model="./changed", steps=1)) == 0
    teacher = WhisperForConditionalGeneration.from_pretrained("changed")
    with torch.no_grad():
        teacher.model.decoder.layer_norm.weight += 0.1
    teacher.save_pretrained("changed")
    for more in ([], ["--live"]):
        assert cli.main([*command("of_changed", model="./changed", steps=1), *more]) == 1
        assert "of_changed belongs to another teacher or corpus, with or without --live:" in capsys.readouterr().err


def test_labels_that_this_machine_does_not_see_are_missed(tmp_path):
    with pytest.raises(AsrlibError, match="let all processes see the same folder"):
        labels.read(SimpleNamespace(folder=tmp_path, ids=["0.wav"]), None)

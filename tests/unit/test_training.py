"""Plumbing of fine-tuning: the cut context, resuming, quiet progress, on a tiny random model and on real weights."""

import ast
import inspect
import logging
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from asrlib import AsrlibError, audio, corpora
from asrlib.course import records
from asrlib.decoding import network, search, transcription
from asrlib.io import files
from asrlib.training import callbacks, context

SECONDS = 4


def tiny_model(seed=0):
    torch.manual_seed(seed)
    sizes = dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 32)
    layers = dict.fromkeys(
        ("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 1
    )
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0) | {"decoder_start_token_id": 1}
    config = WhisperConfig(vocab_size=50, max_source_positions=25, max_target_positions=12, **sizes, **layers, **tokens)
    return WhisperForConditionalGeneration(config)


def trainer(folder, *extra, steps):
    """A trainer over 16 random clips of half a second that saves after every step."""
    generator = torch.Generator().manual_seed(1)
    sounds, labels = torch.randn(16, 80, 50, generator=generator), torch.randint(2, 50, (16, 5), generator=generator)
    rows = [{"input_features": sound, "labels": label} for sound, label in zip(sounds, labels, strict=True)]
    arguments = Seq2SeqTrainingArguments(
        str(folder), per_device_train_batch_size=4, max_steps=steps, learning_rate=1e-2, bf16=True, use_cpu=True, save_steps=1,
        save_total_limit=2, seed=3, report_to=[], disable_tqdm=True, logging_steps=1, dataloader_pin_memory=False,
    )  # fmt: skip
    made = Seq2SeqTrainer(model=tiny_model(), args=arguments, train_dataset=rows, callbacks=list(extra))
    callbacks.show_progress(made, "tiny")
    return made


@pytest.fixture
def cut():
    """whisper-tiny.en with a context of a few seconds."""
    model, processor = transcription.load("openai/whisper-tiny.en", device="cpu", dtype=torch.float32)
    context.cut_context(model, processor, SECONDS)
    return model, processor


@pytest.fixture(scope="module")
def short_clips():
    rows = corpora.load("telephone", "en", "test")
    return rows.filter(lambda seconds: seconds <= SECONDS, input_columns="seconds").select(range(4))


@pytest.mark.parametrize("damage", ["no state", "half a state"])
def test_a_checkpoint_that_was_cut_off_is_not_believed(damage, tmp_path):
    trainer(tmp_path, steps=2).train()
    state = tmp_path / "checkpoint-2" / "trainer_state.json"
    if damage == "no state":
        state.unlink()
    else:
        state.write_text(state.read_text()[:40])
    assert callbacks.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    assert not (tmp_path / "checkpoint-2").exists()


def test_the_newest_checkpoint_counts_by_number(tmp_path):
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert callbacks.last_checkpoint(tmp_path).endswith("checkpoint-10")
    assert callbacks.last_checkpoint(tmp_path / "nothing") is None


def test_training_prints_nothing(tmp_path, capfd):
    trainer(tmp_path, steps=1).train()
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


def test_progress_is_reported_to_the_runner(tmp_path, monkeypatch):
    monkeypatch.setenv("ASRLIB_PROGRESS", str(tmp_path / "progress.txt"))
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, *_, **__):
            seen.append((tmp_path / "progress.txt").read_text())

    trainer(tmp_path / "out", Look(), steps=1).train()
    assert seen == ["tiny: 0/1 steps"]
    assert (tmp_path / "progress.txt").read_text() == ""


def test_positions_are_truncated_and_the_saved_model_keeps_them(tmp_path):
    torch.manual_seed(0)
    config = tiny_model().config
    config.max_source_positions = 1500
    model, extractor = WhisperForConditionalGeneration(config), WhisperFeatureExtractor()
    whole = model.model.encoder.embed_positions.weight.detach().clone()
    context.cut_context(model, SimpleNamespace(feature_extractor=extractor), SECONDS)
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    loaded = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.max_source_positions == SECONDS * 50
    assert loaded.generation_config.max_length == 2  # of 12 tokens for 30 s
    assert torch.equal(loaded.model.encoder.embed_positions.weight, whole[: SECONDS * 50])
    again = WhisperFeatureExtractor.from_pretrained(tmp_path)
    features = again(np.zeros(16_000, np.float32), sampling_rate=16_000, return_tensors="pt").input_features
    assert features.shape == (1, 80, SECONDS * 100)
    assert loaded.model.encoder(features).last_hidden_state.shape == (1, SECONDS * 50, 32)


@pytest.mark.weights
@pytest.mark.parametrize("seconds", [0, -1, 31])
def test_an_impossible_context_is_refused(seconds):
    model, processor = transcription.load("openai/whisper-tiny.en", device="cpu")
    with pytest.raises(AsrlibError, match=f"context of {seconds} s is not possible"):
        context.cut_context(model, processor, seconds)


def heard(model, processor, clips, tokens=16):
    """Return what the engine and ``generate`` write, cut short: an untrained cut model likes to go on for ever."""
    samples = [audio.load(row["audio"]) for row in clips]
    inputs = processor(samples, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
    states, _ = network.encode(model, inputs.input_features)
    prompt = [model.generation_config.decoder_start_token_id, model.generation_config.no_timestamps_token_id]
    ours = search.greedy(model, states, [prompt] * len(samples), max_new_tokens=tokens)
    theirs = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=tokens)
    return [processor.batch_decode(found, skip_special_tokens=True) for found in (ours, theirs)]


@pytest.mark.weights
def test_the_engine_decodes_a_cut_model_as_generate_does(cut, short_clips):
    ours, theirs = heard(*cut, short_clips)
    assert ours == theirs


@pytest.mark.weights
def test_a_restored_model_is_the_published_one_again(cut):
    model, processor = cut
    original, expected = transcription.load("openai/whisper-tiny.en", device="cpu", dtype=torch.float32)
    context.restore_context(model, processor, original)
    tensors = original.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert model.config.to_dict() == original.config.to_dict()
    assert model.generation_config.to_dict() == original.generation_config.to_dict()
    assert processor.feature_extractor.to_dict() == expected.feature_extractor.to_dict()


@pytest.mark.weights
def test_a_cut_model_refuses_longer_audio(cut):
    model, processor = cut
    clip = {"id": "a talk", "audio": np.ones(16_000 * SECONDS + 1, np.float32)}
    with pytest.raises(AsrlibError, match=r"a talk lasts 4\.0 s, but this model's encoder context was cut to 4 s"):
        list(transcription.transcribe(model, processor, [clip]))


@settings(max_examples=20)
@given(st.integers(1, 25))
def test_a_batch_is_read_as_by_a_model_of_that_context(positions):
    model, cut = tiny_model().eval(), tiny_model().eval()
    table = cut.model.encoder.embed_positions.weight[:positions].clone()
    cut.model.encoder.embed_positions = torch.nn.Embedding.from_pretrained(table)
    cut.config.max_source_positions = positions
    sound, labels = torch.randn(2, 80, 2 * positions), torch.tensor([[2, 3, 0], [4, -100, -100]])
    with context.reading(model, 2 * positions):
        read = model(sound, labels=labels)
    assert torch.equal(read.logits, cut(sound, labels=labels).logits)
    assert model(torch.randn(1, 80, 50), labels=labels[:1]).loss.isfinite()


def test_after_a_batch_the_whole_context_is_back_whatever_happened():
    model = tiny_model()
    before = {name: part.clone() for name, part in model.state_dict().items()}
    with pytest.raises(ValueError), context.reading(model, 10):
        model(torch.randn(1, 80, 50), labels=torch.tensor([[2]]))
    assert model.config.max_source_positions == model.model.encoder.embed_positions.num_embeddings == 25
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())


@pytest.mark.parametrize("frames", [0, -2, 7, 52])
def test_frames_that_a_model_cannot_read_are_refused(frames):
    with pytest.raises(AsrlibError, match="an even number up to 50"), context.reading(tiny_model(), frames):
        pass


@pytest.mark.weights
def test_a_saved_model_generates_without_a_word_in_the_log(cut, short_clips, tmp_path, caplog):
    model, processor = cut
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    inputs = processor(
        audio.load(short_clips[0]["audio"]), sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
    )
    with caplog.at_level(logging.WARNING, logger="transformers"):
        logging.getLogger("transformers").propagate = True
        tokens = loaded.generate(**inputs)
        logging.getLogger("transformers").propagate = False
    assert not caplog.records
    assert torch.equal(tokens, model.generate(**inputs))


@pytest.mark.parametrize("name", ["Collator"])
def test_the_notebook_teaches_what_the_library_does(name):
    cells = records.notebook_code(files.repository() / "notebooks" / "02_fine_tune_whisper.ipynb")
    taught = ast.parse("\n".join(cells))
    trees = [taught, ast.parse(inspect.getsource(context))]
    bare = []
    for tree in trees:
        (found,) = (node for node in tree.body if getattr(node, "name", "") == name)
        for node in ast.walk(found):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                node.body = [part for part in node.body if not isinstance(getattr(part, "value", None), ast.Constant)]
            if isinstance(node, ast.FunctionDef):
                node.returns = None
            if isinstance(node, ast.arg):
                node.annotation = None
        bare.append(ast.unparse(found))
    assert bare[0] == bare[1]


def test_the_trainer_of_the_notebook_has_the_gradient_of_the_whole_step_and_transformers_has_not(tmp_path):
    cells = records.notebook_code(files.repository() / "notebooks" / "02_fine_tune_whisper.ipynb")
    classes = [
        node for node in ast.parse("\n".join(cells)).body if getattr(node, "name", "") in ("CutTrainer", "Tuner")
    ]
    kinds = {"Seq2SeqTrainer": Seq2SeqTrainer, "context": context}
    exec(compile(ast.Module(classes, []), "notebook 02", "exec"), kinds)
    sounds, written = torch.randn(4, 80, 30, generator=torch.Generator().manual_seed(1)), (1, 5, 2, 9)
    labels = [[*range(2, 2 + count), *[-100] * (9 - count)] for count in written]
    rows = [{"input_features": x, "labels": torch.tensor(y)} for x, y in zip(sounds, labels, strict=True)]

    def gradient(kind, parts):
        arguments = Seq2SeqTrainingArguments(
            str(tmp_path), max_steps=1, per_device_train_batch_size=4 // parts, gradient_accumulation_steps=parts, use_cpu=True,
            optim="sgd", train_sampling_strategy="sequential", report_to=[], disable_tqdm=True, logging_steps=1,
            save_strategy="no", dataloader_pin_memory=False,
        )  # fmt: skip
        made = kinds[kind](model=tiny_model(), args=arguments, train_dataset=rows)
        callbacks.show_progress(made, "tiny")
        made.train()
        return made.state.log_history[0]["grad_norm"]

    whole = gradient("CutTrainer", 1)
    assert gradient("Tuner", 2) == pytest.approx(whole, rel=1e-4)
    assert gradient("Tuner", 4) == pytest.approx(whole, rel=1e-4)
    assert gradient("CutTrainer", 4) > 1.5 * whole


def test_steps_are_timed_and_bytes_counted(tmp_path):
    meter = callbacks.StepMeter()
    made = trainer(tmp_path, meter, steps=2)
    made.train()
    weights = sum(weight.nbytes for weight in made.model.parameters())
    trained = sum(weight.nbytes for weight in made.model.parameters() if weight.requires_grad)
    assert len(meter.seconds) == 2
    assert all(seconds > 0 for seconds in meter.seconds)
    assert meter.bytes["weights"] == weights
    assert meter.bytes["gradients"] == trained
    assert meter.bytes["optimizer"] - 2 * trained == 4 * len([w for w in made.model.parameters() if w.requires_grad])


def test_history_and_its_plot_tell_what_was_logged(monkeypatch):
    logged = [
        {"step": 1, "epoch": 0.5, "loss": 2.0, "grad_norm": 1.0},
        {"step": 2, "epoch": 1.0, "loss": 1.0},
        {
            "step": 2,
            "epoch": 1.0,
            "eval_loss": 1.5,
            "eval_wer": 40.0,
            "eval_low": 30.0,
            "eval_high": 50.0,
            "eval_runtime": 9,
        },
        {"step": 2, "epoch": 1.0, "train_loss": 1.5, "train_runtime": 7},
    ]
    log = callbacks.history(SimpleNamespace(state=SimpleNamespace(log_history=logged)))
    assert log.loc[2, ["train loss", "validation loss", "wer", "low", "high"]].tolist() == [1.0, 1.5, 40.0, 30.0, 50.0]
    assert log["wer"].notna().tolist() == [False, True]
    assert set(log) == {"epoch", "train loss", "validation loss", "wer", "low", "high"}
    shown = []
    monkeypatch.setattr(callbacks.figures, "show", lambda figure, alt: shown.append((figure, alt)))
    callbacks.plot_history(log, "some clips")
    ((figure, alt),) = shown
    plt.close(figure)
    assert "40 % at step 2" in alt


def test_a_training_too_short_for_an_evaluation_has_a_history(monkeypatch):
    logged = [{"step": 1, "epoch": 1.0, "loss": 2.0}, {"step": 1, "epoch": 1.0, "train_loss": 2.0}]
    log = callbacks.history(SimpleNamespace(state=SimpleNamespace(log_history=logged)))
    assert log["train loss"].tolist() == [2.0]
    assert not log[log["wer"].notna()].size
    monkeypatch.setattr(callbacks.figures, "show", lambda figure, alt: None)
    callbacks.plot_history(log, "one step")


def test_the_collator_drops_the_start_token_and_hides_the_padding():
    rows = [
        {"input_features": np.zeros((80, 50), np.float32), "labels": [1, 7, 8, 9]},
        {"input_features": np.zeros((80, 50), np.float32), "labels": [1, 5]},
    ]
    batch = context.Collator(start_token=1)(rows)
    assert batch["labels"].tolist() == [[7, 8, 9], [5, -100, -100]]
    assert batch["attention_mask"].shape == (2, 50)
    assert context.Collator(start_token=2)(rows)["labels"][0].tolist() == [1, 7, 8, 9]


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 30), st.integers(0, 3))
def test_batches_have_neighbours_and_go_round_all_clips(clips, size, steps, seed):
    if clips < size:
        with pytest.raises(AsrlibError, match="make no batch"):
            context.batches(range(clips), size, steps, seed)
        return
    drawn, whole = context.batches(range(clips), size, steps, seed), clips // size
    assert len(drawn) == steps
    assert all(batch == list(range(batch[0], batch[0] + size)) and batch[0] % size == 0 for batch in drawn)
    for first in range(0, steps, whole):
        begun = [batch[0] for batch in drawn[first : first + whole]]
        assert len(set(begun)) == len(begun)


@settings(max_examples=10)
@given(st.lists(st.integers(1_000, 40_000), min_size=1, max_size=3), st.sampled_from([2, 100, 3000]), st.integers(0, 9))
def test_a_batch_is_filled_up_with_the_silence_of_the_feature_extractor(samples, least, seed):
    extractor, generator = WhisperFeatureExtractor(), np.random.default_rng(seed)
    clips = [(generator.standard_normal(count) * np.hanning(count)).astype(np.float32) for count in samples]
    short, whole = (
        [extractor(clip, sampling_rate=16_000, padding=way).input_features[0] for clip in clips]
        for way in ("longest", "max_length")
    )
    batch = context.Collator(0, least)([{"input_features": one, "labels": [0, 1]} for one in short])["input_features"]
    frames = batch.shape[2]
    assert frames % 2 == 0 and frames == max(least, *(one.shape[1] + one.shape[1] % 2 for one in short))
    for made, own, padded in zip(batch.numpy(), short, whole, strict=True):
        spoken = own.shape[1]
        np.testing.assert_allclose(made[:, : spoken - 2], padded[:, : spoken - 2], atol=2e-4)
        np.testing.assert_allclose(made[:, spoken:], padded[:, 2999:].repeat(frames - spoken, 1), atol=2e-4)

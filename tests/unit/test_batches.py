"""Clips for a Trainer and as a test: what is kept of a frozen encoder gives the loss and the words that the sound gives."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from asrlib import corpora, whisper
from asrlib.decoding import transcription
from asrlib.training import batches, callbacks

SAID = ["ab", "abcde", "a", "abc"]
SECONDS = [0.9, 0.3, 0.6, 0.7]


@pytest.fixture(scope="module")
def loaded(random_whisper, tmp_path_factory):
    return transcription.load(random_whisper(tmp_path_factory.mktemp("model")), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(0)
    sounds = [generator.normal(0, 0.1, int(16_000 * seconds)).astype(np.float32) for seconds in SECONDS]
    return Dataset.from_dict({"id": ["same"] * 4, "text": SAID, "seconds": SECONDS, "audio": sounds}).with_format(
        "numpy", columns=["audio"], output_all_columns=True
    )


def loss(model, clips, places):
    return model(**clips.batch([clips[place] for place in places])).loss


def test_a_batch_has_sound_and_padded_labels(loaded, rows):
    model, processor = loaded
    clips = batches.Clips(rows, processor, model, "German")
    batch = clips.batch([clips[0], clips[1]])
    assert batch["input_features"].shape == (2, 80, 3000)
    start = whisper.prompt(model.generation_config, "de")[1:]
    text = processor.tokenizer(" ab", add_special_tokens=False).input_ids
    assert batch["labels"][0].tolist() == [*start, *text, 256, -100, -100, -100]
    assert len(clips) == 4


def test_what_is_kept_of_a_whole_window_gives_the_loss_of_the_sound(loaded, rows):
    model, processor = loaded
    clips = batches.Clips(rows, processor, model, "de")
    heard = batches.HeardClips(rows, processor, model, "de", seconds=29)
    assert heard.batch([heard[0]])["encoder_outputs"][0].shape == (1, 1500, 32)
    with torch.no_grad():
        assert torch.allclose(loss(model, clips, [0, 1, 2]), loss(model, heard, [0, 1, 2]), rtol=1e-4)


def test_clips_are_transcribed_in_their_language(loaded, rows, monkeypatch):
    model, processor = loaded
    asked = []
    monkeypatch.setattr(
        batches.search, "greedy", lambda model, states, prompts, **_: asked.extend(prompts) or [[5]] * len(prompts)
    )
    found = batches.Clips(rows, processor, model, "German").transcribe(model, most=4)
    assert asked == [[257, 259, 261, 265]] * 4  # start, German, transcribe, no times
    assert {item.language for item in found} == {"de"}


@pytest.mark.weights
def test_the_words_are_those_of_the_library_in_the_order_of_the_rows():
    model, processor = transcription.load("openai/whisper-tiny.en", device="cpu", dtype=torch.float32)
    prompts = corpora.load("telephone", "en", "test")
    prompts = prompts.filter(lambda seconds: 1 < seconds <= 3, input_columns="seconds").select(range(6))
    library = list(transcription.transcribe(model, processor, prompts, strict=True, window="merged"))
    assert len({item.text for item in library}) == 6
    heard = batches.HeardClips(prompts, processor, model, "en", seconds=3)
    for clips in (batches.Clips(prompts, processor, model, "en"), heard):
        found = clips.transcribe(model, most=40)
        assert [(item.id, item.text) for item in found] == [(item.id, item.text) for item in library]
        assert [item.seconds_audio for item in found] == list(prompts["seconds"])
    for item, whole in zip(heard.transcribe(model, most=1), library, strict=True):
        assert whole.text.startswith(item.text)
        assert 0 < len(item.text) < len(whole.text)


def test_the_states_of_the_first_seconds_are_kept(loaded, rows):
    model, processor = loaded
    whole = batches.HeardClips(rows, processor, model, "de", seconds=29)
    cut = batches.HeardClips(rows, processor, model, "de", seconds=1)
    assert cut.heard.shape == (4, 100, 32)
    # the silence far behind the clip is merged for the encoder, which changes little of what it hears
    assert torch.nn.functional.cosine_similarity(cut.heard, whole.heard[:, :100], dim=2).mean() > 0.9


def test_a_trainer_learns_from_kept_states_and_leaves_the_encoder_alone(loaded, rows, tmp_path):
    model, processor = loaded
    heard = batches.HeardClips(rows, processor, model, "de", seconds=1)
    encoder = {name: part.clone() for name, part in model.model.encoder.state_dict().items()}
    before = loss(model, heard, range(4)).item()
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, max_steps=5, learning_rate=1e-2, use_cpu=True, save_strategy="no",
        report_to=[], disable_tqdm=True, dataloader_pin_memory=False, remove_unused_columns=False, label_names=["labels"],
        eval_strategy="steps", eval_steps=5, per_device_eval_batch_size=2,
    )  # fmt: skip
    trainer = Seq2SeqTrainer(model, arguments, data_collator=heard.batch, train_dataset=heard, eval_dataset=heard)
    callbacks.show_progress(trainer, "kept")
    trainer.train()
    assert loss(model.eval(), heard, range(4)).item() < before
    assert all(torch.equal(part, encoder[name]) for name, part in model.model.encoder.state_dict().items())
    assert trainer.state.log_history[0]["eval_loss"] < before

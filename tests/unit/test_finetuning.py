"""Fine-tuning: which clips are learnt from, what the loss counts, and the whole recipe in one process and in two."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from accelerate.commands import launch
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import WhisperTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from asrlib import AsrlibError, cli, corpora, hardware, scoring, text, whisper
from asrlib.decoding import transcription
from asrlib.io import files, upload
from asrlib.training import cards, finetuning
from asrlib.training.finetuning import adapters, data, gain, training
from asrlib.training.sources import Source
from tests import programs

REPOSITORY = files.repository()
SAID = ["aa", "bbb", "a b", "b", "abab a", "a a", "ba", "b b", "aba", "bab a b a b"]


@pytest.fixture(scope="module")
def world(tmp_path_factory, random_whisper):
    """A folder with a random Whisper that knows en and de, ten English and six German clips, and a fine-tuned model of one process."""
    folder = tmp_path_factory.mktemp("world")
    random_whisper(folder / "model")
    write(folder / "speech", [f"{said},en" for said in SAID])
    write(folder / "german", [f"{said} u,de" for said in SAID[:6]])
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        assert cli.main(command("one")) == 0
    return folder


def write(folder, lines, columns="transcription,language"):
    """Write a folder of noises of 0.3 to 0.9 seconds."""
    folder.mkdir()
    generator = np.random.default_rng(len(lines))
    for number in range(len(lines)):
        sound = generator.normal(0, 0.1, int(16_000 * generator.uniform(0.3, 0.9)))
        soundfile.write(folder / f"{number}.wav", sound, 16_000)
    rows = [f"{number}.wav,{line}" for number, line in enumerate(lines)]
    (folder / "metadata.csv").write_text("\n".join([f"file_name,{columns}", *rows]))


def enter(folder, patch):
    """Work in a folder, on the CPU and in float32, with a cache of its own."""
    patch.chdir(folder)
    patch.setattr(hardware, "best_device", lambda: "cpu")
    patch.setattr(hardware, "best_dtype", lambda device=None: torch.float32)
    patch.setenv("ASRLIB_CACHE", str(folder / "cache"))


def command(output, *speech, flags=(), **options):
    options = {
        "model": "./model",
        "context": 1,
        "steps": 4,
        "batch-size": 4,
        "every": 2,
        "learning-rate": 0.01,
    } | options
    return [
        "finetune",
        *(speech or ["speech"]),
        "--output",
        output,
        *flags,
        *(f"--{name}={value}" for name, value in options.items()),
    ]


def weights(output, file="model.safetensors"):
    return Path(output, "model", file).read_bytes()


@pytest.fixture
def here(world, monkeypatch):
    enter(world, monkeypatch)
    return world


GENERATION = SimpleNamespace(
    decoder_start_token_id=257, lang_to_id={"<|en|>": 258, "<|de|>": 259}, task_to_id={"transcribe": 261},
    no_timestamps_token_id=265, is_multilingual=True,
)  # fmt: skip


BYTES = WhisperTokenizer(vocab={character: byte for byte, character in bytes_to_unicode().items()}, merges=[])


def test_a_label_is_prompt_text_and_end():
    assert finetuning.labels("aä", "de", GENERATION, BYTES) == [257, 259, 261, 265, 32, 97, 195, 164, 256]


def test_a_space_begins_a_text_where_the_language_has_them_and_joins_a_t():
    letters = {character: byte for byte, character in bytes_to_unicode().items()}
    joined = WhisperTokenizer(vocab=letters | {"Ġt": 256}, merges=[])  # knows the token, lacks the rule
    assert whisper.spell(joined, " two ", "en") == [256, 119, 111]
    assert whisper.spell(BYTES, "two", "en") == [32, 116, 119, 111]
    assert whisper.spell(BYTES, " 你 ", "zh") == list("你".encode())


@pytest.mark.weights
@pytest.mark.parametrize(
    ("model", "language", "said"),
    [
        *(("openai/whisper-base", "ro", "toată țara, te rog"), ("openai/whisper-base", "zh", "你好 to")),
        ("openai/whisper-tiny.en", "en", " The tea that took two.  "),
    ],
)
def test_labels_are_those_of_openais_tokenizer(model, language, said):
    """Its transcripts begin with a space where the language has spaces; the one published for transformers splits " to"."""
    from whisper.tokenizer import get_tokenizer

    loaded, processor = transcription.load(model, device="cpu")
    theirs = get_tokenizer(model == "openai/whisper-base", language=language, task="transcribe")
    text = said.strip() if language == "zh" else f" {said.strip()}"
    whole = [*theirs.sot_sequence_including_notimestamps, *theirs.encode(text), theirs.eot]
    assert finetuning.labels(said, language, loaded.generation_config, processor.tokenizer) == whole


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 60), st.integers(0, 5))
def test_an_order_goes_round_each_source(counts, total, seed):
    found = finetuning.order(counts, [None] * len(counts), total, seed)
    assert len(found) == total and found == finetuning.order(counts, [None] * len(counts), total, seed)
    first = 0
    for count in counts:
        own = [place for place in found if first <= place < first + count]
        rounds = [own[at : at + count] for at in range(0, len(own), count)]
        assert all(sorted(part) == list(range(first, first + count)) for part in rounds[:-1])
        assert len(set(rounds[-1])) == len(rounds[-1]) if rounds else not own
        first += count
    assert all(0 <= place < sum(counts) for place in found)


@pytest.mark.parametrize(("shares", "expected"), [((None, None), 0.8), ((1.0, 3.0), 0.25), ((1.0, 1.0), 0.5)])
def test_sources_are_mixed_by_their_shares(shares, expected):
    found = finetuning.order([80, 20], shares, 4000, 0)
    assert abs(np.mean(np.array(found) < 80) - expected) < 0.03
    assert found != finetuning.order([80, 20], shares, 4000, 1)


@given(
    st.lists(st.sampled_from(["a", "A!", "b", "c c", "c  c.", "d", "e"]), min_size=2, max_size=60), st.integers(0, 3)
)
def test_a_text_is_learnt_from_or_scored_never_both(texts, seed):
    families = {said.lower().strip("!. ").replace("  ", " ") for said in texts}
    if len(families) < 2:
        with pytest.raises(AsrlibError, match="fewer than two different texts"):
            finetuning.by_text(texts, ["de"] * len(texts), seed)
        return
    scored = finetuning.by_text(texts, ["de"] * len(texts), seed)
    sides = [
        {text.normalizer("de")(said) for said, side in zip(texts, scored, strict=True) if side == wanted}
        for wanted in (True, False)
    ]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    largest = max(Counter(text.normalizer("de")(said) for said in texts).values())
    assert scored.sum() < max(1, 0.1 * len(texts), min(3, len(texts) // 3)) + largest


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (5, 1), (6, 2), (9, 3), (10, 3), (30, 3), (31, 4), (200, 20)])
def test_a_tenth_of_many_texts_is_scored_and_three_of_few(count, expected):
    texts = [f"sentence {number}" for number in range(count)]
    scored = finetuning.by_text(texts, ["en"] * count, 0)
    assert scored.sum() == expected
    assert any((scored != finetuning.by_text(texts, ["en"] * count, seed)).any() for seed in range(1, 9))


def test_one_text_is_always_left_to_learn_from():
    texts = ["a", *["b"] * 9]  # three clips are wanted: "a" alone is too few, and "b" is all the rest
    found = {int(finetuning.by_text(texts, ["de"] * 10, seed).sum()) for seed in range(9)}
    assert found == {1, 9}


def test_what_a_loading_process_raises_is_one_sentence():
    said = "Caught AsrlibError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  x\nasrlib.AsrlibError: a.wav is silent: check it.\n"

    def fail(**_):
        raise AsrlibError(said)

    tuner = SimpleNamespace(train=fail, args=SimpleNamespace(output_dir="nowhere"))
    processes = SimpleNamespace(is_main_process=True, num_processes=1)
    with pytest.raises(AsrlibError, match=r"^a\.wav is silent: check it\.$"):
        finetuning.recipe._train(tuner, SimpleNamespace(patience=0), processes)


LIMITS = finetuning.Limits(GENERATION, BYTES, 30, 448)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"text": " ... "}, "no transcript"),
        ({"seconds": 0.0}, "cannot be read"),
        ({"seconds": 30.0}, ""),
        ({"seconds": 30.1}, "lasts 30.1 s, over 30"),
        ({"text": "a" * 443}, ""),  # with language, task, no times, a space and end: 448
        ({"text": "a" * 444}, "its transcript has 449 tokens, over 448"),
    ],
)
def test_what_cannot_be_learnt_from_has_a_reason(change, reason):
    assert LIMITS.reason({"text": "a", "seconds": 1.0, "language": "de"} | change) == reason


ENGLISH = SimpleNamespace(decoder_start_token_id=257, no_timestamps_token_id=265, is_multilingual=False)


@pytest.mark.parametrize(
    ("generation", "language", "said"),
    [
        (GENERATION, "", "language is not stated"),
        (GENERATION, "ro", "knows no language 'ro'"),
        (GENERATION, "klingon", "knows no language 'klingon'"),
        (ENGLISH, "de", "knows no language 'de'"),
    ],
)
def test_a_language_that_is_missing_or_unknown_is_one_sentence(generation, language, said):
    with pytest.raises(AsrlibError, match=said):
        finetuning.Limits(generation, BYTES, 30, 448).reason({"text": "a", "seconds": 1.0, "language": language})


def test_clips_for_an_english_model_need_not_state_their_language(tmp_path, monkeypatch):
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "some", ["a", "b", "c"], "transcription")
    limits = finetuning.Limits(ENGLISH, BYTES, 30, 448)
    found = finetuning.gather(finetuning.Settings((str(tmp_path / "some"),)), limits)
    assert found.languages == {"en"} and found.validation[0].languages == ["en"]
    assert finetuning.labels("a", limits.code(""), ENGLISH, BYTES) == [257, 265, 32, 97, 256]


def test_no_prompt_names_a_language_that_the_model_lacks():
    with pytest.raises(AsrlibError, match="knows no language 'ro'"):
        whisper.prompt(GENERATION, "ro")


def parts(tmp_path, lines, columns="transcription,language,split", **options):
    write(tmp_path / "some", lines, columns)
    return finetuning.gather(finetuning.Settings((str(tmp_path / "some"),), **options), LIMITS)


def ids(found):
    return [list(part.table["id"]) for part in found]


def test_a_folder_with_splits_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    found = parts(tmp_path, ["a,de,train", "b,de,validation", "c,de,test", "d,de,train"])
    assert (ids(found.train), ids(found.validation)) == ([["0.wav", "3.wav"]], [["1.wav"]])
    assert found.languages == {"de"} and not found.left_out


@pytest.mark.parametrize("split", ["train", ""])
def test_a_folder_without_validation_is_split_by_text(tmp_path, monkeypatch, split):
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    found = parts(tmp_path, [f"{said},de,{split}" for said in "abcab"] + ["!,de," + split])
    (train,), (scored,) = (
        ([row["text"] for row in part.table] for part in found.train),
        ([row["text"] for row in part.table] for part in found.validation),
    )
    assert len(train) + len(scored) == 5 and train and scored and not set(train) & set(scored)
    assert [row["reason"] for row in found.left_out] == ["no transcript"]


def test_validation_that_is_named_takes_nothing_from_what_is_learnt(tmp_path, monkeypatch):
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "other", ["e,de", "f,de"])
    found = parts(tmp_path, ["a,de,train", "b,de,train"], validation=(str(tmp_path / "other"),))
    assert (ids(found.train), ids(found.validation)) == ([["0.wav", "1.wav"]], [["0.wav", "1.wav"]])


def test_a_folder_that_is_named_for_validation_is_scored_on_its_validation_clips(tmp_path, monkeypatch):
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    lines = ["a,de,train", "b,de,validation", "c,de,test", "d,de,train"]
    found = parts(tmp_path, lines, validation=(str(tmp_path / "some"),))
    assert (ids(found.train), ids(found.validation)) == ([["0.wav", "3.wav"]], [["1.wav"]])


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["a,de,test", "b,de,dev"], "has the splits dev, test: one must be called train"),
        (["a,de,validation", "b,de,validation"], "has the splits validation: one must be called train"),
        ([], "names no recording"),
        (["!,de,", "?,de,"], r"No clip is left to learn from: 2 are left out, such as 0.wav \(no transcript\), 1.wav"),
        (["a,de,"], "has fewer than two different texts: name other clips with --validation"),
    ],
)
def test_a_folder_that_cannot_be_learnt_from_is_refused(tmp_path, monkeypatch, lines, said):
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(AsrlibError, match=said):
        parts(tmp_path, lines)


@pytest.mark.parametrize(
    ("written", "loaded"),
    [
        ("telephone/it", ["telephone it train", "telephone it validation"]),
        ("telephone/it/train=2", ["telephone it train", "telephone it validation"]),
        ("telephone/it/test", ["telephone it test"]),  # split by text
        ("fleurs/ro", ["fleurs ro train", "fleurs ro validation"]),
        ("librispeech/en/train-clean-100", ["librispeech en train-clean-100"]),
    ],
)
def test_a_corpus_brings_its_validation_split(monkeypatch, written, loaded):
    asked = []
    rows = [
        {
            "id": said,
            "text": said,
            "language": "de",
            "seconds": 1.0,
            "audio": {"path": "", "bytes": None},
            "speaker": "",
            "split": "",
        }
        for said in "abc"
    ]
    monkeypatch.setattr(
        corpora,
        "load",
        lambda name, language, split, root: (
            asked.append(f"{name} {language} {split}") or data.corpora.rows.dataset(rows)
        ),
    )
    found = finetuning.gather(finetuning.Settings((written,)), LIMITS)
    assert asked == loaded
    assert len(ids(found.validation)[0]) == (3 if len(loaded) == 2 else 1)
    assert found.train[0].share == (2.0 if "=" in written else None)


@pytest.mark.parametrize("written", ["nowhere", "nowhere/en", "folder/en", "telephone/en:packed", "a/b/c/d"])
def test_what_is_neither_folder_nor_corpus_is_one_sentence(written):
    with pytest.raises(AsrlibError, match="is neither a folder nor a corpus"):
        Source.brought(written)


def test_a_folder_has_a_share_too(tmp_path):
    found = Source.brought(f"{tmp_path}=0.5")
    assert (found.name, found.root, found.share, found.place) == ("folder", str(tmp_path), 0.5, str(tmp_path))
    with pytest.raises(AsrlibError, match="a share is a number above zero"):
        Source.brought(f"{tmp_path}=0")


def test_the_command_of_a_run_says_what_differs():
    settings = finetuning.Settings(
        ("a b", "telephone/it=2"), ("c",), adapter="lora", freeze_encoder=True, learning_rate=0.002
    )
    said = "asrlib finetune 'a b' telephone/it=2 --validation c --adapter lora --freeze-encoder --learning-rate 0.002 --output FOLDER"
    assert settings.command() == said


@pytest.mark.parametrize(
    ("width", "adapter", "expected"),
    [(384, "", 3.75e-5), (512, "", 2.5e-5), (768, "", 1.25e-5), (1024, "", 6.25e-6), (1280, "", 4.375e-6), (512, "lora", 1e-3),
     (32, "", 3.75e-5), (600, "", 2.5e-5), (9000, "", 4.375e-6)],
)  # fmt: skip
def test_the_learning_rate_follows_the_size_of_the_model(width, adapter, expected):
    assert finetuning.Settings((), adapter=adapter).fitted(9, width, 1).learning_rate == pytest.approx(expected)
    assert finetuning.Settings((), adapter=adapter, learning_rate=0.0).fitted(9, width, 1).learning_rate == 0


@given(st.integers(1, 2000), st.integers(1, 20))
def test_few_clips_get_small_batches_and_few_steps(clips, parts):
    found = finetuning.Settings(()).fitted(clips, 512, parts)
    assert found.batch_size % parts == 0
    assert found.batch_size <= max(16, parts) and (found.batch_size <= clips or found.batch_size == parts)
    drawn = found.steps * found.batch_size
    assert drawn < 20 * clips + found.batch_size and (found.steps == 400 or drawn >= 20 * clips)
    assert found.every == max(1, found.steps // 4)
    assert finetuning.Settings((), steps=7, batch_size=60, every=9).fitted(clips, 512, parts).command().startswith(
        "asrlib finetune --steps 7 --batch-size 60 --learning-rate 2.5e-05 --every 9"
    )  # fmt: skip


def part(*lengths, said="abc", place="mine"):
    """Return clips of these seconds."""
    rows = [
        {"id": f"{at}.wav", "audio": {"path": "", "bytes": None}, "text": f"{said}{at}", "language": "en", "seconds": length, "speaker": "",
         "split": ""}
        for at, length in enumerate(lengths)
    ]  # fmt: skip
    return finetuning.Part(place, corpora.rows.dataset(rows))


def test_the_plan_is_said_before_the_work():
    speech = finetuning.Speech([part(9.0, 12.0), part(15.0, said="d")], [part(6.0, said="x")])
    settings = finetuning.Settings(("mine",), steps=6, batch_size=4).fitted(3, 512, 1)
    assert finetuning.recipe._plan(settings, speech).splitlines() == [
        "Clips to learn from: 3, 0.6 minutes; to score: 1; left out: 0.",
        "Steps: 6 of 4 clips, so that each is seen about 8.0 times, at a learning rate of up to 2.5e-05; a score every 1.",
    ]


def test_the_plan_names_what_a_person_may_want_to_change():
    left_out = [{"id": f"{at}.wav", "place": "mine", "reason": "no transcript"} for at in range(5)]
    speech = finetuning.Speech([part(9.0, 12.0)], [part(14.3, 2.0, 3.0)], left_out)
    settings = finetuning.Settings(("mine",)).fitted(2, 512, 1)
    first, _, twice, longest = finetuning.recipe._plan(settings, speech).splitlines()
    named = "".join(f"{at}.wav: no transcript; " for at in range(3))
    assert first == f"Clips to learn from: 2, 0.3 minutes; to score: 3; left out: 5 ({named}...)."
    assert twice.startswith("2 of the scored clips say what is learnt from too")
    assert longest.startswith("The longest clip lasts 14.3 s: --context 15 makes")


@pytest.mark.parametrize(("most", "tokens"), [(448, 225), (75, 75)])
def test_a_process_gets_its_part_of_a_step_and_a_tenth_of_the_steps_warms_up(here, tmp_path, most, tokens):
    settings = finetuning.Settings((), steps=21, batch_size=12, accumulate=3, every=5, learning_rate=0.5, seed=7)
    model = SimpleNamespace(generation_config=SimpleNamespace(max_length=most))
    made = training.arguments(settings, tmp_path, model, 2)
    assert made.per_device_train_batch_size == made.per_device_eval_batch_size == 2
    assert (made.gradient_accumulation_steps, made.max_steps, made.warmup_steps) == (3, 21, 3)
    assert (made.eval_steps, made.save_steps, made.logging_steps, made.save_total_limit) == (5, 5, 1, 2)
    assert (made.learning_rate, made.seed, made.generation_max_length) == (0.5, 7, tokens)
    assert (made.use_cpu, made.bf16, made.fp16, made.n_gpu) == (True, False, False, 0)
    assert made.ddp_timeout == 7 * 24 * 3600


def test_the_loss_of_a_part_is_its_share_of_the_step_times_the_processes_that_are_averaged():
    tuner = SimpleNamespace(accelerator=SimpleNamespace(num_processes=4))
    outputs = SimpleNamespace(loss=torch.tensor(3.0))
    inputs = {"labels": torch.tensor([[1, 2, -100], [3, -100, -100]])}
    loss = training.FineTuner.compute_loss(tuner, lambda **_: outputs, inputs, num_items_in_batch=10)
    assert loss == pytest.approx(3.0 * 3 / 10 * 4)
    assert training.FineTuner.compute_loss(tuner, lambda **_: outputs, inputs) == 3.0
    assert training.FineTuner.compute_loss(tuner, lambda **_: outputs, inputs, True)[1] is outputs


def test_the_time_of_the_steps_is_said_once_and_without_the_first(monkeypatch, capsys):
    times = iter([0, 100, 102.5, 200, 300])
    monkeypatch.setattr(training.time, "monotonic", lambda: next(times))
    *_, said = training.callbacks_of(finetuning.Settings(()), True)
    for step in range(1, 4):
        said.on_step_begin()
        said.on_step_end(None, SimpleNamespace(max_steps=50, global_step=step), None)
    assert capsys.readouterr().out == "a step takes 2.5 s: 2 minutes for the 48 that are left\n"


def rates(before, after, **more):
    return {
        "place": "mine", "language": "en", "clips": 12, "words": 90, "before": {"wer": 20.0, "orthographic": 30.0} | before,
        "after": {"wer": 15.04, "orthographic": 25.0} | after, "points": -4.96, "shortage": "",
    } | more  # fmt: skip


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (rates({}, {}, shortage="only 3 clips"), "WER on 12 other clips of mine (en, 90 words): 20.0 % before, 15.0 % after, -5.0 points "
         "(only 3 clips, too few for an interval)."),
        (rates({"low": 18.0, "high": 22.0}, {}, low=-8.0, high=-1.0), "WER on 12 other clips of mine (en, 90 words): 20.0 % [18.0, 22.0] "
         "before, 15.0 % after, -5.0 points [-8.0, -1.0]."),
        (rates({}, {}, low=-8.0, high=1.0, language="zh"), "CER on 12 other clips of mine (zh, 90 characters): 20.0 % before, 15.0 % "
         "after, -5.0 points [-8.0, 1.0]: no difference is shown."),
        (rates({}, {}, low=1.0, high=8.0, points=4.5), "WER on 12 other clips of mine (en, 90 words): 20.0 % before, 15.0 % after, "
         "+4.5 points [1.0, 8.0]."),
    ],
)  # fmt: skip
def test_a_gain_is_said_with_its_interval(row, said):
    assert finetuning.sentence(row) == said


def test_gains_are_the_scores_of_evaluate(here, capsys):
    rows = [row for root in ("speech", "german") for row in corpora.load("folder", root=root)]
    part = finetuning.Part("both", corpora.rows.dataset(rows))
    found = {row["language"]: row for row in finetuning.gains("model", "one/model", [part], 0)}
    assert {name: row["clips"] for name, row in found.items()} == {"en": 10, "de": 6}
    assert found["de"]["shortage"] == "only 6 clips" and "low" not in found["de"]
    assert cli.main(["evaluate", "german", "--model", "one/model", "--json"]) == 0
    assert found["de"]["after"]["wer"] == json.loads(capsys.readouterr().out)["wer_percent"]
    for row in (found["en"] | {"wer": found["en"]["points"]}, found["en"]["before"], found["en"]["after"]):
        assert row["low"] <= row["wer"] <= row["high"]


def test_points_are_those_of_a_paired_comparison():
    said = ["a b c", "d e", "f g h i"] * 5
    before = scoring.score(said, ["a x c", "d", "f g h i"] * 5)
    after = scoring.score(said, ["a b c", "d", "f g h i"] * 5)
    row = gain._row("mine", "de", (before, 0.5), (after, 0.25), 0)
    paired = scoring.compare(after, before, seed=0)
    assert row == {
        "place": "mine", "language": "de", "clips": 15, "words": 45, "points": pytest.approx(-100 / 9), "shortage": "",
        "low": 100 * paired.interval[0], "high": 100 * paired.interval[1],
        "before": {"wer": pytest.approx(200 / 9), "orthographic": 50, "low": 100 * before.interval[0], "high": 100 * before.interval[1]},
        "after": {"wer": pytest.approx(100 / 9), "orthographic": 25, "low": 100 * after.interval[0], "high": 100 * after.interval[1]},
    }  # fmt: skip


def clips_of_step(settings, number):
    """Return texts and samples of a step, independently of the Trainer."""
    model, processor = transcription.load("./model", device="cpu", dtype=torch.float32)
    limits = finetuning.Limits(model.generation_config, processor.tokenizer, 1, 448)
    table = finetuning.gather(settings, limits).train[0].table
    size = settings.batch_size
    chosen = finetuning.order([len(table)], [None], settings.steps * size, settings.seed)[
        number * size : (number + 1) * size
    ]
    return [(table[place]["text"], soundfile.read(table[place]["audio"]["path"])[0]) for place in chosen]


def test_the_loss_of_a_step_is_the_mean_over_its_tokens_and_no_others(here):
    """The first step, by hand: one clip at a time, so that nothing is padded."""
    model, processor = transcription.load("./model", device="cpu", dtype=torch.float32)
    finetuning.recipe.context.cut_context(model, processor, 1)
    total, count = 0.0, 0
    settings = finetuning.Settings(("speech",), model="./model", context=1, steps=4, batch_size=4)
    for said, sound in clips_of_step(settings, 0):
        features = processor.feature_extractor(sound, sampling_rate=16_000, return_tensors="pt").input_features
        tokens = torch.tensor(
            [[257, 258, 261, 265, *processor.tokenizer(f" {said}", add_special_tokens=False).input_ids, 256]]
        )
        with torch.no_grad():
            logits = model(features, decoder_input_ids=tokens[:, :-1]).logits[0]
        total -= logits.log_softmax(-1).gather(1, tokens[0, 1:, None]).sum().item()
        count += tokens.shape[1] - 1
    first = next(files.read_jsonl("one/losses.jsonl"))
    assert first["step"] == 1
    assert first["loss"] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("options", [{"accumulate": 4}, {"flags": ["--stream"]}], ids=["accumulated", "streamed"])
def test_parts_of_a_step_and_features_on_the_way_change_nothing_but_the_order_of_sums(here, tmp_path, options):
    output = str(tmp_path / "other")
    assert cli.main(command(output, **options)) == 0
    losses = [pd.read_json(Path(folder, "losses.jsonl"), lines=True) for folder in ("one", output)]
    assert len(losses[0]) == 4 and losses[0]["loss"].nunique() == 4
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)
    assert not list(Path(output).glob("features")) and not list(Path(output).glob("trainer"))


def test_a_fine_tuned_model_is_whole_again_has_a_card_and_its_curves(here, capsys):
    facts = files.read_json("one/finetuning.json")
    assert (facts["clips"], facts["scored"], facts["left_out"], facts["failed"], facts["steps"]) == (7, 3, 0, {}, 4)
    assert [score["step"] for score in facts["scores"]] == [2, 4] and facts["before"]["step"] == 0
    assert facts["minutes"] == pytest.approx(7 * 0.6 / 60, rel=0.3)
    card = Path("one/model/README.md").read_text()
    assert "asrlib finetune speech --model ./model --context 1" in card and "| own recordings | not stated |  |" in card
    (row,) = facts["gains"]
    assert finetuning.sentence(row) in card and (row["clips"], row["shortage"]) == (3, "only 3 clips")
    assert "base_model" not in card  # the Hub refuses a folder there
    stated = {"title": "Talks", "licence": "CC0", "attribution": "me"}
    Path("speech/corpus.json").write_text(json.dumps(stated))
    brought = cards.Source.brought("speech")
    assert cards.sources_table([brought, brought]).splitlines()[2:] == ["| Talks | CC0 | me |"]
    Path("speech/corpus.json").unlink()
    assert cards.base_model("openai/whisper-base") == "openai/whisper-base"
    assert f"- type: wer\n      value: {row['after']['wer']:.2f}".rstrip("0") in card
    events = EventAccumulator("one/logs").Reload()
    assert [point.step for point in events.Scalars("eval/wer")] == [0, 2, 4]
    assert len(events.Scalars("train/loss")) == 4
    model, processor = transcription.load("one/model", device="cpu", dtype=torch.float32)
    before, _ = transcription.load("model", device="cpu", dtype=torch.float32)
    assert model.config.max_source_positions == 1500 and processor.feature_extractor.chunk_length == 30
    assert torch.equal(model.model.encoder.embed_positions.weight, before.model.encoder.embed_positions.weight)
    assert not torch.equal(model.model.encoder.layers[0].fc1.weight, before.model.encoder.layers[0].fc1.weight)
    assert (model.generation_config.language, model.generation_config.task) == ("en", "transcribe")
    assert next(transcription.transcribe(model, processor, ["speech/0.wav"], language="en")).language == "en"


def test_a_finished_training_is_not_repeated_and_offers_the_next_command(here, capsys, monkeypatch):
    monkeypatch.setattr(finetuning.recipe, "_tuner", None)
    pushed = []
    assert cli.main(command("one")) == 0 and "Curves:" not in capsys.readouterr().out
    monkeypatch.setattr(upload, "check", lambda name: pushed.append(name))
    monkeypatch.setattr(upload, "push", lambda folder, name: pushed.append(str(folder)) or "address")
    assert cli.main([*command("one"), "--push", "me/mine"]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"^7 clips of 0.1 minutes learnt from in 4 steps; the best weights, of step [24], lie in one/model.$",
        said,
        re.M,
    )
    assert "WER on 3 other clips of speech (en, " in said and "too few for an interval)." in said
    *_, offer, pushed_to = said.splitlines()
    assert offer.startswith("Next: asrlib ") and pushed_to == "It was pushed to address."
    for line in re.findall(r"asrlib .*?(?= on rec|, asr|, or|$)", offer):
        parsed = cli._parser().parse_args(line.split()[1:])
        assert (parsed.model, parsed.command) == ("one/model", line.split()[1])
    assert pushed == ["me/mine", "one/model"]


@pytest.mark.parametrize(("adapter", "frozen"), [("lora", False), ("lora", True), ("qlora", False), ("adalora", False)])
def test_an_adapter_is_trained_and_merges_when_it_is_loaded(here, tmp_path, adapter, frozen):
    output = str(tmp_path / "adapted")
    flags = ["--freeze-encoder"] if frozen else []
    assert cli.main(command(output, adapter=adapter, flags=flags, steps=6)) == 0
    tensors = files.read_json(Path(output, "model", "adapter_config.json"))
    assert tensors["base_model_name_or_path"] == str(here / "model")
    before, _ = transcription.load("model", device="cpu", dtype=torch.float32)
    model, processor = transcription.load(Path(output, "model"), device="cpu", dtype=torch.float32)
    moved = {name for name, part in model.named_parameters() if not torch.equal(part, before.get_parameter(name))}
    assert moved and all(name.endswith("_proj.weight") or (adapter == "adalora" and ".fc" in name) for name in moved)
    assert any(".encoder." in name for name in moved) != frozen
    assert any("encoder_attn.v_proj" in name for name in moved)
    assert processor.feature_extractor.chunk_length == 30


def test_adalora_is_trained_with_its_penalty_for_matrices_that_are_not_orthogonal(here):
    """Zhang et al. 2023, equation 4, as PEFT counts it: the mean over all matrices, times 0.5."""
    model, _ = transcription.load("model", device="cpu", dtype=torch.float32)
    adapted = adapters.adapt(model, finetuning.Settings(("speech",), adapter="adalora", steps=10)).eval()
    sound = torch.zeros(1, model.config.num_mel_bins, 2 * model.config.max_source_positions)
    inputs = {"input_features": sound, "labels": torch.tensor([[5, 6, 7]])}
    matrices = [
        part if "lora_A" in name else part.T
        for name, part in adapted.named_parameters()
        if "lora_A" in name or "lora_B" in name
    ]
    apart = [torch.linalg.norm(part @ part.T - torch.eye(len(part))) for part in matrices]
    penalty = adapted(**inputs).loss - adapted.get_base_model()(**inputs).loss
    assert penalty.item() == pytest.approx(0.5 * torch.stack(apart).mean().item(), rel=1e-4) and penalty > 0


def test_a_frozen_encoder_stays(here, tmp_path):
    output = str(tmp_path / "frozen")
    assert cli.main(command(output, flags=["--freeze-encoder"])) == 0
    before, _ = transcription.load("model", device="cpu", dtype=torch.float32)
    model, _ = transcription.load(Path(output, "model"), device="cpu", dtype=torch.float32)
    for name, part in model.named_parameters():
        assert torch.equal(part, before.get_parameter(name)) == (".encoder." in name), name


def test_each_clip_is_scored_in_its_own_language(here, tmp_path, monkeypatch):
    spoken = []
    generate = training.Seq2SeqTrainer.prediction_step

    def watch(self, model, inputs, *given, **options):
        spoken.extend(zip(inputs["labels"][:, 0].tolist(), options["language"], strict=True))
        return generate(self, model, inputs, *given, **options)

    monkeypatch.setattr(training.Seq2SeqTrainer, "prediction_step", watch)
    output = str(tmp_path / "mixed")
    mixed = {"every": 4, "validation": "german"}
    assert cli.main([*command(output, "speech=1", "german=3", **mixed), "--validation", "speech"]) == 0
    assert set(spoken) == {(258, "en"), (259, "de")}
    facts = files.read_json(Path(output, "finetuning.json"))
    (score,) = facts["scores"]
    assert score["wer"] == pytest.approx((score["wer german de"] + score["wer speech en"]) / 2)
    model, _ = transcription.load(Path(output, "model"), device="cpu")
    assert model.generation_config.language is None


def test_rates_are_of_normalised_and_of_written_words():
    tokenizer = SimpleNamespace(
        pad_token_id=0, batch_decode=lambda rows, **_: ["".join(map(chr, row)).strip("\0") for row in rows]
    )
    said, heard = (
        [[ord(letter) for letter in line.ljust(9, "\0")] for line in lines]
        for lines in (["Ja, Gut", "ab cd", "eins", "好的"], ["ja gut", "ab cx", "a b c d e", "好了"])
    )
    said = np.where(np.array(said) == 0, -100, said)
    prediction = SimpleNamespace(label_ids=said, predictions=np.array(heard))
    rates = training.Metrics(tokenizer, [*3 * [("x", "de")], ("y", "zh")], 0)(prediction)
    assert rates["wer x de"] == 120 and rates["wer y zh"] == 50 and rates["wer"] == 85
    assert rates["capped"] == pytest.approx((40 + 50) / 2)  # five words in place of one count as one error
    assert rates["orthographic"] == pytest.approx((160 + 50) / 2)


def scripted(monkeypatch, rates):
    """Have evaluations find these rates with loops capped; the first is that of the model before. With loops their order is another."""
    left = ({"wer": 300.0 - rate, "capped": rate, "orthographic": 0.0} for rate in rates)
    monkeypatch.setattr(training.Metrics, "__call__", lambda self, prediction: next(left))


def test_the_best_weights_are_kept_and_patience_ends_a_training(here, tmp_path, monkeypatch):
    scripted(monkeypatch, [90, 50, 40, 45, 40, 10])
    assert cli.main(command(str(tmp_path / "patient"), steps=10, patience=2)) == 0
    facts = files.read_json(tmp_path / "patient" / "finetuning.json")
    assert [score["capped"] for score in facts["scores"]] == [50, 40, 45, 40] and facts["steps"] == 8
    assert facts["best"]["step"] == 4
    scripted(monkeypatch, [90, 50, 40, 45, 40, 41])
    kept = []
    save = training.FineTuner._save
    monkeypatch.setattr(
        training.FineTuner,
        "_save",
        lambda self, folder, state=None: (
            kept.append((Path(folder).name, self.model.model.decoder.layer_norm.weight.detach().clone()))
            or save(self, folder, state)
        ),
    )
    assert cli.main(command(str(tmp_path / "impatient"), steps=10)) == 0
    model, _ = transcription.load(tmp_path / "impatient" / "model", device="cpu", dtype=torch.float32)
    assert [name for name, _ in kept] == [f"checkpoint-{step}" for step in (2, 4, 6, 8, 10)]
    assert [torch.equal(model.model.decoder.layer_norm.weight, one) for _, one in kept] == [
        False,
        True,
        False,
        False,
        False,
    ]
    assert weights(tmp_path / "impatient") == weights(tmp_path / "patient")


@pytest.mark.parametrize(
    ("kind", "steps"), [({}, 5), ({"adapter": "lora"}, 5), ({"adapter": "adalora"}, 9)], ids=["full", "lora", "adalora"]
)
@pytest.mark.parametrize("dies", [1, 4])
def test_a_killed_training_ends_with_the_same_weights(here, tmp_path, monkeypatch, capsys, kind, steps, dies):
    outputs = [str(tmp_path / name) for name in ("whole", "killed")]
    options = kind | {"steps": steps, "accumulate": 2}
    assert cli.main(command(outputs[0], **options)) == 0
    step, taken = training.FineTuner.training_step, []

    def die(self, *given):
        if len(taken) == 2 * dies - 1:  # within a step
            raise KeyboardInterrupt
        taken.append(self.state.global_step)
        return step(self, *given)

    monkeypatch.setattr(training.FineTuner, "training_step", die)
    assert cli.main(command(outputs[1], **options)) == 130
    taken.clear()
    monkeypatch.setattr(
        training.FineTuner,
        "training_step",
        lambda self, *given: taken.append(self.state.global_step) or step(self, *given),
    )
    assert cli.main(command(outputs[1], **options)) == 0
    assert taken[0] == (dies - 1) // 2 * 2  # the last checkpoint was that of the last even step
    assert ("This training goes on after step 2." in capsys.readouterr().out) == (dies == 4)
    file = "adapter_model.safetensors" if kind else "model.safetensors"
    assert weights(outputs[1], file) == weights(outputs[0], file)
    for name in ("losses.jsonl", "scores.jsonl"):
        assert Path(outputs[1], name).read_bytes() == Path(outputs[0], name).read_bytes()


KILLED = """
import os, signal, sys, json, torch
from asrlib import cli, hardware
from asrlib.training.finetuning import training
hardware.best_device, hardware.best_dtype = lambda: "cpu", lambda device=None: torch.float32
save = training.FineTuner._save_rng_state
def die(self, folder):
    if folder.endswith("checkpoint-4"):
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, folder)
training.FineTuner._save_rng_state = die
cli.main(json.loads(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_training_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(here, tmp_path):
    outputs = [str(tmp_path / name) for name in ("whole", "killed")]
    options = {"adapter": "lora", "steps": 5}
    assert cli.main(command(outputs[0], **options)) == 0
    run = [sys.executable, "-c", KILLED, json.dumps(command(outputs[1], **options))]
    done = subprocess.run(run, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert {path.name for path in Path(outputs[1], "trainer").iterdir()} >= {"checkpoint-2", "checkpoint-4"}
    assert cli.main(command(outputs[1], **options)) == 0
    assert weights(outputs[1], "adapter_model.safetensors") == weights(outputs[0], "adapter_model.safetensors")


def test_a_training_killed_after_its_last_step_takes_no_more(here, tmp_path, monkeypatch):
    scripted(monkeypatch, [90, 50, 60])
    write_model = finetuning.recipe._write
    monkeypatch.setattr(finetuning.recipe, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    chosen = command(str(tmp_path / "late"), steps=20, patience=1)
    assert cli.main(chosen) == 130
    monkeypatch.setattr(finetuning.recipe, "_write", write_model)
    monkeypatch.setattr(training.FineTuner, "training_step", None)
    assert cli.main(chosen) == 0
    facts = files.read_json(tmp_path / "late" / "finetuning.json")
    assert (facts["best"], facts["steps"]) == (facts["scores"][0], 4) and len(facts["scores"]) == 2


def test_clips_that_cannot_be_used_are_named_and_left_out(here, tmp_path, capsys):
    write(tmp_path / "mixed", ["a,en", "b,en", "c,en", " ,en", f"{'d' * 444},en", "e,en", "f,en"])
    soundfile.write(tmp_path / "mixed" / "5.wav", np.zeros(16_000 * 2), 16_000)
    damaged = tmp_path / "mixed" / "6.wav"
    damaged.write_bytes(b"no sound")
    assert cli.main(command(str(tmp_path / "out"), str(tmp_path / "mixed"))) == 0
    said = capsys.readouterr().out
    assert (
        "Left out: 3.wav (no transcript), 4.wav (its transcript has 449 tokens, over 448), 5.wav (lasts 2.0 s, over 1), 6.wav ("
        in said
    )
    assert len(list(files.read_jsonl(tmp_path / "out" / "left_out.jsonl"))) == 4
    assert f"\nCurves: tensorboard --logdir {tmp_path}/out/logs\n" in said
    assert said.index("left out: 4 (3.wav: no transcript; 4.wav: ") < said.index("step 0:")


def test_a_clip_whose_sound_ends_early_is_counted_as_failed(here, tmp_path, capsys, monkeypatch):
    write(tmp_path / "cut", ["a,en", "b,en", "c,en", "d,en"])
    prepare = data.context.prepare

    def fails(row, *given):
        if row["id"] == "2.wav":
            raise AsrlibError("2.wav is damaged.")
        return prepare(row, *given)

    monkeypatch.setattr(data.context, "prepare", fails)
    assert cli.main(command(str(tmp_path / "out"), str(tmp_path / "cut"), validation="speech")) == 1
    assert "Left out: 2.wav (2.wav is damaged.)" in capsys.readouterr().out
    facts = files.read_json(tmp_path / "out" / "finetuning.json")
    assert (facts["clips"], facts["scored"]) == (3, 9) and facts["failed"].keys() == {"2.wav"}


def test_two_trainings_do_not_write_over_each_other(here, capsys):
    with files.lock(Path("one/training")):
        assert cli.main(command("one")) == 1
    assert "Another run trains in one: wait until it has ended" in capsys.readouterr().err


def test_the_language_of_a_corpus_is_its_own(here, tmp_path, capsys):
    assert cli.main(command(str(tmp_path / "out"), "telephone/it", language="de")) == 1
    assert "--language is for folders" in capsys.readouterr().err
    shutil.copytree("speech", tmp_path / "spoken")
    (tmp_path / "spoken" / "corpus.json").write_text("[")
    assert cli.main(command(str(tmp_path / "other"), str(tmp_path / "spoken"))) == 1
    assert "corpus.json cannot be read as JSON" in capsys.readouterr().err


def test_a_source_of_which_nothing_can_be_read_is_left_out_or_ends_the_training(here, tmp_path, capsys, monkeypatch):
    write(tmp_path / "cut", ["a,en", "b,en", "c,en", "d,en"])
    prepare = data.context.prepare

    def fails(row, *given):
        if "cut" in str(row["audio"]):
            raise AsrlibError("It is damaged.")
        return prepare(row, *given)

    monkeypatch.setattr(data.context, "prepare", fails)
    cut, out = str(tmp_path / "cut"), str(tmp_path / "out")
    assert cli.main(command(out, cut, validation="speech")) == 1
    assert "No clip is left to learn from: 4 cannot be read, such as 0.wav (It is damaged.)" in capsys.readouterr().err
    assert cli.main(command(str(tmp_path / "other"), "speech", cut, validation="speech")) == 1
    assert files.read_json(tmp_path / "other" / "finetuning.json")["clips"] == 10
    monkeypatch.setattr(data.context, "prepare", prepare)  # mended: the same command goes on
    begun = tmp_path / "out" / "trainer" / "checkpoint-2"
    begun.mkdir(parents=True)
    assert cli.main(command(out, cut, validation="speech")) == 1  # but for a training that had begun without the clips
    begun.rmdir()
    assert cli.main(command(out, cut, validation="speech")) == 0
    assert files.read_json(tmp_path / "out" / "finetuning.json")["clips"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 7}, "one belongs to another training, with other settings, clips or weights"),
        ({"accumulate": 3}, "A batch of 4 clips cannot be parted among 1 processes in 3 parts each"),
        ({"validation": "nowhere"}, "nowhere is neither a folder nor a corpus"),
        ({"language": "ro"}, "The model knows no language 'ro'"),
        ({"model": "nowhere"}, "'nowhere' is neither a checkpoint's folder nor an id"),
    ],
)
def test_what_a_person_can_mend_is_one_sentence(here, capsys, options, message):
    assert cli.main(command("one", **options)) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_fail_with_one_sentence(here):
    Path("two.py").write_text(programs.TWO)
    runs = [command("two"), command("three", **{"batch-size": 3})]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "two.py", json.dumps(runs), "[0, 1]"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" learnt from in 4 steps") == done.stdout.count("step 4:") == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("asrlib: ")]
    assert said == [
        "asrlib: A batch of 3 clips cannot be parted among 2 processes in 1 parts each: choose a batch size that 2 divides."
    ]
    losses = [pd.read_json(Path(folder, "losses.jsonl"), lines=True) for folder in ("one", "two")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)
    rates = [[row["wer"] for row in files.read_jsonl(Path(folder, "scores.jsonl"))] for folder in ("one", "two")]
    assert rates[0] == rates[1]


def test_the_documented_configuration_of_deepspeed_is_read_by_accelerate(tmp_path, monkeypatch):
    page = (REPOSITORY / "docs" / "scale.md").read_text("utf-8")
    (tmp_path / "zero2.yaml").write_text(re.search(r"```yaml\n(distributed_type.*?)```", page, re.DOTALL)[1])
    (line,) = re.findall(r"^accelerate launch (.*)$", page, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    options, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(line.split()))
    assert options.use_deepspeed and options.num_processes == 4
    parsed = cli._parser().parse_args(options.training_script_args)
    assert (options.training_script, parsed.command, parsed.batch_size) == ("asrlib", "finetune", 64)
    options.deepspeed_fields_from_accelerate_config = "zero_stage"
    for name, value in prepare_deepspeed_cmd_env(options)[1].items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, str(value))
    told = DeepSpeedPlugin().deepspeed_config
    assert told["zero_optimization"]["stage"] == 2 and told["gradient_clipping"] == 1
    assert {
        told[name] for name in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    } == {"auto"}

"""Folders as people have them: each is loaded with the very weights that it stands for, or refused in one sentence."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration, WhisperModel, WhisperProcessor, WhisperTokenizer

from asrlib import AsrlibError, whisper
from asrlib.decoding import transcription
from asrlib.io import files
from asrlib.models import checkpoints, folders, loading

CLIP = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, random_whisper):
    return random_whisper(tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(whole, tmp_path / "output" / "checkpoint-500")


@pytest.fixture(scope="module")
def expected(whole):
    """Return a function that asserts that a model has the weights of the whole folder, and its words."""
    weights = WhisperForConditionalGeneration.from_pretrained(whole).state_dict()

    def same(model):
        found = model.state_dict()
        assert found.keys() == weights.keys()
        assert all(torch.equal(tensor, found[name]) for name, tensor in weights.items())

    return same, text(*loading.load(whole, dtype=torch.float32))


def text(model, processor, language="de"):
    return next(transcription.transcribe(model, processor, [CLIP], language=language, strict=True)).text


def test_all_weights_can_be_trained_but_the_sinusoids(folder):
    model = loading.load(folder, dtype=torch.float32)[0]
    fixed = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert fixed == ["model.encoder.embed_positions.weight"]


def change(path, **settings):
    """Set keys of a JSON file; None takes a key out."""
    content = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def renamed(folder, name):
    path = folder / "model.safetensors"
    save_file({name(key): tensor for key, tensor in load_file(path).items()}, path, {"format": "pt"})


def old_generation(folder):
    kept = {"bos_token_id": 256, "eos_token_id": [256, 256], "decoder_start_token_id": 50257, "max_length": 24,
            "suppress_tokens": [258, 259, 260, 261, 262, 263, 264], "begin_suppress_tokens": [256],
            "forced_decoder_ids": [[1, None], [2, 261]]}  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(kept))


def without_extractor(folder):
    change(folder / "processor_config.json", feature_extractor=None)
    (folder / "processor_config.json").unlink()


def sharded(folder):
    WhisperForConditionalGeneration.from_pretrained(folder).save_pretrained(folder, max_shard_size="200KB")
    (folder / "model.safetensors").unlink()
    assert len([*folder.glob("model-*.safetensors")]) > 1


def body(folder):
    kept = (folder / "generation_config.json").read_bytes()
    WhisperModel.from_pretrained(folder).save_pretrained(folder)
    (folder / "generation_config.json").write_bytes(kept)


def processor_above(folder):
    (folder / "trainer_state.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    for name in TOKENIZER:
        (folder / name).rename(folder.parent / name)


def two_at_once(folder):
    sharded(folder)
    shards = [load_file(path) for path in sorted(folder.glob("model-*.safetensors"))]
    for path, tensors in zip(sorted(folder.glob("model-*.safetensors")), shards, strict=True):
        save_file({f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}, path, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    change(index, weight_map={f"_orig_mod.{name}": place for name, place in places.items()})
    old_generation(folder)


@pytest.mark.parametrize(
    "damage",
    [
        old_generation, without_extractor, sharded, body, processor_above, two_at_once,
        lambda folder: renamed(folder, lambda name: f"_orig_mod.{name}"),  # saved from torch.compile
        lambda folder: renamed(folder, lambda name: f"module.{name}"),  # saved from DataParallel
        lambda folder: renamed(folder, lambda name: name.removeprefix("model.")),
        lambda folder: change(folder / "generation_config.json", lang_to_id=None, suppress_tokens=None),
        lambda folder: (folder / "pytorch_model.bin").write_bytes(b"a pickle beside the weights"),
    ],
)  # fmt: skip
def test_what_can_be_completed_is_loaded_with_the_same_weights_and_words(folder, expected, damage):
    damage(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    model, processor = loading.load(folder, dtype=torch.float32)
    same, words = expected
    same(model)
    assert text(model, processor) == words
    assert model.generation_config.lang_to_id == {"<|en|>": 258, "<|de|>": 259}
    assert {path: path.read_bytes() for path in folder.iterdir()} == before  # it is only read
    assert checkpoints.fetch(folder, "openai").is_file()


def test_a_missing_generation_config_is_derived(folder):
    (folder / "generation_config.json").unlink()
    model, processor = loading.load(folder, dtype=torch.float32)
    derived = model.generation_config
    assert (derived.decoder_start_token_id, derived.no_timestamps_token_id, derived.max_length) == (257, 265, 448)
    assert text(model, processor)
    assert derived.suppress_tokens == [257, 260, 261, 262, 263, 264]


@pytest.mark.parametrize("also", [(), ("fc1",)])
def test_an_adapter_is_loaded_on_its_base(whole, tmp_path, monkeypatch, also):
    import peft

    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    lora = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj", *also], init_lora_weights=False, base_model_name_or_path=None
    )
    adapted = peft.get_peft_model(WhisperForConditionalGeneration.from_pretrained(whole), lora).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    sound, tokens = torch.randn(1, 80, 3000), torch.tensor([[257, 258, 261, 265, 7]])
    with torch.no_grad():
        model = loading.load(tmp_path / "adapter", dtype=torch.float32)[0]
        plain = loading.load(whole, dtype=torch.float32)[0]
        logits = [each(sound, decoder_input_ids=tokens).logits for each in (adapted, model, plain)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits[2], logits[0], atol=1e-2)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.popitem()
    save_file(tensors, path)
    with pytest.raises(AsrlibError, match=r"cannot be merged into .* \(it lacks"):
        loading.load(tmp_path / "adapter")
    for base, said in (
        (None, "whose base is None"),
        (str(tmp_path / "adapter"), "whose base is"),
        ("no such model", "its base cannot be had"),
    ):
        change(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=base)
        with pytest.raises(AsrlibError, match=said):
            loading.load(tmp_path / "adapter")
    path.rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(AsrlibError, match="pickled weights can run code"):
        loading.load(tmp_path / "adapter")


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def alien(folder):
    for path in folder.iterdir():
        path.unlink()
    (folder / "model.bin").write_bytes(b"x")
    (folder / "config.json").write_text('{"alignment_heads": []}')


def without_weights(folder, *others):
    (folder / "model.safetensors").unlink()
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")


def beside(folder, below):
    """Make of the folder one that holds the checkpoint below, as the Trainer's output does, or the Hub's cache."""
    kept = [*folder.iterdir()]
    (folder / below).mkdir(parents=True)
    for path in kept:
        path.rename(folder / below / path.name)


def not_fetched(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n")


def no_tokenizer(folder):
    for name in TOKENIZER:
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (pickled, "pickled weights can run code .*WhisperForConditionalGeneration.from_pretrained and call save_pretrained"),
        (alien, "holds a model for faster-whisper alone: name the"),
        (no_tokenizer, "no tokenizer of Whisper: call save_pretrained"),
        (lambda folder: renamed(folder, lambda name: name.replace("q_proj", "q_proj.lora_A")), "not merged: call merge_and"),
        (lambda folder: renamed(folder, lambda name: f"student.{name}"), "it lacks model"),
        (lambda folder: change(folder / "config.json", decoder_layers=3), "it lacks model.decoder.layers.2"),
        (lambda folder: change(folder / "config.json", decoder_layers=1), "no place for model.decoder.layers.1"),
        (lambda folder: change(folder / "config.json", d_model=16), "not a complete Whisper checkpoint"),
        (lambda folder: change(folder / "config.json", vocab_size=99), "not a complete Whisper checkpoint"),
        (lambda folder: change(folder / "generation_config.json", decoder_start_token_id=50258), "a wrong decoder_start_tok"),
        (lambda folder: change(folder / "config.json", quantization_config={"load_in_8bit": True, "quant_method":
                                                                            "bitsandbytes"}), "names a quantization"),
        (lambda folder: WhisperProcessor(*extractor_of(folder, 128)).save_pretrained(folder), "of 80 mel bins, its pro"),
        (lambda folder: added(folder, ["Qwertz"]), "a tokenizer with 1,768 tokens and a model with 1,767"),
        (lambda folder: without_weights(folder), "a configuration, but no weights"),
        (lambda folder: without_weights(folder, "openvino_encoder_model.xml", "openvino_encoder_model.bin"), "for OpenVINO alone"),
        (lambda folder: without_weights(folder, "onnx/encoder_model.onnx"), "for Transformers.js alone"),
        (lambda folder: beside(folder, "checkpoint-20"), "holds some: name .*checkpoint-500/checkpoint-20.$"),
        (lambda folder: beside(folder, "snapshots/abc"), "holds some: name .*/snapshots/abc.$"),
        (not_fetched, "run `git lfs pull`"),
        (lambda folder: extracting(folder, sampling_rate=8000), "sampling_rate 8000, where every Whisper has 16000"),
        (lambda folder: extracting(folder, hop_length=100), "hop_length 100, where every Whisper has 160"),
        (lambda folder: extracting(folder, n_fft=512), "n_fft 512, where every Whisper has 400"),
    ],
)  # fmt: skip
def test_what_cannot_be_completed_is_one_sentence(folder, damage, said):
    damage(folder)
    with pytest.raises(AsrlibError, match=said) as caught:
        loading.load(folder, dtype=torch.float32)
    assert "\n" not in str(caught.value)


def extractor_of(folder, bins):
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(bins), WhisperTokenizer.from_pretrained(folder)


def extracting(folder, **settings):
    content = json.loads((folder / "processor_config.json").read_text())["feature_extractor"]
    change(folder / "processor_config.json", feature_extractor=content | settings)


def added(folder, words):
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(words)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(("name", "content", "said"), [
    ("small.pt", b"PK", "openai-whisper, which only openai-whisper reads"), ("ggml-model.bin", b"lmgg", "whisper.cpp"),
    ("model.gguf", b"GGUF", "whisper.cpp"), ("encoder_model.onnx", b"", "ONNX Runtime"), ("x.safetensors", b"", "is a file: name a"),
])  # fmt: skip
def test_a_file_of_another_program_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AsrlibError, match=said):
        loading.load(tmp_path / name)


@pytest.mark.parametrize(
    "changes", [{"num_mel_bins": 128}, {"decoder_layers": 1, "encoder_layers": 3}, {"d_model": 48}]
)
def test_other_shapes_are_loaded(random_whisper, tmp_path, changes):
    model, processor = loading.load(random_whisper(tmp_path / "other", **changes), dtype=torch.float32)
    sound = processor(CLIP, sampling_rate=16_000, return_tensors="pt").input_features
    tokens = model.generate(sound, language="de", task="transcribe")[0, :24]
    assert text(model, processor) == processor.decode(tokens, skip_special_tokens=True).strip()
    assert all(getattr(model.config, key) == value for key, value in changes.items())


@pytest.mark.parametrize("multiple", [None, 64])
def test_added_tokens_are_words_and_rows_that_only_fill_up_are_never_chosen(folder, multiple):
    added(folder, ["Qwertz"])
    model, size = WhisperForConditionalGeneration.from_pretrained(folder), 1768
    kept = (folder / "generation_config.json").read_bytes()
    model.resize_token_embeddings(size, pad_to_multiple_of=multiple)
    with torch.no_grad():
        likely = model.proj_out.weight[: size - 1].norm(dim=1).argmax()
        model.proj_out.weight[size - 1 :] = 20 * model.proj_out.weight[likely]
        model.proj_out.weight[size:] *= 5
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_bytes(kept)
    model, processor = loading.load(folder, dtype=torch.float32)
    silence = torch.zeros(1, 80, 3000)
    chosen = model.generate(silence, language="en", task="transcribe", max_new_tokens=8)[0]
    assert chosen.max() < size
    assert "Qwertz" in processor.decode(chosen) or "Qwertz" in text(model, processor)


def test_an_adapter_with_added_words_is_merged_into_a_larger_vocabulary(whole, tmp_path, monkeypatch):
    import peft

    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    model, folder = WhisperForConditionalGeneration.from_pretrained(whole), tmp_path / "adapter"
    model.resize_token_embeddings(1768)
    lora = peft.LoraConfig(
        target_modules=["q_proj"], modules_to_save=["embed_tokens", "proj_out"], init_lora_weights=False
    )
    peft.get_peft_model(model, lora).save_pretrained(folder)
    for name in (*TOKENIZER, "processor_config.json"):
        shutil.copy(whole / name, folder)
    added(folder, ["Qwertz"])
    loaded, processor = loading.load(folder, dtype=torch.float32)
    assert loaded.config.vocab_size == len(processor.tokenizer) == 1768
    torch.testing.assert_close(loaded.model.decoder.embed_tokens.weight, model.base_model.decoder.embed_tokens.weight)


def test_times_that_an_old_tokenizer_does_not_list_are_written(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    kept = [token for token in tokenizer["added_tokens"] if not token["content"][2:3].isdigit()]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"added_tokens": kept}))
    change(folder / "tokenizer_config.json", added_tokens_decoder=None)
    model, processor = loading.load(folder, dtype=torch.float32)
    assert len(processor.tokenizer) == 266
    assert not {*whisper.time_tokens(model.generation_config)} & {*model.generation_config.suppress_tokens}


@pytest.mark.parametrize("bits", [4, 8])
def test_a_folder_saved_quantized_is_loaded_in_any_precision_and_converted_in_none(random_whisper, tmp_path, bits):
    from transformers import BitsAndBytesConfig

    folder = random_whisper(tmp_path / "plain", d_model=64)  # 4 bits go by blocks of 64

    options = {"quantization_config": BitsAndBytesConfig(**{f"load_in_{bits}bit": True}), "dtype": torch.float32}
    WhisperForConditionalGeneration.from_pretrained(folder, **options).save_pretrained(folder.parent / "q")
    for name in (*TOKENIZER, "processor_config.json", "generation_config.json"):
        shutil.copy(folder / name, folder.parent / "q")
    for dtype in (torch.float32, torch.bfloat16):
        text(*loading.load(folder.parent / "q", device="cpu", dtype=dtype))
    with pytest.raises(AsrlibError, match="is quantized: convert the checkpoint that it came from"):
        checkpoints.fetch(folder.parent / "q", "openai")


NAMES = ("config.json", "generation_config.json", "processor_config.json", "model.safetensors", *TOKENIZER)
FAULTS = st.sampled_from(["missing", "empty", "folder", "{}", "[]", "null"]) | st.floats(0, 1)


@pytest.mark.slow
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.dictionaries(st.sampled_from(NAMES), FAULTS, min_size=1, max_size=2))
def test_any_file_missing_or_cut_is_one_sentence_or_the_same_weights(whole, tmp_path, monkeypatch, expected, faults):
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    shutil.rmtree(tmp_path / "model", ignore_errors=True)
    folder = shutil.copytree(whole, tmp_path / "model")
    for name, fault in faults.items():
        path, content = folder / name, (folder / name).read_bytes()
        path.unlink()
        if fault == "folder":
            path.mkdir()
        elif isinstance(fault, float):
            path.write_bytes(content[: int(fault * len(content))])
        elif fault != "missing":
            path.write_text("" if fault == "empty" else fault)
    try:
        model, processor = loading.load(folder, device="cpu", dtype=torch.float32)
    except AsrlibError as error:
        assert "\n" not in str(error)
    else:
        expected[0](model)
        assert isinstance(text(model, processor), str)


@pytest.mark.slow
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_setting_of_another_value_is_one_sentence_or_the_same_weights(whole, tmp_path, monkeypatch, expected, data):
    monkeypatch.setenv("ASRLIB_CACHE", str(tmp_path / "cache"))
    shutil.rmtree(tmp_path / "model", ignore_errors=True)
    folder = shutil.copytree(whole, tmp_path / "model")
    path = folder / data.draw(st.sampled_from(["config.json", "generation_config.json"]))
    key = data.draw(st.sampled_from(sorted(json.loads(path.read_text()))))
    value = data.draw(st.sampled_from([None, 0, 1, -1, 3, 10**6, 0.5, "", "x", [], [10**6], {}, {"a": 1}, True]))
    change(path, **{key: value})
    try:
        model, processor = loading.load(folder, device="cpu", dtype=torch.float32)
    except AsrlibError as error:
        assert "\n" not in str(error)
    else:
        expected[0](model)
        assert isinstance(text(model, processor, None), str)


@pytest.mark.weights
@pytest.mark.parametrize("model_id", ["openai/whisper-base", "openai/whisper-tiny.en"])
def test_the_derived_generation_config_is_the_published_one(model_id):
    from transformers import WhisperConfig

    folder = checkpoints.fetch(model_id)
    published = files.read_json(folder / "generation_config.json")
    del published["alignment_heads"]  # cannot be derived; they are only for word times
    tokenizer, config = WhisperTokenizer.from_pretrained(folder), WhisperConfig.from_pretrained(folder)
    derived = folders.generation(tokenizer.get_vocab(), config, {})
    assert {key: derived.get(key) for key in published} == published
    tokenizer.add_tokens(["Qwertz"])
    assert folders.generation(tokenizer.get_vocab(), config, {}) == derived

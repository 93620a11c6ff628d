"""Weights: reading, renaming, converting and counting them; and, with real weights, that nothing was changed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hub_server import Hub, Repository

from asrlib import AsrlibError
from asrlib.io import files
from asrlib.models import checkpoints, conversion

PACKAGED = ("openai/whisper-base", "openai/whisper-tiny.en")
PUBLISHED = files.read_toml(files.data_file("architectures.toml"))["published"]


@pytest.fixture
def small_model():
    """A Whisper of a few thousand parameters, with random weights."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=60, num_mel_bins=4, d_model=8, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=10, max_target_positions=12,
        pad_token_id=1, bos_token_id=1, eos_token_id=1, decoder_start_token_id=2, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:
                parameter.uniform_(-1, 1)  # biases and norms too: zeros and ones would hide a swap
    return model


@pytest.fixture
def saved(small_model, tmp_path):
    small_model.save_pretrained(tmp_path / "fine_tuned")
    return tmp_path / "fine_tuned"


# ---- architectures


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row['model']}-{row['parameters']:,}")
def test_parameter_counts_are_the_published_ones(row):
    model = checkpoints.architecture(row["model"])
    assert checkpoints.parameters(model, sinusoids=row["sinusoids"]) == row["parameters"]


@pytest.mark.slow
def test_every_architecture_builds_without_memory_and_students_keep_their_teachers_width():
    rows = files.read_toml(files.data_file("architectures.toml"))["architecture"]
    for model_id, row in rows.items():
        model = checkpoints.architecture(model_id)
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
        assert [len(model.model.encoder.layers), len(model.model.decoder.layers)] == row["layers"]
        assert row["width"] == 64 * row["heads"]
    teacher, student = (
        checkpoints.architecture(f"{name}-large-v2") for name in ("openai/whisper", "distil-whisper/distil")
    )
    assert round(checkpoints.parameters(student) / checkpoints.parameters(teacher), 5) == 0.49  # published: 49.000 %


@pytest.mark.slow
def test_random_weights_follow_the_seed_alone_and_generate():
    import torch

    before = torch.random.get_rng_state()
    first, again, other = (
        checkpoints.architecture("openai/whisper-tiny", "random", dtype=torch.bfloat16, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [model.model.encoder.conv1.weight for model in (first, again, other)]
    assert weights[0].dtype == torch.bfloat16
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    silence = torch.zeros(1, 80, 3000, dtype=torch.bfloat16)
    tokens = first.generate(
        silence, language="fr", task="translate", max_new_tokens=3, attention_mask=silence[:, 0] == 0
    )
    assert tokens.shape == (1, 3)


def test_unknown_architecture_and_kind_of_weights_are_one_sentence():
    with pytest.raises(AsrlibError, match="unknown: use one of openai/whisper-tiny, "):
        checkpoints.architecture("openai/whisper-huge")
    with pytest.raises(AsrlibError, match="'meta' for shapes only or 'random'"):
        checkpoints.architecture("openai/whisper-tiny", "pretrained")


# ---- formats


def written_by_ctranslate2(model, folder, vocabulary):
    """Let CTranslate2's own converter write a model of transformers, and return what is then in the file."""
    from ctranslate2.converters.transformers import WhisperLoader

    specification = WhisperLoader().get_model_spec(model)
    specification.register_vocabulary([str(number) for number in range(vocabulary)])
    specification.validate()
    specification.optimize()
    specification._serialize(str(folder / "model.bin"))
    return checkpoints.read_model_bin(folder / "model.bin")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_reader_and_names_are_the_inverse_of_ctranslate2s_own_writer(small_model, tmp_path, dtype):
    import torch

    model = small_model.to(getattr(torch, dtype))
    arrays = written_by_ctranslate2(model, tmp_path, 60)
    assert arrays["decoder/projection/weight"] is arrays["decoder/embeddings/weight"]
    tensors = dict(conversion.renamed(arrays))
    expected = {name: tensor.numpy() for name, tensor in model.state_dict().items() if name != "proj_out.weight"}
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == dtype
        assert np.array_equal(tensors[name], tensor), name


def test_a_fine_tuned_folder_becomes_an_openai_file_with_the_same_logits(small_model, saved, cache):
    import torch
    import whisper

    path = checkpoints.fetch(saved, "openai")
    assert path.is_relative_to(cache)
    other = whisper.load_model(str(path), device="cpu")
    mel, tokens = torch.randn(2, 4, 20), torch.tensor([[2, 5, 9], [2, 8, 1]])
    with torch.no_grad():
        ours, theirs = small_model(mel, decoder_input_ids=tokens).logits, other(mel, tokens)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert checkpoints.provenance(path)["model"] == "fine_tuned"


def test_a_local_folder_is_its_own_checkpoint_and_conversions_follow_its_content(saved, cache):
    import safetensors.torch

    assert checkpoints.fetch(str(saved)) == saved
    first = checkpoints.fetch(saved, "openai")
    assert checkpoints.fetch(saved, "openai") == first
    assert checkpoints.available(saved, "openai")
    tensors = safetensors.torch.load_file(saved / "model.safetensors")
    tensors["model.encoder.conv1.bias"] += 1
    safetensors.torch.save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    assert not checkpoints.available(saved, "openai")
    assert checkpoints.fetch(saved, "openai") != first


def test_a_model_without_its_processor_cannot_become_ctranslate2(saved, cache):
    with pytest.raises(AsrlibError, match="no processor: call processor"):
        checkpoints.fetch(saved, "ctranslate2")


# ---- the Hub, played by a server on this machine


COMMIT = "c" * 40


@pytest.fixture
def server(saved):
    """The Hub with one checkpoint, and a pickle beside it."""
    config = json.loads((saved / "config.json").read_text()) | {"forced_decoder_ids": [[1, 7]]}
    served = {
        "config.json": json.dumps(config).encode(),
        "tokenizer_config.json": b'{"clean_up_tokenization_spaces": true, "pad_token": "x"}',
        "model.safetensors": (saved / "model.safetensors").read_bytes(),
        "pytorch_model.bin": b"a pickle",
    }
    with Hub([Repository("me/whisper-mine", COMMIT, served)]).playing() as hub:
        yield hub


@pytest.fixture
def hub(server, tmp_path):
    """Return a function that fetches from the played Hub in a process of its own: (provenance or None, the error)."""
    code = (
        "import json, sys; from asrlib import AsrlibError; from asrlib.models import checkpoints\n"
        "try: folder = checkpoints.fetch(sys.argv[1])\n"
        "except AsrlibError as error: sys.exit(str(error))\n"
        "print(json.dumps([str(folder), checkpoints.provenance(folder)]))"
    )

    def fetch(model_id="me/whisper-mine", **more):
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | {
            "HF_ENDPOINT": server.address,
            "HF_HOME": str(tmp_path / "hf"),
            "ASRLIB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", code, model_id], env=environment | more, capture_output=True, text=True
        )
        return (json.loads(done.stdout) if done.returncode == 0 else None), done.stderr.strip()

    return fetch


def test_the_hub_gives_safetensors_at_a_commit_and_no_pickles(hub, server, saved):
    (folder, origin), _ = hub()
    assert origin["source"] == "hub"
    assert origin["revision"] == COMMIT
    assert origin["sha256"] == files.sha256(saved / "model.safetensors")
    assert not [path for path in server.asked if path.endswith("pytorch_model.bin")]
    assert "forced_decoder_ids" not in json.loads((Path(folder) / "config.json").read_text())
    assert json.loads((Path(folder) / "tokenizer_config.json").read_text()) == {"pad_token": "x"}
    server.repositories.clear()
    assert hub(HF_HUB_OFFLINE="1")[0] == [folder, origin]  # from asrlib's cache


def test_a_checkpoint_in_the_hubs_own_cache_serves_offline(hub):
    (folder, origin), _ = hub()
    for path in Path(folder).iterdir():
        path.unlink()
    Path(folder).rmdir()
    assert hub(HF_HUB_OFFLINE="1")[0] == [folder, origin]


def test_errors_of_the_hub_are_one_sentence(hub, server):
    complaint = hub("me/whisper-other")[1]
    assert complaint.startswith("The Hub has no public model me/whisper-other:")
    assert len(complaint.splitlines()) == 1
    del server.repositories["model", "me/whisper-mine"].files["model.safetensors"]
    assert "pickled weights only" in hub()[1]


# ---- real weights


@pytest.fixture(scope="module")
def clips():
    from asrlib import audio, corpora

    return [audio.load(row["audio"]) for row in corpora.load("audiobook").select(range(2))]


@pytest.fixture(scope="module", params=PACKAGED)
def trio(request, clips):
    """The same weights in three implementations, and the clips as each of them hears and encodes them."""
    import ctranslate2
    import torch
    import whisper

    ours, processor = request.getfixturevalue("base" if request.param == PACKAGED[0] else "tiny_en")
    folder = checkpoints.fetch(request.param, "ctranslate2")
    direct = ctranslate2.models.Whisper(str(folder), compute_type="float32")
    openai = whisper.load_model(str(checkpoints.fetch(request.param, "openai")), device="cpu")
    features = processor(clips, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
    mel = features.input_features
    with torch.no_grad():
        heard = SimpleNamespace(
            ours=ours.model.encoder(mel).last_hidden_state,
            openai=openai.encoder(mel),
            direct=direct.encode(ctranslate2.StorageView.from_array(mel.numpy())),
        )
    return SimpleNamespace(**locals())


@pytest.fixture(scope="module")
def written(trio):
    """What transformers writes for the clips."""
    from transformers.modeling_outputs import BaseModelOutput

    options = {"language": "en", "task": "transcribe"} if trio.openai.is_multilingual else {}
    states = BaseModelOutput(trio.heard.ours)
    tokens = trio.ours.generate(**trio.features, encoder_outputs=states, **options)
    return trio.processor.batch_decode(tokens, skip_special_tokens=True)


@pytest.mark.weights
@pytest.mark.parametrize("model_id", PACKAGED)
def test_every_float16_of_the_original_survives(model_id, tmp_path):
    import torch
    from transformers import WhisperForConditionalGeneration

    if checkpoints.provenance(checkpoints.fetch(model_id))["source"] != "wheels":
        pytest.skip("this cache was filled by the Hub")
    original = checkpoints.read_model_bin(checkpoints.fetch(model_id, "ctranslate2") / "model.bin")
    model, report = WhisperForConditionalGeneration.from_pretrained(
        checkpoints.fetch(model_id), dtype=torch.float16, output_loading_info=True
    )
    assert not any(report.values()), report  # no key missing, left over or of another shape
    # The way back is CTranslate2's own: names, stacking and the zeros for the key biases are not ours.
    back = written_by_ctranslate2(model, tmp_path, len(original["decoder/embeddings/weight"]))
    tensors = {name: array for name, array in original.items() if array.ndim}
    assert tensors.keys() == {name for name, array in back.items() if array.ndim}
    for name, array in tensors.items():
        assert array.dtype == back[name].dtype == np.float16, name
        assert array.shape == back[name].shape, name
        assert array.tobytes() == back[name].tobytes(), name


@pytest.mark.weights
def test_logits_and_encodings_agree_with_openai_and_ctranslate2(trio):
    import torch

    config = trio.ours.generation_config
    tokens = torch.tensor([[config.decoder_start_token_id, config.no_timestamps_token_id, 440]] * 2)
    with torch.no_grad():
        logits = trio.ours(encoder_outputs=(trio.heard.ours,), decoder_input_ids=tokens).logits
        theirs = trio.openai.logits(tokens, trio.heard.openai)
    assert (logits - theirs).abs().max() < 1e-3 * theirs.abs().max()
    for other in (trio.heard.openai.numpy(), np.array(trio.heard.direct)):
        assert np.abs(trio.heard.ours.numpy() - other).max() < 1e-3 * np.abs(other).max()


@pytest.mark.weights
def test_transcripts_are_those_of_openai_and_ctranslate2(trio, written):
    import whisper

    assert len({text for text in written if len(text) > 10}) == 2
    options = whisper.DecodingOptions(language="en", temperature=0, without_timestamps=True, fp16=False)
    theirs = [result.text for result in whisper.decode(trio.openai, trio.heard.openai, options)]
    assert [text.strip() for text in written] == theirs
    prompt = list(whisper.tokenizer.get_tokenizer(trio.openai.is_multilingual).sot_sequence_including_notimestamps)
    results = trio.direct.generate(trio.heard.direct, [prompt] * 2, beam_size=1)
    theirs = trio.processor.batch_decode([result.sequences_ids[0] for result in results], skip_special_tokens=True)
    assert theirs == written


@pytest.mark.weights
@pytest.mark.parametrize("model_id", PACKAGED)
def test_tokenizer_and_special_tokens_are_openais(model_id):
    import whisper
    from transformers import WhisperTokenizer

    multilingual = not model_id.endswith(".en")
    theirs = whisper.tokenizer.get_tokenizer(multilingual, language="fr" if multilingual else None)
    path = checkpoints.fetch(model_id)
    ours = WhisperTokenizer.from_pretrained(path)
    for text in (" Hello, it's five o'clock.", " Où êtes-vous ?", " Здравствуйте", " ναι", " 1,000 $"):
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text)
    assert ours.convert_tokens_to_ids("<|0.00|>") == theirs.timestamp_begin
    assert ours.convert_tokens_to_ids("<|30.00|>") == theirs.timestamp_begin + 1500 == len(ours) - 1
    assert ours.all_special_ids[-1] == theirs.no_timestamps
    assert ours.normalize("Mr. Smith's colour") == "mister smith is color"
    settings = json.loads((path / "tokenizer_config.json").read_text())
    assert settings["additional_special_tokens"] == ours.all_special_tokens[1:]
    assert "extra_special_tokens" not in settings  # a list of them is what transformers 4 cannot read
    generation = json.loads((path / "generation_config.json").read_text())
    assert generation["no_timestamps_token_id"] == theirs.no_timestamps
    assert generation["prev_sot_token_id"] == theirs.sot_prev
    assert (generation["decoder_start_token_id"], generation["eos_token_id"]) == (theirs.sot, theirs.eot)
    assert set(theirs.non_speech_tokens) < set(generation["suppress_tokens"])
    if multilingual:
        languages = zip(theirs.all_language_codes, theirs.all_language_tokens, strict=True)
        assert generation["lang_to_id"] == {f"<|{code}|>": token for code, token in languages}
        assert generation["task_to_id"] == {"transcribe": theirs.transcribe, "translate": theirs.translate}


@pytest.mark.weights
@pytest.mark.parametrize("model_id", PACKAGED)
def test_words_that_begin_with_t_are_split_by_the_published_multilingual_tokenizer_alone(model_id):
    import whisper
    from tokenizers import Tokenizer

    multilingual = not model_id.endswith(".en")
    theirs = whisper.tokenizer.get_tokenizer(multilingual)
    content = json.loads((checkpoints.fetch(model_id) / "tokenizer.json").read_text(encoding="utf-8"))
    rules, texts = content["model"]["merges"], [" the tea that took two", " toată țara", " то", " a test of trees"]
    lacking = [text for text in texts if encoded(Tokenizer.from_str(json.dumps(content)), text) != theirs.encode(text)]
    assert lacking == ([texts[0], texts[1], texts[3]] if multilingual else [])
    if multilingual:
        rules.insert(0, ["Ġ", "t"])
    mended = Tokenizer.from_str(json.dumps(content))
    assert [encoded(mended, text) for text in texts] == [theirs.encode(text) for text in texts]


def encoded(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.weights
def test_loading_and_generating_say_nothing():
    code = """
import logging, sys, warnings
warnings.simplefilter("error")
# transformers imports hqq where it is installed, and that compiles a function, for which PyTorch imports its own deprecated part
warnings.filterwarnings("ignore", "`torch.jit.script_method` is deprecated", DeprecationWarning)
import torch
from asrlib.models import checkpoints
from transformers import WhisperForConditionalGeneration, WhisperProcessor
for model_id in checkpoints.known():
    path = checkpoints.fetch(model_id)
    processor = WhisperProcessor.from_pretrained(path)
    model = WhisperForConditionalGeneration.from_pretrained(path)
    del model.model.encoder.layers[1:]  # saves time; what could speak is the loading, the settings and the decoding
    inputs = processor([torch.zeros(16000).numpy()], sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
    options = [{}, {"language": "fr", "task": "transcribe"}] if model.generation_config.is_multilingual else [{}]
    for option in options:
        processor.batch_decode(model.generate(**inputs, **option, max_length=6), skip_special_tokens=True)
"""
    environment = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.weights
def test_a_fine_tuned_folder_becomes_ctranslate2_with_the_same_numbers(tmp_path, cache):
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ASRLIB_CACHE")
        source, original = (
            checkpoints.fetch("openai/whisper-tiny.en", format) for format in ("transformers", "ctranslate2")
        )
    WhisperForConditionalGeneration.from_pretrained(source).save_pretrained(tmp_path / "mine")
    WhisperProcessor.from_pretrained(source).save_pretrained(tmp_path / "mine")
    made = checkpoints.fetch(tmp_path / "mine", "ctranslate2")
    ours, theirs = (checkpoints.read_model_bin(folder / "model.bin") for folder in (made, original))
    for name, array in theirs.items():
        assert array.ndim == 0 or np.array_equal(ours[name], array), name
    settings = json.loads((made / "config.json").read_text())
    assert settings["alignment_heads"] == json.loads((original / "config.json").read_text())["alignment_heads"]

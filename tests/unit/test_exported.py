"""A model exported to ONNX hears what the model that it came from hears, through the same functions."""

import warnings

import numpy as np
import pytest
import torch

from asrlib import AsrlibError, checkpoints, cli, transcription

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A small multilingual Whisper with random weights, and the folder of its ONNX export."""
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

    source = checkpoints.fetch("openai/whisper-base")
    torch.manual_seed(1)
    config = WhisperConfig.from_pretrained(
        source, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, init_std=0.5,
    )  # fmt: skip
    model, processor = WhisperForConditionalGeneration(config).eval(), WhisperProcessor.from_pretrained(source)
    model.generation_config = GenerationConfig.from_pretrained(source, max_length=24)
    plain, folder = (tmp_path_factory.mktemp(name) for name in ("plain", "onnx"))
    for part in (model, processor):
        part.save_pretrained(plain)
    from optimum.onnxruntime import ORTModelForSpeechSeq2Seq

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, on shapes that are constant here
        exported = ORTModelForSpeechSeq2Seq.from_pretrained(plain, export=True, use_cache=True, use_merged=True)
    for part in (exported, model.generation_config, processor):
        part.save_pretrained(folder)
    return (model, processor), folder


@pytest.fixture(scope="module")
def clips():
    draw = np.random.default_rng(0)
    return [0.1 * draw.standard_normal(samples, np.float32) for samples in (16_000, 50_000, 9_000)]


@pytest.mark.parametrize("language", [None, "ro"])
def test_same_words_and_languages(both, clips, language):
    plain, folder = both
    options = {"language": language, "batch_size": 2}
    expected = list(transcription.transcribe(*plain, clips, **options))
    heard = list(transcription.transcribe(*transcription.load(folder), clips, **options))
    assert [(item.text, item.language) for item in heard] == [(item.text, item.language) for item in expected]
    assert len({item.text for item in heard}) > 1  # the random model does tell clips apart


def test_long_recordings_and_segment_times_are_the_same(both, clips):
    plain, folder = both
    long = np.concatenate([clips[1]] * 11)  # 34 seconds: two windows
    for options in ({}, {"timestamps": True}):
        expected = list(transcription.transcribe(*plain, [long, clips[0]], **options))
        heard = list(transcription.transcribe(*transcription.load(folder), [long, clips[0]], **options))
        assert [(item.text, item.segments) for item in heard] == [(item.text, item.segments) for item in expected]
        assert heard[0].segments


def test_a_merged_window_is_refused(both, clips):
    model, processor = transcription.load(both[1])
    with pytest.raises(AsrlibError, match="exported model always encodes 30 seconds"):
        next(transcription.transcribe(model, processor, clips, window="merged"))


def test_a_damaged_graph_is_one_sentence(both, tmp_path):
    for path in both[1].iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(
            content[: len(content) // 2] if path.name == "encoder_model.onnx" else content
        )
    with pytest.raises(AsrlibError, match="damaged or incomplete ONNX graph"):
        transcription.load(tmp_path)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("generation_config.json", "lacks generation_config"),
        ("decoder_model_merged.onnx", "not a complete Whisper checkpoint"),
    ],
)
def test_a_missing_file_is_one_sentence(both, tmp_path, lost, said):
    for path in both[1].iterdir():
        if path.name != lost:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(AsrlibError, match=said):
        transcription.load(tmp_path)


def test_the_command_line_takes_the_folder(both, clips, tmp_path, capsys):
    import soundfile

    soundfile.write(tmp_path / "clip.wav", clips[0], 16_000)
    assert cli.main(["transcribe", "--model", str(both[1]), "--language", "ro", str(tmp_path / "clip.wav")]) == 0
    (expected,) = transcription.transcribe(*both[0], clips[:1], language="ro")
    assert expected.text in capsys.readouterr().out


def test_it_cannot_be_converted_again(both):
    with pytest.raises(AsrlibError, match="exported to ONNX"):
        checkpoints.fetch(both[1], format="ctranslate2")
    assert len(checkpoints.provenance(both[1])["sha256"]) == 64

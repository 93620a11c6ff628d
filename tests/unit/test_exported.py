"""A model exported to ONNX hears what the model that it came from hears, through the same functions."""

import numpy as np
import pytest
import torch

from asrlib import AsrlibError, audio, cli, corpora
from asrlib.decoding import features, search, transcription
from asrlib.models import checkpoints, conversion, graphs, optimum_env

pytestmark = [pytest.mark.weights, pytest.mark.usefixtures("optimum")]
TINY = "openai/whisper-tiny.en"


@pytest.fixture(scope="module")
def both(tmp_path_factory, optimum):
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
    conversion.to_onnx(plain, folder, "float32")
    return (model, processor), folder


@pytest.fixture(scope="module")
def clips():
    draw = np.random.default_rng(0)
    return [0.1 * draw.standard_normal(samples, np.float32) for samples in (16_000, 50_000, 9_000)]


@pytest.mark.parametrize("language", [None, "ro"])
def test_same_words_and_languages(both, clips, language):
    plain, folder = both
    options = {"language": language, "batch_size": 2, "strict": True}
    expected = list(transcription.transcribe(*plain, clips, **options))
    heard = list(transcription.transcribe(*transcription.load(folder), clips, **options))
    assert [(item.text, item.language) for item in heard] == [(item.text, item.language) for item in expected]
    assert len({item.text for item in heard}) > 1  # the random model does tell clips apart


def test_the_encoder_alone_and_the_sizes_of_both_parts(both):
    (model, _), folder = both
    features = torch.randn(2, 80, 3000)
    with torch.no_grad():
        expected = model.model.encoder(features).last_hidden_state
    torch.testing.assert_close(graphs.encoder(folder)(features), expected, rtol=1e-3, atol=1e-3)
    sizes = graphs.megabytes(folder)
    files = [folder / name for name in (graphs.ENCODER, graphs.DECODER)]
    assert [round(1e6 * sizes[part]) for part in ("encoder", "decoder")] == [file.stat().st_size for file in files]
    assert sizes["both"] == sizes["encoder"] + sizes["decoder"]


def test_long_recordings_and_segment_times_are_the_same(both, clips):
    plain, folder = both
    long = np.concatenate([clips[1]] * 11)  # 34 seconds: two windows
    for options in ({"strict": True}, {"strict": True, "timestamps": True}):
        expected = list(transcription.transcribe(*plain, [long, clips[0]], **options))
        heard = list(transcription.transcribe(*transcription.load(folder), [long, clips[0]], **options))
        assert [(item.text, item.segments) for item in heard] == [(item.text, item.segments) for item in expected]
        assert heard[0].segments


def test_the_tokens_are_those_of_optimums_own_generate(both, clips):
    model, processor = transcription.load(both[1])
    sound = features.log_mel(processor, clips)
    start = [50258, 50259, 50359, 50363]
    tokens = search.greedy(model, model.encode(sound), [start] * len(clips))
    with optimum_env.Session() as optimum:
        optimum.run(
            "import torch\nfrom optimum.onnxruntime import ORTModelForSpeechSeq2Seq\n"
            "model = ORTModelForSpeechSeq2Seq.from_pretrained(folder)\n"
            "model.generation_config.max_length += 4  # transformers 4 counts the prompt too\n"
            "found = model.generate(torch.tensor(features), language='en', task='transcribe').tolist()",
            {"folder": both[1], "features": sound.tolist()},
        )
        theirs = optimum.take("found")
    special = {*start, processor.tokenizer.eos_token_id}
    assert [[token for token in row if token not in special] for row in theirs] == tokens
    assert all(tokens)


def test_clips_that_leave_the_batch_change_nothing_for_those_that_stay(both, clips):
    model, processor = transcription.load(both[1])
    states = model.encode(features.log_mel(processor, clips))
    prompt, further = torch.tensor([[50258, 50259]] * 3), torch.tensor([[400], [500], [600]])
    whole, rest = model.decoder(states), model.decoder(states)
    for decoder in (whole, rest):
        decoder.step(prompt)
    rows = torch.tensor([2, 0])
    rest.keep(rows)
    torch.testing.assert_close(rest.step(further[rows]), whole.step(further)[rows])
    expected = whole.step(further.flip(0))
    torch.testing.assert_close(rest.step(further.flip(0)[rows]), expected[rows])
    assert not torch.allclose(expected[0], expected[2])


def test_it_takes_as_many_threads_as_pytorch(both):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, _ = transcription.load(both[1])
    finally:
        torch.set_num_threads(before)
    options = model.decoder_session.get_session_options()
    assert (options.intra_op_num_threads, options.log_severity_level) == (1, 3)


def test_real_speech_is_heard_as_by_pytorch_in_float32(tiny_en):
    rows = corpora.load("telephone", "en", "test").select(range(0, 48, 8))
    long = audio.stitch(rows.select([*range(6)] * 2), seconds=45, seed=0).audio
    assert len(long) > 30 * 16_000
    graph = transcription.load(checkpoints.fetch(TINY, format="onnx"))
    assert isinstance(graph[0], graphs.ExportedWhisper)
    heard = [list(transcription.transcribe(*each, [*rows["audio"], long], batch_size=4)) for each in (tiny_en, graph)]
    assert [(item.text, item.segments) for item in heard[1]] == [(item.text, item.segments) for item in heard[0]]
    assert len(heard[1][-1].segments) > 1


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

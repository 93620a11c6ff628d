"""OpenVINO's graphs compute what PyTorch's layers do, step by step and text after text, and GenAI's loop writes the same words."""

import numpy as np
import pytest
import torch

from asrlib import audio, corpora
from asrlib.decoding import network, transcription
from asrlib.models import checkpoints, openvino_graphs

pytestmark = pytest.mark.weights  # mostly a small random model, but the tokenizer of a fetched one


@pytest.fixture(scope="module")
def both():
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

    source = checkpoints.fetch("openai/whisper-tiny.en")
    torch.manual_seed(1)
    config = WhisperConfig.from_pretrained(
        source, d_model=64, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, init_std=0.5,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig.from_pretrained(source, max_length=12)
    return model, WhisperProcessor.from_pretrained(source)


@pytest.fixture(scope="module")
def graphs(both):
    return {"encoder": openvino_graphs.encoder(both[0]), "decoder": openvino_graphs.decoder(both[0])}


def compiled(graph):
    import openvino

    return openvino.compile_model(graph, "CPU", openvino_graphs.PLAIN)


def test_the_encoder_gives_the_same_states(both, graphs):
    features = torch.randn(2, 80, 3000)
    with torch.no_grad():
        expected = both[0].model.encoder(features).last_hidden_state
    found = torch.from_numpy(compiled(graphs["encoder"])(features.numpy())[0])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_decoder_remembers_a_text_and_forgets_it_when_the_next_begins(both, graphs):
    request = compiled(graphs["decoder"]).create_infer_request()
    for clips, prompt in ((2, 3), (1, 2), (1, 2)):
        request.reset_state()
        states = torch.randn(clips, 1500, 64)
        reference = network.Decoder(both[0], states, None, room=20)
        tokens = torch.randint(0, 1000, (clips, prompt))
        for _ in range(4):
            given = {"input_ids": tokens.numpy(), "encoder_hidden_states": states.numpy()}
            logits = request.infer(given | {"beam_idx": np.arange(clips, dtype=np.int32)})["logits"][:, -1]
            with torch.inference_mode():
                expected = reference.step(tokens)
            torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-3, atol=1e-3)
            tokens = expected.argmax(dim=-1, keepdim=True)


@pytest.mark.slow
def test_genai_writes_what_pytorch_writes(tmp_path):
    genai = pytest.importorskip("openvino_genai")
    source = checkpoints.fetch("openai/whisper-tiny.en")
    model, processor = transcription.load(source, device="cpu", dtype=torch.float32)
    made = {"encoder": openvino_graphs.encoder(model), "decoder": openvino_graphs.decoder(model)}
    openvino_graphs.save(tmp_path, made, source, processor)
    pipe = genai.WhisperPipeline(tmp_path, "CPU", **openvino_graphs.PLAIN)
    clips = [audio.load(row["audio"]) for row in corpora.load("telephone", "en", "test").select(range(3))]
    expected = [item.text for item in transcription.transcribe(model, processor, clips, strict=True)]
    assert [pipe.generate(clip.tolist()).texts[0].strip() for clip in clips] == expected


def test_samples_are_what_the_graphs_read(both, graphs):
    found = openvino_graphs.samples(both[0], torch.randn(2, 80, 3000))
    for part, graph in graphs.items():
        assert [set(sample) for sample in found[part]] == [{put.get_any_name() for put in graph.inputs}] * 2
    start = both[0].generation_config.decoder_start_token_id
    assert all(sample["input_ids"][0, 0] == start for sample in found["decoder"])  # each text begins with the prompt

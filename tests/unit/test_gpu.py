"""What a GPU has to do as the CPU does it; skipped where there is none."""

import pytest
import torch

from asrlib import corpora, hardware, scoring, text
from asrlib.decoding import transcription
from asrlib.training import metering

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.weights,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
MODEL = "openai/whisper-base"


@pytest.fixture(scope="module")
def clips():
    rows = corpora.load("telephone", "en", "test")
    return rows.select(range(32))


def heard(clips, model, processor):
    return [
        item.text
        for item in transcription.transcribe(model, processor, clips, language="en", batch_size=8, strict=True)
    ]


@pytest.fixture(scope="module")
def on_the_cpu(clips):
    return heard(clips, *transcription.load(MODEL, device="cpu", dtype=torch.float32))


def score(clips, hypotheses):
    return scoring.score(clips["text"], hypotheses, normalizer=text.normalizer("en"))


def test_the_gpu_is_chosen_and_its_precision_has_half_the_bytes(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert hardware.best_device() == "cuda"
    assert torch.finfo(hardware.best_dtype()).bits == 16
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
    assert hardware.best_device() == "cuda:0"
    model, _ = transcription.load(MODEL)
    assert (model.device.type, model.dtype) == ("cuda", hardware.best_dtype())


def test_float32_hears_what_the_cpu_hears(clips, on_the_cpu):
    assert heard(clips, *transcription.load(MODEL, device="cuda", dtype=torch.float32)) == on_the_cpu


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_shows_no_other_wer(clips, on_the_cpu, dtype):
    found = heard(clips, *transcription.load(MODEL, device="cuda", dtype=dtype))
    assert not scoring.compare(score(clips, found), score(clips, on_the_cpu)).significant


@pytest.mark.parametrize("quantized", [{"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}])
def test_bitsandbytes_kernels_are_heard_and_are_smaller(clips, on_the_cpu, quantized):
    from transformers import BitsAndBytesConfig, WhisperForConditionalGeneration, WhisperProcessor

    from asrlib.models import checkpoints

    path = checkpoints.fetch(MODEL)
    config = BitsAndBytesConfig(**quantized, llm_int8_skip_modules=["proj_out"])
    model = WhisperForConditionalGeneration.from_pretrained(
        path, quantization_config=config, dtype=torch.float16, device_map={"": 0}
    )
    found = heard(clips, model.eval(), WhisperProcessor.from_pretrained(path))
    assert not scoring.compare(score(clips, found), score(clips, on_the_cpu)).significant
    half = transcription.load(MODEL, device="cuda", dtype=torch.float16)[0]
    assert metering.weight_bytes(model) < metering.weight_bytes(half)

"""Models that other libraries have quantized: our decoder's logits and tokens are those of the model's own forward, or it steps aside."""

import functools
import itertools
import warnings

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from asrlib import AsrlibError, audio, whisper
from asrlib.decoding import network, search, transcription
from asrlib.models import checkpoints

MODEL = "openai/whisper-tiny.en"
GREEDY = {"do_sample": False, "num_beams": 1, "max_new_tokens": 30}
TIED = 0.2  # logits that rounding may bring into another order


def sound(processor, rows):
    """Return features and attention mask, as ``generate`` takes them."""
    samples = [audio.load(row["audio"]) for row in rows]
    return processor(samples, sampling_rate=audio.SAMPLING_RATE, return_tensors="pt", return_attention_mask=True)


def load(config=None):
    from transformers import WhisperForConditionalGeneration

    path = checkpoints.fetch(MODEL)
    return WhisperForConditionalGeneration.from_pretrained(path, quantization_config=config, dtype=torch.float32).eval()


def by_bitsandbytes(calibrating, **options):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    return load(BitsAndBytesConfig(**options, llm_int8_skip_modules=["proj_out"]))


def by_quanto(calibrating, weights, activations=None):
    quanto = pytest.importorskip("optimum.quanto")
    model = load()
    quanto.quantize(model, weights=weights, activations=activations, exclude="proj_out")
    if activations:
        with quanto.Calibration():
            model.generate(**calibrating, **GREEDY)
    quanto.freeze(model)
    return model


def by_pytorch(calibrating, config):
    model = load()
    layers = {name: config for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, layers, dtype=torch.qint8)


BUILDS = {
    "LLM.int8()": functools.partial(by_bitsandbytes, load_in_8bit=True),
    "LLM.int8(), none apart": functools.partial(by_bitsandbytes, load_in_8bit=True, llm_int8_threshold=0.0),
    "NF4": functools.partial(by_bitsandbytes, load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "FP4": functools.partial(by_bitsandbytes, load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "Quanto int8": functools.partial(by_quanto, weights="qint8"),
    "Quanto int8, static": functools.partial(by_quanto, weights="qint8", activations="qint8"),
    "PyTorch dynamic int8": functools.partial(by_pytorch, config=torch.ao.quantization.default_dynamic_qconfig),
    "PyTorch dynamic int8, by rows": functools.partial(
        by_pytorch, config=torch.ao.quantization.per_channel_dynamic_qconfig
    ),
}


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.weights
@pytest.mark.parametrize("name", BUILDS)
@torch.inference_mode()
def test_a_quantized_model_is_transcribed_as_its_own_forward_does(tiny_en, speech, name):
    float32, processor = tiny_en
    model = BUILDS[name](sound(processor, speech.select(range(2, 4))))
    given = sound(processor, speech.select(range(2)))
    prompt = whisper.prompt(model.generation_config)
    states, _ = network.encode(model, given.input_features)
    assert relative(states, model.model.encoder(given.input_features).last_hidden_state) < 0.02

    theirs = model.generate(**given, **GREEDY)
    read = torch.cat([torch.tensor([prompt] * len(theirs)), theirs], dim=1)
    forced = {"input_features": given.input_features, "decoder_input_ids": read}
    logits = network.Decoder(model, states, None, read.shape[1]).step(read, list(range(read.shape[1])))
    native = model(**forced).logits
    assert relative(logits, native) < 0.3 * relative(native, float32(**forced).logits)

    ends = whisper.end_tokens(model.generation_config)
    ours = search.greedy(model, states, [prompt] * len(theirs), max_new_tokens=GREEDY["max_new_tokens"])
    for row, (mine, generated) in enumerate(zip(ours, theirs.tolist(), strict=True)):
        own = list(itertools.takewhile(lambda token: token not in ends, generated))
        pairs = enumerate(itertools.zip_longest(mine, own, fillvalue=next(iter(ends))))
        if differ := next(((at, pair) for at, pair in pairs if pair[0] != pair[1]), None):
            at, pair = differ
            told = torch.tensor([prompt + own[:at]])
            last = model(input_features=given.input_features[[row]], decoder_input_ids=told).logits[0, -1]
            assert abs(last[pair[0]] - last[pair[1]]) < TIED


@pytest.mark.weights
@torch.inference_mode()
def test_ranges_are_not_calibrated_by_a_decoder_that_calls_single_layers(tiny_en, speech):
    """Quanto decides by hooks on attention and whole layers which outputs stay as they are; ours would leave all of them in 8 bits."""
    quanto = pytest.importorskip("optimum.quanto")
    _, processor = tiny_en
    model, rows = load(), speech.select(range(2))
    quanto.quantize(model, weights="qint8", activations="qint8", exclude="proj_out")
    with quanto.Calibration(), pytest.raises(AsrlibError, match=r"let model\.generate transcribe"):
        list(transcription.transcribe(model, processor, rows, strict=True))
    with quanto.Calibration():
        model.generate(**sound(processor, rows), **GREEDY)
    quanto.freeze(model)
    assert list(transcription.transcribe(model, processor, rows, strict=True))


@pytest.mark.parametrize("register", [register_module_forward_hook, register_module_forward_pre_hook])
def test_hooks_on_all_modules_make_it_step_aside_as_long_as_they_are_there(random_model, register):
    features = torch.randn(1, 80, 200)
    states, _ = network.encode(random_model, features)
    hook = register(lambda *_: None)
    with pytest.raises(AsrlibError, match="watches every module"):
        network.encode(random_model, features)
    with pytest.raises(AsrlibError, match="watches every module"):
        search.greedy(random_model, states, [[1, 63]])
    hook.remove()
    assert torch.equal(network.encode(random_model, features)[0], states)

"""bitsandbytes on a CPU: training goes on after an evaluation, and nothing is printed for each product."""

import pytest
import torch

from asrlib import AsrlibError
from asrlib.training.bitsandbytes import keep_trainable

bitsandbytes = pytest.importorskip("bitsandbytes")
peft = pytest.importorskip("peft")
FEATURES = torch.randn(2, 80, 64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([[3, 14, 15, 9, 26, 5], [2, 7, 18, 28, 18, 29]])


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """A random Whisper on disk; its widths are multiples of 64, as the fused kernel demands."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=64, d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=128, decoder_ffn_dim=128, max_source_positions=32, max_target_positions=16, num_mel_bins=80,
        pad_token_id=0, bos_token_id=1, eos_token_id=29, decoder_start_token_id=1, dropout=0.0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("whisper")
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    return folder


def quantized(folder, bits):
    from transformers import BitsAndBytesConfig, WhisperForConditionalGeneration

    options = {"load_in_8bit": True} if bits == 8 else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    config = BitsAndBytesConfig(**options)
    return WhisperForConditionalGeneration.from_pretrained(folder, quantization_config=config, dtype=torch.float32)


def build(folder, bits):
    """Return the quantized model with LoRA on all projections of attention."""
    torch.manual_seed(0)
    targets = ["q_proj", "k_proj", "v_proj", "out_proj"]
    lora = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    return peft.get_peft_model(quantized(folder, bits), lora)


def gradients(model):
    model.train()
    model.zero_grad()
    model(input_features=FEATURES, labels=LABELS).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}


def evaluate(model):
    model.eval()
    with torch.no_grad():
        return model(input_features=FEATURES, labels=LABELS).logits


def packed(model):
    layers = [layer for layer in model.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 16
    return [getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers]


def test_an_evaluation_changes_no_gradient(whisper):
    model = keep_trainable(build(whisper, 4))
    before = gradients(model)
    evaluate(model)
    assert not any(packed(model))
    after = gradients(model)
    assert len(before) == 24
    for name, gradient in before.items():
        assert gradient.any(), name
        assert torch.equal(gradient, after[name]), name


@pytest.mark.skipif(
    not bitsandbytes.functional.has_avx512bf16(), reason="this CPU has no AVX512-BF16: bitsandbytes repacks nothing"
)
def test_without_the_handling_training_breaks_and_afterwards_it_comes_too_late(whisper):
    """As long as this passes, the handling is needed."""
    model = build(whisper, 4)
    gradients(model)
    evaluate(model)
    assert all(packed(model))
    with pytest.raises(RuntimeError, match="in-place"):
        gradients(model)
    with pytest.raises(AsrlibError, match="load it again"):
        keep_trainable(model)


def test_8_bit_products_are_silent(whisper, capfd, caplog):
    model = keep_trainable(build(whisper, 8))
    capfd.readouterr()  # the bar of its loading
    gradients(model)
    evaluate(model)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_an_adapter_merges_exactly_into_the_dequantized_model(whisper, tmp_path):
    """What it was trained on; merging in 4 bits would round again."""
    model = keep_trainable(build(whisper, 4))
    model.save_pretrained(tmp_path)
    base = keep_trainable(quantized(whisper, 4)).dequantize()
    merged = peft.PeftModel.from_pretrained(base, tmp_path).merge_and_unload()
    assert torch.allclose(evaluate(model), evaluate(merged), atol=1e-5)


def test_a_model_without_quantized_layers_stays_as_it_is():
    model = torch.nn.Linear(2, 2)
    assert keep_trainable(model) is model


@pytest.mark.slow
def test_the_import_of_bitsandbytes_is_silent_but_its_errors_are_heard(start):
    code = """
        import asrlib, logging, sys
        assert "torch" not in sys.modules and "bitsandbytes" not in sys.modules
        import bitsandbytes
        logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU %s", "library")
    """
    out, said = start("\n".join(line.strip() for line in code.splitlines())).communicate()
    assert (out, said) == ("", "Failed to load CPU library\n")

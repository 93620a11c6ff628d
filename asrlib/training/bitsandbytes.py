"""Models that bitsandbytes has quantized, kept trainable on a CPU.

On a CPU with AVX512-BF16 an evaluation repacks every 4-bit weight for a fused kernel, with rounded scales, and nothing unpacks
it when training goes on: a layer with a bias then raises, one without (Whisper's ``k_proj``) lets no gradient through.
`keep_trainable` turns that path off.
"""

from __future__ import annotations

from typing import TypeVar

from asrlib import AsrlibError

__all__ = ["keep_trainable"]

Model = TypeVar("Model")


def keep_trainable(model: Model) -> Model:
    """Make a model with bitsandbytes layers safe to train, evaluate and train again; others stay as they are.

    Args:
        model: a model as ``from_pretrained`` with a ``quantization_config`` returned it, or a PEFT model around one.

    Returns:
        The same model.

    Raises:
        AsrlibError: it has been evaluated before, and its weights are repacked already.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):  # a bitsandbytes.nn.Linear4bit
            if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
                raise AsrlibError(
                    "An evaluation has repacked this model's 4-bit weights, and it can no longer be trained: load it again "
                    "and call keep_trainable(model) before anything else."
                )
            layer.support_avx512bf16_for_cpu = False
    return model

"""What makes bitsandbytes usable for training on a CPU, handled once.

What it does there beyond quantizing is no use to anyone:

- On a CPU with AVX512-BF16 an evaluation repacks every 4-bit weight for a fused kernel, with rounded scales, and nothing
  unpacks it when training goes on: a layer with a bias then raises, one without (Whisper's ``k_proj``) lets no gradient
  through. `settle` turns that path off.
- It logs a line for every 8-bit product whose input is not float16, and one about a kernel package that the course does not
  install. Importing this module drops these lines, one of transformers with a wrong hint, and nothing else. The one about
  the package is written while bitsandbytes is imported, and PEFT and the library's ``Trainer`` import it: import this module
  before them.
"""

from __future__ import annotations

import logging
from typing import TypeVar

from asrlib import AsrlibError

__all__ = ["settle"]

NOISE = {  # logger: how its lines begin that say nothing
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast from",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'",
    "transformers.integrations.bitsandbytes": "The model is going to be dequantized in",
}
Model = TypeVar("Model")


class _Quiet(logging.Filter):
    """Drops the lines of `NOISE`; a kernel package that is there and fails is still heard of."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(NOISE[record.name])


for _name in NOISE:
    logging.getLogger(_name).addFilter(_Quiet())


def settle(model: Model) -> Model:
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
                    "and call quantization.settle(model) before anything else."
                )
            layer.support_avx512bf16_for_cpu = False
    return model

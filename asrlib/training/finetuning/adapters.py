"""Small matrices beside a frozen model: LoRA, LoRA on a model in 4 bits, and LoRA whose ranks are chosen while it is trained.

Hu et al. 2021, arXiv:2106.09685; Dettmers et al. 2023, arXiv:2305.14314 (QLoRA); Zhang et al. 2023, arXiv:2303.10512 (AdaLoRA).
Ranks and targets are those of PEFT's Whisper examples, as notebook 04 has them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from transformers import TrainerCallback

from asrlib import AsrlibError
from asrlib.io import files
from asrlib.training import bitsandbytes
from asrlib.training.finetuning.settings import Settings

__all__ = ["Ranks", "adapt", "quantization"]

RANK, ALPHA, DROPOUT = 32, 64, 0.05
ATTENTION = ("q_proj", "v_proj")
EVERY_LINEAR = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
FIRST_RANK = 48  # of AdaLoRA, which ends with `RANK` on the average
SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of AdaLoRA's allocator


def quantization(settings: Settings, dtype: torch.dtype) -> Any | None:
    """Return the configuration of QLoRA's base: 4-bit NormalFloat, scales quantized too; None for other trainings."""
    if settings.adapter != "qlora":
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def adapt(model: Any, settings: Settings) -> Any:
    """Return a PEFT model around a model, with new adapters that the settings' seed decides.

    Raises:
        AsrlibError: PEFT is not installed.
    """
    try:
        import peft
    except ImportError:
        raise AsrlibError("Adapters need PEFT: pip install 'asrlib[methods]' first.") from None
    if settings.adapter == "qlora":
        model = bitsandbytes.keep_trainable(model)
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    names = EVERY_LINEAR if settings.adapter == "adalora" else ATTENTION
    sides = "decoder" if settings.freeze_encoder else "(encoder|decoder)"
    common = {
        "lora_alpha": ALPHA,
        "lora_dropout": DROPOUT,
        "target_modules": rf"model\.{sides}\..*\.({'|'.join(names)})",
    }
    if settings.adapter == "adalora":
        steps = settings.steps
        config = peft.AdaLoraConfig(
            init_r=FIRST_RANK, target_r=RANK, tinit=steps // 10, tfinal=steps // 3, deltaT=max(1, steps // 100),
            total_step=steps, **common,
        )  # fmt: skip
    else:
        config = peft.LoraConfig(r=RANK, **common)
    torch.manual_seed(settings.seed)
    adapted = peft.get_peft_model(model, config)
    if (
        settings.adapter == "adalora"
    ):  # its penalty for matrices that are not orthogonal is added there, which the wrapper passes by
        adapted.forward = adapted.base_model.forward
    return adapted


class Ranks(TrainerCallback):
    """Lets AdaLoRA choose its ranks after each step, and keeps its state in checkpoints.

    PEFT saves an adapter cut to its present ranks, from which its training cannot go on; and it does not save the scores by which
    the ranks are chosen.

    Attributes:
        model: the PEFT model.
    """

    FILE = "adalora.safetensors"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.peft_config["default"]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Score the ranks by gradients, which still exist, and mask the least important ones."""
        self.model.base_model.update_and_allocate(state.global_step)

    def _trained(self) -> dict[str, torch.Tensor]:
        return {name: part for name, part in self.model.named_parameters() if part.requires_grad}

    def save(self, folder: Path) -> None:
        """Write all matrices in full and the scores so far."""
        allocator = self.model.base_model.rankallocator
        tensors = {f"model {name}": part.detach().contiguous() for name, part in self._trained().items()}
        for kind in SCORES:
            tensors |= {f"{kind} {name}": part.contiguous() for name, part in getattr(allocator, kind).items()}
        content = safetensors.torch.save(tensors, {"ranks": json.dumps(self.config.rank_pattern)})
        files.write_atomic(folder / self.FILE, content)

    def load(self, folder: Path) -> None:
        """Go back to what `save` has written."""
        found: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in ("model", *SCORES)}
        with safetensors.safe_open(folder / self.FILE, "pt", device=str(self.model.device)) as file:
            self.config.rank_pattern = json.loads(file.metadata()["ranks"])
            for key in file.keys():  # noqa: SIM118 - no dict
                kind, name = key.split(" ", 1)
                found[kind][name] = file.get_tensor(key)
        with torch.no_grad():
            for name, part in self._trained().items():
                part.copy_(found["model"][name])
        for kind in SCORES:
            setattr(self.model.base_model.rankallocator, kind, found[kind])

"""Fine-tuning as notebooks 02 and 04 teach it, on one's own recordings or on corpora, in one process or in many.

`finetune` is the whole recipe, with transformers' own Trainer. A step is defined by its clips alone: `data.order` draws those of the
whole training beforehand, and `training.FineTuner` divides by the tokens of the whole step. So neither the number of processes nor the
parts in which a process takes its clips changes a step but for the order of sums (and the draw of dropout, where an adapter has it), and
a killed run goes on with the clip that comes next.
"""

from asrlib.training.finetuning.adapters import adapt, quantization
from asrlib.training.finetuning.data import Limits, Part, Speech, by_text, gather, labels, order
from asrlib.training.finetuning.gain import gains, sentence
from asrlib.training.finetuning.recipe import finetune
from asrlib.training.finetuning.settings import ADAPTERS, Settings
from asrlib.training.finetuning.training import FineTuner, Metrics

__all__ = [
    "ADAPTERS",
    "FineTuner",
    "Limits",
    "Metrics",
    "Part",
    "Settings",
    "Speech",
    "adapt",
    "by_text",
    "finetune",
    "gains",
    "gather",
    "labels",
    "order",
    "quantization",
    "sentence",
]

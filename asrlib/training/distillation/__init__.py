"""Distillation as notebook 06 teaches it, from encoder states on disk, in one process or in many.

The encoder of teacher and student is the same and frozen (Gandhi et al. 2023, arXiv:2311.00430, section 3), so its states of a
clip never change: `EncoderStates` computes them once. The padding behind a clip is merged as in `asrlib.decoding.network`,
which makes states, and every training step on them, several times smaller; `attending` gives the decoders of transformers,
which take no mask for encoder states, the number of positions that each state stands for.

`distil` is the whole recipe, and the same code in each of N processes (torchrun, accelerate). Nothing in it depends on N but
who does what: a shard of clips is labelled as one batch whoever labels it, and a training step sums over the tokens of one
batch whoever holds its clips. So on like processors labels are the same to the byte, and losses, without masks and dropout, up to the order of sums.
"""

from asrlib.training.distillation.examples import Example, examples, inputs_and_targets, vocabulary
from asrlib.training.distillation.labels import Label, rate, repeated_ngrams
from asrlib.training.distillation.losses import TEMPERATURE, TeacherStates, TrainingSet, divergence
from asrlib.training.distillation.recipe import clips, distil, groups, initialise, judge, spaced, training_set, validate
from asrlib.training.distillation.settings import Settings
from asrlib.training.distillation.states import EncoderStates, LiveStates, attending
from asrlib.training.distillation.training import Group, Training, Validation
from asrlib.training.sources import Source

__all__ = [
    "TEMPERATURE",
    "EncoderStates",
    "Example",
    "Group",
    "Label",
    "LiveStates",
    "Settings",
    "Source",
    "TeacherStates",
    "Training",
    "TrainingSet",
    "Validation",
    "attending",
    "clips",
    "distil",
    "divergence",
    "examples",
    "groups",
    "initialise",
    "inputs_and_targets",
    "judge",
    "rate",
    "repeated_ngrams",
    "spaced",
    "training_set",
    "validate",
    "vocabulary",
]

"""The whole recipe of a distillation, in one process or in many."""

from __future__ import annotations

import atexit
import contextlib
import copy
import functools
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration

from asrlib import AsrlibError, corpora, hardware, whisper
from asrlib.decoding import outcomes, transcription
from asrlib.io import files, noise
from asrlib.training.distillation import labels, training
from asrlib.training.distillation.losses import TrainingSet
from asrlib.training.distillation.states import EncoderStates
from asrlib.training.distillation.training import Settings

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["distil", "initialise", "spaced"]


def distil(settings: Settings, output: Path | str) -> dict[str, Any] | None:
    """Distil a Whisper model by the recipe of notebook 06; to be called alike in each process of a run.

    The folder gets ``shards/`` (encoder states and pseudo-labels, each file complete or absent), ``labels.jsonl`` (id, text,
    error of each clip in the corpus's order), ``checkpoint.safetensors`` while the student is trained, ``losses.jsonl`` and
    ``student/``, an ordinary model. A killed run goes on, and ends with the same weights.

    Args:
        settings: of the run.
        output: a folder for this teacher and these clips; processes on several machines must all see it.

    Returns:
        ``clips``, ``kept`` (labels), ``failed`` (id -> why a clip could not be read) and the last ``cross_entropy`` and ``kl``
        (nats per token); None in all processes but the first.

    Raises:
        AsrlibError: what `corpora.load` and `transcription.load` refuse, more processes than clips in a batch, more layers than
            the teacher's, a folder of another run, or no label within the threshold. All processes end together.
    """
    processes, output = _processes(), Path(output)
    first = processes.is_main_process
    with _together(processes):
        rows = _begin(settings, output, processes)
        teacher, processor, student = _models(settings, str(processes.device))
        prompt = whisper.prompt(teacher.generation_config, settings.language)
    with _together(processes):
        share = processes.process_index, processes.num_processes
        shown = {"share": share, "label": "encoder states" * first}
        states = EncoderStates(output / "shards", teacher, processor, rows, **shown)
        labels.write(states, teacher, prompt, "pseudo-labels" * first)
    with _together(processes):
        states.complete()
        tokens, kept = _filtered(settings, output, states, rows, processor.tokenizer, first)
    data = TrainingSet(teacher, processor.tokenizer, prompt, states, tokens)
    learnt = outcomes.fingerprint(asdict(settings) | {"root": "", "labels": [(name, tokens[name]) for name in kept]})
    checkpoint = output / "checkpoint.safetensors"
    losses = training.train(student, data, kept, settings, checkpoint, learnt, processes)
    with _together(processes):
        if not first:
            return None
        files.write_jsonl(output / "losses.jsonl", ({"step": step, **pair} for step, pair in enumerate(losses, 1)))
        _save(student, processor, output / "student")
        checkpoint.unlink(missing_ok=True)
    return {"clips": len(tokens), "kept": len(kept), "failed": states.failed, **losses[-1]}


@functools.cache
def _processes() -> PartialState:
    """Join the processes that torchrun or accelerate has started; without them this is the only one."""
    try:
        from accelerate import PartialState
    except ImportError:
        raise AsrlibError("Distillation needs accelerate: pip install 'asrlib[methods]' first.") from None
    patience = timedelta(days=7)  # in which the last process must have labelled its share, once the first has
    processes = PartialState(cpu=hardware.best_device() == "cpu", timeout=patience)
    atexit.register(processes.destroy_process_group)
    return processes


@contextlib.contextmanager
def _together(processes: PartialState) -> Iterator[None]:
    """Leave a block when all processes have; an error that a person can mend, in any of them, ends all.

    The first process raises it, for the command line to say it once. The others exit after that: torchrun stops all processes
    when one has failed.
    """
    from accelerate.utils import gather_object

    error = None
    try:
        yield
    except (AsrlibError, OSError) as raised:
        error = raised
    errors = [error for error in gather_object([error]) if error]
    if errors:
        atexit.register(processes.wait_for_everyone)
        if processes.is_main_process:
            raise errors[0]
        sys.exit(1)


def _begin(settings: Settings, output: Path, processes: PartialState) -> Any:
    """Reserve the folder and return the clips, of at most 30 s, in the corpus's order."""
    if processes.num_processes > settings.batch_size:
        raise AsrlibError(
            f"{processes.num_processes} processes cannot share a batch of {settings.batch_size}: start fewer, or raise the "
            "batch size."
        )
    rows = corpora.load(*settings.corpus.split("/"), root=settings.root)
    if processes.is_main_process:
        run = {"corpus": settings.corpus, "root": str(settings.root or ""), "teacher": str(settings.model)}
        files.reserve(output, run, "teacher or corpus")
    seconds = list(rows["seconds"])
    order = np.random.default_rng(settings.seed).permutation(len(rows)).tolist()
    fitting = [place for place in order if seconds[place] <= whisper.WINDOW_SECONDS]
    return rows.select(sorted(fitting[: settings.clips]))


def _models(settings: Settings, device: str) -> tuple[Any, Any, Any]:
    """Return the teacher in the precision that pays here, its processor, and a student in float32."""
    teacher, processor = transcription.load(settings.model, device=device)
    if not hasattr(teacher, "proj_out"):
        raise AsrlibError(f"{settings.model} was exported to ONNX: distil the checkpoint that it came from.")
    if settings.layers > teacher.config.decoder_layers:
        raise AsrlibError(
            f"{settings.model} has {teacher.config.decoder_layers} decoder layers: a student has as many or fewer."
        )
    original, _ = transcription.load(settings.model, device="cpu", dtype=torch.float32)
    return teacher, processor, initialise(original, settings.layers).to(device)


def spaced(depth: int, layers: int) -> list[int]:
    """Return which of a teacher's ``depth`` decoder layers make a student: maximally spaced, the last always among them."""
    chosen = np.linspace(0, depth - 1, layers, dtype=int)
    chosen[-1] = depth - 1
    return chosen.tolist()


def initialise(original: WhisperForConditionalGeneration, layers: int) -> WhisperForConditionalGeneration:
    """Return a student: encoder, embeddings and norms of a teacher, and its `spaced` decoder layers.

    Args:
        original: the teacher, in float32, since the student's weights are to be.
        layers: of the student's decoder, from 1 to the teacher's own number.
    """
    config = copy.deepcopy(original.config)
    config.decoder_layers = layers
    student = WhisperForConditionalGeneration(config)
    student.load_state_dict(original.state_dict(), strict=False)  # encoder, embeddings, norms
    chosen = spaced(original.config.decoder_layers, layers)
    for layer, number in zip(student.model.decoder.layers, chosen, strict=True):
        layer.load_state_dict(original.model.decoder.layers[number].state_dict())
    student.generation_config = copy.deepcopy(original.generation_config)
    student.generation_config.alignment_heads = None  # they name layers of the teacher
    return student


def _filtered(
    settings: Settings, output: Path, states: EncoderStates, rows: Any, tokenizer: Any, first: bool
) -> tuple[dict[str, list[int]], list[str]]:
    """Return the tokens of all labels, and the clips whose labels are near enough to their transcripts, shortest first."""
    read = [(name, text) for name, text in zip(rows["id"], rows["text"], strict=True) if name not in states.failed]
    if not read:
        raise AsrlibError(f"None of the {len(rows)} clips could be read.")
    ids, transcripts = zip(*read, strict=True)
    tokens, rated = labels.rate(states, ids, transcripts, tokenizer, settings.language)
    if first:
        files.write_jsonl(output / "labels.jsonl", rated)
    near = {row["id"] for row in rated if row["error_percent"] <= settings.threshold}
    if not near:
        raise AsrlibError(
            f"Not one of {len(rated)} labels is within {settings.threshold:g} % errors of its transcript: raise the threshold, "
            "or take a better teacher."
        )
    return tokens, [name for name in states.ids if name in near]


def _save(student: Any, processor: Any, target: Path) -> None:
    with files.new_folder(target) as folder, noise.no_bars():
        student.save_pretrained(folder)
        processor.save_pretrained(folder)

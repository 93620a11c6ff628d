"""The whole recipe of a distillation, in one process or in many."""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration

from asrlib import AsrlibError, audio, corpora, whisper
from asrlib.decoding import outcomes, transcription
from asrlib.io import files, noise
from asrlib.models import checkpoints
from asrlib.training import callbacks
from asrlib.training.cards import sources_table
from asrlib.training.distillation import labels
from asrlib.training.distillation.card import card
from asrlib.training.distillation.examples import examples, vocabulary
from asrlib.training.distillation.labels import Label
from asrlib.training.distillation.losses import TeacherStates, TrainingSet
from asrlib.training.distillation.settings import Settings
from asrlib.training.distillation.states import EncoderStates, LiveStates
from asrlib.training.distillation.training import Group, Training, Validation
from asrlib.training.processes import alone, joined, together
from asrlib.training.sources import Source

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["clips", "distil", "groups", "initialise", "judge", "spaced", "training_set", "validate"]


def distil(settings: Settings, output: Path | str) -> dict[str, Any] | None:
    """Distil a Whisper model by the recipe of notebook 06; to be called alike in each process of a run.

    The folder gets ``shards/`` (encoder states, pseudo-labels and the teacher's last states, each file complete or absent),
    ``validation/`` likewise, ``labels.jsonl`` (id, text, error of each clip, and why it is not learnt from), ``losses.jsonl``,
    ``scores.jsonl``, ``distillation.json`` (what is returned, and the settings), ``student/``, an ordinary model, and, of each
    training that has not ended, a ``checkpoint-*.safetensors``. A killed run goes on, and ends with the same weights; a finished one
    is not repeated.

    Args:
        settings: of the run.
        output: a folder for this teacher and these clips; processes on several machines must all see it.

    Returns:
        ``training`` (a name for what decides its weights), ``clips``, ``kept`` (labels), ``words`` (in them), ``failed`` (id -> why
        a clip could not be read), ``seconds`` (of the run), the last ``cross_entropy``, ``kl`` and ``hidden``, and ``scores`` on the validation clips; None in all processes but the first.

    Raises:
        AsrlibError: what `corpora.load` and `transcription.load` refuse, more processes than clips in a batch, more layers than
            the teacher's, a folder of another run or that another one trains in, or no label that is kept. All processes end
            together.
    """
    with alone(Path(output), joined()):
        return _distil(settings, Path(output), joined())


def _distil(settings: Settings, output: Path, processes: PartialState) -> dict[str, Any] | None:
    started, first = time.monotonic(), processes.is_main_process
    share = processes.process_index, processes.num_processes
    with together(processes):
        rows = _begin(settings, output, processes)
        teacher, processor, student = _models(settings, str(processes.device))
    states, kept = _label(settings, output, rows, teacher, processor, processes)
    with together(processes):
        data = training_set(settings, states, teacher, kept, rows, share=share, label="teacher's states" * first)
    with together(processes):
        data.teaching.complete(states)
        given = output / "validation", teacher, processor
        validation = [first and validate(settings, text, *given) for text in settings.validation]
    facts = asdict(settings) | {"root": "", "labels": [(name, kept[name].tokens) for name in sorted(kept)]}
    name = outcomes.fingerprint(facts)
    done = files.read_json(output / "distillation.json")
    if done.get("training") == name and (output / "student").is_dir():
        return {key: value for key, value in done.items() if key not in ("settings", "command")} if first else None
    training = Training(student, settings)
    shown = {"label": "student" * first, "seen": board(output / "logs") if first else None}
    student = training.run(
        data, groups(settings.sources, states, data, rows), validation, checkpoint=output / f"checkpoint-{name}.safetensors",
        name=name, processes=processes, **shown,
    )  # fmt: skip
    words = sum(len(label.text.split()) for label in kept.values())
    counts = {"training": name, "clips": len(states.ids), "kept": len(kept), "words": words, "failed": states.failed}
    with together(processes):
        return _write(settings, output, training, student, processor, counts, started) if first else None


def _label(
    settings: Settings, output: Path, rows: Mapping[str, Any], teacher: Any, processor: Any, processes: PartialState
) -> tuple[EncoderStates, dict[str, Label]]:
    """Return the encoder states of all clips, and the labels that are learnt from."""
    first, timed = processes.is_main_process, settings.timestamps > 0
    with together(processes):
        share = processes.process_index, processes.num_processes
        kind = LiveStates if settings.live else EncoderStates
        clips = list(rows.values())
        states = kind(output / "shards", teacher, processor, clips, share=share, label="encoder states" * first)
        spoken = {name: row["language"] for name, row in rows.items()}
        labels.write(states, teacher, spoken, timed=timed, label="pseudo-labels" * first)
    with together(processes):
        states.complete()
        kept, rated = judge(labels.read(states, processor.tokenizer, timed=timed), rows, settings.threshold)
        if first:
            files.write_jsonl(output / "labels.jsonl", rated)
    return states, kept


def _write(
    settings: Settings, output: Path, training: Training, student: Any, processor: Any, counts: Mapping[str, Any], started: float
) -> dict[str, Any]:  # fmt: skip
    """Write what a run has made, and return what `distil` returns."""
    done = {
        **counts,
        "seconds": time.monotonic() - started,
        "steps": len(training.log),
        "scores": training.scores,
        **training.log[-1],
    }
    files.write_jsonl(output / "losses.jsonl", ({"step": n, **row} for n, row in enumerate(training.log, 1)))
    files.write_jsonl(output / "scores.jsonl", training.scores)
    facts = {"settings": asdict(settings) | {"root": str(settings.root or "")}, "command": settings.command(), **done}
    (output / "distillation.json").unlink(missing_ok=True)  # it may be of another student
    _save(student, processor, output / "student", card(settings, done))
    files.write_atomic(output / "distillation.json", json.dumps(facts, indent=1) + "\n")
    (output / f"checkpoint-{done['training']}.safetensors").unlink(missing_ok=True)
    return done


def _begin(settings: Settings, output: Path, processes: PartialState) -> dict[str, dict[str, Any]]:
    """Reserve the folder and return the clips by id."""
    if processes.num_processes > settings.batch_size:
        raise AsrlibError(
            f"{processes.num_processes} processes cannot share a batch of {settings.batch_size}: start fewer, or raise the "
            "batch size."
        )
    rows = clips(settings.sources, root=settings.root, most=settings.clips, seed=settings.seed)
    if processes.is_main_process:
        sources_table(settings.sources, settings.root)  # for the card: what is wrong in it shows before the work
        weights = checkpoints.provenance(checkpoints.fetch(str(settings.model)))  # states and labels are of these
        run = {"corpus": " ".join(settings.corpus), "root": str(settings.root or ""), "teacher": str(settings.model)}
        files.reserve(
            output, run | {"weights": weights, "live": settings.live}, "teacher or corpus, with or without --live"
        )
    return rows


def clips(
    sources: Sequence[Source], *, root: Path | str | None = None, most: int | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Return the clips of some corpora by id, each in its corpus's order, those over 30 s left out.

    Args:
        sources: the corpora.
        root: where one lies that is not packaged.
        most: clips of each, chosen by the seed before they are packed; None takes all.
        seed: of the choice.

    Returns:
        Rows with ``id``, ``audio``, ``seconds``, ``text``, ``speaker``, ``language`` (Whisper's code), ``before`` (`corpora.pack`) and ``place``
        (the source's). Where there are several corpora their names are part of the id; an id that a corpus uses twice gets a number.
    """
    found: dict[str, dict[str, Any]] = {}
    for source in sources:
        table = corpora.load(source.name, source.language, source.split, root=root)
        seconds = list(table["seconds"])
        order = np.random.default_rng(seed).permutation(len(table)).tolist()
        fitting = [place for place in order if seconds[place] <= whisper.WINDOW_SECONDS]
        chosen = table.select(sorted(fitting[:most]))
        sounds = chosen.select_columns(
            ["audio"]
        )  # of a parquet file the rows themselves would hold every clip in memory
        rows = [row | {"audio": audio.Stored(sounds, at)} for at, row in enumerate(chosen.remove_columns("audio"))]
        kept = corpora.pack(rows) if source.packed else [row | {"before": ""} for row in rows]
        prefix = f"{source.place}:" if len(sources) > 1 else ""
        used = Counter()
        for row in kept:
            name = prefix + row["id"]
            used[name] += 1
            name += f" ({used[name]})" if used[name] > 1 else ""
            before = prefix + row["before"] if row["before"] else ""
            found[name] = row | {"id": name, "before": before, "language": source.code, "place": source.place}
    return found


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


def judge(
    found: Mapping[str, Label], rows: Mapping[str, Mapping[str, Any]], threshold: float
) -> tuple[dict[str, Label], list[dict[str, Any]]]:
    """Return the labels that are learnt from, and of all clips that could be read what `labels.rate` says, in their order.

    Args:
        found: labels by id.
        rows: clips by id.
        threshold: largest error of a label with a transcript (%).

    Raises:
        AsrlibError: no clip could be read, or no label is kept.
    """
    rated: dict[str, dict[str, Any]] = {}
    for language in sorted({rows[name]["language"] for name in found}):
        names = [name for name in found if rows[name]["language"] == language]
        judged = labels.rate(
            [found[name] for name in names], [rows[name]["text"] for name in names], language, threshold
        )
        rated |= zip(names, judged, strict=True)
    if not rated:
        raise AsrlibError(f"None of the {len(rows)} clips could be read.")
    kept = {name: label for name, label in found.items() if not rated[name]["dropped"]}
    if not kept:
        raise AsrlibError(
            f"Not one of {len(rated)} labels is within {threshold:g} % errors of its transcript: raise the threshold, or take a "
            "better teacher."
        )
    return kept, [{"id": name} | rated[name] for name in rows if name in rated]


def training_set(
    settings: Settings, states: EncoderStates, teacher: Any, kept: Mapping[str, Label], rows: Mapping[str, Mapping[str, Any]],
    *, share: tuple[int, int] = (0, 1), label: str = "",
) -> TrainingSet:  # fmt: skip
    """Return what a student is trained on; the teacher decodes each kept label once.

    Args:
        settings: of the labels' form and of the losses.
        states: of the encoder, of all processes.
        teacher: in the precision in which it computes.
        kept: labels by id.
        rows: clips by id, as `clips` returns them.
        share: (r, N), as for `EncoderStates`.
        label: shown in the progress line; none is shown without it.
    """
    made = examples(
        kept, {name: rows[name]["language"] for name in kept}, teacher.generation_config, teacher.config.max_target_positions,
        before={name: rows[name]["before"] for name in kept}, timestamps=settings.timestamps, previous=settings.previous,
        seed=settings.seed,
    )  # fmt: skip
    teaching = TeacherStates(states, teacher, made, share=share, label=label)
    table = teacher.proj_out.weight.detach()
    return TrainingSet(states, teaching, made, table, None if settings.published else vocabulary(made))


def groups(
    sources: Sequence[Source], states: EncoderStates, data: TrainingSet, rows: Mapping[str, Mapping[str, Any]]
) -> list[Group]:
    """Return the clips of each corpus that are learnt from, the shortest first."""
    found = [
        Group(
            [name for name in states.ids if name in data.examples and rows[name]["place"] == source.place], source.share
        )
        for source in sources
    ]
    return [group for group in found if group.names]


def validate(settings: Settings, text: str, folder: Path, teacher: Any, processor: Any) -> Validation:
    """Return the clips of a corpus on which a student is scored; their transcripts, or what the teacher writes without them."""
    source = Source.parse(text)
    rows = clips([source], root=settings.root, most=settings.clips, seed=settings.seed)
    states = EncoderStates(
        folder / source.place.replace("/", "_"),
        teacher,
        processor,
        list(rows.values()),
        label=f"states of {source.place}",
    )
    prompt = whisper.prompt(teacher.generation_config, source.code)
    references = {name: rows[name]["text"] for name in states.ids}
    made = Validation(states, dict.fromkeys(states.ids, prompt), references, processor.tokenizer, source.code)
    if not all(references.values()):
        written = made.write(teacher)
        made.references = {name: said or written[name] for name, said in references.items()}
    return made


def board(folder: Path) -> Callable[[Training], None] | None:
    """Return what writes losses and scores for TensorBoard after each tenth step; None where it is not installed."""
    writer = callbacks.writer(folder)
    if writer is None:
        return None

    def seen(training: Training) -> None:
        step = len(training.log)
        if step % 10 == 0 or step == training.settings.steps:
            for name, value in training.log[-1].items():
                writer.add_scalar(f"loss/{name}", value, step)
        if training.scores and training.scores[-1]["step"] == step:
            writer.add_scalar("validation/wer", training.scores[-1]["wer"], step)
        writer.flush()

    return seen


def _save(student: Any, processor: Any, target: Path, text: str) -> None:
    with files.new_folder(target) as folder, noise.no_bars():
        student.save_pretrained(folder)
        processor.save_pretrained(folder)
        files.write_atomic(folder / "README.md", text)

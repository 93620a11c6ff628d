"""The whole recipe of a fine-tuning, in one process or in many."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import ConcatDataset, Subset
from transformers import WhisperForConditionalGeneration
from transformers.integrations import TensorBoardCallback

from asrlib import AsrlibError, hardware, whisper
from asrlib.decoding import outcomes, transcription
from asrlib.io import files, noise
from asrlib.models import checkpoints
from asrlib.training import callbacks, context
from asrlib.training.cards import sources_table
from asrlib.training.finetuning import data
from asrlib.training.finetuning.adapters import Ranks, adapt, quantization
from asrlib.training.finetuning.card import card
from asrlib.training.finetuning.data import Limits, Part, Speech, seconds
from asrlib.training.finetuning.gain import gains
from asrlib.training.finetuning.settings import Settings
from asrlib.training.finetuning.training import FineTuner, Metrics, arguments, callbacks_of
from asrlib.training.processes import alone, joined, together
from asrlib.training.sources import Source

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["finetune"]

SHORT = 0.5  # of the context that the longest clip fills, below which a shorter one is proposed
RATES = ("wer", "capped", "low", "high", "orthographic", "loss")


def finetune(settings: Settings, output: Path | str) -> dict[str, Any] | None:
    """Fine-tune a Whisper model as notebooks 02 and 04 teach; to be called alike in each process of a run.

    The folder gets ``left_out.jsonl`` (id, place and reason of each clip that is neither learnt from nor scored), ``features/`` and
    ``trainer/`` (checkpoints) while the model is trained, ``logs/`` for TensorBoard, ``losses.jsonl``, ``scores.jsonl``,
    ``finetuning.json`` (what is returned, and the settings) and ``model/``: an ordinary model, or an adapter. A killed run goes on, and
    ends with the same weights; a finished one is not repeated.

    Args:
        settings: of the run.
        output: a folder for this run; processes on several machines must all see it.

    Returns:
        ``clips`` and ``minutes`` learnt from, ``scored`` clips, ``left_out`` (their number), ``failed`` (id -> why a clip could not be
        read), ``steps``, ``seconds``, the ``gains`` of the saved model (`gain.gains`), and the scores while it was trained: ``before``,
        all ``scores`` and the ``best``; None in all processes but the first.

    Raises:
        AsrlibError: what `corpora.load` and `transcription.load` refuse, a batch that cannot be parted, no clip that is left, a
            folder of another run or that another one trains in, or a full disk. All processes end together.
    """
    with alone(Path(output), joined()):
        return _finetune(settings, Path(output), joined())


def _finetune(settings: Settings, output: Path, processes: PartialState) -> dict[str, Any] | None:
    started, first = time.monotonic(), processes.is_main_process
    with together(processes):
        _check(settings, processes)
        model, processor = _load(settings)
        limits = _limits(settings, model, processor)
        speech = data.gather(settings, limits)
        parts = processes.num_processes * settings.accumulate
        settings = settings.fitted(sum(len(part.table) for part in speech.train), model.config.d_model, parts)
        if first:
            _begin(settings, output, speech)
    if done := files.read_json(output / "finetuning.json"):
        return done if first else None
    with callbacks.saving(output):
        made, failed = _features(settings, output, speech, processor, limits, processes)
        tuner = _tuner(settings, output, model, processor, speech, made, processes)
        _train(tuner, settings, processes)
    before, *scores = [_score(row) for row in tuner.state.log_history if "eval_wer" in row]
    learnt, scored = (seconds(parts) for parts in (speech.train, speech.validation))
    done = {"clips": len(learnt), "minutes": sum(learnt) / 60, "scored": len(scored), "left_out": len(speech.left_out)}
    done |= {"failed": failed, "steps": tuner.state.global_step, "seconds": time.monotonic() - started}
    done |= {"before": before, "scores": scores, "best": min(scores, key=lambda score: score["capped"])}
    with together(processes), callbacks.saving(output):
        if first:
            _save(settings, output, tuner, processor)
            done["gains"] = gains(settings.model, output / "model", speech.validation, settings.seed)
            _write(settings, output, tuner, speech, done)
    return done if first else None


def _check(settings: Settings, processes: PartialState) -> None:
    places = [*settings.sources, *map(Source.brought, settings.validation)]
    if settings.language and all(source.name != "folder" for source in places):
        raise AsrlibError("--language is for folders: a corpus states its own, as in dialogue/cs.")
    parts = processes.num_processes * settings.accumulate
    if settings.batch_size and settings.batch_size % parts:
        raise AsrlibError(
            f"A batch of {settings.batch_size} clips cannot be parted among {processes.num_processes} processes in "
            f"{settings.accumulate} parts each: choose a batch size that {parts} divides."
        )
    if settings.adapter and (files.user_path(settings.model) / "adapter_config.json").is_file():
        raise AsrlibError(
            f"{settings.model} is an adapter itself: merge it into its model first, or train without --adapter."
        )


def _load(settings: Settings) -> tuple[Any, Any]:
    """Return model and processor, in float32 but for what is quantized."""
    model, processor = transcription.load(settings.model, device="cpu", dtype=torch.float32)
    if not hasattr(model, "proj_out"):
        raise AsrlibError(f"{settings.model} was exported to ONNX: fine-tune the checkpoint that it came from.")
    if hasattr(model.config, "quantization_config"):
        raise AsrlibError(f"{settings.model} is quantized: fine-tune the checkpoint that it came from.")
    if quantized := quantization(settings, hardware.best_dtype()):
        with noise.no_bars():
            model = WhisperForConditionalGeneration.from_pretrained(
                checkpoints.fetch(str(settings.model)), dtype=torch.float32, quantization_config=quantized
            )
    return model, processor


def _limits(settings: Settings, model: Any, processor: Any) -> Limits:
    """Cut the context of model and processor, if that is wanted, and return what the model can learn from."""
    own = model.config.max_source_positions // whisper.POSITIONS_PER_SECOND
    seconds = min(settings.context, own)
    if seconds < own:
        context.cut_context(model, processor, seconds)
    return Limits(model.generation_config, processor.tokenizer, seconds, model.config.max_target_positions)


def _begin(settings: Settings, output: Path, speech: Speech) -> None:
    """Reserve the folder for these settings, clips and weights, and name what is left out."""
    facts = asdict(settings) | {"root": str(settings.root or ""), "model": str(settings.model)}
    clips = [
        [part.place, *map(list, (part.table["id"], part.table["text"]))] for part in (*speech.train, *speech.validation)
    ]
    facts |= {
        "clips": outcomes.fingerprint({"clips": clips}),
        "sha256": checkpoints.provenance(checkpoints.fetch(str(settings.model)))["sha256"],
    }
    files.reserve(output, json.loads(json.dumps(facts)), "training, with other settings, clips or weights")
    sources_table(settings.sources)  # for the card: what is wrong in it shows before the work
    files.write_jsonl(output / "left_out.jsonl", speech.left_out)
    if not (output / "finetuning.json").is_file():
        print(_plan(settings, speech), flush=True)


def _plan(settings: Settings, speech: Speech) -> str:
    """Return in words what is about to be done, and what a person may want to change before it is."""
    learnt, scored = (seconds(parts) for parts in (speech.train, speech.validation))
    seen = settings.steps * settings.batch_size / len(learnt)
    named = [f"{row['id']}: {row['reason']}" for row in speech.left_out[: data.NAMED]]
    named += ["..."] if len(speech.left_out) > data.NAMED else []
    which = f" ({'; '.join(named)})" if named else ""
    lines = [
        f"Clips to learn from: {len(learnt)}, {sum(learnt) / 60:.1f} minutes; to score: {len(scored)}; left out: "
        f"{len(speech.left_out)}{which}.",
        f"Steps: {settings.steps} of {settings.batch_size} clips, so that each is seen about {seen:.1f} times, at a learning rate of up to "
        f"{settings.learning_rate:g}; a score every {settings.every}.",
    ]
    known = {said for part in speech.train for said in part.table["text"]}
    if twice := sum(said in known for part in speech.validation for said in part.table["text"]):
        lines.append(f"{twice} of the scored clips say what is learnt from too: their WER tells little of new speech.")
    if (longest := max(learnt + scored)) < SHORT * settings.context:
        lines.append(
            f"The longest clip lasts {longest:.1f} s: --context {math.ceil(longest)} makes steps several times faster, and may "
            "cost accuracy (notebook 02)."
        )
    return "\n".join(lines)


def _features(
    settings: Settings, output: Path, speech: Speech, processor: Any, limits: Limits, processes: PartialState
) -> tuple[list[list[Any]], dict[str, str]]:
    """Return the features of what is learnt from and of what is scored, by source; clips that cannot be read are dropped from both.

    The first process makes them, the others read what it has written.
    """
    first, failed = processes.is_main_process, {}
    folder = None if settings.stream else output / "features"
    begun = any((output / "trainer").glob("checkpoint-*"))  # its clips stay as they are
    made: list[list[Any]] = []

    def make(parts: list[Part], kind: str, label: str) -> list[Any]:
        found = []
        for number, part in enumerate(parts):
            cache = folder / f"{kind}-{number}.arrow" if folder else None
            parts[number], table, lost = data.features(part, processor, limits, cache=cache, label=label, begun=begun)
            found.append(table)
            failed.update(lost)
        return found

    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    for turn in (first, not first):
        with together(processes):
            if turn:
                made = [
                    make(parts, kind, "features" * first)
                    for kind, parts in (("train", speech.train), ("validation", speech.validation))
                ]
    with together(processes):
        for tables, parts, what in zip(made, (speech.train, speech.validation), ("learn from", "score"), strict=True):
            kept = [number for number, part in enumerate(parts) if len(part.table)]
            if not kept:
                name, why = next(iter(failed.items()))
                raise AsrlibError(f"No clip is left to {what}: {len(failed)} cannot be read, such as {name} ({why}).")
            tables[:], parts[:] = [tables[at] for at in kept], [parts[at] for at in kept]
    return made, failed


def _tuner(
    settings: Settings, output: Path, model: Any, processor: Any, speech: Speech, made: list[list[Any]], processes: PartialState
) -> FineTuner:  # fmt: skip
    """Return the Trainer, which takes the clips in the order of `data.order`."""
    generation = model.generation_config
    if whisper.is_multilingual(generation):
        generation.task = "transcribe"
        generation.language = min(speech.languages) if len(speech.languages) == 1 else None
    if settings.freeze_encoder:
        model.freeze_encoder()
    start, first = model.config.decoder_start_token_id, processes.is_main_process
    args = arguments(settings, output / "trainer", model, processes.num_processes)
    model = adapt(model, settings) if settings.adapter else model
    ranks = Ranks(model) if settings.adapter == "adalora" else None
    counts = [len(part.table) for part in speech.train]
    clips = data.order(
        counts, [part.share for part in speech.train], settings.steps * settings.batch_size, settings.seed
    )
    scored = [(part.place, code) for part in speech.validation for code in part.languages]
    board = callbacks.writer(output / "logs") if first else None
    if board:
        print(f"Curves: tensorboard --logdir {shlex.quote(board.log_dir)}", flush=True)
    tuner = FineTuner(
        model=model, args=args, train_dataset=Subset(ConcatDataset(made[0]), clips), eval_dataset=ConcatDataset(made[1]),
        data_collator=context.Collator(start), compute_metrics=Metrics(processor.tokenizer, scored, settings.seed),
        processing_class=processor, ranks=ranks,
        callbacks=[*callbacks_of(settings, first), *([ranks] if ranks else []), *([TensorBoardCallback(board)] if board else [])],
    )  # fmt: skip
    callbacks.show_progress(tuner, "fine-tuning", shown=first)
    return tuner


def _train(tuner: FineTuner, settings: Settings, processes: PartialState) -> None:
    """Take the steps that are left; the best weights so far are the model's at the end."""
    from accelerate.utils import broadcast_object_list

    args = tuner.args
    newest = callbacks.last_checkpoint(args.output_dir) if processes.is_main_process else None
    newest = broadcast_object_list([newest])[0] if processes.num_processes > 1 else newest
    if newest and settings.patience:
        state = files.read_json(Path(newest) / "trainer_state.json")
        counted = state["stateful_callbacks"]["EarlyStoppingCallback"]["attributes"]["early_stopping_patience_counter"]
        if counted >= settings.patience:  # killed after its last step
            args.max_steps = state["global_step"]
            tuner.train_dataset = Subset(tuner.train_dataset, range(args.max_steps * settings.batch_size))
    # Not by evaluate() before: accelerate then takes the model for prepared, and several processes train apart, without a word.
    args.eval_on_start = newest is None
    if newest and processes.is_main_process:
        print(f"This training goes on after step {newest.rpartition('-')[2]}.", flush=True)
    try:
        tuner.train(resume_from_checkpoint=newest)
    except AsrlibError as error:
        if "Original Traceback" not in str(error):
            raise
        # Of a process that loads clips: PyTorch puts its whole traceback into the message.
        raise AsrlibError(str(error).rstrip().rpartition("AsrlibError: ")[2]) from None


def _score(row: Mapping[str, float]) -> dict[str, float]:
    """Return the rates of an evaluation as the Trainer logs them."""
    rates = {name.removeprefix("eval_"): value for name, value in row.items() if name.startswith("eval_")}
    kept = {
        name: rates[name]
        for name in (*RATES, *sorted(rates))
        if name in rates and (name in RATES or name.startswith("wer "))
    }
    return {"step": row["step"]} | kept


def _save(settings: Settings, output: Path, tuner: FineTuner, processor: Any) -> None:
    """Write the model, with the whole context, or its adapter."""
    model = tuner.model
    if not settings.adapter:
        original, whole = transcription.load(settings.model, device="cpu", dtype=torch.float32)
        context.restore_context(model, processor, original)
        options = {}
    else:
        whole = transcription.load(settings.model, device="cpu")[1]
        local = files.user_path(settings.model)
        model.peft_config["default"].base_model_name_or_path = str(
            local.resolve() if local.is_dir() else settings.model
        )
        options = {"save_embedding_layers": False}
    with files.new_folder(output / "model") as folder, noise.no_bars():
        model.save_pretrained(folder, **options)
        whole.save_pretrained(folder)


def _write(settings: Settings, output: Path, tuner: FineTuner, speech: Speech, done: Mapping[str, Any]) -> None:
    """Write the curves, the card and the facts of a run, and drop what it no longer needs."""
    steps = [row for row in tuner.state.log_history if "loss" in row]
    names = ("step", "loss", "learning_rate", "grad_norm")
    files.write_jsonl(output / "losses.jsonl", ({name: row[name] for name in names} for row in steps))
    files.write_jsonl(output / "scores.jsonl", done["scores"])
    files.write_atomic(output / "model" / "README.md", card(settings, done, sorted(speech.languages)))
    facts = {"settings": asdict(settings) | {"root": str(settings.root or "")}, "command": settings.command(), **done}
    files.write_atomic(output / "finetuning.json", json.dumps(facts, indent=1) + "\n")
    for name in ("features", "trainer"):
        shutil.rmtree(output / name, ignore_errors=True)

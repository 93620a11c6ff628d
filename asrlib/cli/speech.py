"""The commands for one's own speech: transcribe, evaluate, prepare, distil, demo."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from asrlib import AsrlibError, __version__, audio, corpora, engines, text, whisper
from asrlib.course import findings, sentences
from asrlib.decoding import outcomes, streaming, subtitles, transcription, words
from asrlib.decoding.batching import Hypothesis
from asrlib.decoding.outcomes import Failed, Outcomes
from asrlib.decoding.speculative import Assistant
from asrlib.io import files, pipes, upload
from asrlib.io.progress import track
from asrlib.models import checkpoints
from asrlib.scoring import Score
from asrlib.tasks import comparing, evaluation, preparation, sharding, transcripts
from asrlib.tasks import demo as page
from asrlib.tasks.evaluation import Evaluation
from asrlib.training import distillation

WORST = 5  # clips that `asrlib evaluate` shows
PROBE = 60  # seconds of speech on which runtimes are tried out


def transcribe(options: argparse.Namespace) -> int:
    """Transcribe files; 1 where one of them failed."""
    timed = options.format != "txt"
    if timed and options.window == "merged":
        options.usage("--window merged finds no segment times: it goes with --format txt")
    if options.words and not timed:
        options.usage("--words goes with --format srt, vtt or json")
    if options.engine and (options.words or options.vad or options.int8 or options.window == "merged"):
        options.usage("--engine goes without --words, --vad, --int8 and --window merged, of the course's own loop")
    if options.live:
        return _live(options)
    paths = transcripts.audio_files(options.audio, options.output)
    if options.output:
        return _into_folder(options, paths)
    if options.format in ("srt", "vtt") and len(paths) > 1:
        options.usage(f"several files as {options.format} need --output FOLDER")
    failed = 0
    for path, outcome in _transcripts(options, paths):
        if isinstance(outcome, Failed):
            failed += 1
        else:
            prefix = f"{path}\t" if options.format == "txt" and len(paths) > 1 else ""
            print(prefix + subtitles.write(outcome, options.format), end="", flush=True)
    return 1 if failed else 0


def _live(options: argparse.Namespace) -> int:
    """Print what comes out of the standard input, each word as soon as it is final."""
    if options.audio != [Path("-")] or options.format != "txt" or options.output or options.engine or options.vad:
        options.usage("--live goes with the standard input alone, asrlib transcribe - --live, and prints text: it goes without "
                      "--format, --output, --engine and --vad")  # fmt: skip
    model, processor = transcription.load(options.model, **_precision(options.int8))
    live = streaming.Live(streaming.Recogniser(model, processor, options.language, options.window))
    sound = pipes.ahead(pipes.samples(sys.stdin.buffer), audio.SAMPLING_RATE)
    print("asrlib: ready.", file=sys.stderr)
    begun = False
    with _interrupt_left_to_the_recorder():
        for part in sound:
            said = live.add(part)
            print(said if begun else said.lstrip(), end="", flush=True)
            begun = begun or bool(said)
    print(live.end() if begun else live.end().lstrip())
    return 0


@contextlib.contextmanager
def _interrupt_left_to_the_recorder() -> Iterator[None]:
    """Let the first Ctrl-C end the recorder alone, so that what it has brought is still heard; a second one ends this command."""
    before = signal.signal(signal.SIGINT, lambda *_: signal.signal(signal.SIGINT, signal.default_int_handler))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _into_folder(options: argparse.Namespace, paths: Sequence[Path]) -> int:
    """Write a file for each transcript that an earlier call with the same options has not written; print where each lies."""
    asked = ("language", "format", "words", "engine", "vad", "window", "int8")
    chosen = {name: getattr(options, name) for name in asked}
    weights = checkpoints.provenance(checkpoints.fetch(options.model))
    run = outcomes.fingerprint(chosen | weights | {"asrlib": __version__})
    failed, waiting = 0, []
    with files.lock(options.output / "outcomes"):  # a name is given once, also where two runs ask for it at once
        book = Outcomes(options.output, f".{options.format}")
        names = transcripts.names(paths, options.format, book)
        for path, name in names.items():
            if book.done(path, run=run, made=name) and (options.output / name).is_file():
                print(options.output / name)
            else:
                book.add(path, failed=outcomes.UNFINISHED, made=name, run=run)
                waiting.append(path)
    for path, outcome in _transcripts(options, waiting):
        if isinstance(outcome, Failed):
            failed += 1
            book.add(path, failed=outcome.reason, made=names[path], run=run)
        else:
            written = files.write_atomic(options.output / names[path], subtitles.write(outcome, options.format))
            book.add(path, made=names[path], run=run)
            print(written, flush=True)
    return 1 if failed else 0


def _transcripts(options: argparse.Namespace, paths: Sequence[Path]) -> Iterable[tuple[Path, Hypothesis | Failed]]:
    """Yield each file with its transcript, or with why there is none."""
    if not paths:
        return
    wanted = {"language": options.language, "timestamps": options.format != "txt"}
    finish, longest = (lambda outcome: outcome), audio.MAX_SECONDS
    if options.engine:
        start = functools.partial(_runtime(options, paths).transcribe, strict=False, **wanted)
    else:
        model, processor = transcription.load(options.model, **_precision(options.int8))
        wanted |= {"window": options.window, **({"vad": True} if options.vad else {})}
        start = functools.partial(transcription.transcribe, model, processor, **wanted)
        longest = _longest(model)
        if options.words:
            finish = functools.partial(_with_words, model, processor, options.format)
    found = outcomes.transcripts(start, ((str(path), path) for path in paths), max_seconds=longest)
    if not sys.stdout.isatty():  # where the transcripts are not seen as they come
        found = track(found, "clips transcribed", len(paths))
    for path, outcome in zip(paths, found, strict=True):
        yield path, outcome if isinstance(outcome, Failed) else finish(outcome)


def _precision(in_int8: bool) -> dict[str, Any]:
    """Return how `transcription.load` is asked for 8 bits, or for what this machine is fast in."""
    return {"dtype": torch.int8} if in_int8 else {}


def _longest(model: Any) -> float:
    """Return the seconds that a model can transcribe: one whose context was cut never learnt to go from window to window."""
    positions = model.config.max_source_positions
    return positions / whisper.POSITIONS_PER_SECOND if positions < whisper.POSITIONS else audio.MAX_SECONDS


def _with_words(model: Any, processor: Any, format: str, transcript: Hypothesis) -> Hypothesis:
    """Return a transcript with words, or lines of subtitles made of them, in the place of its segments, where that can be."""
    try:
        found = words.times(model, processor, audio.load(transcript.id), transcript)
    except AsrlibError as error:
        print(f"asrlib: {transcript.id} gets times of segments, not of words: {error}", file=sys.stderr)
        return transcript
    segments = found if format == "json" else subtitles.cues(found, transcript.language)
    return replace(transcript, segments=tuple(segments))


def _runtime(options: argparse.Namespace, paths: Iterable[Path]) -> engines.Runtime:
    """Return the runtime that was named, or the fastest for these files, and say which that is."""
    if options.engine != "fastest":
        return engines.load(options.engine, options.model, device="best")
    sounds, length = [], 0
    for path in paths:
        with contextlib.suppress(AsrlibError):  # it will be named when its turn comes
            sounds.append(audio.load(path)[: PROBE * audio.SAMPLING_RATE])
            length += len(sounds[-1]) / audio.SAMPLING_RATE
        if length >= PROBE:
            break
    if not sounds:
        return engines.load("asrlib", options.model, device="best")
    timestamps = options.format != "txt"
    runtime, seconds = engines.fastest(options.model, sounds, language=options.language, timestamps=timestamps)
    best = min(seconds, key=seconds.__getitem__)
    tried = ", ".join(f"{name} {spent:.1f} s" for name, spent in seconds.items())
    print(f"asrlib: for {length:.0f} s of this speech: {tried}. {best} transcribes all.", file=sys.stderr)
    return runtime


def evaluate(options: argparse.Namespace) -> int:
    """Score a model; 1 where a clip could not be read."""
    if not options.output and os.environ.get("WORLD_SIZE", "1") != "1":
        options.usage("several processes need --output FOLDER, which all of them see")
    chosen = _search_options(options)
    if options.hypotheses:
        names = ("engine", "output", "root", "strict", "chunk", "batch_size")
        if any(getattr(options, name) for name in names) or options.beams > 1 or _of_our_loop(options):
            options.usage("--hypotheses goes with --language and --json alone: nothing is transcribed")
        return _side_by_side(options)
    parts = str(options.speech).split("/")
    if own := options.speech.is_dir() or options.speech.is_absolute() or len(parts) != 3:
        table = corpora.load("folder", root=options.speech, language=options.language)
        splits, told = set(table["split"]), ""
        if {"test"} < splits:  # what a model may have learnt from would flatter it
            kept = corpora.load("folder", options.language, "test", root=options.speech)
            told, table = f"of {options.speech} the split test is scored, {len(kept)} of {len(table)} clips.", kept
        elif splits != {"test"}:
            told = f"{options.speech} has no split test: the clips of {', '.join(sorted(splits))} are scored."
        if told:
            print(f"asrlib: {told}", file=sys.stderr)
    else:
        table = corpora.load(*parts, root=options.root)
    start, processor, generation, longest = _search(options.model, chosen)
    language = options.language or _language(table["language"], whisper.is_multilingual(generation))
    start = functools.partial(start, language=language)
    run = {"speech": outcomes.whole(options.speech) if own else str(options.speech), **chosen}
    if options.output:  # the same weights are to go on there
        models = [name for name in (options.model, options.assistant) if name]
        run["weights"] = [checkpoints.provenance(checkpoints.fetch(name)) for name in models]
    with contextlib.nullcontext(options.output) if options.output else tempfile.TemporaryDirectory() as folder:
        found = evaluation.evaluate(
            table, functools.partial(outcomes.transcripts, start, max_seconds=longest), folder, language=language, run=run,
            tokens=lambda said: len(processor.tokenizer(said, add_special_tokens=False).input_ids),
            label="transcribing" * sharding.first_process(),
        )  # fmt: skip
        if found:
            show: Callable[..., str] = _as_json if options.json else _report
            print(show(options.model, language, chosen, found))
            return 1 if found.unreadable else 0
    return 0


def _side_by_side(options: argparse.Namespace) -> int:
    """Score transcripts that are there."""
    if not options.language:
        options.usage("--hypotheses needs --language, which decides the normaliser")
    found = comparing.compare(options.speech, options.hypotheses, text.language_code(options.language))
    rate = "wer_percent" if text.spaced(options.language) else "cer_percent"
    systems = [_numbers(name, score, rate) for name, score in found.scores.items()]
    if options.json:
        told = {"normalizer": found.normalizer, "unit": found.unit, "systems": systems, "against": found.first}
        told["differences"] = {name: sentences.of_difference(one) for name, one in found.differences.items()}
        print(json.dumps(told, indent=1, ensure_ascii=False))
        return 0
    width = max(len(name) for name in found.scores)
    print(
        f"{'':{width}}  {rate[:3].upper():>7}  {'95 % interval':>15}  {'substituted':>11}  {'deleted':>7}  {'inserted':>8}"
    )
    for row in systems:
        ends = "{:.2f} to {:.2f}".format(*row["interval"]) if row["interval"] else "none"
        counts = f"{row['substitutions']:>11}  {row['deletions']:>7}  {row['insertions']:>8}"
        print(f"{row['system']:{width}}  {row[rate]:>5.2f} %  {ends:>15}  {counts}")
    score = next(iter(found.scores.values()))
    units = len(set(score.blocks))
    kind = f"{found.unit}{'es' if found.unit == 'stretch' else 's'}" if units > 1 else found.unit
    print(
        f"{score.words} {'words' if text.spaced(options.language) else 'characters'}, {units} {kind}, normaliser {found.normalizer}"
    )
    if found.differences:
        print(findings.table(found.differences, f"{found.first}, loops capped"))
    return 0


def _numbers(name: str, score: Score, rate: str) -> dict[str, Any]:
    counted = {kind: getattr(score, kind) for kind in ("substitutions", "deletions", "insertions", "words")}
    interval = score.interval and [100 * end for end in score.interval]
    return {"system": name, rate: 100 * score.wer, "interval": interval, **counted}


def _of_our_loop(options: argparse.Namespace) -> bool:
    return bool(options.assistant or options.previous_text or options.vad or options.int8 or options.window != "full")


def _search_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return all that the search of an evaluation depends on; what does not go together is wrong usage."""
    engine = options.engine or ("transformers" if options.chunk else "asrlib")
    if options.chunk and (engine != "transformers" or options.beams > 1):
        options.usage("--chunk goes with --engine transformers and one beam")
    if _of_our_loop(options) and (engine != "asrlib" or options.beams > 1):
        options.usage("--engine, --beams and --chunk go without --assistant, --previous-text, --vad, --int8 and --window merged, "
                      "which are options of the course's own loop")  # fmt: skip
    if options.drafts and not options.assistant:
        options.usage("--drafts goes with --assistant")
    names = ("beams", "chunk", "batch_size", "previous_text", "vad", "window", "int8", "assistant")
    chosen = {"engine": engine, "strict": options.strict or bool(options.assistant)}
    chosen |= {name: getattr(options, name) for name in names}
    return chosen | {"drafts": (options.drafts or 4) if options.assistant else None}


def _search(checkpoint: str, chosen: dict[str, Any]) -> tuple[Callable[..., Any], Any, Any, float]:
    """Return what transcribes clips as `_search_options` says, its processor, generation configuration, and longest seconds."""
    if chosen["engine"] != "asrlib" or chosen["beams"] > 1:
        runtime = engines.load(chosen["engine"], checkpoint, beams=chosen["beams"], device="best")
        for name in ("chunk", "batch_size"):
            if chosen[name]:
                setattr(runtime, name, chosen[name])
        start = functools.partial(runtime.transcribe, strict=chosen["strict"])
        return start, runtime.processor, runtime.generation, audio.MAX_SECONDS
    model, processor = transcription.load(checkpoint, **_precision(chosen["int8"]))
    kept = {name: chosen[name] for name in ("strict", "previous_text", "vad", "window")}
    if chosen["batch_size"]:
        kept["batch_size"] = chosen["batch_size"]
    if chosen["assistant"]:
        helper, _ = transcription.load(chosen["assistant"], **_precision(chosen["int8"]))  # reads the same states
        kept |= {"assistant": Assistant(helper), "drafts": chosen["drafts"]}
    start = functools.partial(transcription.transcribe, model, processor, **kept)
    return start, processor, model.generation_config, _longest(model)


def _language(languages: Iterable[str], multilingual: bool) -> str:
    """Return the one language of a folder's clips, which decides the normaliser."""
    named = set(languages)
    if not multilingual:
        if other := sorted(one for one in named if one and text.language_code(one) != "en"):
            raise AsrlibError(
                f"The clips are in {', '.join(other)}, and an English-only model hears English: choose a multilingual one."
            )
        return "en"
    if len(named) != 1 or not all(named):
        raise AsrlibError("The clips' language is not stated, or not the same for all: name it with --language.")
    return named.pop()


def _as_json(model: str, language: str, chosen: dict[str, Any], found: Evaluation) -> str:
    """Return what `asrlib evaluate --json` prints, with every clip."""
    score, counted = found.score, ("substitutions", "deletions", "insertions", "words", "utterances")
    result = {"model": model, "language": language, "options": chosen}
    result |= {"unreadable": found.unreadable, "normalizer": found.normalizer}
    rates = {"wer_percent": 100 * score.wer, "interval": score.interval and [100 * end for end in score.interval]}
    if text.spaced(language):
        rates["cer_percent"] = 100 * score.cer
    else:  # the normaliser parts all characters
        rates["cer_percent"] = rates.pop("wer_percent")
    result |= {**rates, **{kind: getattr(score, kind) for kind in counted}}
    result |= {"rtfx": found.rtfx, "tokens_per_second": found.tokens_per_second}
    return json.dumps(result | {"clips": list(files.read_jsonl(found.clips))}, indent=1, ensure_ascii=False)


def _report(model: str, language: str, chosen: dict[str, Any], found: Evaluation) -> str:
    """Return what `asrlib evaluate` prints for a person, with the worst clips."""
    score, (low, high) = found.score, (100 * end for end in found.score.bounds)
    interval = f"95 % interval {low:.2f} to {high:.2f}" if score.interval else f"no interval: {score.shortage}"
    spaced = text.spaced(language)
    rate, units = ("WER", "words") if spaced else ("CER", "characters")
    lines = [
        f"{rate} {100 * score.wer:.2f} % ({interval})" + (f", CER {100 * score.cer:.2f} %" if spaced else ""),
        f"{score.utterances} clips, {score.words} {units}: {score.substitutions} substituted, "
        f"{score.deletions} deleted, {score.insertions} inserted",
        f"{model}, language {language}, normaliser {found.normalizer}, RTFx {found.rtfx:.1f}, "
        f"{found.tokens_per_second:.1f} tokens/s",
        "search: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in chosen.items() if value),
    ]
    for clip in evaluation.worst(found, WORST):
        lines += [f"\n{clip['id']}: {clip['errors']} errors in {clip['words']} {units}"]
        lines += [f"  reference   {clip['reference']}", f"  hypothesis  {clip['hypothesis'].strip()}"]
    return "\n".join(lines)


def prepare(options: argparse.Namespace) -> int:
    """Make a data set of recordings; 1 where one of them could not be read."""
    chosen = {"model": options.model, "second": options.second, "language": options.language}
    made = preparation.prepare(transcripts.audio_files(options.audio, options.output), options.output, **chosen)
    minutes = f"{made.kept_seconds / 60:.1f} of {made.seconds / 60:.1f} minutes"
    dropped = "".join(f"; {count} dropped: {reason}" for reason, count in made.dropped.items())
    print(f"{made.kept} of {made.pieces} pieces kept, {minutes}, in {options.output}{dropped}.")
    splits = ", ".join(f"{split} {count}" for split, count in made.splits.items())
    print(f"Whole recordings are in one split: {splits}. Nobody has read the labels yet: correct them in {options.output / 'listen.html'}, "
          f"the test first. Next: asrlib finetune {shlex.quote(str(options.output))} --output FOLDER")  # fmt: skip
    return 1 if made.failed else 0


def demo(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    page.serve(options.model, language=options.language, port=options.port)
    return 0


def distil(options: argparse.Namespace) -> int:
    """Distil a model; 1 where a clip could not be read."""
    chosen = {field.name: getattr(options, field.name) for field in fields(distillation.Settings)}
    chosen |= {name: tuple(chosen[name]) for name in ("corpus", "validation")}
    try:
        _ = [distillation.Source.parse(text) for text in (*chosen["corpus"], *chosen["validation"])]
    except AsrlibError as error:
        options.usage(str(error))
    if options.patience and not options.validation:
        options.usage("--patience goes with --validation, whose scores it waits for")
    if options.push:
        upload.check(options.push)
    done = distillation.distil(distillation.Settings(**chosen), options.output)
    if not done:
        return 0
    best = sorted(done["scores"], key=lambda score: score["wer"])[:1]  # the student that is kept
    scores = [f"{score['wer']:.1f} % WER at step {score['step']}" for score in best]
    print(
        f"{done['clips']} clips, {done['kept']} labels of {done['words']} words learnt from, {done['steps']} steps: "
        + ", ".join([f"cross-entropy {done['cross_entropy']:.3f}, KL {done['kl']:.3f}", *scores])
        + f"; the student lies in {options.output / 'student'}."
    )
    if options.push:
        print(f"It was pushed to {upload.push(options.output / 'student', options.push)}.")
    return 1 if done["failed"] else 0

"""The command ``asrlib``: run, fetch, doctor, claims, compare, transcribe, evaluate, prepare, distil, demo.

Exit codes: 0 all well; 1 something failed, and a sentence on stderr says what; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError, __version__
from asrlib.course import claims, rules
from asrlib.io import files

if TYPE_CHECKING:
    from asrlib.course.rules import Verdict
    from asrlib.decoding.batching import Hypothesis
    from asrlib.engines.runtime import Runtime
    from asrlib.tasks.evaluation import Evaluation

__all__ = ["main"]

MODEL = "openai/whisper-base"
AUDIO = {".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"}
WORST = 5  # clips that `asrlib evaluate` shows
PROBE = 60  # seconds of speech on which runtimes are tried out
MENDABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a file may hold bytes that are no UTF-8
    parsed = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a stopped run ends its children and says so
    try:
        code = parsed.command(parsed)
        sys.stdout.flush()
        return code
    except AsrlibError as error:
        print(f"asrlib: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("asrlib: interrupted; what was finished is kept.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        print(f"asrlib: {error.filename or 'the output'} cannot be read or written: {error.strerror}.", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="asrlib", description="Run the Whisper course, or transcribe and score your own speech."
    )
    parser.add_argument("--version", action="version", version=f"asrlib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    def command(name: str, function: Any, help: str) -> Callable[..., Any]:
        added = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        added.set_defaults(command=function, usage=added.error)
        return added.add_argument

    _course_commands(command)
    _speech_commands(command)
    return parser


def _course_commands(command: Callable[..., Any]) -> None:
    profile = {"default": "reference", "help": "smoke, reference (default) or paper"}
    notebooks = {"nargs": "*", "metavar": "NN", "help": "numbers or names of notebooks; default: all"}

    option = command("run", _run, "run notebooks through papermill into build/runs/PROFILE/")
    option("notebooks", **notebooks)
    option("--profile", **profile)
    option("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE", help="override a parameter")
    option("--force", action="store_true", help="run also what is finished and unchanged")
    option("--publish", action="store_true", help="write outputs back into notebooks/ and results/ (maintainers)")
    option("--timeout", type=_positive, default=3600, metavar="S", help="seconds for each notebook; default: 3600")
    option("--output", type=Path, metavar="FOLDER", help="for PROFILE/NAME/, instead of build/runs/")

    option = command("fetch", _fetch, "fetch the speech and weights that the reference profile needs")
    option("notebooks", **notebooks)

    command("doctor", _doctor, "say what this machine has and lacks, and the command that mends it")

    option = command("claims", _claims, "judge the published claims by the records at hand")
    option("ids", nargs="*", metavar="ID", help="such as LS-02; default: all")
    option("--method", metavar="TEXT", help="only methods with this in their name, such as distil")
    option("--verdict", choices=rules.KINDS, help="only claims with this verdict")
    option("--profile", **profile)
    option("--json", action="store_true", help="print JSON, with every number of a claim")

    option = command("compare", _compare, "say which values of a run differ from those of an earlier one")
    option("runs", nargs=2, type=Path, metavar="RUN", help="a folder with record.json, the earlier first")


def _speech_commands(command: Callable[..., Any]) -> None:
    model = {"default": MODEL, "help": f"Hub id, or folder of a checkpoint; default: {MODEL}"}

    option = command("transcribe", _transcribe, "transcribe audio files, or folders of them")
    option("audio", nargs="+", type=Path, metavar="FILE|FOLDER")
    option("--model", **model)
    option("--language", help="code or name; default: the model detects it, clip by clip")
    option("--format", choices=tuple(FORMATS), default="txt", help="default: txt; the others have segment times")
    option("--output", type=Path, metavar="FOLDER", help="write a file for each transcript there; default: print them")
    option("--words", action="store_true", help="times of words: srt and vtt get short lines, json single words")
    option("--engine", metavar="NAME",
           help="another runtime, such as whisper.cpp (notebook 08), or fastest: tried out first")  # fmt: skip
    option("--window", choices=("full", "merged"), default="full",
           help="merged: faster with short clips, by an approximation, and without segment times; default: full")  # fmt: skip

    option = command("evaluate", _evaluate, "score a model; in N processes: torchrun ... asrlib evaluate")
    option("speech", type=Path, metavar="FOLDER|CORPUS/LANGUAGE/SPLIT",
           help="a folder's metadata.csv has the columns file_name, transcription, perhaps language, speaker")  # fmt: skip
    option("--output", type=Path, metavar="FOLDER", help="keep what is heard there: a killed run goes on")
    option("--model", **model)
    option("--language", help="code or name; default: the column language of metadata.csv")
    option("--json", action="store_true", help="print JSON, with every clip")

    option = command("prepare", _prepare, "make a data set with pseudo-labels of long recordings, or folders of them")
    option("audio", nargs="+", type=Path, metavar="FILE|FOLDER")
    option("--output", type=Path, required=True, metavar="FOLDER", help="for the data set; a killed run goes on there")
    option("--model", **model)
    option("--second", metavar="MODEL", help="for a second hearing; default: the same, of faster sound")
    option("--language", help="code or name; default: the model detects it, for each recording")

    option = command("demo", _demo, "open a local page that transcribes what you record or upload")
    option("--model", **model)
    option("--language", help="code or name; default: the model detects it, clip by clip")
    option("--port", type=_port, default=7860, metavar="N", help="port of 127.0.0.1; default: 7860")

    option = command("distil", _distil, "distil a model to a smaller one; in N processes: torchrun ... asrlib distil")
    option("corpus", metavar="CORPUS/LANGUAGE/SPLIT", help="such as telephone/en/train; its transcripts are the filter")
    option("--output", type=Path, required=True, metavar="FOLDER", help="for the student; a killed run goes on there")
    option("--root", type=Path, metavar="FOLDER", help="where a corpus lies that is not packaged")
    option("--model", **model)
    option("--clips", type=_count, metavar="N", help="default: all of at most 30 s")
    option("--layers", type=_count, default=2, metavar="N", help="of the student's decoder; default: 2")
    option("--threshold", type=float, default=10, metavar="WER", help="%% beyond which a label is dropped; default: 10")
    option("--steps", type=_count, default=240, metavar="N", help="default: 240")
    option("--batch-size", type=_count, default=12, metavar="N", help="clips in a step, of all processes; default: 12")
    option("--learning-rate", type=_positive, default=1e-4, metavar="X", help="its highest value; default: 1e-4")
    option("--seed", type=int, default=0, metavar="N", help="of the choice of clips and their order; default: 0")


def _positive(text: str) -> float:
    if (value := float(text)) > 0:
        return value
    raise argparse.ArgumentTypeError("must be more than 0")


def _count(text: str) -> int:
    if (value := int(text)) > 0:
        return value
    raise argparse.ArgumentTypeError("must be 1 or more")


def _port(text: str) -> int:
    if 0 < (value := int(text)) < 65_536:
        return value
    raise argparse.ArgumentTypeError("must be from 1 to 65535")


def _root() -> Path:
    if root := files.repository():
        return root
    raise AsrlibError("This command needs the course's checkout: clone the repository and use its own .venv.")


# ------------------------------------------------------------------------------------------------------------- the course
def _run(options: argparse.Namespace) -> int:
    from asrlib.course import runner

    if options.publish and (options.profile != "reference" or options.parameters or options.output):
        options.usage("--publish goes with the reference profile and without -p and --output")
    if bad := [text for text in options.parameters if "=" not in text]:
        options.usage(f"-p {bad[0]}: write it as NAME=VALUE")
    given = dict(text.split("=", 1) for text in options.parameters)
    chosen = {name: getattr(options, name) for name in ("profile", "force", "timeout", "output")}
    outcomes = runner.run(_root(), options.notebooks, given=given, **chosen)
    if options.publish:
        names = [outcome.notebook for outcome in outcomes]
        if subprocess.run([sys.executable, "-m", "tools.publish", *names], cwd=_root(), check=False).returncode:
            return 1
    if good := [outcome.notebook for outcome in outcomes if outcome.good]:
        _summary(options.profile, good, options.output)
    return 0 if len(good) == len(outcomes) else 1


def _summary(profile: str, good: Sequence[str], output: Path | None) -> None:
    """Print the WERs of the notebooks that ran, where to read them, and how the published claims stand."""
    from asrlib.course import registry

    found = registry.latest_records(_root(), profile, output)
    if board := registry.scoreboard(found[name] for name in good if name in found):
        print(f"\n{board}")
    print(
        f"\nThe executed notebooks are in {os.path.relpath(registry.run_folder(_root(), profile, '', output))}/NAME/."
    )
    if output:
        return  # `asrlib claims` would not find these runs
    print(f"Published claims: {_counts(claims.judge(claims.load(), found.values()))}.")
    print("To read them: asrlib claims" + ("" if profile == "reference" else f" --profile {profile}"))


def _counts(verdicts: Sequence[Verdict]) -> str:
    return ", ".join(f"{number} {verdict}" for verdict, number in claims.count(verdicts).items())


def _fetch(options: argparse.Namespace) -> int:
    from asrlib import corpora
    from asrlib.course import registry
    from asrlib.models import checkpoints

    models, speech = registry.inputs(_root(), options.notebooks)
    for model in models:
        print(f"checkpoint {model}: {checkpoints.fetch(model)}", flush=True)
    for name, language in speech:
        print(f"corpus {name} {language}".rstrip() + f": {corpora.fetch(name, language or None)}", flush=True)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from asrlib.cli import doctor

    wrong = 0
    for finding in doctor.diagnose(files.repository()):
        wrong += finding.state in ("MISSING", "DIFFERS")
        print(finding, flush=True)
    print(f"\n{wrong} to mend, with the command after the arrow." if wrong else "\nAll is there.")
    return 1 if wrong else 0


def _claims(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from asrlib.course import parameters, registry

    known = claims.load()
    if unknown := set(options.ids) - {claim["id"] for claim in known}:
        raise AsrlibError(f"There is no claim {', '.join(sorted(unknown))}: `asrlib claims` lists all.")
    parameters.profile_values(files.read_toml(_root() / "notebooks" / "profiles.toml"), "", options.profile)
    found = registry.latest_records(_root(), options.profile)
    chosen = [claim for claim in known if not options.ids or claim["id"] in options.ids]
    methods = sorted({claim["method"] for claim in known})
    if options.method and not any(options.method.lower() in method.lower() for method in methods):
        raise AsrlibError(f"No method has {options.method!r} in its name: there are {'; '.join(methods)}.")
    chosen = [claim for claim in chosen if (options.method or "").lower() in claim["method"].lower()]
    verdicts = claims.judge(chosen, found.values())
    if options.verdict:
        verdicts = [item for item in verdicts if claims.kind(item) == options.verdict]
    if options.json:
        print(json.dumps([asdict(verdict) for verdict in verdicts], indent=1, ensure_ascii=False))
        return 0
    for verdict in verdicts:
        print(_shown(verdict))
    print(f"\n{_counts(verdicts)}")
    return 0


def _shown(verdict: Verdict) -> str:
    """Return a claim as a paragraph of the terminal's width."""
    published = f"published: {verdict.published}" if verdict.published else ""
    here = f"here: {verdict.ours}" if verdict.ours else ""
    if verdict.interval:
        here += f" (95 % interval {verdict.interval}{verdict.n and f'; {verdict.n} clips'})"
    lines = [f"{verdict.id}  {verdict.verdict}", verdict.statement, published, here, verdict.why]
    width = min(shutil.get_terminal_size().columns, 100)
    return "\n".join(
        textwrap.fill(line, width, initial_indent=" " * 7 * (number > 0), subsequent_indent=" " * 7)
        for number, line in enumerate(filter(None, lines))
    )


def _compare(options: argparse.Namespace) -> int:
    from asrlib.course import comparison

    print(comparison.describe(comparison.compare(*map(comparison.read, options.runs))))
    return 0


# ------------------------------------------------------------------------------------------------------------- own speech
class _Listener:
    """A model that transcribes clips one by one, names those that cannot be read, and goes on."""

    def __init__(self, model: str, runtime: Runtime | None = None) -> None:
        from asrlib.decoding import transcription

        self.failures = 0
        self.runtime = runtime
        if self.runtime is None:
            self.model, self.processor = transcription.load(model)
            self.english_only = not getattr(self.model.generation_config, "is_multilingual", True)

    def hear(self, clips: Iterable[tuple[str, Any]], **options: Any) -> Iterator[Hypothesis]:
        """Yield a hypothesis for each readable (id, audio source), in order; options are those of `transcribe`."""
        from asrlib.decoding import transcription

        if self.runtime is None:
            yield from transcription.transcribe(self.model, self.processor, self._readable(clips), **options)
        else:
            yield from self.runtime.transcribe(self._readable(clips), **options)

    def timed(self, heard: Hypothesis, lines: bool) -> Hypothesis:
        """Return the transcript of a file with words, or lines of subtitles made of them, in the place of its segments."""
        from asrlib import audio
        from asrlib.decoding import words

        found = words.times(self.model, self.processor, audio.load(heard.id), heard)
        return replace(heard, segments=tuple(words.cues(found) if lines else found))

    def _readable(self, clips: Iterable[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
        from asrlib import audio

        for name, source in clips:
            try:
                samples = audio.load(source)
            except AsrlibError as error:
                self.failures += 1
                print(f"asrlib: {error}", file=sys.stderr)
            else:
                yield {"id": name, "audio": samples}


def _transcribe(options: argparse.Namespace) -> int:
    from asrlib.io.progress import track

    times = options.format != "txt"
    if times and options.window == "merged":
        options.usage("--window merged finds no segment times: it goes with --format txt")
    if options.words and not times:
        options.usage("--words goes with --format srt, vtt or json")
    if options.engine and (options.words or options.window == "merged"):
        options.usage("--engine goes without --words and --window merged, which only the course's own loop has")
    paths = _audio_files(options.audio)
    if options.format in ("srt", "vtt") and len(paths) > 1 and not options.output:
        options.usage(f"several files as {options.format} need --output FOLDER")
    targets = _targets(paths, options.output, options.format)
    listener = _Listener(options.model, _runtime(options, paths, times) if options.engine else None)
    clips = [(str(path), path) for path in paths]
    window = {} if options.engine else {"window": options.window}
    hypotheses = listener.hear(clips, language=options.language, timestamps=times, **window)
    if not sys.stdout.isatty():  # where the transcripts are not seen as they come
        hypotheses = track(hypotheses, "clips transcribed", len(clips))
    for heard in hypotheses:
        heard = listener.timed(heard, options.format != "json") if options.words else heard
        text = FORMATS[options.format](heard)
        if options.output:
            print(files.write_atomic(targets[heard.id], text), flush=True)
        else:
            prefix = f"{heard.id}\t" if options.format == "txt" and len(paths) > 1 else ""
            print(prefix + text, end="", flush=True)
    return 1 if listener.failures else 0


def _runtime(options: argparse.Namespace, paths: Iterable[Path], times: bool) -> Runtime:
    """Return the runtime that was named, or the fastest for what is to be heard, and say which that is."""
    from asrlib import audio, engines

    if options.engine != "fastest":
        return engines.load(options.engine, options.model)
    sounds, length = [], 0
    for path in paths:
        with contextlib.suppress(AsrlibError):  # it will be named when its turn comes
            sounds.append(audio.load(path)[: PROBE * audio.SAMPLING_RATE])
            length += len(sounds[-1]) / audio.SAMPLING_RATE
        if length >= PROBE:
            break
    if not sounds:
        return engines.load("asrlib", options.model)
    runtime, seconds = engines.fastest(options.model, sounds, language=options.language, timestamps=times)
    best = min(seconds, key=seconds.__getitem__)
    told = ", ".join(f"{name} {spent:.1f} s" for name, spent in seconds.items())
    print(f"asrlib: for {length:.0f} s of this speech took {told}. {best} hears it all.", file=sys.stderr)
    return runtime


def _audio_files(places: Iterable[Path]) -> list[Path]:
    """Return the files among these places and, of folders, the audio files below them, sorted."""
    found: dict[Path, None] = {}
    for place in places:
        if not place.exists():
            raise AsrlibError(f"{place} does not exist: check the path.")
        inside = [path for path in place.rglob("*") if path.suffix.lower() in AUDIO] if place.is_dir() else [place]
        if not inside:
            raise AsrlibError(f"{place} holds no audio file ({', '.join(sorted(AUDIO))}): name another folder.")
        found |= dict.fromkeys(sorted(inside))
    return list(found)


def _targets(paths: Sequence[Path], folder: Path | None, suffix: str) -> dict[str, Path]:
    """Return a file for each transcript: the audio's name with a new suffix, made longer where two would meet."""
    if folder is None:
        return {}
    stems = Counter(path.stem for path in paths)
    names = Counter(path.name for path in paths)

    def name(path: Path) -> str:
        if stems[path.stem] == 1:
            return path.stem
        return path.name if names[path.name] == 1 else "_".join(path.parts).strip("/_")

    return {str(path): folder / f"{name(path)}.{suffix}" for path in paths}


def _clock(seconds: float, comma: str) -> str:
    """Write a time as subtitles do, 00:01:02,345."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{comma}{rest % 1000:03}"


def _srt(heard: Hypothesis) -> str:
    lines = (
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text.strip()}\n\n"
        for number, (start, end, text) in enumerate(heard.segments, 1)
    )
    return "".join(lines)


def _vtt(heard: Hypothesis) -> str:
    lines = (f"{_clock(start, '.')} --> {_clock(end, '.')}\n{text.strip()}\n\n" for start, end, text in heard.segments)
    return "WEBVTT\n\n" + "".join(lines)


def _json(heard: Hypothesis) -> str:
    segments = [{"start": start, "end": end, "text": text} for start, end, text in heard.segments]
    content = {"id": heard.id, "text": heard.text, "language": heard.language, "seconds": heard.seconds_audio}
    return json.dumps(content | {"segments": segments}, ensure_ascii=False) + "\n"


FORMATS = {"txt": lambda heard: heard.text.strip() + "\n", "json": _json, "srt": _srt, "vtt": _vtt}


def _evaluate(options: argparse.Namespace) -> int:
    from asrlib import corpora
    from asrlib.models import checkpoints
    from asrlib.tasks import evaluation, sharding

    if not options.output and os.environ.get("WORLD_SIZE", "1") != "1":
        options.usage("several processes need --output FOLDER, which all of them see")
    parts = str(options.speech).split("/")
    if options.speech.is_dir() or len(parts) != 3:
        table = corpora.load("folder", root=options.speech, language=options.language)
    else:
        table = corpora.load(*parts)
    listener = _Listener(options.model)
    language = options.language or _language(table["language"], listener.english_only)
    run = {"speech": str(options.speech)}
    if options.output:  # the same weights are to go on there
        run |= checkpoints.provenance(checkpoints.fetch(options.model))
    with contextlib.nullcontext(options.output) if options.output else tempfile.TemporaryDirectory() as folder:
        found = evaluation.evaluate(
            table, functools.partial(listener.hear, language=language), folder,
            language=language, run=run, label="transcribing" * sharding.first_process(),
        )  # fmt: skip
        if found:
            print(_as_json(options.model, language, found) if options.json else _report(options.model, language, found))
            return 1 if found.unreadable else 0
    return 0


def _as_json(model: str, language: str, found: Evaluation) -> str:
    """Return what `asrlib evaluate --json` prints, with every clip."""
    score, counted = found.score, ("substitutions", "deletions", "insertions", "words", "utterances")
    result = {"model": model, "language": language, "unreadable": found.unreadable, "normalizer": found.normalizer}
    result |= {"wer_percent": 100 * score.wer, "interval": score.interval and [100 * end for end in score.interval]}
    result |= {"cer_percent": 100 * score.cer, **{kind: getattr(score, kind) for kind in counted}, "rtfx": found.rtfx}
    return json.dumps(result | {"clips": list(files.read_jsonl(found.clips))}, indent=1, ensure_ascii=False)


def _language(languages: Iterable[str], english_only: bool) -> str:
    """Return the one language of a folder's clips, which decides the normaliser."""
    named = {"en"} if english_only else set(languages)
    if len(named) != 1 or not all(named):
        raise AsrlibError("The clips' language is not stated, or not the same for all: name it with --language.")
    return named.pop()


def _report(model: str, language: str, found: Evaluation) -> str:
    """Return what `asrlib evaluate` prints for a person, with the worst clips."""
    from asrlib.tasks import evaluation

    score, (low, high) = found.score, (100 * end for end in found.score.bounds)
    interval = f"95 % interval {low:.2f} to {high:.2f}" if score.interval else f"no interval: {score.shortage}"
    lines = [
        f"WER {100 * score.wer:.2f} % ({interval}), CER {100 * score.cer:.2f} %",
        f"{score.utterances} clips, {score.words} words: {score.substitutions} substituted, "
        f"{score.deletions} deleted, {score.insertions} inserted",
        f"{model}, language {language}, normaliser {found.normalizer}, RTFx {found.rtfx:.1f}",
    ]
    for clip in evaluation.worst(found, WORST):
        lines += [f"\n{clip['id']}: {clip['errors']} errors in {clip['words']} words"]
        lines += [f"  said   {clip['reference']}", f"  heard  {clip['hypothesis'].strip()}"]
    return "\n".join(lines)


def _prepare(options: argparse.Namespace) -> int:
    from asrlib.tasks import preparation

    chosen = {"model": options.model, "second": options.second, "language": options.language}
    made = preparation.prepare(_audio_files(options.audio), options.output, **chosen)
    minutes = f"{made.kept_seconds / 60:.1f} of {made.seconds / 60:.1f} minutes"
    dropped = "".join(f"; {count} dropped: {reason}" for reason, count in made.dropped.items())
    print(f"{made.kept} of {made.pieces} pieces kept, {minutes}, in {options.output}{dropped}.")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from asrlib.tasks import demo

    demo.serve(options.model, language=options.language, port=options.port)
    return 0


def _distil(options: argparse.Namespace) -> int:
    from asrlib.training import distillation

    if options.corpus.count("/") != 2:
        options.usage(f"{options.corpus}: write it as CORPUS/LANGUAGE/SPLIT, such as telephone/en/train")
    names = ("root", "model", "clips", "layers", "threshold", "steps", "batch_size", "learning_rate", "seed")
    given = {name: getattr(options, name) for name in names}
    if done := distillation.distil(options.corpus, options.output, **given):
        print(
            f"{done['clips']} clips, {done['kept']} labels within {options.threshold:g} % WER, {options.steps} steps: "
            f"cross-entropy {done['cross_entropy']:.3f}, KL {done['kl']:.3f}; the student lies in {options.output / 'student'}."
        )
    return 0

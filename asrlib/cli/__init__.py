"""The command ``asrlib``: run, fetch, doctor, claims, compare, transcribe, evaluate, prepare, distil, finetune, demo.

Exit codes: 0 all well; 1 something failed, and a sentence on stderr says what; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from asrlib import AsrlibError, __version__
from asrlib.course import rules
from asrlib.decoding.subtitles import FORMATS

MODEL = "openai/whisper-base"
MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
            errno.ENAMETOOLONG}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if sys.stdout is None:  # closed, as by `asrlib ... >&-`
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a file may hold bytes that are no UTF-8
    parsed = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a stopped run ends its children and says so
    try:
        if (output := getattr(parsed, "output", None)) and output.exists() and not output.is_dir():
            raise AsrlibError(f"{output} is a file: name a folder with --output.")
        module = importlib.import_module(f"asrlib.cli.{parsed.module}")  # only now, so that --help answers at once
        code = getattr(module, parsed.command)(parsed)
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
    except (MemoryError, RuntimeError) as error:  # PyTorch's is a RuntimeError
        if isinstance(error, RuntimeError) and not re.search("allocate memory|out of memory", str(error)):
            raise
        print("asrlib: The memory does not suffice: close other programs, or take a smaller model.", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="asrlib", description="Run the Whisper course, or transcribe and score your own speech."
    )
    parser.add_argument("--version", action="version", version=f"asrlib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    def command(name: str, module: str, help: str) -> Callable[..., Any]:
        added = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        added.set_defaults(module=module, command=name, usage=added.error)
        return added.add_argument

    _course_commands(command)
    model = {"default": MODEL, "help": f"Hub id, or folder of a checkpoint; default: {MODEL}"}
    _transcribe_commands(command, model)
    _evaluate_command(command, model)
    _prepare_command(command, model)
    _distil_command(command, model)
    _finetune_command(command, model)
    return parser


def _course_commands(command: Callable[..., Any]) -> None:
    profile = {"default": "reference", "help": "smoke, reference (default), colab or paper"}

    option = command("run", "course", "run notebooks through papermill into build/runs/PROFILE/")
    option("notebooks", nargs="*", metavar="NN", help="numbers or names of notebooks; default: all")
    option("--profile", **profile)
    option("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE", help="override a parameter")
    option("--force", action="store_true", help="run also what is finished and unchanged")
    option("--publish", action="store_true", help="write outputs back into notebooks/ and results/ (maintainers)")
    seconds = _number(float, 1)
    option("--timeout", type=seconds, default=3600, metavar="S", help="seconds for each notebook; default: 3600")
    option("--output", type=Path, metavar="FOLDER", help="for PROFILE/NAME/, instead of build/runs/")

    option = command("fetch", "course", "fetch the speech and weights that the reference profile needs")
    places = "notebooks, or corpora such as telephone or telephone/it; default: all notebooks"
    option("notebooks", nargs="*", metavar="NN|CORPUS", help=places)

    command("doctor", "doctor", "say what this machine has and lacks, and the command that mends it")

    option = command("claims", "course", "judge the published claims by the records at hand")
    option("ids", nargs="*", metavar="ID", help="such as LS-02; default: all")
    option("--method", metavar="TEXT", help="only methods with this in their name, such as distil")
    option("--verdict", choices=rules.KINDS, help="only claims with this verdict")
    option("--profile", **profile)
    option("--json", action="store_true", help="print JSON, with every number of a claim")

    option = command("compare", "course", "say which values of a run differ from those of an earlier one")
    option("runs", nargs=2, type=Path, metavar="RUN", help="a folder with record.json, the earlier first")


def _transcribe_commands(command: Callable[..., Any], model: dict[str, str]) -> None:
    option = command("transcribe", "speech", "transcribe audio files, or folders of them")
    option("audio", nargs="+", type=Path, metavar="FILE|FOLDER")
    option("--model", **model)
    option("--language", help="code or name; default: the model detects it, clip by clip")
    option("--format", choices=FORMATS, default="txt", help="default: txt; the others have segment times")
    option("--output", type=Path, metavar="FOLDER", help="for a file of each transcript, once; default: print them")
    option("--words", action="store_true", help="times of words: srt and vtt get short lines, json single words")
    option("--live", action="store_true",
           help="with - for FILE: transcribe what a pipe brings while it is spoken (WAV, or 16 kHz samples of 16 bits; notebook 13)")  # fmt: skip
    option("--engine", metavar="NAME",
           help="another runtime, such as whisper.cpp (notebook 08), or fastest: tried out first. asrlib, onnxruntime, openvino, "
                "ctranslate2, faster-whisper and openai-whisper test what they wrote for silence and loops")  # fmt: skip
    _own_loop(option)

    option = command("demo", "speech", "open a local page that transcribes what you record or upload")
    option("--model", **model)
    option("--language", help="code or name; default: the model detects it, clip by clip")
    port = _number(int, 1, 65_535)
    option("--port", type=port, default=7860, metavar="N", help="port of 127.0.0.1; default: 7860")


def _own_loop(option: Any) -> None:
    """Add the options of the course's own decoding loop."""
    option("--vad", action="store_true",
           help="only where a voice activity detector finds speech; needs faster-whisper")  # fmt: skip
    option("--window", choices=("full", "merged"), default="full",
           help="merged: faster with short clips, by an approximation, and without segment times; default: full")  # fmt: skip
    option("--int8", action="store_true",
           help="linear layers in 8 bits: often faster on a processor, a few words may differ")  # fmt: skip


def _evaluate_command(command: Callable[..., Any], model: dict[str, str]) -> None:
    option = command("evaluate", "speech", "score a model; in N processes: torchrun ... asrlib evaluate")
    option("speech", type=Path, metavar="FOLDER|CORPUS/LANGUAGE/SPLIT",
           help="a folder's metadata.csv has the columns file_name, transcription, perhaps language, speaker")  # fmt: skip
    option("--hypotheses", nargs="+", type=Path, metavar="FILE|FOLDER",
           help="compare what systems have written (txt, srt, vtt, json) with the first of them, by the reference in the place of the speech")  # fmt: skip
    option("--output", type=Path, metavar="FOLDER", help="keep the transcripts there: a killed run goes on")
    option("--model", **model)
    option("--language", help="code or name; default: the column language of metadata.csv; needed with --hypotheses")
    option("--root", type=Path, metavar="FOLDER", help="where a corpus lies that is not packaged")
    option("--json", action="store_true", help="print JSON, with every clip")
    option("--strict", action="store_true",
           help="plain search; default: what is improbable or repeats itself is decoded again at higher temperatures")  # fmt: skip
    option("--previous-text", action="store_true", help="tell each window of a long recording what was said before it")
    _own_loop(option)
    count = _number(int, 1)
    option("--batch-size", type=count, metavar="N", help="clips that are decoded together; default: the engine's")
    option("--assistant", metavar="MODEL",
           help="drafts, such as asrlib/distil-whisper-base.en, what the model then checks (notebook 07); implies --strict")  # fmt: skip
    option("--drafts", type=count, metavar="N", help="tokens that the assistant drafts in a round; default: 4")
    option("--engine", metavar="NAME", help="another runtime, such as whisper.cpp (notebook 08)")
    option("--beams", type=count, default=1, metavar="N", help="of the search of an --engine; default: 1, greedy")
    option("--chunk", type=_number(float, 1, 30), metavar="S",
           help="cut recordings into pieces of S seconds (--engine transformers); default: window after window")  # fmt: skip


def _prepare_command(command: Callable[..., Any], model: dict[str, str]) -> None:
    option = command("prepare", "speech", "make a data set with pseudo-labels of long recordings, or folders of them")
    option("audio", nargs="+", type=Path, metavar="FILE|FOLDER")
    option("--output", type=Path, required=True, metavar="FOLDER", help="for the data set; a killed run goes on there")
    option("--model", **model)
    option("--second", metavar="MODEL", help="transcribes again, to compare; default: the same, faster sound")
    option("--language", help="code or name; default: the model detects it, for each recording")


def _distil_command(command: Callable[..., Any], model: dict[str, str]) -> None:
    option = command("distil", "speech", "distil a model to a smaller one; in N processes: torchrun ... asrlib distil")
    option("corpus", nargs="+", metavar="CORPUS/LANGUAGE/SPLIT[:packed][=SHARE]",
           help="such as telephone/en/train; packed: joined to 30 s; transcripts, where there are any, are the filter")  # fmt: skip
    option("--output", type=Path, required=True, metavar="FOLDER", help="for the student; a killed run goes on there")
    option("--validation", action="append", default=[], metavar="CORPUS/LANGUAGE/SPLIT",
           help="score the student on it while it is trained, and keep the best; may be given again")  # fmt: skip
    option("--root", type=Path, metavar="FOLDER", help="where a corpus lies that is not packaged")
    option("--model", **model)
    count, share, weight = _number(int, 1), _number(float, 0, 1), _number(float, 0)
    option("--clips", type=count, metavar="N", help="of each corpus; default: all of at most 30 s")
    option("--layers", type=count, default=2, metavar="N", help="of the student's decoder; default: 2")
    option("--published", action="store_true",
           help="train the whole decoder, on labels and distributions alone; default: its layers, on the last states too")  # fmt: skip
    option("--threshold", type=weight, default=10, metavar="WER", help="%% above which a label is dropped; default: 10")
    option("--timestamps", type=share, default=0, metavar="P", help="share of the labels that keep times; default: 0")
    option("--previous", type=share, default=0, metavar="P",
           help="probability that a packed label follows the text before it; default: 0")  # fmt: skip
    option("--steps", type=count, default=400, metavar="N", help="default: 400")
    option("--batch-size", type=count, default=6, metavar="N", help="clips in a step, of all processes; default: 6")
    option("--learning-rate", type=weight, default=5e-4, metavar="X", help="its highest value; default: 5e-4")
    option("--kl", type=weight, default=0.8, metavar="X", help="weight of the teacher's distributions; default: 0.8")
    option("--hidden", type=weight, default=1, metavar="X", help="weight of the teacher's last states; default: 1")
    option("--mask", type=share, default=0, metavar="P", help="share of the sound that is masked; default: 0")
    option("--dropout", type=share, default=0, metavar="P", help="in the student's layers; default: 0")
    option("--every", type=count, default=100, metavar="N", help="steps between two scores; default: 100")
    never = _number(int, 0)
    option("--patience", type=never, default=0, metavar="N", help="end after N scores without a better one; 0: never")
    option("--seed", type=_number(int, 0, 2**32 - 1), default=0, metavar="N",
           help="of the choice of clips, order and chance; default: 0")  # fmt: skip
    option("--live", action="store_true", help="encode each batch anew: for more speech than the disk holds, on a GPU")
    option("--push", metavar="ID", help="upload the student to the Hub, as a private model of this name")


def _finetune_command(command: Callable[..., Any], model: dict[str, str]) -> None:
    count = _number(int, 1)
    option = command("finetune", "training", "fine-tune a model; in N processes: torchrun ... asrlib finetune")
    option("speech", nargs="+", metavar="FOLDER|CORPUS/LANGUAGE[/SPLIT][=SHARE]",
           help="folders with metadata.csv (file_name, transcription, perhaps language, split), or corpora; several are mixed")  # fmt: skip
    option("--output", type=Path, required=True, metavar="FOLDER", help="for the model; a killed run goes on there")
    option("--validation", action="append", default=[], metavar="FOLDER|CORPUS/LANGUAGE[/SPLIT]",
           help="score the model on it, and keep the best; default: the split validation, else a tenth of the texts")  # fmt: skip
    option("--model", **model)
    option("--language", help="code or name; default: the column language of metadata.csv")
    option("--root", type=Path, metavar="FOLDER", help="where a corpus lies that is not packaged")
    option("--context", type=count, default=30, metavar="S",
           help="seconds that the encoder reads in training: as long as your clips, for faster steps; default: 30")  # fmt: skip
    option("--adapter", choices=("lora", "qlora", "adalora"), default="",
           help="train small matrices beside the model; default: the model")  # fmt: skip
    option("--freeze-encoder", action="store_true", help="train the decoder alone")
    option(
        "--steps", type=count, metavar="N", help="default: 400, or fewer where each clip would be seen over 20 times"
    )
    option("--batch-size", type=count, metavar="N",
           help="clips in a step, of all processes; default: 16, or as many as there are")  # fmt: skip
    option("--accumulate", type=count, default=1, metavar="N",
           help="take the clips of a step in N parts: less memory, the same step; default: 1")  # fmt: skip
    rate = "its highest value; default: by the model's size (2.5e-5 for base), with an adapter 1e-3"
    option("--learning-rate", type=_number(float, 0), metavar="X", help=rate)
    option("--every", type=count, metavar="N", help="steps between two scores; default: a quarter of all")
    never = _number(int, 0)
    option("--patience", type=never, default=0, metavar="N", help="end after N scores without a better one; 0: never")
    option("--seed", type=_number(int, 0, 2**32 - 1), default=0, metavar="N",
           help="of the split by text, the order of clips, and chance; default: 0")  # fmt: skip
    option("--stream", action="store_true", help="make features batch by batch, and keep none on disk")
    option("--push", metavar="ID", help="upload the model to the Hub, as a private model of this name")


def _number(kind: type, least: float, most: float = math.inf) -> Callable[[str], Any]:
    """Return what reads the number of an option."""

    def read(text: str) -> Any:
        if least <= (value := kind(text)) <= most:
            return value
        raise argparse.ArgumentTypeError(
            f"must be from {least} to {most}" if most < math.inf else f"must be {least} or more"
        )

    read.__name__ = kind.__name__  # "invalid int value: 'x'"
    return read

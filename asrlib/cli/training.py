"""The command that fine-tunes."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from asrlib.io import files, upload
from asrlib.training import finetuning

NAMED = 5  # clips that are named of those left out


def finetune(options: argparse.Namespace) -> int:
    """Fine-tune a model; 1 where a clip could not be read."""
    chosen = {field.name: getattr(options, field.name) for field in fields(finetuning.Settings)}
    chosen |= {name: tuple(chosen[name]) for name in ("speech", "validation")}
    if options.push:
        upload.check(options.push)
    done = finetuning.finetune(finetuning.Settings(**chosen), options.output)
    if not done:
        return 0
    print(_report(options.output, done))
    if options.push:
        print(f"It was pushed to {upload.push(options.output / 'model', options.push)}.")
    return 1 if done["failed"] else 0


def _report(output: Path, done: Mapping[str, Any]) -> str:
    """Return what was left out, what was learnt from, what it has gained, and the commands that come next."""
    left_out = [f"{row['id']} ({row['reason']})" for row in files.read_jsonl(output / "left_out.jsonl")]
    left_out += [f"{name} ({why})" for name, why in done["failed"].items()]
    rest = f" and {len(left_out) - NAMED} more (left_out.jsonl)" if len(left_out) > NAMED else ""
    lines = [f"Left out: {', '.join(left_out[:NAMED])}{rest}"] if left_out else []
    lines += [
        f"{done['clips']} clips of {done['minutes']:.1f} minutes learnt from in {done['steps']} steps; the best weights, of step "
        f"{done['best']['step']}, lie in {output / 'model'}.",
        *map(finetuning.sentence, done["gains"]),
    ]
    if all(row["points"] >= 0 for row in done["gains"]):
        lines.append("That is no better than before: more speech or another learning rate may help.")
    model = shlex.quote(str(output / "model"))
    lines.append(
        f"Next: asrlib evaluate FOLDER --model {model} on recordings kept apart, asrlib transcribe --model {model} FILE, or "
        f"asrlib demo --model {model}"
    )
    return "\n".join(lines)

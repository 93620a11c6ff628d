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
    """Return what was learnt from, what was left out, the scores, and the command that comes next."""
    before, best = done["before"], done["best"]
    gain = (
        ""
        if best["wer"] < before["wer"]
        else " That is no better than before: more speech or another learning rate may help."
    )
    lines = [
        f"{done['clips']} clips of {done['minutes']:.1f} minutes learnt from, {done['steps']} steps; WER on {done['scored']} other clips "
        f"{before['wer']:.1f} % before, {best['wer']:.1f} % at step {best['step']}, which is kept (as written "
        f"{before['orthographic']:.1f} % and {best['orthographic']:.1f} %); the model lies in {output / 'model'}.{gain}"
    ]
    left_out = [f"{row['id']} ({row['reason']})" for row in files.read_jsonl(output / "left_out.jsonl")]
    left_out += [f"{name} ({why})" for name, why in done["failed"].items()]
    if left_out:
        rest = f" and {len(left_out) - NAMED} more (left_out.jsonl)" if len(left_out) > NAMED else ""
        lines.insert(0, f"Left out: {', '.join(left_out[:NAMED])}{rest}")
    model = shlex.quote(str(output / "model"))
    lines.append(f"Next: asrlib transcribe --model {model} FILE, or asrlib demo --model {model}")
    return "\n".join(lines)

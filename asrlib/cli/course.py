"""The commands of the course: run, fetch, claims, compare."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from asrlib import AsrlibError
from asrlib.course import claims as ledger
from asrlib.course import comparison, parameters, registry, runner
from asrlib.course.rules import Verdict
from asrlib.io import files
from asrlib.models import checkpoints


def _root() -> Path:
    if root := files.repository():
        return root
    raise AsrlibError("This command needs the course's checkout: clone the repository and use its own .venv.")


def run(options: argparse.Namespace) -> int:
    """Run notebooks; 1 where one of them failed."""
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
    """Print the main findings of the notebooks that ran, where to read them, and how the published claims stand."""
    found = registry.latest_records(_root(), profile, output)
    for name in good:
        for item in found.get(name, {}).get("findings", ()):
            if item["main"]:
                print(textwrap.fill(f"{name[:2]}  {item['text']}", _width(), subsequent_indent="    "))
    folder = os.path.relpath(registry.run_folder(_root(), profile, "", output))
    print(f"\nThe executed notebooks are in {folder}/NAME/.")
    if output:
        return  # `asrlib claims` would not find these runs
    print(f"Published claims: {_counts(ledger.judge(ledger.load(), found.values()))}.")
    print("To read them: asrlib claims" + ("" if profile == "reference" else f" --profile {profile}"))


def fetch(options: argparse.Namespace) -> int:
    """Fetch weights and speech."""
    from asrlib import corpora  # numpy

    models, speech = registry.inputs(_root(), options.notebooks)
    for model in models:
        print(f"checkpoint {model}: {checkpoints.fetch(model)}", flush=True)
    for name, language in speech:
        print(f"corpus {name} {language}".rstrip() + f": {corpora.fetch(name, language or None)}", flush=True)
    return 0


def claims(options: argparse.Namespace) -> int:
    """Judge the published claims."""
    known = ledger.load()
    if unknown := set(options.ids) - {claim["id"] for claim in known}:
        raise AsrlibError(f"There is no claim {', '.join(sorted(unknown))}: `asrlib claims` lists all.")
    parameters.profile_values(files.read_toml(_root() / "notebooks" / "profiles.toml"), "", options.profile)
    methods = sorted({claim["method"] for claim in known})
    wanted = (options.method or "").lower()
    if not any(wanted in method.lower() for method in methods):
        raise AsrlibError(f"No method has {options.method!r} in its name: there are {'; '.join(methods)}.")
    chosen = [claim for claim in known if not options.ids or claim["id"] in options.ids]
    chosen = [claim for claim in chosen if wanted in claim["method"].lower()]
    verdicts = ledger.judge(chosen, registry.latest_records(_root(), options.profile).values())
    if options.verdict:
        verdicts = [item for item in verdicts if ledger.kind(item) == options.verdict]
    if options.json:
        print(json.dumps([asdict(verdict) for verdict in verdicts], indent=1, ensure_ascii=False))
    else:
        print("\n".join([*map(_paragraph, verdicts), f"\n{_counts(verdicts)}"]))
    return 0


def _counts(verdicts: Sequence[Verdict]) -> str:
    return ", ".join(f"{number} {verdict}" for verdict, number in ledger.count(verdicts).items())


def _paragraph(verdict: Verdict) -> str:
    """Return a claim as a paragraph of the terminal's width."""
    published = f"published: {verdict.published}" if verdict.published else ""
    here = f"here: {verdict.ours}" if verdict.ours else ""
    if verdict.interval:
        here += f" (95 % interval {verdict.interval}{verdict.n and f'; {verdict.n} clips'})"
    command = f"to decide it: {verdict.command}" if verdict.command and ledger.kind(verdict) == "not run" else ""
    lines = [f"{verdict.id}  {verdict.verdict}", verdict.statement, published, here, verdict.why, command]
    return "\n".join(
        textwrap.fill(line, _width(), initial_indent=" " * 7 * (number > 0), subsequent_indent=" " * 7)
        for number, line in enumerate(filter(None, lines))
    )


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 100)


def compare(options: argparse.Namespace) -> int:
    """Say how two runs differ."""
    print(comparison.describe(comparison.compare(*map(comparison.read, options.runs))))
    return 0

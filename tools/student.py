"""Keep a student that `asrlib distil` has made: what was trained, and its record with scores on the packaged tests.

    python -m tools.student NAME FOLDER [FOLDER ...]

Each FOLDER is a distillation's. Of several, which differ in seed and steps only, the weights are averaged (Wortsman et al. 2022, Model
soups, arXiv:2203.05482). Weights and record go to ``data/students/NAME.safetensors`` and ``NAME.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from asrlib import hardware, scoring, text
from asrlib.decoding import transcription
from asrlib.io import files
from asrlib.models import checkpoints, students
from asrlib.training import cards, distillation
from asrlib.training.distillation.training import choose

DIFFER = ("seed", "steps", "every")  # of trainings that are averaged
TESTS = ("telephone/en/test", "audiobook/en/test", "untranscribed/en/test:packed")


def sources(specifications: list[str], root: Path | str) -> list[dict[str, Any]]:
    """Return the corpora that a student has learnt from, with licences and how much of each was drawn.

    Args:
        specifications: as `asrlib distil` takes them.
        root: the folder of a corpus that is not packaged; its ``corpus.json`` says whose it is (`tools.synthetic`).
    """
    found = {}
    for specification in specifications:
        source = distillation.Source.parse(specification)
        facts = cards.owner(source, root)
        if facts["licence"] == cards.OWN["licence"]:
            raise SystemExit(f"{root} lacks corpus.json: say there what it is (title, licence, attribution).")
        found.setdefault(source.name, facts | {"corpus": []})["corpus"].append(specification)
    return list(found.values())


def scores(folders: list[Path], work: Path, teacher_id: str) -> list[dict[str, dict[str, float]]]:
    """Return the WER on each test of the models in some folders and, last, of their teacher: greedily, with loops counted."""
    teacher, processor = transcription.load(teacher_id, dtype=torch.float32)
    models = [transcription.load(folder, dtype=torch.float32)[0] for folder in folders] + [teacher]
    found = [{} for _ in models]
    for place in TESTS:
        test = distillation.validate(distillation.Settings(corpus=()), place, work / "tests", teacher, processor)
        for model, rows in zip(models, found, strict=True):
            words = test.write(model)
            truth = [test.references[name] for name in words]
            score = scoring.score(truth, list(words.values()), normalizer=text.normalizer(test.language))
            low, high = score.interval or (None, None)
            loops = sum(distillation.repeated_ngrams(said.lower()) > 5 for said in words.values())
            counts = {"clips": score.utterances, "words": score.words, "loops": loops}
            rows[place] = {"wer": score.wer, "low": low, "high": high} | counts
    return found


def trained(folders: list[Path], published: bool) -> dict[str, torch.Tensor]:
    """Return what was trained, averaged over the students of some distillations, in float16."""
    students = [transcription.load(folder / "student", device="cpu", dtype=torch.float32)[0] for folder in folders]
    parts = [choose(student, published) for student in students]
    return {name: torch.stack([one[name].detach() for one in parts]).mean(dim=0).half() for name in parts[0]}


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("folders", type=Path, nargs="+")
    options = parser.parse_args()
    runs = [files.read_json(folder / "distillation.json") for folder in options.folders]
    run, settings = runs[0], runs[0]["settings"]
    if any(one["settings"] | {name: settings[name] for name in DIFFER} != settings for one in runs):
        raise SystemExit("These distillations differ in more than seed and steps: only like ones are averaged.")
    teacher = checkpoints.fetch(settings["model"])
    target = files.data_file("students") / f"{options.name}.safetensors"
    save_file(trained(options.folders, settings["published"]), target)
    facts = {
        "teacher": settings["model"],
        "teacher_sha256": checkpoints.provenance(teacher)["sha256"],
        "layers": distillation.spaced(files.read_json(teacher / "config.json")["decoder_layers"], settings["layers"]),
        "sha256": files.sha256(target),
        "bytes": target.stat().st_size,
        "sources": sources(settings["corpus"], settings["root"]),
        "machine": hardware.describe(),
        **{key: run[key] for key in ("command", "settings", "clips", "kept", "words")},
        "seconds": sum(one["seconds"] for one in runs),
        "trainings": [{name: one["settings"][name] for name in DIFFER} | {"validation": one["scores"]} for one in runs],
    }
    note = target.with_suffix(".json")
    files.write_atomic(note, json.dumps(facts, indent=1) + "\n")
    with tempfile.TemporaryDirectory() as folder:  # what a user gets, in float16
        students.compose(f"{students.OWNER}/{options.name}", teacher, Path(folder))
        each = [one / "student" for one in options.folders]
        *single, composed, taught = scores([*each, Path(folder)], options.folders[0], settings["model"])
    facts |= {"tests": {"student": composed, "teacher": taught, "each training": single}}
    files.write_atomic(note, json.dumps(facts, indent=1) + "\n")
    for name, rows in {"student": composed, "teacher": taught, **dict(enumerate(single))}.items():
        print(name, {place: f"{100 * row['wer']:.1f} %" for place, row in rows.items()})


if __name__ == "__main__":
    main()

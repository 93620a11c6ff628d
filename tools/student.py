"""Keep a student that `asrlib distil` has made: what was trained, and its record with scores on the packaged tests.

    python -m tools.student FOLDER NAME

FOLDER is the distillation's; the student's weights and record go to ``data/students/NAME.safetensors`` and ``NAME.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from asrlib import corpora, hardware
from asrlib.decoding import transcription
from asrlib.io import files
from asrlib.models import checkpoints, students
from asrlib.training import distillation
from asrlib.training.distillation.training import choose

TESTS = ("telephone/en/test", "audiobook/en/test", "untranscribed/en/test:packed")


def sources(specifications: list[str]) -> list[dict[str, str]]:
    """Return what a student has learnt from, with licences."""
    found = {}
    for text in specifications:
        source = distillation.Source.parse(text)
        card = corpora.card(source.name, source.language)
        found[source.name] = {
            "corpus": text,
            "title": card.title,
            "licence": card.facts["licence"],
            "attribution": card.facts["attribution"],
        }
    return list(found.values())


def scores(folder: Path, work: Path, teacher_id: str) -> dict[str, dict[str, float]]:
    """Return the student's and its teacher's WER on each test, greedily, with loops counted."""
    teacher, processor = transcription.load(teacher_id, dtype=torch.float32)
    student, _ = transcription.load(folder, dtype=torch.float32)
    settings, found = distillation.Settings(corpus=()), {}
    for text in TESTS:
        test = distillation.validate(settings, text, work / "tests", teacher, processor)
        for name, model in (("student", student), ("teacher", teacher)):
            score, words = test.score(model), test.write(model)
            low, high = score.interval or (None, None)
            loops = sum(distillation.repeated_ngrams(said.lower()) > 5 for said in words.values())
            row = {
                "wer": score.wer,
                "low": low,
                "high": high,
                "clips": score.utterances,
                "words": score.words,
                "loops": loops,
            }
            found.setdefault(text, {})[name] = row
    return found


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    run = files.read_json(options.folder / "distillation.json")
    settings, teacher_id = run["settings"], run["settings"]["model"]
    student, _ = transcription.load(options.folder / "student", device="cpu", dtype=torch.float32)
    teacher = checkpoints.fetch(teacher_id)
    depth = files.read_json(teacher / "config.json")["decoder_layers"]
    target = files.data_file("students") / f"{options.name}.safetensors"
    trained = choose(student, settings["published"])
    save_file({name: part.detach().half().contiguous() for name, part in trained.items()}, target)
    facts = {
        "teacher": teacher_id,
        "teacher_sha256": checkpoints.provenance(teacher)["sha256"],
        "layers": distillation.spaced(depth, settings["layers"]),
        "sha256": files.sha256(target),
        "bytes": target.stat().st_size,
        "sources": sources(settings["corpus"]),
        "machine": hardware.describe(),
        **{key: run[key] for key in ("command", "settings", "clips", "kept", "words", "seconds", "scores")},
    }
    note = target.with_suffix(".json")
    files.write_atomic(note, json.dumps(facts, indent=1) + "\n")
    with tempfile.TemporaryDirectory() as folder:  # what a user gets, in float16
        students.compose(f"{students.OWNER}/{options.name}", teacher, Path(folder))
        facts["tests"] = scores(Path(folder), options.folder, teacher_id)
    files.write_atomic(note, json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts["tests"], indent=1))


if __name__ == "__main__":
    main()

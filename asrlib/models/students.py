"""The course's own students, put together from what was trained and from the packaged model that it was trained beside.

``data/students`` holds, of each student, its record (``NAME.json``) and the weights that its distillation trained (``NAME.safetensors``,
float16). All others are its teacher's: encoder, token table, and of the decoder layers that were copied those parts that stayed fixed.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from asrlib import AsrlibError
from asrlib.io import files

__all__ = ["compose", "known", "record"]

OWNER = "asrlib"
LAYER = re.compile(r"model\.decoder\.layers\.(\d+)\.")


def known() -> list[str]:
    """Return the ids of the students."""
    return sorted(f"{OWNER}/{path.stem}" for path in files.data_file("students").glob("*.json"))


def record(model_id: str) -> dict[str, Any]:
    """Return what is known of a student: its teacher, layers, training, scores and checksum.

    Raises:
        AsrlibError: no such student.
    """
    if model_id not in known():
        raise AsrlibError(f"The course has no student {model_id}: choose one of {', '.join(known()) or 'none'}.")
    return files.read_json(files.data_file(f"students/{model_id.removeprefix(f'{OWNER}/')}.json"))


def compose(model_id: str, teacher: Path, folder: Path) -> None:
    """Fill a folder with a student.

    Args:
        model_id: as `known` lists it.
        teacher: the folder of its teacher, as ``save_pretrained`` writes it.
        folder: to be filled.

    Raises:
        AsrlibError: weights that differ from the record.
    """
    from safetensors.torch import load_file, save

    facts = record(model_id)
    trained = files.data_file(f"students/{model_id.removeprefix(f'{OWNER}/')}.safetensors")
    if (found := files.sha256(trained)) != facts["sha256"]:
        raise AsrlibError(f"{trained} has sha256 {found[:12]}..., not {facts['sha256'][:12]}...: check it out again.")
    places = {number: place for place, number in enumerate(facts["layers"])}
    tensors = {}
    for name, tensor in load_file(teacher / "model.safetensors").items():
        layer = LAYER.match(name)
        if layer is None:
            tensors[name] = tensor
        elif int(layer[1]) in places:
            tensors[LAYER.sub(f"model.decoder.layers.{places[int(layer[1])]}.", name)] = tensor
    files.write_atomic(folder / "model.safetensors", save(tensors | load_file(trained), {"format": "pt"}))
    changed = {"config.json": {"decoder_layers": len(places)}, "generation_config.json": {"alignment_heads": None}}
    for path in teacher.glob("*.json"):
        if path.name in changed:
            content = files.read_json(path) | changed[path.name]
            files.write_atomic(folder / path.name, json.dumps(content, indent=2) + "\n")
        elif path.name != "source.json":
            shutil.copy(path, folder)

"""The course's own students: what was trained, put together with their teacher."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import WhisperForConditionalGeneration

from asrlib import AsrlibError
from asrlib.io import files
from asrlib.models import students
from asrlib.training import distillation
from asrlib.training.distillation.training import choose
from tools.student import sources


@pytest.fixture
def shelf(tmp_path, monkeypatch, random_whisper):
    """A teacher of four decoder layers in a folder, and a student of two that was changed and put on the shelf."""
    random_whisper(tmp_path / "teacher", decoder_layers=4)
    teacher = WhisperForConditionalGeneration.from_pretrained(tmp_path / "teacher").half()
    teacher.generation_config.alignment_heads = [[3, 0]]
    teacher.save_pretrained(tmp_path / "teacher")
    student = distillation.initialise(teacher.float(), 2)
    trained = choose(student, published=False)
    with torch.no_grad():
        for part in trained.values():
            part.add_(torch.randn_like(part)).copy_(part.half())
    (tmp_path / "students").mkdir()
    weights = tmp_path / "students" / "small.safetensors"
    save_file({name: part.detach().half().contiguous() for name, part in trained.items()}, weights)
    note = {"layers": [0, 3], "sha256": files.sha256(weights)}
    (tmp_path / "students" / "small.json").write_text(json.dumps(note))
    monkeypatch.setattr(files, "data_file", lambda name: tmp_path / name)
    return tmp_path, student


def test_a_student_is_what_was_trained_and_else_its_teacher(shelf):
    folder, student = shelf
    assert students.known() == ["asrlib/small"]
    students.compose("asrlib/small", folder / "teacher", folder)
    made = type(student).from_pretrained(folder, dtype=torch.float32)
    assert made.config.decoder_layers == 2
    assert made.generation_config.alignment_heads is None
    for (name, part), (other, wanted) in zip(made.named_parameters(), student.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(part, wanted), name


def test_damaged_weights_and_unknown_students_are_refused(shelf):
    folder, _ = shelf
    with pytest.raises(AsrlibError, match="no student asrlib/large: choose one of asrlib/small"):
        students.record("asrlib/large")
    with open(folder / "students" / "small.safetensors", "ab") as stream:
        stream.write(b"x")
    with pytest.raises(AsrlibError, match=r"small\.safetensors has sha256"):
        students.compose("asrlib/small", folder / "teacher", folder)


def test_a_record_names_what_was_learnt_from_and_whose_it_is(tmp_path):
    with pytest.raises(SystemExit, match=r"lacks corpus\.json"):
        sources(["folder/en/train:packed=3"], tmp_path)
    (tmp_path / "corpus.json").write_text(json.dumps({"title": "Mine", "licence": "CC0", "attribution": "me"}))
    packaged, brought = sources(
        ["telephone/en/train=1", "folder/en/train:packed=3", "telephone/en/train:packed=0.2", "folder/en/short"],
        tmp_path,
    )
    assert packaged["licence"] == "CC-BY-SA-3.0"
    assert packaged["corpus"] == ["telephone/en/train=1", "telephone/en/train:packed=0.2"]
    assert brought == {
        "title": "Mine", "licence": "CC0", "attribution": "me", "corpus": ["folder/en/train:packed=3", "folder/en/short"]
    }  # fmt: skip


def test_a_full_disk_is_named(shelf, monkeypatch):
    folder, _ = shelf

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("asrlib.io.files.os.fsync", full)
    with pytest.raises(files.DiskFullError):
        students.compose("asrlib/small", folder / "teacher", folder)

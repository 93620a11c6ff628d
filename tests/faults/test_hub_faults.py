"""A Hub that fails in every way: one sentence says so, nothing half is believed, and a second try finds it well again."""

import hashlib
import io
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from hub_server import Handler, Hub, Repository

from asrlib import AsrlibError, cli, corpora
from asrlib.corpora.hub import PARQUET_BRANCH
from asrlib.io import files, hub
from asrlib.models import checkpoints

MODEL, SET, COMMIT = "me/whisper-mine", "google/fleurs", "c" * 40
BRANCH = PARQUET_BRANCH
LOGIN = b"<html><body>Please log in to this network</body></html>"


class Faulty(Handler):
    """Plays the Hub for one model and one data set; ``server.api`` and ``server.file`` name what is wrong with it."""

    def respond(self):
        asked = self.path.startswith("/api/")
        fault = self.server.api if asked else self.server.file
        self.fault = fault.pop(0) if isinstance(fault, list) else fault  # one after the other
        if self.path == "/login":
            self.answer(LOGIN)
        elif self.fault == "slow":
            self.server.released.wait(60)
            self.close_connection = True
        elif isinstance(self.fault, tuple):
            status, code = self.fault
            self.answer(b"", status, **({"X-Error-Code": code} if code else {}))
        elif self.fault == "login":
            self.answer(b"", 302, Location="/login")
        else:
            super().respond()

    def tell(self, content):
        wrong = {"html": LOGIN, "other JSON": b"[1, 2]", "no id": b"{}"}
        self.answer(wrong[self.fault]) if self.fault in wrong else super().tell(content)

    def deliver(self, name, body, start, facts):
        fault = self.fault if self.command == "GET" and not name.endswith(".json") else ""
        if fault == "wrong bytes":
            body = body[:-8] + bytes(8)
        if fault == "html":
            body = LOGIN
        if fault not in ("cut", "hang"):
            return super().deliver(name, body, start, facts)
        length = len(body) - start
        self.answer(body[start : start + length // 2], 206 if start else 200, length, **facts)
        if fault == "hang":
            self.server.released.wait(60)
        else:
            self.close_connection = True
            self.connection.close()


@pytest.fixture
def played(tmp_path, monkeypatch, hub_at):
    """The Hub, played by this machine, and well; with an empty cache of its client and of asrlib."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http, close_session, disable_progress_bars, enable_progress_bars

    served = {}  # of both
    server = Hub([Repository(MODEL, COMMIT, served), Repository(SET, COMMIT, served, "dataset", BRANCH)], Faulty)
    server.api = server.file = ""
    server.files, server.released = served, threading.Event()
    hub_at(server)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None))  # before it tries again
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    close_session()
    disable_progress_bars()
    with server.playing():
        yield server
        server.released.set()
    close_session()
    enable_progress_bars()


@pytest.fixture
def model(played, small):
    """The played Hub with a checkpoint of a few thousand random numbers, and a pickle."""
    played.files |= {path.name: path.read_bytes() for path in small.iterdir()}
    played.files["pytorch_model.bin"] = b"a pickle"
    return played


@pytest.fixture
def speech(played, tmp_path):
    """The played Hub with one clip of FLEURS in each of two splits."""
    import pyarrow
    from pyarrow import parquet

    sound = io.BytesIO()
    soundfile.write(sound, 0.1 * np.sin(np.arange(16_000) / 9), 16_000, format="WAV")
    for part in ("test", "train"):
        columns = {"id": [1], "num_samples": [16_000], "transcription": [part]}
        columns["audio"] = [{"bytes": sound.getvalue(), "path": "a.wav"}]
        parquet.write_table(pyarrow.table(columns), tmp_path / "written")
        played.files[f"ro_ro/{part}/0000.parquet"] = (tmp_path / "written").read_bytes()
    return played


def refused(said, work, *arguments):
    """Assert that work ends with one sentence, and that nothing in asrlib's cache is taken for a result."""
    with pytest.raises(AsrlibError, match=said) as caught:
        work(*arguments)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    left = [path for path in files.cache_dir().rglob("*") if path.suffix != ".lock" and not path.is_dir()]
    assert not left and not list(files.cache_dir().rglob("*.part"))
    assert not checkpoints.available(MODEL)


def well(server):
    server.api = server.file = ""
    folder = checkpoints.fetch(MODEL)
    assert files.sha256(folder / "model.safetensors") == hashlib.sha256(server.files["model.safetensors"]).hexdigest()
    assert not (folder / "pytorch_model.bin").exists()
    return folder


def test_a_blob_in_the_store_that_repositories_share_is_whole(tmp_path, monkeypatch):
    from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store

    folder, body = tmp_path / "models--me--x", b"weights"
    snapshot, blob = folder / "snapshots" / COMMIT, folder / "blobs" / hashlib.sha256(body).hexdigest()
    snapshot.mkdir(parents=True)
    blob.parent.mkdir()
    blob.write_bytes(body)
    given = {"xet_hash": "ab" * 32, "cache_dir": tmp_path, "expected_size": len(body)}
    assert publish_blob_to_shared_store(blob_path=str(blob), **given)
    assert blob.resolve().name == "ab" * 32
    (snapshot / "model.safetensors").symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    assert (hub.snapshot("me/x", ["*.safetensors"], online=False) / "model.safetensors").read_bytes() == body
    blob.resolve().write_bytes(b"another")
    with pytest.raises(AsrlibError, match="does not have the Hub's checksum"):
        hub.snapshot("me/x", ["*.safetensors"], online=False)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Task error: File reconstruction error: refused"), "ended early .Task error"),  # of Xet
        (RuntimeError("I/O error: No space left on device (os error 28)"), "disk is full"),
        (OSError(28, "No space left on device"), "disk is full"),
    ],
)
def test_whatever_ends_a_transfer_is_one_sentence(model, monkeypatch, error, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    refused(said, checkpoints.fetch, MODEL)


def test_an_adapter_that_names_itself_as_its_base_is_one_sentence(model):
    model.files.pop("model.safetensors")
    model.files |= {
        "adapter_model.safetensors": safetensors.torch.save({"x": torch.zeros(1)}),
        "adapter_config.json": b'{"base_model_name_or_path": "me/whisper-mine"}',
    }
    refused("is an adapter, and its base cannot be had: .* needs itself to be made: correct", checkpoints.fetch, MODEL)


NOT_HERE = "is not on this machine and the Hub cannot be reached: go online"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("slow", NOT_HERE),
        ((401, ""), r"The Hub answers 401 \(Unauthorized\) for me/whisper-mine: log in anew"),
        ((401, "RepoNotFound"), "The Hub has no public model me/whisper-mine: correct the name, or log in"),
        ((403, ""), r"answers 403 \(Forbidden\) .*: log in anew"),
        ((403, "GatedRepo"), "me/whisper-mine is gated: accept its terms"),
        ((404, "RepoNotFound"), "The Hub has no public model me/whisper-mine: correct the name"),
        ((404, "RevisionNotFound"), "has no revision None on the Hub"),
        ((404, ""), r"answers 404 \(Not Found\)"),
        ((429, ""), r"answers 429 \(Too Many Requests\) for me/whisper-mine: wait, and run the same command again"),
        ((500, ""), r"answers 500 \(Internal Server Error\) .*: wait"),
        ((503, ""), r"answers 503 \(Service Unavailable\) .*: wait"),
        (
            "html",
            r"What answers at http://127\.0\.0\.1:\d+ is not the Hub: check HF_ENDPOINT, and whether this network",
        ),
        ("login", "is not the Hub: .* asks for a login"),
        ("other JSON", "is not the Hub"),
        ("no id", "is not the Hub"),
    ],
    ids=str,
)
def test_a_hub_that_does_not_tell_what_it_has(model, fault, said):
    model.api = fault
    refused(said, checkpoints.fetch, MODEL)
    well(model)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_a_hub_that_cannot_be_reached(model, monkeypatch, address):
    from huggingface_hub import constants

    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", address)
        refused(NOT_HERE, checkpoints.fetch, MODEL)
    well(model)


def test_an_address_that_is_none(model, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "the Hub of our institute")
    refused("What answers at the Hub of our institute is not the Hub: check HF_ENDPOINT", checkpoints.fetch, MODEL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("cut", "ended early"),
        ("hang", "ended early"),
        ((401, ""), "ended early .*401"),
        ((403, ""), "ended early"),
        ((404, "EntryNotFound"), "ended early .*404"),
        ((429, ""), "ended early"),
        ((500, ""), "ended early"),
        ("login", "ended early"),
        ("wrong bytes", r"model\.safetensors of me/whisper-mine does not have the Hub's checksum and is not used"),
    ],
    ids=str,
)
def test_a_hub_that_fails_while_it_sends(model, fault, said):
    model.file = fault
    refused(said, checkpoints.fetch, MODEL)
    well(model)


def test_a_login_page_in_the_place_of_a_file_is_not_joined_to_the_rest_of_it(model):
    model.file = "html"
    refused("ended early", checkpoints.fetch, MODEL)
    well(model)


def test_what_the_client_believed_earlier_is_checked_too(model, tmp_path):
    """A cache that was damaged on the disk, and serves offline."""
    well(model)
    (blob,) = (path.resolve() for path in (tmp_path / "hub").rglob("snapshots/*/model.safetensors"))
    blob.write_bytes(blob.read_bytes()[:-8] + bytes(8))
    for path in (tmp_path / "cache").rglob("*mine"):
        shutil.rmtree(path)
    model.api = (500, "")
    refused("does not have the Hub's checksum", checkpoints.fetch, MODEL)
    well(model)


@pytest.mark.parametrize("api", ["slow", (500, ""), (429, ""), (401, ""), "html"], ids=str)
def test_what_the_clients_cache_holds_serves_where_the_hub_does_not(model, tmp_path, api):
    well(model)
    for path in (tmp_path / "cache").rglob("*mine"):
        shutil.rmtree(path)
    model.api, model.file = api, (500, "")
    assert checkpoints.provenance(checkpoints.fetch(MODEL))["revision"] == COMMIT


@pytest.mark.parametrize(
    "checksum",
    [
        lambda body: hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest(),  # git's, of small files
        lambda body: hashlib.sha1(body).hexdigest(),  # a mirror's
        lambda body: f"{len(body)}-5f",  # none
    ],
)
def test_other_checksums_are_known_or_no_checksums(model, checksum):
    model.checksum = lambda name, body: checksum(body)
    well(model)


def test_an_adapter_on_the_hub_is_merged_into_its_base(played, random_whisper, tmp_path):
    import peft
    from transformers import WhisperForConditionalGeneration

    base = random_whisper(tmp_path / "base")
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(WhisperForConditionalGeneration.from_pretrained(base), settings)
    adapted.save_pretrained(tmp_path / "adapter")
    played.files |= {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    found = WhisperForConditionalGeneration.from_pretrained(checkpoints.fetch(MODEL)).state_dict()
    assert all(torch.allclose(found[name], tensor) for name, tensor in adapted.merge_and_unload().state_dict().items())
    assert checkpoints.provenance(checkpoints.fetch(MODEL))["revision"] == COMMIT


def test_a_checkpoint_that_only_has_pickles_is_refused(model):
    del model.files["model.safetensors"]
    refused("publishes pickled weights only", checkpoints.fetch, MODEL)
    assert not [path for path in model.asked if path.endswith("pytorch_model.bin")]


def test_the_command_says_one_sentence_and_exits_with_1(model, tmp_path, capsys):
    model.api = (429, "")
    soundfile.write(tmp_path / "clip.wav", 0.1 * np.sin(np.arange(16_000) / 9), 16_000)
    assert cli.main(["transcribe", str(tmp_path / "clip.wav"), "--model", MODEL]) == 1
    said = capsys.readouterr().err
    assert said == (
        "asrlib: The Hub answers 429 (Too Many Requests) for me/whisper-mine: wait, and run the same command again.\n"
    )


# ---- corpora


@pytest.mark.parametrize(
    ("api", "file", "said"),
    [
        ("slow", "", r"google/fleurs \(ro_ro/test\) is not on this machine and the Hub cannot be reached"),
        ((404, "RepoNotFound"), "", "The Hub has no public dataset google/fleurs"),
        ((429, ""), "", r"answers 429 \(Too Many Requests\) for google/fleurs: wait"),
        ("html", "", "is not the Hub: check HF_ENDPOINT"),
        ("", "cut", "The download of google/fleurs from the Hub ended early"),
        ("", (500, ""), "ended early"),
        (
            "",
            (403, "GatedRepo"),
            "google/fleurs is gated: accept its terms on its Hub page, then log in .* or set HF_TOKEN",
        ),
        ("", "wrong bytes", r"0000\.parquet of google/fleurs does not have the Hub's checksum"),
    ],
    ids=str,
)
def test_speech_from_a_hub_that_fails(speech, api, file, said):
    speech.api, speech.file = api, file
    refused(said, corpora.load, "fleurs", "ro", "test")
    speech.api = speech.file = ""
    assert corpora.load("fleurs", "ro", "test")["text"] == ["test"]


def test_speech_of_another_split_is_not_taken_for_what_the_hub_did_not_send(speech):
    assert corpora.load("fleurs", "ro", "test")["text"] == ["test"]
    speech.api = ["", (500, "")]  # it tells what it has, and then no more
    with pytest.raises(AsrlibError, match=r"The download of google/fleurs .*ended early"):
        corpora.load("fleurs", "ro", "train")
    speech.api = ""
    assert corpora.load("fleurs", "ro", "train")["text"] == ["train"]


def test_a_file_whose_name_leaves_the_cache_is_refused(speech, tmp_path):
    speech.files["ro_ro/test/../../../../../../../escaped.parquet"] = b"evil"
    refused("ended early", corpora.load, "fleurs", "ro", "test")
    assert not list(tmp_path.rglob("escaped*"))


def test_importing_asks_nobody():
    code = (
        "import socket\n"
        "def none(*_): raise SystemExit('asked the network')\n"
        "socket.socket.connect = socket.getaddrinfo = none\n"
        "from asrlib import corpora\n"
        "from asrlib.decoding import transcription\n"
        "from asrlib.io import hub\n"
        "from asrlib.models import checkpoints\n"
        "print(sorted(checkpoints.known()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "openai/whisper-base" in done.stdout

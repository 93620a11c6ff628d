"""What is pushed to a Hub, played on this machine."""

import base64
import json
from urllib.parse import urlsplit

import nbformat
import pytest
from huggingface_hub import ModelCard
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from asrlib import AsrlibError
from asrlib.io import files, upload
from tests.hub_server import Handler, Hub, Repository


class Receiving(Handler):
    """Takes models of the account ``me``, small files within the commit."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        self.server.asked.append(path)
        if path == "/api/repos/create":
            wanted = json.loads(body)
            allowed = wanted.get("organization") == "me" and wanted.get("visibility") == "private"
            self.reply(
                {"url": f"{self.server.address}/me/{wanted['name']}"} if allowed else {"error": "no"},
                200 if allowed else 403,
            )
        elif path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            self.reply({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            self.server.received |= {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            self.reply({"commitUrl": f"{self.server.address}/me/small/commit/1", "commitOid": "1", "success": True})
        else:
            self.reply({"errors": [], "warnings": []})

    def reply(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch):
    with Hub([], Receiving).playing() as hub:
        hub.received = {}
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.address)
        address = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.address)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield hub


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "README.md").write_text("---\nlanguage: en\n---\n")
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    return tmp_path


def test_a_folder_arrives_as_it_is(hub, folder):
    upload.check("me/small")
    address = upload.push(folder, "me/small")
    assert address.startswith(hub.address)
    assert hub.received == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_notebook_02_uploads_model_processor_and_card(hub):
    path = files.repository() / "notebooks" / "02_fine_tune_whisper.ipynb"
    (source,) = (cell.source for cell in nbformat.read(path, 4).cells if cell.id == "push")
    sizes = dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim", "vocab_size"), 32)
    layers = ("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads")
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    config = WhisperConfig(
        **sizes, **dict.fromkeys(layers, 1), **tokens, max_source_positions=5, max_target_positions=5
    )
    card = ModelCard("---\nlanguage: cs\n---\n# What it is")
    parts = {"tuned": WhisperForConditionalGeneration(config), "processor": WhisperFeatureExtractor(), "card": card}
    parts["upload"] = upload
    exec(source, {"PUSH": "", **parts})
    assert hub.asked == []
    hub.repositories["model", "me/small"] = Repository("me/small", "0" * 40, {})
    exec(source, {"PUSH": "me/small", **parts})
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(hub.received)
    assert hub.received["README.md"].decode() == str(card)


def test_before_any_work_it_is_said_that_a_push_would_fail(hub, folder, monkeypatch):
    with pytest.raises(AsrlibError, match="The Hub lets nobody write else/small with this token"):
        upload.check("else/small")
    with pytest.raises(AsrlibError, match="The Hub lets nobody write"):
        upload.check("a name with blanks")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(AsrlibError, match="The Hub cannot be reached"):
        upload.check("me/small")
    with pytest.raises(AsrlibError, match=r"The upload to me/small failed .*: all is in .*, so run `hf upload"):
        upload.push(folder, "me/small")
    monkeypatch.setattr("huggingface_hub.utils.get_token", lambda: None)
    with pytest.raises(AsrlibError, match="log in first: `hf auth login`"):
        upload.check("me/small")

import html
import importlib.util
import re
import shutil
import socket
import urllib.request
from urllib.parse import urljoin, urlsplit

import av
import nbformat
import numpy as np
import pytest
import soundfile

from asrlib import AsrlibError, audio, cli, corpora
from asrlib.decoding import batching, transcription
from asrlib.io import files
from asrlib.models import checkpoints
from asrlib.tasks import demo

MODEL = "openai/whisper-tiny.en"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
LOADED = re.compile(
    r"""<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)="([^"]+)"|url\(['"]?([^'")]+)|@import ["']([^"']+)"""
)


@pytest.fixture(scope="module")
def gradio(tmp_path_factory):
    """Gradio with a folder of its own, or the test is skipped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("private")))
        patch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
        yield pytest.importorskip("gradio", reason="gradio is not installed")


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind((demo.HOST, 0))
        return free.getsockname()[1]


@pytest.fixture
def strangers(monkeypatch):
    """Hosts other than this one that the process wanted to reach; they are refused."""
    asked = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def watch(host):
        if host not in ("127.0.0.1", "localhost", "::1"):
            asked.append(host)
            raise OSError(f"{host} is refused")

    def watched_connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            watch(address[0])
        return connect(self, address)

    def watched_look_up(host, *arguments, **options):
        watch(host)
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", watched_connect)
    monkeypatch.setattr(socket, "getaddrinfo", watched_look_up)
    return asked


class Silent:
    """Stands for a model on a page where nothing is transcribed."""

    generation_config = type("Config", (), {"is_multilingual": True})()


@pytest.fixture
def silent(monkeypatch):
    monkeypatch.setattr(transcription, "transcribe", lambda model, processor, clips, language: iter(()))
    return Silent


@pytest.fixture(scope="module")
def real(gradio):
    """A page around a real model, and a clip of the corpus."""
    clip = next(row for row in corpora.load("telephone", "en", split="test") if 3 < row["seconds"] < 5)
    return demo.page(*transcription.load(checkpoints.fetch(MODEL)), MODEL), clip


@pytest.fixture
def recordings(real, tmp_path):
    """The clip as a file, in a film, and as a file that lacks its end."""
    path, film, damaged = tmp_path / "clip.wav", tmp_path / "film.mkv", tmp_path / "damaged.wav"
    samples = audio.load(real[1]["audio"])
    soundfile.write(path, samples, audio.SAMPLING_RATE)
    damaged.write_bytes(path.read_bytes()[:20_000])
    with av.open(film, "w") as container:
        picture = container.add_stream("mpeg4", rate=1, width=64, height=64, pix_fmt="yuv420p")
        track = container.add_stream("flac", rate=audio.SAMPLING_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), "s16", "mono")
        frame.rate, frame.pts = audio.SAMPLING_RATE, 0
        shown = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        container.mux([packet for sent in (shown, None) for packet in picture.encode(sent)])
        container.mux([packet for sent in (frame, None) for packet in track.encode(sent)])
    return path, film, damaged


def said(line):
    return html.unescape(re.sub("<[^>]+>", " ", line)).split()


# ---------------------------------------------------------------------------------------------------- without a browser
def test_without_gradio_one_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["demo"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("asrlib: The demo page needs gradio: ")
    assert message.endswith(f" -m pip install '{demo.GRADIO}'\n")


def test_the_options_reach_the_page(monkeypatch):
    seen = {}
    monkeypatch.setattr(demo, "serve", lambda model, **options: seen.update(options, model=model))
    assert cli.main(["demo", "--model", "a folder", "--language", "ro", "--port", "8000"]) == 0
    assert seen == {"model": "a folder", "language": "ro", "port": 8000}
    assert cli.main(["demo"]) == 0
    assert seen == {"model": cli.MODEL, "language": None, "port": 7860}


def test_the_line_below_names_model_language_and_seconds_and_escapes_them(monkeypatch):
    heard = batching.Hypothesis("x", " Bună <b>ziua</b> ", "ro", 3.24, 0.51)
    monkeypatch.setattr(transcription, "transcribe", lambda *arguments, **options: iter([heard]))
    words, below = demo._transcribed(None, None, "my <model>", None, "x.wav")
    assert words == "Bună <b>ziua</b>"
    assert " ".join(said(below)) == "Model my <model> Language Romanian Audio 3.2 s Computing 0.5 s"
    assert "<model>" not in below


def test_no_sound_and_what_transcription_refuses_are_a_sentence(monkeypatch):
    def refuse(model, processor, clips, language):
        raise AsrlibError(f"{clips[0]} lasts 12 s & this model hears 8 s: cut it into parts.")

    monkeypatch.setattr(transcription, "transcribe", refuse)
    none, refused = (demo._transcribed(None, None, "m", "en", path) for path in (None, "/tmp/private/0a1b/talk.wav"))
    assert none == ("", demo._problem("There is no sound yet: finish a recording or upload a file first."))
    assert refused == ("", demo._problem("talk.wav lasts 12 s & this model hears 8 s: cut it into parts."))


@pytest.mark.slow
def test_the_page_names_nothing_to_load_from_elsewhere_and_forbids_it(gradio, silent, port, strangers):
    blocks = demo.page(silent, None, "m", "Romanian")
    with demo.served(blocks, port) as address:
        assert blocks.max_file_size == 2**30
        assert address == f"http://127.0.0.1:{port}/"
        with urllib.request.urlopen(address) as answer:
            text, policy = answer.read().decode(), answer.headers["content-security-policy"]
        with urllib.request.urlopen(f"{address}theme.css") as answer:
            text += answer.read().decode()
        assert "Speech in Romanian" in text
        named = [next(filter(None, found)) for found in LOADED.findall(text)]
        assert len(named) > 3
        assert {urlsplit(urljoin(address, name)).netloc for name in named} <= {urlsplit(address).netloc, ""}
        assert policy == demo.POLICY
        assert "http" not in policy and "*" not in policy
    assert strangers == []


@pytest.mark.slow
def test_a_taken_port_is_named(gradio, silent):
    with socket.socket() as taken:
        taken.bind((demo.HOST, 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(AsrlibError, match=f"Port {number} of 127.0.0.1 is taken"):
            demo.served(demo.page(silent, None, "m"), number).__enter__()


@pytest.mark.weights
def test_an_uploaded_clip_comes_back_as_its_transcript_and_a_damaged_one_as_a_sentence(
    gradio, real, recordings, port, strangers, tmp_path, monkeypatch
):
    from gradio_client import Client, handle_file
    from huggingface_hub import constants

    good, film, damaged = recordings
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(16_000), 16_000)
    with demo.served(real[0], port) as address:
        monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")  # Client, no part of the page, would report to the Hub
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # and ask it for the names of coding agents
        client = Client(address, verbose=False, analytics_enabled=False)
        for sounds in ((handle_file(good), None), (None, handle_file(film))):
            words, below = client.predict(*sounds, api_name="/transcribe")
            assert "speaking volume" in words
            assert said(below)[:4] == ["Model", MODEL, "Language", "English"]
        for path, problem in ((damaged, "damaged.wav is truncated"), (silence, "silence.wav is silent")):
            words, below = client.predict(None, handle_file(path), api_name="/transcribe")
            assert words == ""
            assert " ".join(said(below)).startswith(problem)
    assert strangers == []


@pytest.mark.weights
def test_an_english_only_model_refuses_another_language_before_the_page_opens(gradio):
    with pytest.raises(AsrlibError, match="English-only"):
        demo.page(*transcription.load(checkpoints.fetch(MODEL)), MODEL, "fr")


# ------------------------------------------------------------------------------------------------------- with a browser
@pytest.mark.weights
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_in_a_browser_a_clip_is_transcribed_and_every_request_stays_here(gradio, real, recordings, port):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    asked = []
    with demo.served(real[0], port) as address, playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.context.on("request", lambda request: asked.append(request.url))
        for path in recordings:
            tab.goto(address)
            with tab.expect_response(lambda answer: "/upload?" in answer.url):
                tab.locator("input[type=file]").set_input_files(path)
            tab.get_by_text(path.stem, exact=True).wait_for()
            tab.get_by_role("button", name="Transcribe").click()
            if path.name != "damaged.wav":
                tab.get_by_text("Computing", exact=True).wait_for()
                assert "speaking volume" in tab.locator("textarea").input_value()
            else:
                tab.locator(".problem").wait_for()
                assert tab.locator(".problem").inner_text().startswith("damaged.wav is truncated")
        browser.close()
    assert len(asked) > 10
    assert {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))} == {f"127.0.0.1:{port}"}


@pytest.mark.weights
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_the_page_of_notebook_02_transcribes_what_the_microphone_hears(gradio, recordings, real, port):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = files.repository() / "notebooks" / "02_fine_tune_whisper.ipynb"
    (source,) = (cell.source for cell in nbformat.read(path, 4).cells if cell.id == "demo")
    names = {"saved": checkpoints.fetch(MODEL), "device": "cpu", "audio": audio}
    exec(source, names := names | {"speech": {"test": [real[1]]}})
    page = names["page"]
    given = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
    spoken = f"--use-file-for-fake-audio-capture={recordings[0]}"
    _, address, _ = page.launch(
        server_name=demo.HOST, server_port=port, prevent_thread_lock=True, quiet=True, inline=False
    )
    try:
        with playwright.sync_playwright() as browsers:
            browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *given, spoken])
            tab = browser.new_context(permissions=["microphone"]).new_page()
            tab.goto(address)
            tab.get_by_role("button", name="Record", exact=True).click()
            tab.get_by_text("0:06").wait_for()
            tab.get_by_role("button", name="Stop").click()
            tab.get_by_role("button", name="Download").wait_for()  # the recording has arrived
            tab.get_by_role("button", name="Submit").click()
            tab.wait_for_function("document.querySelector('textarea').value.trim()")
            heard = tab.locator("textarea").input_value().lower()
            browser.close()
    finally:
        page.close(verbose=False)
    assert "volume" in heard

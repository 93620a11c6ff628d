"""A page on this machine where a model transcribes what the microphone records or a file holds: ``asrlib demo``.

The page is Gradio's, closed off: it listens on 127.0.0.1, sends no telemetry, takes its fonts from the system, and tells the
browser to load nothing from elsewhere. Recordings lie in a private folder that is removed when the page ends.
"""

from __future__ import annotations

import contextlib
import html
import importlib.util
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.models.whisper.tokenization_whisper import LANGUAGES

from asrlib import AsrlibError, whisper
from asrlib.decoding import transcription
from asrlib.io.sound import SUFFIXES
from asrlib.text import language_code

if TYPE_CHECKING:
    import gradio

__all__ = ["page", "serve", "served"]

HOST = "127.0.0.1"
MAX_FILE = "1gb"  # hours of speech in any format; more would fill the disk of recordings
GRADIO = "gradio>=6.18,<7"  # older ones refuse the huggingface_hub that transformers 5 needs
# What gradio's own files need, and no other host: a later gradio that asked for a font or a script elsewhere would not get it.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
STYLE = """
.gradio-container { width: 100%; min-width: 0; max-width: 46rem !important; margin: 0 auto !important; }
.problem { padding: .6rem .8rem; border-left: 4px solid #b91c1c; background: #b91c1c1a; overflow-wrap: anywhere; }
.facts { display: flex; flex-wrap: wrap; gap: .2rem 2rem; margin: 0; }
.facts div { display: flex; gap: .4rem; }
.facts dt { opacity: .7; }
.facts dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
"""


def page(model: Any, processor: Any, name: str, language: str | None = None) -> gradio.Blocks:
    """Return the page, not yet served.

    Args:
        model: a Whisper model as `transcription.load` gives it.
        processor: its processor.
        name: what the page calls the model.
        language: code or name; None lets a multilingual model detect it.

    Raises:
        AsrlibError: a language that Whisper, or an English-only model, does not know.
    """
    import gradio

    next(transcription.transcribe(model, processor, [], language=language), None)  # a wrong language is refused now
    known = language and language_code(language) if whisper.is_multilingual(model.generation_config) else "en"
    speech = f"Speech in {LANGUAGES[known].title()}" if known else "Speech; the model detects the language"

    def transcribe(recorded: str | None, uploaded: str | None) -> tuple[str, str]:
        return _transcribed(model, processor, name, language, uploaded or recorded)

    with gradio.Blocks(title="Try the model", analytics_enabled=False) as blocks:
        gradio.Markdown(
            "# Try the model\nRecord a sentence, or upload a file of sound or a video, then press **Transcribe**: "
            "all computing is done on this machine, and no sound leaves it."
        )
        microphone = gradio.Audio(sources=["microphone"], type="filepath", label=speech, buttons=[])
        file = gradio.File(label="Or a file", file_types=["audio", "video", *sorted(SUFFIXES)], height=120)
        # What came last is transcribed: the other one is emptied.
        file.upload(None, outputs=microphone, js="() => null")
        microphone.stop_recording(None, outputs=file, js="() => null")
        button = gradio.Button("Transcribe", variant="primary")
        words = gradio.Textbox(label="Transcript", lines=3, buttons=["copy"], interactive=False)
        below = gradio.HTML(_facts({"Model": name}))
        button.click(transcribe, [microphone, file], [words, below], api_name="transcribe", show_progress_on=words)
    return blocks


def _transcribed(model: Any, processor: Any, name: str, language: str | None, path: str | None) -> tuple[str, str]:
    """Return the transcript and the line below it; a problem is a sentence in that line."""
    if path is None:
        return "", _problem("There is no sound yet: finish a recording or upload a file first.")
    try:
        (found,) = transcription.transcribe(model, processor, [path], language=language)
    except AsrlibError as error:
        return "", _problem(str(error).replace(path, Path(path).name))  # where the page keeps it helps nobody
    facts = {
        "Model": name,
        "Language": LANGUAGES[found.language].title(),
        "Audio": f"{found.seconds_audio:.1f} s",
        "Computing": f"{found.seconds_compute:.1f} s",
    }
    return found.text.strip(), _facts(facts)


def _facts(facts: dict[str, str]) -> str:
    pairs = (f"<div><dt>{label}</dt><dd>{html.escape(value)}</dd></div>" for label, value in facts.items())
    return f'<dl class="facts">{"".join(pairs)}</dl>'


def _problem(sentence: str) -> str:
    return f'<p class="problem" role="alert">{html.escape(sentence)}</p>'


async def _closed(request: Any, answer: Any) -> Any:
    """Tell the browser, with every answer, to load nothing from another host."""
    response = await answer(request)
    response.headers["content-security-policy"] = POLICY
    return response


@contextlib.contextmanager
def served(blocks: gradio.Blocks, port: int) -> Iterator[str]:
    """Serve a page while the context is open, and yield its address.

    Raises:
        AsrlibError: the port is taken or not allowed.
    """
    import gradio
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware

    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    theme = gradio.themes.Default(primary_hue="blue", **fonts)
    theme = theme.set(button_primary_background_fill="*primary_600")  # white letters are legible on it
    shut = {"share": False, "ssr_mode": False, "mcp_server": False, "enable_monitoring": False, "footer_links": []}
    shown = {"inline": False, "quiet": True, "show_error": True, "theme": theme, "css": STYLE}
    middleware = {"middleware": [Middleware(BaseHTTPMiddleware, dispatch=_closed)]}
    try:
        _, address, _ = blocks.launch(
            server_name=HOST, server_port=port, prevent_thread_lock=True, max_file_size=MAX_FILE, app_kwargs=middleware,
            **shut, **shown,
        )  # fmt: skip
    except OSError:
        raise AsrlibError(f"Port {port} of {HOST} is taken or not allowed: name another one with --port.") from None
    try:
        yield address
    finally:
        blocks.close(verbose=False)


def serve(model: str, *, language: str | None, port: int) -> None:
    """Load a model and serve its page until Ctrl-C.

    Args:
        model: Hub id, or folder of a checkpoint.
        language: code or name; None lets a multilingual model detect it.
        port: of 127.0.0.1.

    Raises:
        AsrlibError: gradio is not installed, the checkpoint cannot be had, the language is wrong, or the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise AsrlibError(f"The demo page needs gradio: {sys.executable} -m pip install '{GRADIO}'")
    with tempfile.TemporaryDirectory(prefix="asrlib-demo-") as private:
        os.environ["GRADIO_TEMP_DIR"] = private  # else recordings stay in /tmp/gradio, shared by all users of a machine
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        proxies = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        os.environ["no_proxy"] = f"{proxies},{HOST}" if proxies else HOST  # gradio asks its own server whether it is up
        warnings.filterwarnings("ignore", module="gradio")  # of what gradio will have to change: nothing for a learner
        loaded, processor = transcription.load(model)
        with served(page(loaded, processor, model, language), port) as address:
            print(f"Open {address} in a browser; Ctrl-C ends the page.", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    time.sleep(3600)

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError, whisper
from asrlib.decoding import transcription
from asrlib.text import language_code

if TYPE_CHECKING:
    import gradio

__all__ = ["page", "serve", "served"]

HOST = "127.0.0.1"
MAX_FILE = "1gb"  # hours of speech in any format; more would fill the disk of recordings
GRADIO = "gradio>=6.18,<7"  # older ones refuse the huggingface_hub that transformers 5 needs
# What gradio's own files need, and no other host: a later gradio that asked for a font or a script elsewhere would not get it.
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
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
    multilingual = whisper.is_multilingual(model.generation_config)
    known = language and language_code(language) if multilingual else "en"
    speech = f"Speech in {_language_name(known)}" if known else "Speech; the model detects the language"
    with gradio.Blocks(title="Try the model", analytics_enabled=False) as blocks:
        gradio.Markdown(
            "# Try the model\nRecord a sentence or upload an audio file, then press **Transcribe**: "
            "all computing is done on this machine, and no sound leaves it."
        )
        sound = gradio.Audio(sources=["microphone", "upload"], type="filepath", label=speech, buttons=[])
        button = gradio.Button("Transcribe", variant="primary")
        words = gradio.Textbox(label="Transcript", lines=3, buttons=["copy"], interactive=False)
        below = gradio.HTML(_facts({"Model": name}))
        button.click(
            _transcriber(model, processor, name, language),
            sound,
            [words, below],
            api_name="transcribe",
            show_progress_on=words,
        )
    return blocks


def _transcriber(
    model: Any, processor: Any, name: str, language: str | None
) -> Callable[[str | None], tuple[str, str]]:
    def transcribe(path: str | None) -> tuple[str, str]:
        """Return the transcript and the line below it; a problem is a sentence in that line."""
        if path is None:
            return "", _problem("There is no sound yet: finish a recording or upload a file first.")
        try:
            (found,) = transcription.transcribe(model, processor, [path], language=language)
        except AsrlibError as error:
            return "", _problem(str(error).replace(path, Path(path).name))  # where the page keeps a file helps nobody
        facts = {
            "Model": name,
            "Language": _language_name(found.language),
            "Audio": f"{found.seconds_audio:.1f} s",
            "Computing": f"{found.seconds_compute:.1f} s",
        }
        return found.text.strip(), _facts(facts)

    return transcribe


def _language_name(code: str) -> str:
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return LANGUAGES[code].title()


def _facts(facts: dict[str, str]) -> str:
    pairs = (f"<div><dt>{label}</dt><dd>{html.escape(value)}</dd></div>" for label, value in facts.items())
    return f'<dl class="facts">{"".join(pairs)}</dl>'


def _problem(sentence: str) -> str:
    return f'<p class="problem" role="alert">{html.escape(sentence)}</p>'


class _Closed:
    """Middleware: every answer carries the policy that the browser loads nothing from another host."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
            await send(message)

        await self.app(scope, receive, sending)


@contextlib.contextmanager
def served(blocks: gradio.Blocks, port: int) -> Iterator[str]:
    """Serve a page while the context is open, and yield its address.

    Raises:
        AsrlibError: the port is taken or not allowed.
    """
    import gradio
    from starlette.middleware import Middleware

    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    theme = gradio.themes.Default(primary_hue="blue", **fonts)
    try:
        _, address, _ = blocks.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            inline=False,
            quiet=True,
            prevent_thread_lock=True,
            show_error=True,
            max_file_size=MAX_FILE,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            footer_links=[],
            theme=theme.set(button_primary_background_fill="*primary_600"),  # white letters are legible on it
            css=STYLE,
            app_kwargs={"middleware": [Middleware(_Closed)]},
        )
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
        excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        os.environ["no_proxy"] = (
            f"{excepted},{HOST}" if excepted else HOST
        )  # gradio asks its own server whether it is up
        warnings.filterwarnings("ignore", module="gradio")  # of what gradio will have to change: nothing for a learner
        loaded, processor = transcription.load(model)
        with served(page(loaded, processor, model, language), port) as address:
            print(f"Open {address} in a browser; Ctrl-C ends the page.", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    time.sleep(3600)

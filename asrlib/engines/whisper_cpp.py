"""whisper.cpp through pywhispercpp, with a ggml file written from the same weights."""

from __future__ import annotations

import atexit
import codecs
import weakref

import _pywhispercpp as cpp
import numpy as np
from pywhispercpp.model import Model

from asrlib.decoding.batching import Result
from asrlib.engines.runtime import Runtime, segments
from asrlib.models import checkpoints

__all__ = ["WhisperCpp"]


class WhisperCpp(Runtime):
    """whisper.cpp on the CPU."""

    precisions = ("float16", "q8_0", "q5_0")

    def _load(self) -> None:
        self._refuse_added_words("whisper.cpp")
        cpp.whisper_log_set(_silent)
        atexit.register(cpp.whisper_log_set, None)  # C must not call Python when Python is gone
        form = "ggml" if self.precision == "float16" else f"ggml-{self.precision}"
        self.files = checkpoints.fetch(self.checkpoint, format=form)
        self.model = Model(
            str(self.files),
            params_sampling_strategy=int(self.beams > 1),
            n_threads=self.threads,
            print_progress=False,
            no_context=True,  # no text of an earlier call, ...
            n_max_text_ctx=0,  # ... nor of the window before
            suppress_nst=True,
            greedy={"best_of": 1},
            beam_search={"beam_size": self.beams, "patience": -1.0},
        )
        atexit.register(_close, weakref.ref(self.model))

    def _transcribe(self, samples: np.ndarray, times: bool) -> Result:
        language = self.known_language
        tests = (
            {"temperature_inc": 0.0, "no_speech_thold": 1.0}
            if self.strict
            else {"temperature_inc": 0.2, "no_speech_thold": 0.6}
        )
        options = {"language": language or "auto", "no_timestamps": not times, "single_segment": not times}
        self.model.transcribe(samples, **options, **tests)
        context = self.model._ctx
        # The wrapper's own texts have lost their spaces, and a letter whose bytes two segments share.
        letters = codecs.getincrementaldecoder("utf-8")("replace")
        parts = [
            (
                cpp.whisper_full_get_segment_t0(context, number) / 100,
                cpp.whisper_full_get_segment_t1(context, number) / 100,
                letters.decode(cpp.whisper_full_get_segment_text(context, number)),
            )
            for number in range(cpp.whisper_full_n_segments(context))
        ]
        language = language or cpp.whisper_lang_str(cpp.whisper_full_lang_id(context))
        return "".join(text for *_, text in parts).strip(), language, segments(parts) if times else ()


def _silent(level: int, text: str) -> None:
    """Take the place of whisper.cpp's log, which goes to the error stream of C, past Python."""


def _close(known: weakref.ref[Model]) -> None:
    """Free a model of whisper.cpp while Python still runs: its own way, at the very end, fails."""
    if (model := known()) is not None:
        model.__del__()
        model._ctx = None

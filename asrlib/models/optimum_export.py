"""Export and quantization with Optimum: run in the environment of optimum-onnx, through `asrlib.models.optimum_env`.

Of asrlib it uses nothing, for that is made for a newer transformers than there is there. Notebook 05 makes the same calls one
by one.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["export", "quantize", "quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let no library speak of settings that the export makes itself, nor of each condition that becomes a constant."""
    import torch
    import transformers
    from optimum.utils import logging

    sources = (transformers.logging, logging)
    before = [source.get_verbosity() for source in sources]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        for source in sources:
            source.set_verbosity_error()
        try:
            yield
        finally:
            for source, level in zip(sources, before, strict=True):
                source.set_verbosity(level)


def export(source: str, folder: str) -> None:
    """Write encoder and merged decoder of the transformers checkpoint in ``source``, in float32, to ``folder``."""
    from optimum.onnxruntime import ORTModelForSpeechSeq2Seq

    with quiet():
        model = ORTModelForSpeechSeq2Seq.from_pretrained(source, export=True, use_cache=True, use_merged=True)
    model.save_pretrained(folder)


def quantize(plain: str, folder: str, preset: str, options: dict[str, Any]) -> None:
    """Quantize the graphs in ``plain`` with a preset of ``AutoQuantizationConfig`` and its options, into ``folder``."""
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer

    config = getattr(AutoQuantizationConfig, preset)(**options)
    for file in sorted(Path(plain).glob("*.onnx")):
        large = file.with_name(f"{file.name}_data").exists()  # beyond 2 GB weights lie beside the graph
        quantizer = ORTQuantizer.from_pretrained(plain, file_name=file.name)
        quantizer.quantize(config, save_dir=folder, file_suffix="", use_external_data_format=large)

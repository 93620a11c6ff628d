"""Export and quantization with Optimum: run in the environment of optimum-onnx, through `asrlib.models.optimum_env`.

Of asrlib it uses nothing, for that is made for a newer transformers than there is there. Notebook 05 makes the same calls one
by one.
"""

import warnings
from pathlib import Path
from typing import Any

__all__ = ["export", "quantize"]


def export(source: str, folder: str) -> None:
    """Write encoder and merged decoder of the transformers checkpoint in ``source``, in float32, to ``folder``."""
    import torch
    import transformers
    from optimum.onnxruntime import ORTModelForSpeechSeq2Seq
    from optimum.utils import logging

    transformers.logging.set_verbosity_error()  # of settings that the export makes itself
    logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
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

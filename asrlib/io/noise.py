"""What `import asrlib` keeps other libraries from: log lines without information, progress bars, and reports to their makers."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator

__all__ = ["no_bars"]

NOISE = {  # logger: how its lines begin
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast from",
    # A package of kernels that the course does not install; one that is installed and fails is still reported.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'",
    # What `generate` of transformers 5.24 itself passes on (pull request 48108), and a default that nobody set.
    "transformers.generation.utils": "Passing `generation_config` together with generation-related "
    r"arguments=\(\{('(begin_)?suppress_tokens', '(begin_)?suppress_tokens'|.*'use_cache'.*)\}\)"
    r"|Both `min_new_tokens` \(=\d+\) and `min_length`\(=0\)",
    # OpenVINO's tracer reads every property of a model.
    "transformers.modeling_utils": "`loss_type=None` was set in the config",
    # Its output layer is the token table, which is there.
    "transformers.trainer": r"There were missing keys in the checkpoint model loaded: \['proj_out.weight'\]",
    "transformers.integrations.bitsandbytes": "The modules are dequantized in .* and casted to",
}

# ONNX Runtime, also in Silero's detector, would report its use to Microsoft.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


class _Quiet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not re.match(NOISE[record.name], record.getMessage())


for _name in NOISE:
    logging.getLogger(_name).addFilter(_Quiet())
# Of PEFT 0.21 and PyTorch's tracer: transformers 5.24 has renamed an attribute.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning, "transformers")


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Let transformers read or write weights without its progress bars, which take no time and stay in a notebook's output."""
    from transformers.utils import logging as messages

    shown = messages.is_progress_bar_enabled()
    messages.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            messages.enable_progress_bar()

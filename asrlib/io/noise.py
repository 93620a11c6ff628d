"""Log lines of other libraries without information, which `import asrlib` drops, and their progress bars.

- bitsandbytes says of every 8-bit product whose input is not float16 that it is cast, and, while it is imported, that a kernel
  package is missing which the course does not install.
- transformers 5.24: ``generate`` of Whisper itself passes two lists of tokens beside its generation config (pull request 48108),
  assisted generation ``use_cache`` and lengths, and then it warns that the caller did; and it takes its own default
  ``min_length`` of 0 for one that somebody set.
- transformers names the precision of a dequantized model, which is the one that was asked for; its Trainer misses the output layer of
  Whisper in a checkpoint, whose weights are those of the token table.
- PEFT 0.21 and the tracer of PyTorch read an attribute of models that transformers 5.24 has renamed.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator

__all__ = ["no_bars"]

NOISE = {  # logger: how its lines begin
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast from",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'",
    "transformers.generation.utils": "Passing `generation_config` together with generation-related "
    r"arguments=\(\{('(begin_)?suppress_tokens', '(begin_)?suppress_tokens'|.*'use_cache'.*)\}\)"
    r"|Both `min_new_tokens` \(=\d+\) and `min_length`\(=0\)",
    "transformers.trainer": r"There were missing keys in the checkpoint model loaded: \['proj_out.weight'\]",
    "transformers.integrations.bitsandbytes": "The modules are dequantized in .* and casted to",
}


class _Quiet(logging.Filter):
    """Drops the lines of `NOISE`; a kernel package that is installed and fails is still reported."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not re.match(NOISE[record.name], record.getMessage())


for _name in NOISE:
    logging.getLogger(_name).addFilter(_Quiet())
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

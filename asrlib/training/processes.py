"""The processes of a training, which torchrun or accelerate has started: joined once, and ended together."""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from asrlib import AsrlibError, hardware
from asrlib.io import files

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["PATIENCE", "alone", "joined", "together"]

PATIENCE = timedelta(days=7)  # in which the last process must have done its share, once the first has


@functools.cache
def joined() -> PartialState:
    """Join the processes that torchrun or accelerate has started; without them this is the only one."""
    try:
        from accelerate import PartialState
    except ImportError:
        raise AsrlibError("Training needs accelerate: pip install 'asrlib[methods]' first.") from None
    processes = PartialState(cpu=hardware.best_device() == "cpu", timeout=PATIENCE)
    atexit.register(processes.destroy_process_group)
    return processes


@contextlib.contextmanager
def alone(output: Path, processes: PartialState) -> Iterator[None]:
    """Hold a training's folder; while another run has it, all processes end, instead of writing over each other's checkpoints.

    Raises:
        AsrlibError: another run has it.
    """
    new = processes.is_main_process and not output.exists()
    try:
        with contextlib.ExitStack() as held:
            with together(processes):
                if processes.is_main_process and not held.enter_context(files.lock(output / "training", wait=False)):
                    raise AsrlibError(
                        f"Another run trains in {output}: wait until it has ended, or give another folder."
                    )
            yield
    finally:
        if new and [path.name for path in output.glob("*")] == ["training.lock"]:  # what was asked for was refused
            shutil.rmtree(output)


@contextlib.contextmanager
def together(processes: PartialState) -> Iterator[None]:
    """Leave a block when all processes have; an error that a person can mend, in any of them, ends all.

    The first process raises it, for the command line to say it once. The others exit after that: torchrun stops all processes
    when one has failed.
    """
    from accelerate.utils import gather_object

    error = None
    try:
        yield
    except (AsrlibError, OSError) as raised:
        error = raised
    errors = [error for error in gather_object([error]) if error]
    if errors:
        atexit.register(processes.wait_for_everyone)
        if processes.is_main_process:
            raise errors[0]
        sys.exit(1)

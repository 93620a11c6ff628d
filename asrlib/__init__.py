"""asrlib: the small library under a course that reproduces, and audits, Whisper research.

One folder is one floor, and imports only go down: cli, course, tasks, training, engines, decoding, models, corpora, the modules of
no folder, io. ``docs/architecture.md`` says what lies where. ``import asrlib`` needs neither torch nor network.
"""

from asrlib.io import noise  # noqa: F401 - drops what other libraries log, before they do

__all__ = ["AsrlibError", "__version__"]

__version__ = "0.1.0"


class AsrlibError(RuntimeError):
    """A problem that a person can mend.

    The message is one clear sentence: what is wrong, where, and what to do. The command line prints it alone, without a
    traceback.
    """

"""asrlib: the small library under a course that reproduces, and audits, Whisper research.

Modules import only downwards::

    roof    cli, course, runner, site, comparison,          run notebooks, show results, talk to people, keep the lock
            sweep, readme, demo, environment, colab
    4       chapter, records, claims                             one record per run; verdicts of published claims
    3       transcription (kernels), sharding, evaluation,  batched decoding, in many processes, other runtimes, word
            engines, words, preparation, training,          times, data sets; what training needs besides visible calls
            distillation, quantization, pruning, metering
    2       corpora (curation), checkpoints (conversion,    real speech and real weights on disk
            ggml, architectures, graphs,
            optimum_env, optimum_child, optimum_export)
    ground  audio, text, alignment, uncertainty, scoring,   each stands alone
            findings, hardware, figures, diagrams, exercises, parameters, files, hub, progress, noise

``import asrlib`` needs neither torch nor network: every heavy import happens inside the function that needs it.
"""

from asrlib.io import noise  # noqa: F401 - drops what other libraries log, before they do

__all__ = ["AsrlibError", "__version__"]

__version__ = "0.1.0"


class AsrlibError(RuntimeError):
    """A problem that a person can mend.

    The message is one clear sentence: what is wrong, where, and what to do. The command line prints it alone, without a
    traceback.
    """

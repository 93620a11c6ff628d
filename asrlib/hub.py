"""The Hugging Face Hub: one short question, and after it a download or what its own cache on this machine holds.

Ground floor: imports nothing of asrlib but the error class.
"""

from __future__ import annotations

from pathlib import Path

from asrlib import AsrlibError

__all__ = ["listing", "snapshot"]

TIMEOUT = 5.0  # seconds; a Hub that does not answer by then counts as unreachable


def listing(name: str, revision: str | None = None, kind: str = "model") -> list[str] | None:
    """Return the names of a repository's files; None when the Hub cannot be reached, or HF_HUB_OFFLINE forbids it.

    Args:
        name: of the repository, such as ``openai/whisper-base``.
        revision: commit, tag or branch; None is the main branch.
        kind: ``model`` or ``dataset``.

    Raises:
        AsrlibError: the Hub answers that there is no such repository or revision, or that one has to log in first.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        found = HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=TIMEOUT)
    except GatedRepoError:
        raise AsrlibError(
            f"{name} is gated: accept its terms on its Hub page, then log in with `huggingface-cli login`."
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise AsrlibError(
            f"The Hub has no public {kind} {name}: correct the name, or log in if it is private."
        ) from None
    except RevisionNotFoundError:
        raise AsrlibError(f"{name} has no revision {revision!r} on the Hub: correct it.") from None
    except OSError:  # all errors of the connection, and OfflineModeIsEnabled
        return None
    return [file.rfilename for file in found.siblings or []]


def snapshot(
    name: str, patterns: list[str], *, online: bool, revision: str | None = None, kind: str = "model"
) -> Path | None:
    """Return the folder that holds a repository's chosen files in the Hub's own cache, named by the commit.

    Args:
        name, revision, kind: as for `listing`.
        patterns: shell patterns of the files wanted.
        online: whether to download what is missing; else the folder may hold only some of the files, and None says that
            nothing of the repository is there.

    Raises:
        AsrlibError: the download ended early; what came is kept for the next run.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                name, repo_type=kind, revision=revision, allow_patterns=patterns, local_files_only=not online
            )
        )
    except OSError as error:
        if not online and isinstance(error, LocalEntryNotFoundError):
            return None
        reason = str(error).strip().splitlines()[0]
        raise AsrlibError(
            f"The download of {name} from the Hub ended early ({reason}): run the same command again, it will resume."
        ) from None

"""The Hugging Face Hub: one short question, and after it a download or what its own cache on this machine holds."""

from __future__ import annotations

import contextlib
import hashlib
import re
from fnmatch import fnmatchcase
from pathlib import Path

from asrlib import AsrlibError
from asrlib.io import files

__all__ = ["RefusedError", "listing", "snapshot"]

GATED = "{} is gated: accept its terms on its Hub page, then log in with `hf auth login`, or set HF_TOKEN."
TIMEOUT = 5.0  # seconds; a Hub that does not answer by then counts as unreachable


class RefusedError(AsrlibError):
    """Something answers, but not as the Hub does when all is well: what its own cache holds may still serve."""


def listing(name: str, revision: str | None = None, kind: str = "model") -> list[str] | None:
    """Return the names of a repository's files; None when the Hub cannot be reached, or HF_HUB_OFFLINE forbids it.

    Args:
        name: of the repository, such as ``openai/whisper-base``.
        revision: commit, tag or branch; None is the main branch.
        kind: ``model`` or ``dataset``.

    Raises:
        AsrlibError: the Hub answers that there is no such repository or revision, or that one has to log in first; as a
            `RefusedError`, that it is too busy or broken, or that what answers is not the Hub.
    """
    from huggingface_hub import HfApi, constants, errors
    from huggingface_hub.utils import httpx

    try:
        found = HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=TIMEOUT)
    except errors.GatedRepoError:
        raise AsrlibError(GATED.format(name)) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise AsrlibError(
            f"The Hub has no public {kind} {name}: correct the name, or log in if it is private."
        ) from None
    except errors.RevisionNotFoundError:
        raise AsrlibError(f"{name} has no revision {revision!r} on the Hub: correct it.") from None
    except errors.HfHubHTTPError as error:
        advice = "wait, and run the same command again"
        if error.response.status_code in (401, 403):
            advice = "log in anew with `hf auth login`, or remove the token (HF_TOKEN) that it does not accept"
        status = f"{error.response.status_code} ({error.response.reason_phrase})"
        raise RefusedError(f"The Hub answers {status} for {name}: {advice}.") from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, ValueError, TypeError, KeyError, AttributeError):
        # no address of the web, or what it sends is no JSON, or not the Hub's
        raise RefusedError(
            f"What answers at {constants.ENDPOINT} is not the Hub: check HF_ENDPOINT, and whether this network asks for a "
            "login on a page of its own."
        ) from None
    except (httpx.TransportError, OSError):  # all errors of the connection, and OfflineModeIsEnabled
        return None
    return [file.rfilename for file in found.siblings or []]


def snapshot(
    name: str, patterns: list[str], *, online: bool, revision: str | None = None, kind: str = "model"
) -> Path | None:
    """Return the folder that holds a repository's chosen files in the Hub's own cache, named by the commit.

    Args:
        name, revision, kind: as for `listing`.
        patterns: shell patterns of the files wanted.
        online: whether to download what is missing; else None says that the cache does not hold all of them, as far as
            it knows.

    Raises:
        AsrlibError: the download ended early; whole files are kept for the next run. Or a file is not what the Hub calls it by
            its checksum; it is thrown away.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
    from huggingface_hub.utils import httpx

    try:
        options = {"allow_patterns": patterns, "local_files_only": not online}
        folder = Path(snapshot_download(name, repo_type=kind, revision=revision, **options))
    except GatedRepoError:  # everybody may see what it has
        raise AsrlibError(GATED.format(name)) from None
    # ValueError: a name that would leave the cache. RuntimeError: whatever ends a transfer from the Hub's Xet servers.
    except (httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
        if not online and isinstance(error, LocalEntryNotFoundError):
            return None
        if files.no_room(error):
            raise files.DiskFullError(constants.HF_HUB_CACHE) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
        raise AsrlibError(
            f"The download of {name} from the Hub ended early ({reason}): run the same command again, it goes on after the last "
            "whole file."
        ) from None
    for path in sorted(folder.rglob("*")):
        if any(fnmatchcase(path.relative_to(folder).as_posix(), pattern) for pattern in patterns) and not _whole(path):
            with contextlib.suppress(OSError):  # a cache that cannot be written keeps it, and it is refused again
                path.resolve().unlink()
                path.unlink()
            raise AsrlibError(
                f"{path.name} of {name} does not have the Hub's checksum and is not used: run the same command again."
            )
    return folder


def _whole(path: Path) -> bool:
    """Tell whether a file in the Hub's cache has the checksum that names its blob; the Hub's client compares lengths alone.

    It is the SHA-256, for a small file git's SHA-1 (with the length before the content) or, of mirrors, the plain one. The first link
    has that name; the blob may be a link itself, into a store that all repositories share, where names are no checksums.
    """
    name = path.readlink().name if path.is_symlink() else path.name
    if not path.is_file() or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name):
        return True
    if len(name) == 64:
        return files.sha256(path) == name
    content = path.read_bytes()
    ways = (b"blob %d\0%b" % (len(content), content), content)
    return name in {hashlib.sha1(way, usedforsecurity=False).hexdigest() for way in ways}

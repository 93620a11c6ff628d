"""A folder to the Hugging Face Hub, under one's own account.

Ground floor: imports nothing of asrlib but the error class.
"""

from __future__ import annotations

from pathlib import Path

from asrlib import AsrlibError

__all__ = ["check", "push"]


def check(name: str) -> None:
    """Find out before a long work whether its result can be pushed at its end.

    Raises:
        AsrlibError: nobody is logged in, or the Hub does not let this account write a model of this name.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import get_token, httpx

    if get_token() is None:
        raise AsrlibError(f"To push {name} to the Hub, log in first: `hf auth login` with a token that may write.")
    try:
        HfApi().create_repo(name, private=True, exist_ok=True)
    except (HFValidationError, HfHubHTTPError) as error:
        raise AsrlibError(
            f"The Hub lets nobody write {name} with this token ({_line(error)}): correct the name or the token."
        ) from None
    except (httpx.HTTPError, OSError) as error:
        raise AsrlibError(f"The Hub cannot be reached ({_line(error)}): go online, or leave the push out.") from None


def push(folder: Path, name: str) -> str:
    """Upload a folder as a private model of the Hub; return its address.

    Args:
        folder: all of it is uploaded.
        name: ``account/model``, as `check` has made it.

    Raises:
        AsrlibError: the upload failed; the folder is as it was.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import httpx

    try:
        done = HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="asrlib")
    except (httpx.HTTPError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: of the Hub's Xet servers
        raise AsrlibError(
            f"The upload to {name} failed ({_line(error)}): all is in {folder}, so run `hf upload {name} {folder}` when the Hub can be "
            "reached."
        ) from None
    return str(done)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")

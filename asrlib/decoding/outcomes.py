"""One outcome for each file of a run: done, or failed with a reason; known by the file's content.

One bad file ends no run. What has failed is named and tried again by every call; what has changed under its name is done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrlib import AsrlibError, audio
from asrlib.io import files

if TYPE_CHECKING:
    from asrlib.decoding.batching import Hypothesis

__all__ = ["UNFINISHED", "Failed", "Outcomes", "content", "fingerprint", "is_done", "transcripts", "whole"]

UNFINISHED = "It was not finished."  # stands for what a run has begun to do


@dataclass(frozen=True)
class Failed:
    """A clip that could not be transcribed, and why, in one sentence."""

    id: str
    reason: str


def content(source: Any) -> str:
    """Return the SHA-256 of an audio source, as `asrlib.audio.load` takes them; empty where there is nothing to read."""
    if isinstance(source, audio.Stored):
        source = source.row
    if isinstance(source, audio.Joined):
        return hashlib.sha256(" ".join(map(content, source.parts)).encode()).hexdigest()
    if isinstance(source, Mapping):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    try:
        return files.sha256(source)
    except (OSError, TypeError, ValueError):
        return ""


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Return a short name for what a run depends on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def is_done(outcome: Mapping[str, Any], source: Any) -> bool:
    """Say whether an outcome that was written down holds for a source: it did not fail, and the content is the same."""
    return not outcome.get("failed") and outcome.get("sha256") == content(source)


def transcripts(
    transcribe: Callable[[Iterable[dict[str, Any]]], Iterable[Hypothesis]],
    clips: Iterable[tuple[str, Any]],
    *,
    max_seconds: float = audio.MAX_SECONDS,
) -> Iterator[Hypothesis | Failed]:
    """Transcribe clips and yield one outcome of each, in their order; what cannot be read is named on stderr.

    Args:
        transcribe: such as `asrlib.decoding.transcription.transcribe` with a model; gets mappings with ``id`` and ``audio``.
        clips: (id, audio source) of each; ids are distinct.
        max_seconds: longer audio fails.
    """
    begun: deque[Failed | None] = deque()  # of each clip that was read ahead, unless it could be read

    def readable() -> Iterator[dict[str, Any]]:
        for name, source in clips:
            try:
                samples = audio.load(source, max_seconds=max_seconds)
            except AsrlibError as error:
                print(f"asrlib: {error}", file=sys.stderr)
                begun.append(Failed(name, str(error)))
            else:
                begun.append(None)
                yield {"id": name, "audio": samples}

    for hypothesis in transcribe(readable()):
        while failed := begun.popleft():
            yield failed
        yield hypothesis
    yield from begun


def whole(path: Path) -> str:
    """Return the absolute path of a file, without ``..``; links are not followed, for their names are the user's."""
    return os.path.normpath(path.absolute())


class Outcomes:
    """What has become of each file of a folder's runs, in its ``outcomes.jsonl``: one line for each, the last one counts.

    Attributes:
        of: `whole` path -> ``sha256``, ``failed`` (why nothing was made of it, or empty) and what else `add` was given.
    """

    def __init__(self, folder: Path, ending: str = "") -> None:
        """Read what is written down in a folder.

        Args:
            folder: that need not be there.
            ending: of the files that are made; what is known of files with other endings is passed over.
        """
        self.path, self._torn = folder / "outcomes.jsonl", False
        self.of: dict[str, dict[str, Any]] = {}
        self._contents: dict[str, str] = {}
        with contextlib.suppress(FileNotFoundError), open(self.path, encoding="utf-8") as lines:
            for line in lines:
                self._torn = not line.endswith("\n")  # a killed run may leave a part of its last line
                with contextlib.suppress(ValueError):
                    row = json.loads(line)
                    if row.get("made", ending).endswith(ending):
                        self.of[row["file"]] = row
                        self.of.pop(row.get("was", ""), None)

    def content(self, path: Path) -> str:
        """Return the SHA-256 of a file as it was when it was first asked for: before it was read, not after."""
        if whole(path) not in self._contents:
            self._contents[whole(path)] = content(path)
        return self._contents[whole(path)]

    def follow(self, paths: Iterable[Path]) -> None:
        """Let each file that is not known stand for one with its name and content that is gone: its folder was moved."""
        heard = {Path(file): (Path(file).name, row["sha256"]) for file, row in self.of.items() if row.get("sha256")}
        here = {key for file, key in heard.items() if file.exists()}  # one that is only copied is another recording
        gone = {key: str(file) for file, key in heard.items() if key not in here}
        for path in paths if gone else ():
            if whole(path) not in self.of and (file := gone.pop((path.name, self.content(path)), None)):
                self._write(self.of.pop(file) | {"file": whole(path), "was": file})

    def done(self, path: Path, **facts: Any) -> bool:
        """Say whether a file, as it is now, was finished by a run with these facts."""
        row, facts = self.of.get(whole(path), {}), {"failed": "", "sha256": self.content(path), **facts}
        return facts == {key: row.get(key) for key in facts}

    def add(self, path: Path, *, failed: str = "", **facts: Any) -> None:
        """Write down, at once, that a file is done or has failed."""
        self._write({"file": whole(path), "sha256": self.content(path), "failed": failed, **facts})

    def _write(self, row: dict[str, Any]) -> None:
        self.of[row["file"]] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as lines:
            lines.write("\n" * self._torn + json.dumps(row) + "\n")
        self._torn = False

"""Acted dialogue of the puzzle game Fish Fillets: Czech and Dutch sentences with their English text.

The lines of a level lie in Lua scripts as pairs of calls, ``dialogId("KEY", "FONT", "English") dialogStr("Czech")``; the recording of
a line is ``sound/LEVEL/LANGUAGE/KEY.ogg``. Keys are unique in a level only. The font is the speaker's: a small fish, a big one, or
somebody whom they meet; where a key names a fish (``-m-`` the small, ``-v-`` the big one), it is the one of the font.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from asrlib.corpora.clips import Clip, Clips

__all__ = ["read"]

_QUOTED = r'\s*"((?:[^"\\]|\\.)*)"\s*'
_LINE = re.compile(rf"dialogId\({_QUOTED},{_QUOTED},{_QUOTED}\)\s*dialogStr\({_QUOTED}\)", re.DOTALL)
_ESCAPE = re.compile(r"\\(\d{1,3}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


def _unescaped(text: str) -> str:
    """Return what a Lua string stands for (Lua 5.0 manual, section 2.1)."""

    def character(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code)) if code.isdigit() else _ESCAPES.get(code, code)

    return " ".join(_ESCAPE.sub(character, text).split())


def read(share: Path, language: str, voice: str) -> Clips:
    """Return the clips by level and key; each has its text and speaker where its level, or one other, has the line."""
    root = share / "games" / "fillets-ng"
    lines: dict[str, dict[str, tuple[str, str, str]]] = defaultdict(dict)
    for script in sorted(root.glob(f"script/*/*dialogs_{language}.lua")):
        for key, *line in _LINE.findall(script.read_text("utf-8", "replace")):
            lines[key].setdefault(script.parent.name, tuple(map(_unescaped, line)))
    clips: Clips = {}
    for path in sorted(root.glob(f"sound/**/{language}/*.ogg")):
        place = path.parent.parent.relative_to(root / "sound")
        found = lines.get(path.stem, {})
        font, english, text = found.get(place.parts[0]) or (*found.values(), ("", "", None))[0]
        speaker = font.removeprefix("font_")
        clips[f"{place.as_posix()}/{path.stem}"] = Clip(
            path, text, english, f"dialogue-{language}-{speaker or 'unknown'}"
        )
    return clips

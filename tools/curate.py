"""Write data/splits and the tables of data/README.md: ``python tools/curate.py [NAME ...]``.

Which clips of a packaged corpus are kept, and how they are split without leaks: the same files give the same lists on every machine.
"""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from asrlib import AsrlibError, audio
from asrlib.corpora import card, catalogue, fetch, names, packaged, sources
from asrlib.corpora.clips import Clip, clean, fingerprint
from asrlib.io import files
from asrlib.text import normalizer

DATA = Path(__file__).resolve().parent.parent / "data"
MIN_SECONDS, MAX_SECONDS = 0.3, 30.0  # shorter is a click; longer does not fit Whisper's window
MAX_LETTERS_PER_SECOND = 20  # fast speech here reaches 18; beyond 20 the recording holds only a part of the transcript

MAX_TEST, MAX_TEST_SHARE = 200, 0.30  # clips; enough for an interval of a few points of WER
MAX_VALIDATION, MAX_VALIDATION_SHARE = 80, 0.10
MAX_EVALUATED_FAMILY = 10  # a larger family would decide a score by one template: it may only be learned from
MIN_SPLIT = 50  # a smaller corpus is for testing only


def excluded_by_name(name: str, patterns: Mapping[str, list[str]]) -> str | None:
    """Return the reason for which a clip is left out by its name, or None.

    Args:
        name: the clip's name inside its corpus, for example ``digits/5``.
        patterns: reason -> shell patterns.
    """
    return next((reason for reason, globs in patterns.items() if any(fnmatchcase(name, glob) for glob in globs)), None)


def excluded_by_length(text: str, seconds: float) -> str | None:
    """Return why a recording of this length is left out, or None."""
    if seconds < MIN_SECONDS:
        return f"shorter than {MIN_SECONDS} s"
    if seconds > MAX_SECONDS:
        return f"longer than {MAX_SECONDS:.0f} s"
    too_fast = sum(map(str.isalpha, text)) > MAX_LETTERS_PER_SECOND * seconds
    return "more text than is spoken" if too_fast else None


def _content_words(text: str) -> list[str]:
    """Return the words of three letters and more: digits, spelled letters and most articles are slots of a template."""
    words = re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", text).casefold())
    return [word for word in words if len(word) >= 3] or words


def families(texts: Mapping[str, str]) -> dict[str, str]:
    """Group transcripts that are the same, or come from one template.

    Two transcripts are related when at least half of their different content words are common to both, or when they share four
    content words in a row; a family is everything that such relations connect.

    Args:
        texts: clip id -> transcript.

    Returns:
        Clip id -> family, named by its first clip in alphabetical order.
    """
    ids = sorted(texts)
    parent = {clip: clip for clip in ids}

    def root(clip: str) -> str:
        while parent[clip] != clip:
            parent[clip] = parent[parent[clip]]
            clip = parent[clip]
        return clip

    def join(one: str, other: str) -> None:
        first, second = sorted((root(one), root(other)))
        parent[second] = first

    words = {clip: _content_words(texts[clip]) for clip in ids}
    seen: dict[tuple[str, ...], str] = {}
    for clip in ids:
        run = words[clip]
        for piece in {tuple(run), *(tuple(run[start : start + 4]) for start in range(len(run) - 3))}:
            join(clip, seen.setdefault(piece, clip))
    holders = defaultdict(list)  # content word -> clips before this one that have it
    for clip in ids:
        own = set(words[clip])
        for other, common in Counter(other for word in own for other in holders[word]).items():
            if 2 * common >= len(own | set(words[other])):
                join(clip, other)
        for word in own:
            holders[word].append(clip)
    return {clip: root(clip) for clip in ids}


def assign_splits(family: Mapping[str, str], *, whole: bool = False) -> dict[str, str]:
    """Give whole families to test, validation or train, in an order decided by a hash.

    Test takes up to 200 clips but at most 30 % of the corpus, validation up to 80 but at most 10 %, train the rest; families of
    more than ten clips go to train. A corpus of fewer than 50 clips is all test.

    Args:
        family: clip id -> family.
        whole: families of any size may go to test and validation: they are scenes, not templates.

    Returns:
        Clip id -> ``"train"``, ``"validation"`` or ``"test"``.
    """
    if len(family) < MIN_SPLIT:
        return dict.fromkeys(family, "test")
    members = defaultdict(list)
    for clip, name in family.items():
        members[name].append(clip)
    room = Counter(
        test=min(MAX_TEST, int(MAX_TEST_SHARE * len(family))),
        validation=min(MAX_VALIDATION, int(MAX_VALIDATION_SHARE * len(family))),
        train=len(family),
    )
    splits = {}
    for name in sorted(members, key=lambda name: hashlib.sha256(name.encode()).digest()):
        size = len(members[name])
        choices = ("test", "validation", "train") if whole or size <= MAX_EVALUATED_FAMILY else ("train",)
        split = next(choice for choice in choices if room[choice] >= size)
        room[split] -= size
        splits.update(dict.fromkeys(members[name], split))
    return splits


def level(name: str) -> str:
    """Return the level of a clip, which goes to one split as a whole."""
    return name.rpartition("/")[0]


def problems(texts: dict[str, str], language: str) -> dict[str, str]:
    """Return clip -> reason for those whose text is no sentence of one level: one word, or said in several levels.

    Args:
        texts: clip -> transcript.
    """
    normalize = normalizer(language)
    words = {clip: normalize(text) for clip, text in texts.items()}
    levels = defaultdict(set)
    for clip, said in words.items():
        levels[said].add(level(clip))
    found = {clip: "a line of several levels" for clip, said in words.items() if len(levels[said]) > 1}
    return found | {clip: "a single word" for clip, said in words.items() if len(said.split()) < 2}


def curate(name: str, language: str) -> list[dict[str, Any]]:
    """Return the rows of ``data/splits/NAME-LANGUAGE.jsonl``, made anew from the corpus on this machine.

    The first place that has any of its clips is read, whether or not they are the ones listed at present. A kept clip has id, split,
    family, seconds, and checksums of its file and its transcript; another has id and the reason. Clips of one file, without
    transcripts, share a row (`asrlib.corpora.catalogue.manifest`).
    """
    tree = next((place for place in sources.places(name, language) if packaged.read(name, language, place)), None)
    clips = packaged.read(name, language, tree or fetch(name, language))
    lengths = _lengths(clips)
    texts = {clip: clean(found.text) for clip, found in clips.items()}
    reasons: dict[str, str | None] = {}
    for clip, (text, problem) in texts.items():
        reason = excluded_by_name(clip, catalogue.facts(name, language)["exclude"])
        reason = reason or (problem if name != "untranscribed" else None)
        reasons[clip] = reason or (
            excluded_by_length(text, lengths[clip]) if lengths[clip] else "silent or unreadable audio"
        )
    left = {clip: texts[clip][0] for clip in sorted(clips) if not reasons[clip]}
    if name == "dialogue":
        reasons |= problems(left, language)
        left = {clip: text for clip, text in left.items() if not reasons[clip]}
    rows = [{"id": f"{name}/{language}/{clip}", "excluded": reason} for clip, reason in reasons.items() if reason]
    if name == "untranscribed":
        return [
            *_untranscribed(f"{name}/{language}", {clip: clips[clip] for clip in left}, lengths),
            *sorted(rows, key=lambda row: row["id"]),
        ]
    family = {clip: level(clip) for clip in left} if name == "dialogue" else families(left)
    splits = assign_splits(family, whole=name == "dialogue")
    for clip in left:
        checksums = {
            "sha256": fingerprint(clips[clip].path.read_bytes()),
            "text_sha256": fingerprint(packaged.spoken(clips[clip]).encode()),
        }
        kept = {"id": f"{name}/{language}/{clip}", "split": splits[clip], "family": family[clip]}
        rows.append(kept | {"seconds": round(lengths[clip], 2)} | checksums)
    return sorted(rows, key=lambda row: row["id"])


def _bytes(clip: Clip) -> bytes:
    first, size = clip.span or (0, -1)
    with open(clip.path, "rb") as stream:
        stream.seek(first)
        return stream.read(size)


def scenes(sounds: Mapping[str, bytes]) -> dict[str, str]:
    """Return clip -> scene: the first three characters of its name; scenes that share a sound are one.

    Args:
        sounds: clip -> its file.
    """
    scene, first = {clip: clip[:3] for clip in sounds}, {}
    for clip, sound in sounds.items():
        twin = first.setdefault(hashlib.sha256(sound).digest(), clip)
        if scene[twin] != scene[clip]:
            scene = {name: scene[twin] if own == scene[clip] else own for name, own in scene.items()}
    return scene


def _untranscribed(name: str, clips: Mapping[str, Clip], lengths: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return a line for each split of a corpus that is one file without transcripts."""
    splits = assign_splits(scenes({clip: _bytes(found) for clip, found in clips.items()}), whole=True)
    digest = {fingerprint(path.read_bytes()) for path in {found.path for found in clips.values()}}.pop()
    return [
        {
            "id": name,
            "split": split,
            "sha256": digest,
            "clips": {clip: round(lengths[clip], 2) for clip in clips if splits[clip] == split},
        }
        for split in ("train", "validation", "test")
        if split in splits.values()
    ]


def _lengths(clips: Mapping[str, Clip]) -> dict[str, float]:
    """Return the decoded length of each clip, or 0 for audio that is silent or cannot be read."""

    def seconds(clip: Clip) -> float:
        try:
            return audio.load(_bytes(clip) if clip.span else clip.path).size / audio.SAMPLING_RATE
        except AsrlibError:
            return 0.0

    with ThreadPoolExecutor() as pool:
        return dict(zip(clips, pool.map(seconds, clips.values()), strict=True))


def tables() -> str:
    """Return the tables of ``data/README.md``: clips and minutes by split, and clips left out by reason."""
    cards = [card(name, language) for name, languages in names().items() for language in languages]
    splits = ("train", "validation", "test")
    lines = [
        "| corpus | language | " + " | ".join(f"{split}: clips / min" for split in splits) + " | left out |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for one in cards:
        cells = [f"{one.clips[split]} / {one.minutes[split]:.1f}" if split in one.clips else "" for split in splits]
        lines.append(f"| {one.name} | {one.language} | {' | '.join(cells)} | {sum(one.excluded.values())} |")
    reasons = Counter()
    for one in cards:
        reasons.update({(reason, one.name): count for reason, count in one.excluded.items()})
    lines += [
        "",
        f"| left out because | {' | '.join(catalogue.PACKAGED)} |",
        "|---|" + "---:|" * len(catalogue.PACKAGED),
    ]
    for reason in sorted({reason for reason, _ in reasons}):
        lines.append(f"| {reason} | {' | '.join(str(reasons[reason, name] or '') for name in catalogue.PACKAGED)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] = ()) -> None:
    """Write the lists of the named corpora, or of all, and the tables."""
    for name, languages in names().items():
        for language in languages if not arguments or name in arguments else ():
            print(f"{name} {language}", flush=True)
            files.write_jsonl(DATA / "splits" / f"{name}-{language}.jsonl", curate(name, language))
    readme = DATA / "README.md"
    before, start, rest = readme.read_text("utf-8").partition("<!-- tables -->\n")
    after = rest.partition("<!-- end of tables -->")[2]
    files.write_atomic(readme, f"{before}{start}{tables()}\n<!-- end of tables -->{after}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Write the tables of docs/faults.md out of the tests: ``python -m tools.faults``.

A test's name is a sentence; a row of the page is that sentence, and where it is tried. A kind takes the tests whose names
match its pattern, file by file.
"""

from __future__ import annotations

import re
from pathlib import Path

from asrlib.io import files

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- made from the tests by python -m tools.faults -->\n", "<!-- end -->\n"
# Kind: what is promised, and a pattern for each file.
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "Sound that would be lost without a word": (
        "Every recording is heard to its real end, every part of a joined one, and a pipe. What is left out is named, and no "
        "transcript takes the name of another.",
        {
            "audio_faults": "joined|header that was written|piped|pipe|leaves out|lie",
            "cli": "^names|earlier call has made|formats? ",
            "preparation": "one name do not meet|no speech is lost",
        },
    ),
    "Good sound that would be refused": (
        "Every container, width, rate and number of channels that people have is heard.",
        {"audio_faults": "container|cancel|extension|width|high rates|clipped|three hours|film|array"},
    ),
    "Sound that cannot be used": (
        "One sentence names the file and the reason, before memory or time is spent.",
        {"audio_faults": "truncated|not audio|missing|useless|too long|damaged|headers|playlist|blocks"},
    ),
    "Words that nobody said": (
        "Nothing is written in silence, noise, tones and pauses, and no loop is believed; speech beside them stays word for word.",
        {"silence": ".", "longform": "openai whisper|voice detector|text before"},
    ),
    "Times": (
        "Times lie within the clip and in order; no cue is empty or lasts nothing; added words are words, no times.",
        {
            "subtitles": "times",
            "longform": "times",
            "words": "stay in order|beyond the end|cannot be aligned|without words",
            "loading": "added tokens",
            "cli": "words cannot be timed",
        },
    ),
    "One file among many": (
        "A bad file is counted, named by every run and tried again; the others are done, and the exit code is 1. A file that has "
        "changed under its name is done anew.",
        {
            "cli": "bad file|goes on",
            "evaluation": "cannot be read|outcome",
            "preparation": "bad recording|has changed|corrections|breaks later|table with an error",
            "sharding": "failed or has changed|error in the work",
            "distillation": "fails is named",
            "corpora": "recording that cannot be read|clip is left out|lengths are read",
        },
    ),
    "Numbers that would be wrong without a word": (
        "Characters are counted where a language has no spaces; a table of transcripts is read strictly, and a refusal names the line.",
        {
            "text": "words or in characters",
            "cli": "characters|twice",
            "preparation": "no spaces",
            "corpora": "problems|tables of every kind|bundle",
            "text_faults": "scored|aligned",
        },
    ),
    "Letters and signs of other languages": (
        "Two ways to write one text are equal, what differs in a language stays apart, and strange texts are shown as they are.",
        {
            "text": "equal|apart|vowels|twice",
            "text_faults": "normalised|openai|html|unchanged|lines",
            "words": "has spaces",
            "subtitles": "spaces",
            "site": "hostile",
            "demo": "escapes",
        },
    ),
    "Models that cannot be used as they are": (
        "What a folder lacks is derived or taken from its base, with the same weights and words; what cannot be completed is one sentence.",
        {"loading": ".", "exported": "damaged"},
    ),
    "Wrong usage": (
        "One sentence says what is wrong, where, and what can be given: exit code 1, or 2 with the usage; nothing starts.",
        {
            "command_faults": ".",
            "configuration_faults": ".",
            "corpora": "unknown names|region|another set|missing root",
            "cli": "missing file|without audio|language that decides",
            "comparing": "missing|language",
            "streaming": "other forms|standard input alone",
            "model_faults": "command|bytes of a name|right type|notebooks type",
        },
    ),
    "Forged weights, archives and tables": (
        "They are refused; no code of theirs is run, nothing lands outside its folder, and memory and disk stay free.",
        {
            "model_faults": "stranger|hub|safetensors|link|bomb|archive|table|claims",
            "checkpoint_faults": "cut|bytes|forged|architecture|pickled|folders",
            "downloads": "bombs|outside|archive",
            "corpus_faults": "hostile|links",
        },
    ),
    "Network, packages and caches": (
        "What is cut is thrown away or goes on, what is stored is checked, and a sentence says what each source answered.",
        {
            "hub_faults": ".",
            "downloads": "wrong answers|resumes",
            "corpus_faults": "apt|lists|package|cache|read|upstream|source|twice|download",
            "checkpoint_faults": "wheel|checksum|pip|offline|read",
        },
    ),
    "Runs that are killed, stopped or fail": (
        "What has its name is whole, what was finished stays, and the same command goes on; no process is left behind.",
        {
            "kills": ".",
            "run_faults": ".",
            "training_faults": ".",
            "corpus_faults": "killed",
            "checkpoint_faults": "killed|before the end",
            "training": "cut off",
            "distillation": "killed",
            "evaluation": "dies",
            "sharding": "killed",
            "publish": "must not",
        },
    ),
    "The machine": (
        "A full disk, a cache that cannot be written, two runs at once, a clock that goes back: a sentence, or no difference.",
        {"machine_faults": "."},
    ),
}


def tests() -> dict[str, list[str]]:
    """Return the names of all tests, as sentences, by file without ``test_``."""
    paths = sorted((ROOT / "tests").glob("*/test_*.py"))
    return {
        path.stem.removeprefix("test_"): [
            name.replace("_", " ") for name in re.findall(r"^def test_(\w+)", path.read_text("utf-8"), re.MULTILINE)
        ]
        for path in paths
    }


def rows(patterns: dict[str, str], known: dict[str, list[str]]) -> list[str]:
    """Return the rows of a kind: the tests of each file whose names match its pattern."""
    found = [
        (name, file) for file, pattern in patterns.items() for name in known.get(file, ()) if re.search(pattern, name)
    ]
    return [f"| {name} | `test_{file}.py` |" for name, file in found]


def page() -> str:
    """Return docs/faults.md with its tables made anew."""
    before, rest = (ROOT / "docs" / "faults.md").read_text("utf-8").split(START)
    known = tests()
    found = {kind: (promise, rows(patterns, known)) for kind, (promise, patterns) in KINDS.items()}
    listed = {row for _, listing in found.values() for row in listing}
    others = rows({file: "." for file in known if file.endswith("_faults")}, known)
    found["Besides"] = ("What belongs to none of these kinds.", [row for row in others if row not in listed])
    parts = [
        "\n".join([f"## {kind}", "", promise, "", "| tried | in |", "|---|---|", *listing, ""])
        for kind, (promise, listing) in found.items()
        if listing
    ]
    return f"{before}{START}\n" + "\n".join(parts) + f"\n{END}" + rest.split(END)[1]


if __name__ == "__main__":
    files.write_atomic(ROOT / "docs" / "faults.md", page())

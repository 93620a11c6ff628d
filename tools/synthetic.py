"""Let a synthesizer speak sentences, where a student needs more words than there is speech: a folder for `asrlib distil`.

    python -m tools.synthetic FOLDER [--words N]

The sentences are the examples of WordNet 3.0 (Debian: wordnet-base), the voices those of Flite (Debian: flite). The folder gets one FLAC a
sentence, ``corpus.json`` (title, licence, attribution) and ``metadata.csv`` with two splits: ``train``, where neighbours have one voice and
can be packed, and ``short``, an eighth of them. Longer texts would do as well; single phrases of many kinds have more words a minute.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from asrlib.io import files

WORDNET = Path("/usr/share/wordnet")
VOICES = ("slt", "rms", "awb", "kal16")
CARD = {
    "title": "Synthetic speech (examples of WordNet 3.0, spoken by Flite 2.2)",
    "licence": "text: WordNet 3.0 licence (use, copy, modify and distribute with its notice); voices: free, like Flite's own licence",
    "attribution": "WordNet 3.0, Copyright 2006 by Princeton University; Flite, Carnegie Mellon University",
}
IN_A_ROW = 12  # sentences of one voice: about what fills a window of 30 s
AT_ONCE = 2  # programs
SENTENCE = re.compile(r"[A-Za-z][A-Za-z ,.;:'?!-]+")


def sentences(folder: Path) -> list[str]:
    """Return the examples of use in WordNet's data files, each once, in their order."""
    found: dict[str, None] = {}
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text("latin-1").splitlines():
            gloss = line.partition("|")[2]
            found |= {
                text: None for text in re.findall(r'"([^"]+)"', gloss) if SENTENCE.fullmatch(text) and " " in text
            }
    return list(found)


def speak(text: str, voice: str, stretch: float) -> bytes:
    """Return a sentence as FLAC: 16 kHz, mono, ``stretch`` times as long as the voice speaks by itself."""
    command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch:.2f}", "-t", text, "-o", "/dev/stdout"]
    sound = subprocess.run(command, check=True, capture_output=True).stdout
    samples = np.frombuffer(sound[44:], "<i2")  # behind the header of a WAV file
    stream = io.BytesIO()
    soundfile.write(stream, samples, 16_000, format="FLAC")
    return stream.getvalue()


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--words", type=int, default=130_000)
    options = parser.parse_args()
    if not shutil.which("flite") or not WORDNET.is_dir():
        raise SystemExit("flite or WordNet is missing: install Debian's packages flite and wordnet-base.")
    random = np.random.default_rng(0)
    texts = sentences(WORDNET)
    texts = [texts[place] for place in random.permutation(len(texts))]
    ends = np.cumsum([len(text.split()) for text in texts])
    texts = texts[: int(np.searchsorted(ends, options.words)) + 1]
    stretches = random.uniform(0.85, 1.2, len(texts))
    rows = []
    for number, text in enumerate(texts):
        voice = VOICES[number // IN_A_ROW % len(VOICES)]
        split = "short" if number >= len(texts) - len(texts) // 8 else "train"
        rows.append(
            {
                "file_name": f"{number:06d}.flac",
                "transcription": text,
                "language": "en",
                "speaker": voice,
                "split": split,
            }
        )

    def write(place: int) -> None:
        files.write_atomic(
            options.folder / rows[place]["file_name"], speak(texts[place], rows[place]["speaker"], stretches[place])
        )

    options.folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(write, range(len(rows))))
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    files.write_atomic(options.folder / "corpus.json", json.dumps(CARD, indent=1) + "\n")
    files.write_atomic(options.folder / "metadata.csv", table.getvalue())


if __name__ == "__main__":
    main()

"""How the cost of transcription grows: 1 to 1,000 clips, and 10 s to 2 h of one recording. Part of ``make bench``.

Each size runs in a fresh process, so that its peak of memory is its own. Many clips must not need more memory than a window of
them. One recording is heard window after window, so its memory grows with its samples and its features alone.
Writes ``build/bench/growth.json`` and ``growth.png``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from asrlib import figures, hardware
from asrlib.io import files
from asrlib.training import metering

MODEL = "openai/whisper-tiny.en"
CLIPS = [1, 10, 100, 1000]
SECONDS = [10, 60, 600, 7200]


def clips(model_id: str, number: int) -> tuple[float, float]:
    """Transcribe so many clips; return (seconds of speech, seconds of computing)."""
    from itertools import cycle, islice

    from asrlib import corpora
    from asrlib.decoding import transcription

    rows = corpora.load("telephone", "en", "test")
    model, processor = transcription.load(model_id)
    heard = spent = 0.0
    for item in transcription.transcribe(model, processor, islice(cycle(rows), number), window="merged"):
        heard, spent = heard + item.seconds_audio, spent + item.seconds_compute
    return heard, spent


def recording(model_id: str, seconds: int) -> tuple[float, float]:
    """Transcribe one recording of about so many seconds; return (its length, seconds of computing)."""
    from itertools import cycle

    from asrlib import audio, corpora
    from asrlib.decoding import transcription

    rows = corpora.load("telephone", "en", "test").filter(lambda row: row["seconds"] < 8)
    joined = audio.stitch(cycle(rows), seconds=seconds)
    model, processor = transcription.load(model_id)
    (heard,) = transcription.transcribe(model, processor, [joined.audio], timestamps=True)
    return heard.seconds_audio, heard.seconds_compute


def measure(clip_counts: list[int], lengths: list[int]) -> list[dict]:
    """Run every size in a fresh process."""
    rows = []
    for kind, work, sizes in (("clips", clips, clip_counts), ("recording", recording, lengths)):
        for size in sizes:
            (heard, spent), rise = metering.in_fresh_process(work, MODEL, size)
            rows.append({"kind": kind, "size": size, "speech_s": heard, "compute_s": spent, "memory_mib": rise})
            print(line(rows[-1]), flush=True)
    return rows


def line(row: dict) -> str:
    """Return what was measured at one size as a person reads it."""
    what = f"{row['size']:,} clips" if row["kind"] == "clips" else f"one recording of {row['size']:,} s"
    rate = row["speech_s"] / row["compute_s"]
    return f"{what:>24}: RTFx {rate:5.1f}, {row['compute_s']:6.1f} s of computing, memory {row['memory_mib']:4.0f} MiB"


def plot(rows: list[dict], path: Path) -> None:
    """Draw computing time and memory against the seconds of speech."""
    import matplotlib.pyplot as plt

    figures.use_style()
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    for kind in ("clips", "recording"):
        chosen = [row for row in rows if row["kind"] == kind]
        speech = [row["speech_s"] for row in chosen]
        axes[0].loglog(speech, [row["compute_s"] for row in chosen], "o-", label=kind)
        axes[1].semilogx(speech, [row["memory_mib"] for row in chosen], "o-", label=kind)
    axes[0].set(xlabel="speech (s)", ylabel="computing (s)")
    axes[1].set(xlabel="speech (s)", ylabel="rise of memory (MiB)")
    axes[0].legend()
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Measure, print, write record and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, nargs="*", default=CLIPS)
    parser.add_argument("--seconds", type=int, nargs="*", default=SECONDS)
    arguments = parser.parse_args()
    rows = measure(arguments.clips, arguments.seconds)
    folder = (files.repository() or Path.cwd()) / "build" / "bench"
    record = {"machine": hardware.describe(), "model": MODEL, "sizes": rows}
    files.write_atomic(folder / "growth.json", json.dumps(record, indent=1) + "\n")
    files.write_atomic(
        folder / "growth.txt", "".join(f"{line(row)}\n" for row in rows)
    )  # docs/speed.md shows a committed one
    plot(rows, folder / "growth.png")
    print(f"\nrecord and plot: {folder}")


if __name__ == "__main__":
    main()

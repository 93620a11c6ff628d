"""How far evaluation scales: 1,000 hours through the real pipeline with a model that answers at once. Part of ``make bench``.

Everything but features and model is real: reading ahead, batches by length, shards on disk, merging, scoring, the bootstrap. So
what is measured is what the pipeline itself costs, and whether its memory grows. With the measured cost of real clips and of
loading a model that gives the hours of 1, 8 and 64 such machines, and the number of them beyond which the part that the first
process does alone takes longer than the shared part. Writes ``build/bench/scale.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from asrlib import hardware
from asrlib.io import files
from asrlib.training import metering

MODEL = "openai/whisper-base"
HOURS = [10, 100, 1000]
PROCESSES = [1, 8, 64]
CLIPS = 100


def pipeline(hours: float) -> dict[str, float]:
    """Evaluate so many simulated hours; return clips, seconds of the shared part and of the part of the first process."""
    import tempfile

    import numpy as np

    from asrlib import audio, corpora, whisper
    from asrlib.decoding import batching
    from asrlib.tasks import evaluation

    rows = corpora.load("telephone", "en", "test").select(range(64))
    some = list({row["seconds"]: {**row, "audio": audio.load(row["audio"])} for row in rows}.values())
    texts = {len(row["audio"]): row["text"] for row in some}
    total, seconds = 0.0, []
    while total < 3600 * hours:
        seconds.append(some[len(seconds) % len(some)]["seconds"])
        total += seconds[-1]

    class Corpus:
        """Some clips again and again, as a table."""

        column_names = ("seconds",)

        def __len__(self) -> int:
            return len(seconds)

        def __getitem__(self, key: str | int) -> object:
            return seconds if key == "seconds" else {**some[key % len(some)], "id": f"{key:07d}", "speaker": ""}

    class Instant:
        """An engine that knows what is said and leaves out every tenth clip."""

        timestamps = False

        def fits(self, clip: batching.Clip) -> bool:
            return True

        def width(self, clip: batching.Clip) -> int:
            return whisper.POSITIONS

        def features(self, clips: list[batching.Clip]) -> np.ndarray:
            return np.zeros(len(clips))

        def decode(self, clips: list[batching.Clip], features: np.ndarray) -> list[tuple[str, str, tuple]]:
            return [("" if clip.index % 10 == 0 else texts[len(clip.samples)], "en", ()) for clip in clips]

    def hear(clips: object) -> object:
        rows = ({"id": name, "audio": sound} for name, sound in clips)
        for heard in batching.run(Instant(), rows):
            ended.append(time.perf_counter())
            del ended[:-1]
            yield heard

    ended, started = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = evaluation.evaluate(Corpus(), hear, folder, language="en", run={}, tokens=len)
    finished = time.perf_counter()
    return {
        "hours": total / 3600, "clips": len(seconds), "shared_s": ended[0] - started, "alone_s": finished - ended[0],
        "wer_percent": 100 * found.score.wer,
    }  # fmt: skip


def real(number: int) -> dict[str, float]:
    """Transcribe so many clips with the real model; return seconds of loading, of speech and of computing."""
    from itertools import cycle, islice

    from asrlib import corpora
    from asrlib.decoding import transcription

    started = time.perf_counter()
    model, processor = transcription.load(MODEL)
    loading = time.perf_counter() - started
    rows = islice(cycle(corpora.load("telephone", "en", "test")), number)
    heard = list(transcription.transcribe(model, processor, rows, language="en"))
    speech, computing = (sum(getattr(item, f"seconds_{kind}") for item in heard) for kind in ("audio", "compute"))
    return {"clips": number, "loading_s": loading, "speech_s": speech, "computing_s": computing}


def project(simulated: dict[str, float], measured: dict[str, float], processes: list[int]) -> dict:
    """Return hours by number of processes, and the number of them at which the shared part takes as long as the rest.

    Args:
        simulated: of `pipeline`, its largest size.
        measured: of `real`.
        processes: numbers, each on a machine of its own like this one.
    """
    rate = measured["computing_s"] / measured["speech_s"]  # seconds for a second of speech
    shared = 3600 * simulated["hours"] * rate + simulated["shared_s"]
    alone = measured["loading_s"] + simulated["alone_s"]
    return {
        "hours": {number: (shared / number + alone) / 3600 for number in processes},
        "even_at": shared / alone,
    }


def told(record: dict) -> str:
    """Return a record as the lines that a person reads."""
    sizes, real = record["sizes"], record["real"]
    lines = []
    for size in sizes:
        cost = 1e6 * (size["shared_s"] + size["alone_s"]) / size["clips"]
        memory = f"memory {size['memory_mib']:.0f} MiB"
        lines.append(f"{size['hours']:>6,.0f} h, {size['clips']:,} clips: {cost:.0f} us a clip, {memory}")
    one = real["computing_s"] / real["clips"]
    lines.append(f"{record['model']}: {1e3 * one:.0f} ms a clip, loading {real['loading_s']:.1f} s")
    for number, hours in record["projected"]["hours"].items():
        lines.append(f"{sizes[-1]['hours']:,.0f} h of speech on {number:>2} machines like this one: {hours:.1f} h")
    even = f"Beyond {record['projected']['even_at']:,.0f} of them"
    return "\n".join([*lines, f"{even} the first process's own part takes longer than the shared one."])


def main() -> None:
    """Measure, print, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, nargs="*", default=HOURS)
    parser.add_argument("--clips", type=int, default=CLIPS)
    arguments = parser.parse_args()
    sizes = []
    for hours in arguments.hours:
        found, rise = metering.in_fresh_process(pipeline, hours)
        sizes.append(found | {"memory_mib": rise})
    measured, _ = metering.in_fresh_process(real, arguments.clips)
    record = {"machine": hardware.describe(), "model": MODEL, "sizes": sizes, "real": measured}
    record["projected"] = project(sizes[-1], measured, PROCESSES)
    print(told(record))
    folder = (files.repository() or Path.cwd()) / "build" / "bench"
    files.write_atomic(folder / "scale.txt", told(record) + "\n")  # docs/scale.md shows a committed one
    print(f"\nrecord: {files.write_atomic(folder / 'scale.json', json.dumps(record, indent=1) + chr(10))}")


if __name__ == "__main__":
    main()

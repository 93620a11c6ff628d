"""What several fault tests stand on: a small corpus with its package manager, a small checkpoint, an empty cache."""

import json
import os

import numpy as np
import pytest
import soundfile
from programs import SHARE

from asrlib.corpora import catalogue
from tools import curate

# The command apt-get, as far as the fetch uses it; FAKE_APT says how it fares and counts its downloads.
FAKE_APT = """#!/bin/sh
case "$*" in
  *update*) touch "$FAKE_APT/updated"; exit 0 ;;
esac
if [ -e "$FAKE_APT/stale" ] && [ ! -e "$FAKE_APT/updated" ]; then echo "E: Unable to locate package"; exit 100; fi
if [ -e "$FAKE_APT/offline" ]; then echo "E: Failed to fetch it  Temporary failure"; exit 100; fi
echo download >> "$FAKE_APT/log"
if [ -e "$FAKE_APT/kill" ]; then head -c 1000 "$FAKE_APT/pocketsphinx-testdata_9_all.deb" > ./half.deb; kill -9 $PPID; exit 1; fi
cp "$FAKE_APT"/*.deb .
"""


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Return a place with a small audiobook package, an apt-get that serves it, no upstream, and an empty cache."""
    place = tmp_path / "a wörld"
    tree = place / "tree"
    (tree / SHARE).mkdir(parents=True)
    for number in range(3):
        samples = 0.2 * np.random.default_rng(number).standard_normal(16_000 * 2)
        soundfile.write(tree / SHARE / f"clip-{number}.wav", samples, 16_000)
    lines = [f"<s> sentence number {word} </s> (clip-{n})\n" for n, word in enumerate(("one", "two", "three"))]
    (tree / SHARE / "transcription").write_text("".join(lines))
    monkeypatch.setenv("ASRLIB_CACHE", str(place / "cache"))
    monkeypatch.setenv("ASRLIB_DATA", str(tree))
    rows = curate.curate("audiobook", "en")
    monkeypatch.delenv("ASRLIB_DATA")
    monkeypatch.setattr(catalogue, "manifest", lambda name, language: rows)
    monkeypatch.setitem(catalogue.table()["audiobook"], "upstream", "http://127.0.0.1:9/pocketsphinx-5prealpha.tar.gz")
    (place / "rows.json").write_text(json.dumps(rows))

    apt = place / "apt"
    (apt / "bin").mkdir(parents=True)
    (apt / "bin" / "apt-get").write_text(FAKE_APT)
    (apt / "bin" / "apt-get").chmod(0o755)
    monkeypatch.setenv("FAKE_APT", str(apt))
    monkeypatch.setenv("PATH", f"{apt / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return place

"""Programs that fault tests run in processes of their own, and the Debian package that one of them fetches."""

import shutil
import subprocess
from pathlib import Path

import pytest

SHARE = "usr/share/pocketsphinx/test/data/librivox"
needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="builds Debian packages")

# Fetch a corpus whose list is in a file, and print the number of its clips.
FETCH = """
import json, sys
from asrlib import AsrlibError, corpora
from asrlib.corpora import catalogue
rows = json.load(open(sys.argv[1]))
catalogue.manifest = lambda name, language: rows
try:
    print(len(list(corpora.fetch("audiobook").rglob("*.wav"))))
except AsrlibError as error:
    sys.exit(f"asrlib: {error}")
"""
# Run command lines of asrlib one after the other, in float32 on the CPU, and compare their exit codes; for torchrun.
TWO = """
import json, sys, torch
from asrlib import cli, hardware
hardware.best_device, hardware.best_dtype = lambda: "cpu", lambda device=None: torch.float32
codes = []
for arguments in json.loads(sys.argv[1]):
    try:
        codes.append(cli.main(arguments))
    except SystemExit as ended:
        codes.append(ended.code)
sys.exit(codes != json.loads(sys.argv[2]))
"""
COMMAND = "import json, sys\nfrom asrlib import cli\nsys.exit(cli.main(json.loads(sys.argv[1])))"
CONVERT = "import sys\nfrom asrlib.models import checkpoints\ncheckpoints.fetch(sys.argv[1], 'openai')"
EVALUATE = """
import json, sys
from asrlib import AsrlibError
from asrlib.decoding import batching
from asrlib.tasks import evaluation, sharding
sharding.WINDOW_CLIPS = 3
def hear(clips):
    for name, words in clips:
        print("heard")
        yield batching.Hypothesis(name, words.rpartition(" ")[0], "en", 2.0, 0.5)
table = json.load(open(sys.argv[1]))
try:
    print(evaluation.evaluate(table, hear, sys.argv[2], language="en", run={}, tokens=len).score)
except AsrlibError as error:
    sys.exit(f"asrlib: {error}")
"""
RUN = """
import signal, sys
from pathlib import Path
from asrlib import cli
from asrlib.io import files
files.repository = Path.cwd
sys.exit(cli.main(["run", "--profile", "smoke"]))
"""


def build_package(world: Path) -> Path:
    control = world / "tree" / "DEBIAN" / "control"
    control.parent.mkdir(exist_ok=True)
    control.write_text(
        "Package: pocketsphinx-testdata\nVersion: 9\nArchitecture: all\nMaintainer: none\nDescription: test\n"
    )
    package = world / "apt" / "pocketsphinx-testdata_9_all.deb"
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", world / "tree", package], check=True, capture_output=True
    )
    return package

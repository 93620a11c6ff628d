import io
import sys

from asrlib.io import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_terminal_line_is_erased(monkeypatch):
    monkeypatch.delenv("ASRLIB_PROGRESS", raising=False)
    monkeypatch.setenv("ASRLIB_HEADLESS", "1")
    monkeypatch.setattr(progress, "INTERVAL", 0)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert list(progress.track(range(3), "clips")) == [0, 1, 2]
    assert "clips: 2/3" in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[K")


def test_pipe_stays_clean(monkeypatch):
    monkeypatch.delenv("ASRLIB_PROGRESS", raising=False)
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    list(progress.track(range(3), "clips"))
    assert pipe.getvalue() == ""


def test_runner_reads_a_file_and_a_full_disk_ends_nothing(monkeypatch, tmp_path):
    path = tmp_path / "progress"
    monkeypatch.setattr(progress, "INTERVAL", 0)
    monkeypatch.setenv("ASRLIB_PROGRESS", str(path))
    with progress.Meter("fetching", total=2e6, unit="B") as meter:
        meter.step(1e6)
        assert path.read_text().startswith("fetching: 1/2 MB")
        monkeypatch.setenv("ASRLIB_PROGRESS", str(tmp_path / "missing" / "progress"))
        meter.step(1)
        monkeypatch.setenv("ASRLIB_PROGRESS", str(path))
    assert path.read_text() == ""  # what is over is not shown any longer

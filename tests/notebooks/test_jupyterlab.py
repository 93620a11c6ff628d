"""JupyterLab, driven in a headless browser, opens every notebook, and runs one from top to bottom."""

import os
import shutil
import socket
import subprocess
import sys

import nbformat
import pytest

from asrlib.course import registry
from asrlib.io import files

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ROOT = files.repository()
BOOKS = registry.read(ROOT)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
OPEN = """async path => {
    const widget = await window.jupyterapp.commands.execute('docmanager:open', {path: path, factory: 'Notebook'});
    await widget.context.ready;
    return Array.from(widget.content.model.cells, cell => cell.type);
}"""
IDLE = "window.jupyterapp.shell.currentWidget.sessionContext.kernelDisplayStatus === 'idle'"
RUN = """async () => {
    await window.jupyterapp.commands.execute('notebook:run-all-cells');
    await window.jupyterapp.commands.execute('docmanager:save');
}"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Serve a copy of the course, so that this checkout's notebooks stay as they are; return its folder and a page."""
    root = tmp_path_factory.mktemp("course")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    for name in ("data", "results", "pyproject.toml", "requirements.lock"):
        (root / name).symlink_to(ROOT / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inherited = {
        name: value for name, value in os.environ.items() if name != "ASRLIB_HEADLESS"
    }  # here is someone who looks
    settings = {"JUPYTER_CONFIG_DIR": root / "config", "JUPYTER_DATA_DIR": root / "own", "ASRLIB_PROFILE": "smoke"}
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser", f"--port={port}",
         "--IdentityProvider.token=", "--LabApp.news_url=", f"--ServerApp.root_dir={root}"],
        stderr=subprocess.PIPE, text=True, env=inherited | {name: str(value) for name, value in settings.items()},
    )  # fmt: skip
    try:
        next(line for line in server.stderr if "is running at" in line)
        with playwright.sync_playwright() as browsers:
            browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{port}/lab?reset")
            page.wait_for_function("window.jupyterapp && window.jupyterapp.started", timeout=120_000)
            page.evaluate("() => window.jupyterapp.restored")
            yield root, page
            browser.close()
    finally:
        server.terminate()
        server.communicate()


@pytest.mark.parametrize("book", BOOKS.values(), ids=list(BOOKS))
def test_it_opens(lab, book):
    found = lab[1].evaluate(OPEN, f"notebooks/{book.path.name}")
    cells = nbformat.read(book.path, as_version=nbformat.NO_CONVERT).cells
    assert found == [cell.cell_type for cell in cells]


def test_the_first_notebook_runs_from_top_to_bottom(lab):
    root, page = lab
    name = next(iter(BOOKS.values())).path.name
    page.evaluate(OPEN, f"notebooks/{name}")
    page.wait_for_function(IDLE)  # before that, a dialog asks for a kernel
    page.evaluate(RUN)
    code = [cell for cell in nbformat.read(root / "notebooks" / name, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert "smoke" in str([output for cell in code for output in cell.outputs])

"""JupyterLab as a reader has it: lessons opened in Chromium, run from the menu, a slider moved. No browser: skipped."""
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import websocket

ROOT = Path(__file__).resolve().parent.parent.parent
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: JupyterLab was not tried in a browser")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def running(command: list[str], folder: Path, **env: str):
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=os.environ | env)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def until(found, seconds: float, what: str):
    """What `found` gives as soon as it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if result := found():
                return result
        except (OSError, RuntimeError):
            pass
        time.sleep(0.5)
    raise AssertionError(f"{what}: not within {seconds} s")


class Page:
    """A page of a browser with remote debugging: JavaScript, clicks, keys, screenshots."""

    def __init__(self, port: int):
        pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json"))
        page = next(page for page in pages if page["type"] == "page")
        self.socket, self.calls = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=300), 0
        self.call("Page.enable")

    def call(self, method: str, **parameters) -> dict:
        self.calls += 1
        self.socket.send(json.dumps({"id": self.calls, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("method") == "Page.javascriptDialogOpening":  # leave the notebook before, unsaved
                leave = {"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                self.socket.send(json.dumps(leave))
            if answer.get("id") == self.calls:
                return answer["result"]

    def js(self, expression: str):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description"))
        return answer["result"].get("value")

    def click(self, selector: str, text: str = "") -> None:
        place = until(lambda: self.js(
            f"(() => {{ const found = [...document.querySelectorAll({json.dumps(selector)})]"
            f".find(e => e.textContent.startsWith({json.dumps(text)}) && e.offsetParent); if (!found) return null;"
            "found.scrollIntoView({block: 'center'}); const r = found.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2] })()"), 30, f"{selector} {text}")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def key(self, name: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)


PANEL = "[...jupyterapp.shell.widgets('main')].at(-1)"
CELLS = f"{PANEL}.content.widgets.filter(c => c.model.type == 'code')"
IDLE = f"{PANEL}.sessionContext.session?.kernel?.status == 'idle'"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on copies of the notebooks, and a page of a browser."""
    folder, (port, debug) = tmp_path_factory.mktemp("lab"), (free_port(), free_port())
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    for name in ("data", "benchmarks", "fsmerge_lite"):
        (folder / name).symlink_to(ROOT / name)
    server = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
              "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
    browser = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               "--disable-sync", "--no-first-run", "--window-size=1400,1000", f"--remote-debugging-port={debug}",
               "--remote-allow-origins=*", f"--user-data-dir={folder / 'profile'}", "about:blank"]
    with running(server, folder, JUPYTER_CONFIG_DIR=str(folder / "config")), running(browser, folder):
        until(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/lab").status == 200, 90, "JupyterLab answers")
        until(lambda: urllib.request.urlopen(f"http://127.0.0.1:{debug}/json").status == 200, 60, "Chromium answers")
        yield Page(debug), f"http://127.0.0.1:{port}/lab/tree/notebooks/"


def run_from_menu(lab, name: str) -> Page:
    page, address = lab
    page.call("Emulation.setFocusEmulationEnabled", enabled=True)  # the menu acts on what has the focus
    page.call("Page.navigate", url=f"{address}{name}.ipynb?reset")
    until(lambda: page.js(f"{PANEL}.context.path.includes('{name}') && {CELLS}.length > 5 && {IDLE}"), 120, "open")
    page.js(f"{CELLS}.forEach(cell => cell.model.clearExecution())")
    page.click(".jp-Notebook h1")
    page.click(".lm-MenuBar-itemLabel", "Run")
    page.click(".lm-Menu-itemLabel", "Run All Cells")
    outputs = f"{CELLS}.flatMap(c => c.model.sharedModel.outputs.map(o => o.output_type))"
    until(lambda: page.js(f"{CELLS}.every(cell => cell.model.executionCount) && {IDLE} || {outputs}.includes('error')"),
          300, "it ran")
    assert len(page.js(outputs)) > 10 and "error" not in page.js(outputs)
    return page


def keep(page: Page, name: str) -> None:
    """A screenshot for whoever asks for it with FSMERGE_SCREENSHOTS."""
    if folder := os.environ.get("FSMERGE_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(page.call("Page.captureScreenshot")["data"]))


# One lesson is enough to see that they open and run; whoever asks for screenshots gets them of all.
LESSONS = {path.stem: path.read_text() for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
ALL = "FSMERGE_SCREENSHOTS" in os.environ
TRIED = list(LESSONS) if ALL else ["03_merge_and_unmerge"]
WITH_CONTROLS = [name for name, text in LESSONS.items() if "explore(" in text] if ALL else ["05_low_rank"]


@pytest.mark.parametrize("lesson", TRIED)
def test_a_lesson_runs_from_the_menu_and_its_pictures_have_texts(lab, lesson):
    page = run_from_menu(lab, lesson)
    pictures = "[...document.querySelectorAll('.jp-RenderedImage img')]"
    found = page.js(f"{pictures}.map(i => i.naturalWidth)")
    assert found and min(found) > 100
    words = page.js("[...document.querySelectorAll('.jp-OutputArea details')].map(d => d.textContent)")
    assert len(words) == len(found) and all(text.startswith("In words") and len(text) > 30 for text in words)
    assert page.js("document.querySelectorAll('mjx-merror, .MathJax_Error').length") == 0, "a formula that does not set"
    for n in range(len(found)):
        page.js(f"{pictures}[{n}].scrollIntoView({{block: 'end'}})")
        keep(page, f"{lesson}-{n}")


@pytest.mark.parametrize("lesson", WITH_CONTROLS)
def test_every_control_moves_its_picture(lab, lesson):
    page = run_from_menu(lab, lesson)
    boxes = "[...document.querySelectorAll('.jp-OutputArea-output .widget-vbox')]"
    count = until(lambda: page.js(f"{boxes}.length"), 30, "controls")
    for box in range(count):
        shown = f"{boxes}[{box}].querySelector('img').src"
        page.js(f"{boxes}[{box}].scrollIntoView({{block: 'center'}})")
        for control in range(page.js(f"{boxes}[{box}].children.length") - 1):
            before = until(lambda shown=shown: page.js(shown), 30, "a picture")
            place = f"{boxes}[{box}].children[{control}]"
            if page.js(f"Boolean({place}.querySelector('.noUi-handle'))"):
                page.js(f"{place}.querySelector('.noUi-handle').focus()")
                page.key("ArrowRight", 39)
            else:
                page.js(f"{place}.querySelector('button:not(.mod-active)').click()")
            until(lambda shown=shown, before=before: page.js(shown) != before, 30, f"control {control} changes it")
        keep(page, f"{lesson}-control-{box}")

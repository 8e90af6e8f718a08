"""The page in a real browser: what a forecaster sees, read from the DOM."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from websockets.sync.client import connect

from nowcast.core import cube
from nowcast.core.grid import Grid
from nowcast.web.publish import publish

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]


class Browser:
    """One page of a headless Chromium, driven over its remote debugging socket."""

    def __init__(self, profile: Path) -> None:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--disable-extensions", "--disable-background-networking", "--remote-debugging-port=0"]
        command = [CHROMIUM, *flags, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        note = profile / "DevToolsActivePort"
        _until(lambda: note.exists() and note.read_text().count("\n") >= 1, "chromium did not start")
        port = note.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            pages = [target for target in json.load(answer) if target["type"] == "page"]
        self.socket = connect(pages[0]["webSocketDebuggerUrl"], max_size=None)
        self.count, self.errors = 0, []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **params: object) -> dict:
        """Sends one command and waits for its answer; errors that the page reports meanwhile are kept."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=20))
            if message.get("id") == self.count:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict) -> None:
        params = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        if message["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def js(self, expression: str) -> object:
        answer = self.command("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def text(self, identity: str) -> str:
        return str(self.js(f"document.getElementById({identity!r})?.innerText ?? ''"))

    def wait(self, expression: str, looks: int = 500) -> None:
        _until(lambda: self.js(expression), f"never true: {expression}", looks)

    def open(self, url: str) -> None:
        """Opens an address anew, also where only its hash differs, and waits for the first picture."""
        self.command("Page.navigate", url="about:blank")
        self.errors.clear()
        self.command("Page.navigate", url=url)
        self.wait("document.getElementById('stamp')?.dataset.kind.replace('none', '')")

    def press(self, key: str) -> None:
        self.js(f"document.body.dispatchEvent(new KeyboardEvent('keydown', {{key: {key!r}, bubbles: true}}))")

    def mouse(self, kind: str, x: float, y: float, **more: object) -> None:
        self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def screen(self, width: int, height: int, *, dark: bool = False, ratio: float = 1) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=ratio, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(10)


def _until(condition, complaint: str, looks: int = 1500) -> None:  # longer than two polls of the page
    for _ in range(looks):
        if condition():
            return
        time.sleep(0.03)
    pytest.fail(complaint)


# --- data: a band of rain that moves east, on a grid whose pixels are easy to count --------------

GRID = Grid.regular("EPSG:3035", (120, 160), upper_left=(3_900_000, 3_300_000), pixel=(2000, 2000))
START, STEP, FRAMES, LEADS = np.datetime64("2024-05-01T10:00", "ns"), np.timedelta64(300, "s"), 7, 4
NEWEST = START + (FRAMES - 1) * STEP


def band(step: int) -> np.ndarray:
    """Rain of 1, 2, 3 … mm/h by row in ten columns, no radar in a corner, dry elsewhere."""
    field = np.zeros(GRID.shape, np.float32)
    field[:, 20 + 5 * step : 30 + 5 * step] = 1 + np.arange(120, dtype=np.float32)[:, None]
    field[:60, :8] = np.nan
    return field


def forecast(rows: list[tuple]) -> xr.Dataset:
    """Rows of (frames before the newest, model, producer, state, reason)."""
    back, model, producer, state, reason = (np.asarray(column, object) for column in zip(*rows, strict=True))
    reference = NEWEST - back.astype(int) * STEP
    fields = np.stack([[band(FRAMES - 1 - gone + lead) for lead in range(1, LEADS + 1)] for gone in back])
    fields[state == "withheld"] = np.nan
    labels = {"model": model, "producer": producer, "state": state, "reason": reason}
    return xr.Dataset(
        {"rainfall_rate": (("run", "lead_time", "y", "x"), fields)},
        coords={key: ("run", values) for key, values in labels.items()}
        | {"forecast_reference_time": ("run", reference), "created": ("run", reference + np.timedelta64(60, "s"))}
        | {"lead_time": STEP * np.arange(1, LEADS + 1)}
        | GRID.coordinates(),
    )


def skill(forecasts: xr.Dataset) -> xr.Dataset:
    """Every lead of every run with 6 hits, 2 misses and 2 false alarms: CSI 0.6."""
    shape = (forecasts.sizes["run"], LEADS)
    counts = {"hits": 6, "misses": 2, "false_alarms": 2, "correct_negatives": 90}
    table = {name: (("run", "lead_time", "threshold"), np.full((*shape, 2), n)) for name, n in counts.items()}
    for name in ("n", "squared_error", "absolute_error", "error", "frames", "ssim"):
        table[name] = (("run", "lead_time"), np.full(shape, {"n": 100, "frames": 1}.get(name, 0.5)))
    labels = ("forecast_reference_time", "model", "producer", "lead_time")
    return xr.Dataset(table, coords={name: forecasts[name] for name in labels} | {"threshold": [1.0, 5.0]})


OK = [
    (2, "net", "net", "ok", ""),
    (2, "flow", "flow", "ok", ""),
    (0, "net", "net", "ok", ""),
    (0, "flow", "flow", "ok", ""),
]
FALLBACK = [*OK[:2], (0, "net", "flow", "fallback", "the GPU is lost"), (0, "flow", "flow", "ok", "")]
WITHHELD = [*OK[:2], (0, "net", "", "withheld", "only 2 of 4 frames arrived"), (0, "flow", "flow", "ok", "")]


def build(
    folder: Path, rows: list[tuple], *, frames: int = FRAMES, checkpoint: Sequence[str] = (), **settings: object
) -> Path:
    fields = np.stack([band(step) for step in range(frames)])
    observed = cube.make({"rainfall_rate": fields}, START + STEP * np.arange(frames), GRID, cadence=300)
    forecasts = forecast(rows)
    if checkpoint:
        forecasts = forecasts.assign_coords(checkpoint=("run", np.asarray(checkpoint, object)))
    publish(observed, forecasts, skill(forecasts), folder, title="Test radar", **settings)
    return folder


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder behind the plainest of servers: the page must not need ours."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    page = Browser(tmp_path_factory.mktemp("profile"))
    page.screen(1200, 800)
    yield page
    page.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(build(tmp_path_factory.mktemp("ok"), OK)) as url:
        yield url


FRESH = "?now=2024-05-01T10:33:00Z"


def at_pixel(browser: Browser, column: float, row: float) -> tuple[float, float]:
    """Place on screen of a pixel of the picture."""
    scale, left, top, aspect = map(float, str(browser.js("document.getElementById('map').dataset.view")).split(","))
    box = browser.js("(r => [r.left, r.top])(document.getElementById('map').getBoundingClientRect())")
    return box[0] + left + column * scale, box[1] + top + row * scale * aspect


# --- what a forecaster sees -----------------------------------------------------------------------


def test_opens_on_the_newest_radar_frame_without_errors(browser: Browser, site: str) -> None:
    browser.open(site + FRESH)
    assert browser.text("kind") == "Observed"
    assert browser.text("valid").startswith("10:30")
    assert browser.js("document.title") == "Test radar"
    assert browser.js("[...document.querySelectorAll('.tick')].map(t => t.className.split(' ')[1]).join()") == ",".join(
        ["observed"] * FRAMES + ["forecast"] * LEADS
    )
    assert browser.js("document.querySelector('.flag').textContent") == "now"
    assert browser.js("getComputedStyle(document.getElementById('banner')).display") == "none"
    assert browser.errors == []


def test_steps_plays_and_returns_to_now_by_key(browser: Browser, site: str) -> None:
    browser.open(site + FRESH)
    browser.press("ArrowRight")
    browser.wait("document.getElementById('kind').innerText === 'Forecast +5 min'")
    assert browser.text("valid").startswith("10:35")
    browser.press("End")
    browser.wait("document.getElementById('kind').innerText === 'Forecast +20 min'")
    browser.press("Home")
    browser.wait("document.getElementById('valid').innerText.startsWith('10:00')")
    browser.press(" ")
    browser.wait("document.getElementById('valid').innerText.startsWith('10:10')")
    browser.press(" ")
    assert browser.js("document.getElementById('play').getAttribute('aria-label')") == "Play"
    browser.press("n")
    browser.wait("document.getElementById('valid').innerText.startsWith('10:30')")
    assert browser.errors == []


def test_reads_the_value_and_the_place_under_the_cursor(browser: Browser, site: str) -> None:
    browser.open(site + FRESH)
    for column, row, text in (
        (55.5, 9.5, 10.0),
        (55.5, 29.5, 30.0),
        (100.5, 9.5, "< 0.08 mm/h"),
        (3.5, 9.5, "no radar"),
    ):
        browser.mouse("mouseMoved", *at_pixel(browser, column, row))
        read = str(browser.js("document.querySelector('#readout b').innerText"))
        if isinstance(text, str):
            assert read == text
        else:
            assert float(read.split()[0]) == pytest.approx(text, rel=0.02) and read.endswith(" mm/h")
    browser.mouse("mouseMoved", *at_pixel(browser, 80, 60))
    lon, lat = GRID.lonlat(3_900_000 + 80 * 2000, 3_300_000 - 60 * 2000)
    north, east = (float(part[:-2]) for part in browser.text("readout").rsplit(" ", 2)[-2:])
    assert (east, north) == (pytest.approx(lon, abs=0.02), pytest.approx(lat, abs=0.02))


def test_a_click_keeps_the_point_and_charts_it(browser: Browser, site: str) -> None:
    browser.open(site + FRESH)
    place = at_pixel(browser, 55.5, 9.5)
    for kind in ("mousePressed", "mouseReleased"):
        browser.mouse(kind, *place, button="left", clickCount=1)
    browser.wait("document.querySelectorAll('#point-chart rect').length > 0")
    browser.wait("location.hash.includes('point=55.')")
    browser.js("document.getElementById('point-clear').click()")
    assert browser.js("document.getElementById('point').hidden") is True


def test_the_wheel_zooms_about_the_cursor_and_the_link_remembers(browser: Browser, site: str) -> None:
    browser.open(site + FRESH)
    place = at_pixel(browser, 40, 40)
    browser.mouse("mouseWheel", *place, deltaX=0, deltaY=-240)
    browser.wait("location.hash.includes('view=')")
    assert at_pixel(browser, 40, 40) == pytest.approx(place, abs=1)
    view, link = browser.js("document.getElementById('map').dataset.view"), str(browser.js("location.href"))
    browser.press("m")
    browser.open(link)
    again = [float(part) for part in str(browser.js("document.getElementById('map').dataset.view")).split(",")]
    assert again == pytest.approx([float(part) for part in str(view).split(",")], abs=2)


def test_ages_turn_amber_and_red_by_themselves(browser: Browser, site: str) -> None:
    state = "document.getElementById('age-observed').dataset.state"
    for clock, want in (("10:33:00", "ok"), ("10:43:00", "amber"), ("11:30:00", "red")):
        browser.open(f"{site}?now=2024-05-01T{clock}Z")
        assert browser.js(state) == want
    assert "1 h 00" in browser.text("age-observed") and "1 h 00 old" in browser.text("outage")
    assert browser.js("document.querySelector('.flag').textContent") == "last radar"
    browser.open(f"{site}?now=2024-05-01T10:41:58Z")
    assert browser.js(state) == "ok"
    browser.wait(f"{state} === 'amber'", 200)


def test_names_the_model_that_stood_in(browser: Browser, tmp_path: Path) -> None:
    with served(build(tmp_path, FALLBACK)) as url:
        browser.open(url + FRESH)
        assert browser.text("banner") == "Fallback: flow made this forecast, not net: the GPU is lost."
        browser.press("ArrowRight")
        browser.wait("document.getElementById('maker').innerText === 'flow in place of net'")
        browser.press("m")
        browser.wait("document.getElementById('maker').innerText === 'flow'")
        assert browser.text("kind") == "Forecast +5 min" and browser.text("banner") == ""


def test_names_the_checkpoint_of_a_network(browser: Browser, tmp_path: Path) -> None:
    with served(build(tmp_path, OK, checkpoint=["3f9a2c1db4e07788", "flow-0.1"] * 2)) as url:
        browser.open(url + FRESH)
        browser.press("ArrowRight")
        browser.wait("document.getElementById('maker').innerText === 'net 3f9a2c1d'")
        browser.press("m")
        browser.wait("document.getElementById('maker').innerText === 'flow'")


def test_a_withheld_forecast_ends_the_timeline_at_the_radar(browser: Browser, tmp_path: Path) -> None:
    with served(build(tmp_path, WITHHELD)) as url:
        browser.open(url + FRESH)
        assert "withheld: only 2 of 4 frames arrived" in browser.text("banner")
        browser.press("ArrowRight")
        assert browser.text("kind") == "Observed" and browser.text("valid").startswith("10:30")
        assert browser.js("document.querySelectorAll('.tick.forecast').length") == 0
        assert browser.js("document.querySelector('#models [aria-checked=true]').dataset.state") == "withheld"


def test_an_older_run_is_compared_with_what_was_observed(browser: Browser, site: str) -> None:
    browser.open(f"{site}{FRESH}#model=net&time=2024-05-01T10:30:00Z&run=2024-05-01T10:20:00Z")
    assert browser.text("kind") == "Forecast +10 min"
    browser.press("o")
    browser.wait("document.getElementById('kind').innerText === 'Observed'")
    assert browser.text("valid").startswith("10:30")


def test_shows_skill_with_its_n_and_switches_colours(browser: Browser, site: str) -> None:
    browser.open(site + FRESH)
    browser.wait("document.querySelectorAll('#skill-table tr').length === 3")
    assert (
        browser.js("[...document.querySelectorAll('#skill-table tr')[1].cells].map(c => c.innerText).join()")
        == "flow,0.600,2,200"
    )
    colour = "getComputedStyle(document.querySelector('.class i')).backgroundColor"
    before = browser.js(colour)
    browser.press("c")
    assert browser.js(colour) != before
    browser.wait("location.hash.includes('safe=1')")


def test_replay_stands_at_its_newest_frame(browser: Browser, tmp_path: Path) -> None:
    with served(build(tmp_path, OK, replay=True)) as url:
        browser.open(url)
        assert browser.text("replay") == "Replay"
        assert browser.js("document.getElementById('age-observed').dataset.state") == "ok"


def test_keeps_the_last_picture_and_says_so_when_one_is_lost(browser: Browser, tmp_path: Path) -> None:
    folder = build(tmp_path, OK)
    for path in folder.glob("runs/*/net-*/+005.png"):
        path.unlink()
    with served(folder) as url:
        browser.open(url + FRESH)
        browser.press("ArrowRight")
        browser.wait(
            "document.getElementById('trouble').innerText.includes('could not be loaded, still showing 10:30')"
        )
        assert browser.text("kind") == "Observed" and browser.text("valid").startswith("10:30")


def test_follows_new_frames_and_notices_when_nobody_answers(browser: Browser, tmp_path: Path) -> None:
    look = "document.dispatchEvent(new Event('visibilitychange'))"
    with served(build(tmp_path, OK, frames=FRAMES - 1)) as url:
        browser.open(url + FRESH)
        assert browser.text("valid").startswith("10:25")
        build(tmp_path, OK)
        browser.js(look)
        browser.wait("document.getElementById('valid').innerText.startsWith('10:30')")
        assert browser.js("document.getElementById('connection').hidden") is True
    browser.js(look)
    browser.wait("document.getElementById('connection').innerText.startsWith('No connection since')")
    assert browser.text("valid").startswith("10:30")


def test_fits_a_phone(browser: Browser, site: str) -> None:
    browser.screen(390, 844, dark=True, ratio=2)
    try:
        browser.open(site + FRESH)
        assert browser.js("document.documentElement.scrollWidth <= innerWidth")
        assert browser.js("document.getElementById('slider').getBoundingClientRect().bottom <= innerHeight")
    finally:
        browser.screen(1200, 800)

"""The live page in a headless Chromium: it shows what the status says, as it changes, and outlives the server."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from refork import api
from tests.integration.server import free_port, until
from tests.integration.stage import Stage
from tests.integration.steered import MIB, ask, make_status, memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Serve

selenium = pytest.importorskip("selenium", reason="needs selenium: pip install selenium")

from selenium.webdriver import Chrome, ChromeOptions  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
WIDE, NARROW = 1280, 360
HOSTILE = '<img src="x" onerror="document.title=1"><script>alert(1)</script>\x1b[2J\u202egnp'


class Page:
    """The page, as a person sees it."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str, *, width: int = WIDE, **media: str) -> None:
        """Open it in a window of its own size and with preferences of its own."""
        features = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in media.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get(url)

    def text(self, selector: str) -> str:
        """Read what is shown; a space is a space, whatever its kind."""
        found = self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector)
        return re.sub(r"\s+", " ", str(found)).strip()

    def wait_for(self, selector: str, words: str) -> None:
        """Return when these words are shown there."""
        try:
            until(lambda: words in self.text(selector), what=f"{words!r} in {selector}")
        except AssertionError as error:
            raise AssertionError(f"{error}; there is {self.text(selector)!r} in {self.text('main')!r}") from None

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def errors(self) -> list[str]:
        """Return what the browser complains of, but for a server that is not there."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["source"] != "network"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One browser with a fresh profile for all tests."""
    browser, steering = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not browser or not steering:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(steering))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: Chrome) -> Iterator[Page]:
    """A page that has never been opened, and that makes the browser complain of nothing."""
    driver.get("about:blank")
    driver.get_log("browser")
    page = Page(driver)
    yield page
    assert page.errors() == []
    driver.get("about:blank")


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A server that says what it is told to say."""
    with Stage(status(saved=340)) as stage:
        yield stage


def status(*, saved: int, **changes: Any) -> api.Status:
    """Make up a status that saves so many MiB of 640."""
    totals = api.Totals(rss=640 * MIB, pss=(640 - saved) * MIB, uss=40 * MIB, saved=saved * MIB)
    return make_status(totals=totals, **changes)


def rollout(*, ended: bool, generation: int = 2) -> api.RolloutStatus:
    """Make up a refork: under way, in its third step, or ended."""
    steps = (api.StepStatus(api.Phase.SURGE, 0.25), api.StepStatus(api.Phase.DRAINING, 0.5))
    return api.RolloutStatus(
        id="refork-7",
        kind=api.RolloutKind.REFORK,
        trigger=api.Trigger.COMMAND,
        generation=generation,
        phase=api.Phase.STEADY if ended else api.Phase.SEALING,
        started_at=900.0 + 3700.0 - 20,
        seconds=10.0,
        steps=steps,
        outcome=api.Outcome.SUCCEEDED if ended else None,
    )


def test_the_saved_memory_is_what_one_reads_first(stage: Stage, page: Page) -> None:
    """One large number, the sums that it comes from, and a title that says it in a tab."""
    page.open(stage.url)
    page.wait_for("#saved", "340")
    assert page.text(".number") == "340 MiB"
    assert page.text("#saved-sentence") == "300 MiB in use, where 640 MiB would be without sharing: 53 % less."
    legend = [page.text(f"#legend-{part}") for part in ("private", "shared", "saved")]
    assert legend == ["40.0 MiB", "260 MiB", "340 MiB"]
    assert page.driver.title == "340\u00a0MiB saved · demo:app"
    sizes = page.run("return [...document.querySelectorAll('h1, h2, p, span')].map(e => [e.id, parseFloat("
                     "getComputedStyle(e).fontSize)]).sort((a, b) => b[1] - a[1])[0][1]")  # fmt: skip
    assert sizes == page.run("return parseFloat(getComputedStyle(document.querySelector('.number')).fontSize)")


def test_every_process_has_a_row_with_what_the_status_says(stage: Stage, page: Page) -> None:
    """Monitor, mold and slots, each with its memory as a bar and in figures with units."""
    page.open(stage.url)
    page.wait_for("#rows", "worker 1")
    rows = page.run("return [...document.querySelectorAll('#rows tr')].map(r => [...r.children].map(c => c.innerText))")
    cells = [[re.sub(r"\s+", " ", cell).strip() for cell in row] for row in rows]
    assert cells == [
        ["monitor pid 4711", "", "30.0 MiB", "32.5 MiB", "40.0 MiB", ""],
        ["mold gen 1 ready", "", "2.0 MiB", "51.5 MiB", "200 MiB", ""],
        ["worker 0 gen 1 ready", "", "4.0 MiB", "53.0 MiB", "200 MiB", "1,100 3 errors"],
        ["worker 1 gen 1 ready", "", "4.0 MiB", "53.0 MiB", "200 MiB", "1,101"],
    ]
    widths = page.run("return [...document.querySelectorAll('[data-key=\"slot 0\"] .bar i')].map(i => i.style.width)")
    assert widths == ["2%", "98%"]
    assert page.text("tfoot") == "All together 4 processes 40.0 MiB 300 MiB 640 MiB 2,201"


def test_the_tiles_tell_the_state_of_the_server(stage: Stage, page: Page) -> None:
    """What a refork would win, who is ready, which generation, what was served."""
    stage.status = status(
        saved=340, ready=1, refusal="a rollout is under way", gain=api.Gain(predicted=123 * MIB, realised=5 * MIB)
    )
    page.open(stage.url)
    page.wait_for("#gain", "123 MiB")
    assert page.text("#gain-note") == "not now: a rollout is under way"
    assert (page.text("#ready"), page.text("#generation")) == ("1 of 2", "1")
    assert page.text("#generation-note") == "sealing on, 200,010 objects"
    assert page.text("#rate-note") == "2,201 in all, 3 errors; up 1 h 1 min"
    stage.say(status(saved=340, gain=api.Gain(predicted=0, realised=5 * MIB, promised=6 * MIB)))
    page.wait_for("#gain-note", "the last one won 5.0 MiB of 6.0 MiB promised")
    stage.say(
        status(saved=340, automatic=api.Automatic("DoesNotPay", "3 reforks in a row did not pay", 3, stopped=True))
    )
    page.wait_for("#gain-note", "3 reforks in a row did not pay")


def test_it_changes_as_events_come(stage: Stage, page: Page) -> None:
    """Without being asked for, and without the page asking."""
    page.open(stage.url)
    page.wait_for("#connection", "live")
    stage.say(status(saved=400, generation=5, age=3702.0))
    page.wait_for("#saved", "400")
    assert page.text("#generation") == "5"
    asked = list(stage.asked.queue)
    assert asked.count("/v1/events") == 1
    assert "/v1/status" not in asked


def test_parts_of_a_status_are_shown_ahead_of_the_whole(stage: Stage, page: Page) -> None:
    """A phase or a step of a rollout is an event of its own."""
    page.open(stage.url)
    page.wait_for("#phase", "steady")
    stage.send("phase", b'{"phase": "surge", "generation": 1}')
    page.wait_for("#phase", "surge")
    stage.send("rollout", msgspec.json.encode(rollout(ended=False)))
    page.wait_for("#phase", "refork: sealing")
    stage.send("rollout", b"no JSON")
    stage.send("status", b"null")
    stage.say(status(saved=401))
    page.wait_for("#saved", "401")


def test_steps_of_a_rollout_are_marked(stage: Stage, page: Page) -> None:
    """Done with its duration, now, or open; a screen reader hears which is now."""
    stage.status = status(saved=340, phase=api.Phase.SEALING, rollout=rollout(ended=False))
    page.open(stage.url)
    page.wait_for("#phase", "refork: sealing")
    told = "[li.innerText.replace(/\\s+/g, ' ').trim(), li.dataset.is, li.getAttribute('aria-current')]"
    assert page.run(f"return [...document.querySelectorAll('#steps li')].map(li => {told})") == [
        ["surge 0.25 s", "done", None],
        ["draining 0.50 s", "done", None],
        ["sealing now", "now", "step"],
        ["canary", "open", None],
        ["rolling", "open", None],
        ["retiring", "open", None],
    ]


def test_a_failed_rollout_says_why(stage: Stage, page: Page) -> None:
    """Where it broke, and the reason that the server gives."""
    failed = msgspec.structs.replace(rollout(ended=True), outcome=api.Outcome.FAILED, reason="the mold crashed")
    stage.status = status(saved=340, last_rollout=failed)
    page.open(stage.url)
    page.wait_for("#rollout-note", "failed after 10.0 s, 10 s ago: the mold crashed")
    assert page.text("#steps [data-is=failed]") == "sealingfailed"


def test_it_survives_a_restart_of_the_server(stage: Stage, page: Page) -> None:
    """It says that the figures are old, comes back by itself, and marks the restart in the timeline."""
    page.open(stage.url)
    page.wait_for("#connection", "live")
    page.wait_for("#app", "demo:app")
    stage.stop()
    page.wait_for("#connection", "reconnecting")
    assert page.text("#saved") == "340"
    assert page.run("return document.body.dataset.state") == "stale"
    stage.status = status(saved=17, started_at=4650.0, age=5.0, generation=0)
    stage.start()
    page.wait_for("#connection", "live")
    page.wait_for("#saved", "17")
    assert page.run("return document.body.dataset.state") == "fresh"
    page.wait_for("#timeline", "restart")
    assert "17.0 MiB saved by sharing" in page.text("#announcement")


@pytest.mark.parametrize("how", [{"events": False}, {"buffered": True}], ids=str)
def test_without_events_it_asks_for_the_status(page: Page, how: dict[str, bool]) -> None:
    """Behind a proxy that passes no streams, or keeps them until they end, or in front of an older server."""
    with Stage(status(saved=340), **how) as stage:
        page.open(stage.url)
        page.wait_for("#saved", "340")
        page.wait_for("#connection", "live, asking")
        stage.status = status(saved=222, age=3705.0)
        page.wait_for("#saved", "222")


def test_a_stream_that_ends_is_opened_again(stage: Stage, page: Page) -> None:
    """Nothing is lost, and nobody is alarmed."""
    page.open(stage.url)
    page.wait_for("#connection", "live")
    stage.wait_for("/v1/events")
    page.run("window.states = []; new MutationObserver(() => states.push(document.getElementById('connection').dataset"
             ".state)).observe(document.getElementById('connection'), {attributes: true})")  # fmt: skip
    stage.end_streams()
    stage.wait_for("/v1/events")
    stage.say(status(saved=333, age=3706.0))
    page.wait_for("#saved", "333")
    assert set(page.run("return window.states")) <= {"live"}


@pytest.mark.parametrize("slash", ["/", ""])
def test_it_works_behind_a_path_prefix(page: Page, slash: str) -> None:
    """All addresses are relative to where the page was found."""
    with Stage(status(saved=340), prefix="/proxy/web-0") as stage:
        page.open(stage.url.rstrip("/") + slash)
        page.wait_for("#saved", "340")
        page.wait_for("#connection", "live")


def test_it_asks_nobody_but_its_server(stage: Stage, page: Page) -> None:
    """No font, no script, no picture from anywhere; not even a favicon."""
    page.open(stage.url)
    page.wait_for("#connection", "live")
    names = page.run("return performance.getEntriesByType('resource').map(each => each.name)")
    assert all(name.startswith((stage.url, "data:")) for name in names)
    assert set(stage.asked.queue) <= {"/", "/v1/events", "/v1/status"}


def test_what_a_server_says_is_text_and_nothing_else(stage: Stage, page: Page) -> None:
    """Names, states and reasons are hostile here, and stay text; not even an inline script of the page's own runs."""
    page.open(stage.url)
    page.wait_for("#connection", "live")
    facts = json.loads(msgspec.json.encode(status(saved=340, app=HOSTILE, refusal=HOSTILE, sealing=HOSTILE)))
    facts |= {"phase": HOSTILE, "version": HOSTILE, "python": {"a": 1}, "ready": HOSTILE, "rollout": {"kind": HOSTILE}}
    facts["workers"][0] |= {"state": HOSTILE, "memory": {"rss": HOSTILE, "uss": -1}}
    facts["workers"] += [None, 7, {"slot": HOSTILE}]
    facts["last_rollout"] = {"kind": HOSTILE, "steps": [{"phase": HOSTILE, "seconds": HOSTILE}], "reason": HOSTILE}
    stage.send("status", json.dumps(facts).encode())
    page.wait_for("#app", "<img src=")
    assert page.run("return document.querySelectorAll('main img, main script, header img, header script').length") == 0
    assert "\x1b" not in page.text("body")
    assert "\u202e" not in page.text("body")
    page.run("const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)")
    assert page.run("return window.ran") is None
    assert any("Content Security Policy" in message for message in page.errors())


def test_reforks_are_marked_in_the_timeline(stage: Stage, page: Page) -> None:
    """With the generation that they led to; a pointer and the arrow keys read the values."""
    page.open(stage.url)
    page.wait_for("#connection", "live")
    stage.wait_for("/v1/events")
    for step in range(1, 6):
        stage.say(status(saved=340 + step, age=3700.0 + step, last_rollout=rollout(ended=True)))
    page.wait_for("#saved", "345")
    page.wait_for("#timeline .label", "gen 2")
    page.wait_for("#reading", "Now: 295 MiB in use, 640 MiB without sharing, 345 MiB saved")
    assert page.run("return document.querySelector('#timeline path.rss').getAttribute('d').split('L').length") == 6
    timeline = page.driver.find_element(By.ID, "timeline")
    timeline.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    page.wait_for("#reading", "2 s ago: 297 MiB in use")
    timeline.send_keys(Keys.ESCAPE)
    page.wait_for("#reading", "Now:")


def test_a_clock_that_is_put_right_makes_no_second_mark(stage: Stage, page: Page) -> None:
    """The server tells when a refork began by the clock of now."""
    page.open(stage.url)
    page.wait_for("#connection", "live")
    stage.wait_for("/v1/events")
    ended = rollout(ended=True)
    for step in range(1, 6):
        moved = msgspec.structs.replace(ended, started_at=ended.started_at + 0.3 * step)
        stage.say(status(saved=340 + step, age=3700.0 + step, last_rollout=moved))
    page.wait_for("#saved", "345")
    page.wait_for("#timeline .label", "gen 2")
    assert page.run("return document.querySelectorAll('#timeline line.mark').length") == 1


def test_the_timeline_outlives_a_reload(stage: Stage, page: Page) -> None:
    """What was seen is kept as long as the tab is."""
    page.open(stage.url)
    page.wait_for("#connection", "live")
    stage.wait_for("/v1/events")
    stage.say(status(saved=341, age=3701.0))
    page.wait_for("#saved", "341")
    stage.status = status(saved=342, age=3702.0)
    page.driver.refresh()
    page.wait_for("#saved", "342")
    points = "return document.querySelector('#timeline path.pss')?.getAttribute('d').split('L').length"
    until(lambda: page.run(points) == 3, what="three points")


def test_nothing_jumps_while_slots_roll_over(stage: Stage, page: Page) -> None:
    """A slot with two processes, a failed step, a longer sentence: every section stays where it is."""
    where = "return [...document.querySelectorAll('main > *, #rows tr')].map(e => {const r = e.getBoundingClientRect();"
    where += " return [e.id || e.dataset.key || e.className, Math.round(r.top), Math.round(r.height)]})"
    page.open(stage.url, reduced_motion="reduce")
    page.wait_for("#rows", "worker 1")
    before = page.run(where)
    steady = status(saved=340)
    leaving = tuple(
        msgspec.structs.replace(worker, generation=0, state=api.WorkerState.DRAINING, pid=1)
        for worker in steady.workers
    )
    old = msgspec.structs.replace(steady.molds[0], generation=0, state=api.MoldState.RETIRING)
    stage.say(
        status(
            saved=1,
            phase=api.Phase.ROLLING,
            rollout=rollout(ended=False),
            molds=(*steady.molds, old),
            workers=(*steady.workers, *leaving),
            refusal="a refork is under way",
        )
    )
    page.wait_for("#rows", "gen 1 ready, gen 0 draining")
    assert page.run(where) == before


def memory_of(saved: int) -> dict[str, Any]:
    """Make up the memory of a large server."""
    return {"workers": tuple(
        api.WorkerStatus(slot=slot, generation=12, pid=slot, state=api.WorkerState.READY, age=9.0, gained=5 * MIB,
                         requests=123_456_789, memory=memory(rss=12_345, shared=saved)) for slot in range(3)
    )}  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [NARROW, 700, WIDE])
def test_it_can_be_read_on_every_screen(stage: Stage, page: Page, scheme: str, width: int) -> None:
    """No sideways scrolling, nothing cut off in a table, and every text has the contrast of WCAG 2.2 AA."""
    stage.status = status(saved=340, app="shop.wsgi:application", ready=1, **memory_of(9_876))
    page.open(stage.url, width=width, color_scheme=scheme, reduced_motion="reduce")
    page.wait_for("#rows", "worker 2")
    assert page.run("return document.documentElement.scrollWidth") <= width
    cut = "return [...document.querySelectorAll('td')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText)"
    assert page.run(cut) == []
    assert page.run(CONTRASTS) == []


CONTRASTS = """
const channels = (text) => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ground = (e) => { for (; e; e = e.parentElement) { const c = channels(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] > 0.99) return c; } return [255, 255, 255]; };
const poor = [];
for (const e of document.querySelectorAll('body *')) {
  const words = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent).join('').trim();
  if (!words || !e.checkVisibility() || ['SCRIPT', 'STYLE', 'NOSCRIPT'].includes(e.tagName)) continue;
  const style = getComputedStyle(e);
  const ink = channels(e instanceof SVGElement ? style.fill : style.color);
  const pair = [light(ink), light(ground(e))].sort((a, b) => b - a);
  const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
  if (contrast < 4.5) poor.push([words, contrast.toFixed(2)]);
}
return poor;
"""


def test_who_wants_less_motion_gets_none(stage: Stage, page: Page) -> None:
    """Neither bars that glide nor dots that breathe."""
    stage.status = status(saved=340, rollout=rollout(ended=False))
    page.open(stage.url, reduced_motion="reduce")
    page.wait_for("#phase", "sealing")
    moving = page.run("return [...document.querySelectorAll('*')].filter(e => getComputedStyle(e).animationName !== "
                      "'none' || parseFloat(getComputedStyle(e).transitionDuration) > 0).length")  # fmt: skip
    assert moving == 0


def test_a_keyboard_reaches_everything(stage: Stage, page: Page) -> None:
    """The skip link, the range, the timeline and the glossary, in this order."""
    page.open(stage.url)
    page.wait_for("#connection", "live")
    reached = []
    for _ in range(4):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(page.run("const e = document.activeElement; return e.id || e.name || e.className || e.tagName"))
    assert reached == ["skip", "range", "timeline", "SUMMARY"]


def test_a_server_that_boots_has_a_page_too(stage: Stage, page: Page) -> None:
    """Nothing is measured, nobody is ready: it says so."""
    stage.status = make_status(monitor_memory=None, molds=(), workers=(), totals=None, last_rollout=None, ready=0)
    page.open(stage.url)
    page.wait_for("#saved-sentence", "Nothing is measured yet.")
    assert page.text(".number") == "\u2013 MiB"
    assert page.text("#rollout-note").startswith("No refork yet.")
    assert page.text("[data-key='slot 0'] small") == "no process"


def test_the_real_server_serves_it(serve: Serve, page: Page) -> None:
    """It shows what the server's own status says, follows a refork, and comes back after a restart."""
    address = f"127.0.0.1:{free_port()}"
    server = serve("--metrics-bind", address)
    page.open(f"http://{address}/")
    page.wait_for("#connection", "live")
    page.wait_for("#ready", "2 of 2")
    _, said, _ = ask(address, "GET", "/v1/status")
    assert page.text("#app") == said["app"]
    assert page.text("#generation") == "0"
    assert "default-src 'none'" in ask(address, "GET", "/")[2]["Content-Security-Policy"]
    server.client.command("refork", api.ReforkCommand())
    page.wait_for("#rollout-note", "last refork to generation 1 by command succeeded")
    page.wait_for("#generation", "1")
    page.wait_for("[data-key='slot 1'] small", "gen 1 ready")
    assert page.run("return document.querySelector('#connection').dataset.by") == "live"
    assert server.stop() == 0
    page.wait_for("#connection", "reconnecting")
    serve("--metrics-bind", address)
    page.wait_for("#connection", "live")
    page.wait_for("#generation", "0")
    until(lambda: page.run("return document.querySelector('#timeline .restart')"), what="the mark of the restart")


def test_it_cannot_be_written_to(serve: Serve) -> None:
    """The address is for looking: commands are not served there, and no other method is."""
    address = f"127.0.0.1:{free_port()}"
    serve("--metrics-bind", address)
    assert [ask(address, method, "/")[0] for method in ("GET", "HEAD", "POST", "PUT", "DELETE")] == [
        200, 200, 405, 405, 405,
    ]  # fmt: skip
    assert ask(address, "POST", "/v1/refork")[0] in {404, 405}

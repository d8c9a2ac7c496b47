"""The page as Chromium shows it. Skipped where no Chromium is installed (Debian: chromium; fonts-nanum for Hangul)."""

import contextlib
import json
import re
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from benchmarks.browser import AXE, CHROMIUM, MISSING, NO_AXE, Browser, Tab
from fl.runs.files import read_run
from fl.settings.names import ARMS
from sim.report.page import render
from sim.report.summary import pool, summarize

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--window-size=1400,1000",
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)

KEEP = """<script>
addEventListener("message", (event) => {
  const script = document.createElement("script");
  script.type = "application/json"; script.id = "probe"; script.textContent = event.data;
  document.body.append(script);
});
</script>"""
# Runs in a copy of the page whose policy is lifted, and leaves what it saw in the document for --dump-dom.
PROBE = (
    KEEP
    + """<script>
const seen = {errors: [], durations: [], failed: 0};
addEventListener("error", (event) => seen.errors.push(String(event.message || event.target.tagName)), true);
addEventListener("load", async () => {
  const ready = (audio) => new Promise((done) => {
    if (audio.readyState >= 1) return done();
    audio.addEventListener("loadedmetadata", done);
    audio.addEventListener("error", () => { seen.failed += 1; done(); });
    audio.load();
  });
  await Promise.all([...document.querySelectorAll("audio")].map(ready));
  const box = (element) => element.getBoundingClientRect();
  seen.durations = [...document.querySelectorAll("audio")].map((audio) => audio.duration);
  seen.width = innerWidth;
  seen.scrollWidth = document.documentElement.scrollWidth;
  seen.outside = [...document.querySelectorAll("svg text, .tiles strong, .line .text, .bar-value, h1, h2")]
    .filter((element) => !element.closest("details, [hidden]") && box(element).right > innerWidth + 0.5)
    .map((element) => element.textContent);
  seen.fetched = performance.getEntriesByType("resource").map((entry) => entry.name)
    .filter((name) => !name.startsWith("data:"));
  seen.shown = [...document.querySelectorAll(".card")].filter((card) => box(card).height > 0)
    .map((card) => card.dataset.device);
  seen.background = getComputedStyle(document.body).backgroundColor;
  parent.postMessage(JSON.stringify(seen), "*");  // to the document around the frame, or to ourselves
});
</script>"""
)
# A window narrower than 500 pixels is beyond headless Chromium; a frame is as narrow as we like.
FRAME = '<!doctype html><meta charset="utf-8"><body><iframe width="{width}" height="900" style="border:0" src="page.html"></iframe>'


@pytest.fixture(scope="module")
def page(finished_run):
    runs = pool([read_run(finished_run)])
    return render(summarize(runs, samples=100), runs)


@pytest.fixture
def show(page, tmp_path):
    """``show(fragment, width)``: the document after scripts, and what the probe saw. With a width, in a frame."""

    def dump(fragment="", width=None, text=page, probe=True):
        if probe:
            text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
            text = text.replace("</title>", "</title>" + PROBE, 1)
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        if width is not None:
            path = tmp_path / "frame.html"
            path.write_text(FRAME.format(width=width) + KEEP, encoding="utf-8")
        address = path.as_uri() + (f"#{fragment}" if fragment else "")
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000"]
        done = subprocess.run([*command, "--dump-dom", address], capture_output=True, timeout=120, check=True)
        dom = done.stdout.decode("utf-8")
        found = re.search(r'<script type="application/json" id="probe">(.*?)</script>', dom, re.DOTALL)
        return dom, json.loads(found.group(1)) if found else None

    return dump


def test_the_page_shows_all_arms_and_players_and_asks_for_nothing(show):
    dom, seen = show()
    assert seen["errors"] == []
    assert seen["fetched"] == []
    assert seen["failed"] == 0
    assert len(seen["durations"]) == len(seen["shown"]) == 24
    assert all(0.5 < seconds < 1.4 for seconds in seen["durations"])
    table = re.search(r'<table class="arms">.*?</table>', dom, re.DOTALL).group()
    assert re.findall(r'<th scope="row">.*?</i>([^<]+)</span>', table) == list(ARMS)
    assert "21 of 21" in dom


def test_our_script_runs_under_the_policy_and_no_other_does(show, page):
    evil = page.replace("</main>", "</main><script>document.title='owned'</script>")
    dom, _ = show(text=evil, probe=False)
    assert "21 of 21" in dom
    assert "<title>owned" not in dom


@pytest.mark.parametrize(
    ("fragment", "fits"),
    [
        ("device=speaker-02", lambda card: 'data-device="speaker-02"' in card),
        ("kind=worse", lambda card: 'data-kind="worse"' in card),
        ("text=" + quote("커피"), lambda card: "커피" in card),
    ],
)
def test_the_address_filters_the_cards(show, fragment, fits):
    dom, seen = show(fragment)
    dom = dom[dom.index('id="samples"') :]  # the first three, near the top, always stay
    cards = re.findall(r"<article.*?</article>", dom, re.DOTALL)
    hidden = [card for card in cards if "hidden" in card.partition(">")[0]]
    visible = [card for card in cards if card not in hidden]
    assert visible
    assert hidden
    assert len(visible) + 3 == len(seen["shown"])
    assert all(fits(card) for card in visible)
    assert not any(fits(card) for card in hidden)


def test_a_filter_that_nothing_fits_says_so(show):
    dom, seen = show("text=zzzz")
    assert len(seen["shown"]) == 3
    assert 'id="no-match">' in dom


@pytest.mark.parametrize("width", [1280, 768, 360, 320])
def test_nothing_sticks_out_of_a_window(show, width):
    _, seen = show(width=width)
    assert seen["width"] == width
    assert seen["scrollWidth"] <= seen["width"]
    assert seen["outside"] == []


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    pytest.importorskip("websockets.sync.client")
    made = Browser(tmp_path_factory.mktemp("chromium"))
    yield made
    made.close()


@pytest.fixture
def tab(chromium, page, tmp_path):
    """``tab(**options)``: a tab with the report in it."""
    with contextlib.ExitStack() as stack:

        def start(**options):
            (tmp_path / "report.html").write_text(page, encoding="utf-8")
            opened = Tab(chromium, (tmp_path / "report.html").as_uri(), **options)
            stack.callback(opened.close)
            return opened

        yield start


def test_the_finding_and_the_first_sentence_are_on_the_first_screen(tab):
    shown = tab(width=1280, height=900)
    assert shown.js("document.querySelector('h1').getBoundingClientRect().top") < 120
    assert shown.js("document.querySelector('#listen h2').getBoundingClientRect().top") < 900
    assert shown.complaints == []


def test_whatever_the_keyboard_reaches_has_a_name_and_the_sections_come_first(tab):
    shown = tab()
    assert shown.unnamed() == []
    shown.press("Tab")
    assert shown.js("document.activeElement.hash") == "#listen"
    assert shown.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    shown.press("Enter")
    shown.wait("document.querySelector('#listen').getBoundingClientRect().top < innerHeight / 2")


def test_paper_has_the_tables_and_no_controls(tab):
    shown = tab(dark=True)
    shown.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert shown.js("[...document.querySelectorAll('audio, nav, .filters')].every((e) => !e.getClientRects().length)")
    assert shown.js("document.querySelector('table.arms').getClientRects().length") == 1
    assert (
        shown.js("getComputedStyle(document.body).color") == "rgb(29, 35, 41)"
    )  # dark ink, whatever the screen is set to


@pytest.mark.skipif(AXE is None, reason=NO_AXE)
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing(tab, dark):
    assert tab(dark=dark, free=True).violations(Path(AXE)) == []

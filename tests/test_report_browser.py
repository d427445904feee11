"""The HTML report in a real browser: headless Chromium, if there is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, make_run

from memtrain.report.html.page import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = os.environ.get("MEMTRAIN_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
pytestmark = pytest.mark.skipif(
    not Path(CHROMIUM).exists(), reason=f"no browser at {CHROMIUM}: install chromium, or name one in MEMTRAIN_CHROMIUM"
)
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
      if (colour[3] !== 0) throw new Error("a see-through background");
    }
    return [255, 255, 255];
  };
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
  const found = new Map();
  for (const node of document.querySelectorAll("body *")) {
    if (![...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())) continue;
    if (!node.getClientRects().length || /^(script|style|title|desc)$/i.test(node.tagName)) continue;
    const style = getComputedStyle(node);
    const text = parse(node instanceof SVGElement ? style.fill : style.color), ground = behind(node);
    const [a, b] = [light(text), light(ground)].sort((x, y) => y - x);
    const what = `${node.tagName}.${node.getAttribute("class") || ""} ${text} on ${ground}`;
    found.set(what, Math.round((a + 0.05) / (b + 0.05) * 100) / 100);
  }
  return [...found];
}"""
"""Every pair of text colour and the colour behind it, with its contrast ratio (WCAG 2.2, 1.4.3)."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("pages")
    long = make_run(place / "long", steps=300)
    hostile = make_run(place / "hostile", steps=8, extra=HOSTILE, skill=0.9)
    return {
        "long": write_report([long], place / "long.html"),
        "two": write_report([long, hostile], place / "two.html"),
        "hostile": write_report([hostile], place / "hostile.html"),
    }


@pytest.fixture(scope="module")
def browser(pages: dict[str, Path]) -> Iterator[Any]:  # the runs first: Playwright holds an event loop
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


class Tab:
    """An open page that counts what must not happen."""

    def __init__(self, browser: Any, file: Path, **settings: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | settings))
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append("a dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.address = file.as_uri()

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.context.close()
        if kind is None:
            assert self.errors == []
            assert self.requests == [self.address]


def focused(page: Any) -> str:
    return str(page.evaluate("() => document.activeElement.textContent"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["long", "two", "hostile"])
def test_it_loads_without_an_error_or_a_request(browser: Any, pages: dict[str, Path], name: str, scheme: str) -> None:
    with Tab(browser, pages[name], color_scheme=scheme) as page:
        assert page.locator("#viewer .step").count() >= 4
        assert page.locator("figure.chart svg").count() > 10
        ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(15, 18, 22)") == (scheme == "dark")
        assert page.locator("img, iframe, object, embed, link").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(browser: Any, pages: dict[str, Path], scheme: str) -> None:
    with Tab(browser, pages["two"], color_scheme=scheme) as page:
        found = dict(page.evaluate(CONTRAST))
        page.get_by_role("tab", name="Training rollouts").click()
        found |= dict(page.evaluate(CONTRAST))
        assert {what.split(".")[0] for what in found} > {"INS", "DEL", "MARK", "text", "TD", "DD"}
        assert not {what: ratio for what, ratio in found.items() if ratio < 4.5}


def test_it_paints_within_a_second(browser: Any, pages: dict[str, Path]) -> None:
    with Tab(browser, pages["long"]) as page:
        page.wait_for_function("() => performance.getEntriesByName('first-contentful-paint').length")
        [paint] = page.evaluate("() => performance.getEntriesByName('first-contentful-paint').map((e) => e.startTime)")
        assert 0 < paint < 1000


@pytest.mark.parametrize("name", ["long", "two", "hostile"])
def test_a_phone_shows_it_without_scrolling_sideways(browser: Any, pages: dict[str, Path], name: str) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with Tab(browser, pages[name], **phone) as page:
        page.evaluate("() => document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert page.evaluate("() => document.documentElement.scrollWidth") == 390
        assert page.evaluate("() => visualViewport.width") == 390
        page.get_by_role("tab", name="Training rollouts").tap()
        assert page.evaluate("() => document.documentElement.scrollWidth") == 390


def test_tab_reaches_everything(browser: Any, pages: dict[str, Path]) -> None:
    with Tab(browser, pages["long"]) as page:
        wanted = {"nav": 6, "figure": 8, "summary": 2, "documents": 1, "readings": 1, "kinds": 1, "step": 4, "box": 2}
        kind = """() => { const node = document.activeElement; return node.closest("nav") ? "nav"
          : node.closest(".documents") ? "documents" : node.closest("[aria-label=readings]") ? "readings"
          : node.closest("[role=tablist]") ? "kinds" : node.tagName === "INPUT" ? "box"
          : node.classList.contains("step") ? "step" : node.tagName.toLowerCase(); }"""
        seen: dict[str, int] = {}
        for _ in range(120):
            page.keyboard.press("Tab")
            at = page.evaluate(kind)
            if at == "body":
                break
            outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", f"no visible focus on a {at}"
            seen[at] = seen.get(at, 0) + 1
        assert {name: min(seen.get(name, 0), least) for name, least in wanted.items()} == wanted


def test_arrow_keys_move_through_documents_readings_and_steps(browser: Any, pages: dict[str, Path]) -> None:
    with Tab(browser, pages["long"]) as page:
        options = page.locator("[role=option]")
        options.first.focus()
        assert "held_out-0" in focused(page)
        page.keyboard.press("ArrowDown")
        assert "held_out-1" in focused(page)
        assert options.nth(1).get_attribute("aria-selected") == "true"
        assert options.nth(0).get_attribute("tabindex") == "-1"
        hidden = page.locator(".said mark.h").inner_text()
        assert hidden in focused(page)
        page.keyboard.press("End")
        assert "held_out-7" in focused(page)
        page.keyboard.press("ArrowDown")
        assert "held_out-7" in focused(page)

        page.locator("[aria-label=readings] [aria-selected=true]").focus()
        assert focused(page) == "after"
        answer = page.locator(".said").inner_text()
        page.keyboard.press("ArrowLeft")
        assert focused(page) == "after priming"
        assert page.locator(".said").inner_text() != answer
        page.locator("[role=option]").nth(7).focus()
        page.keyboard.press("Home")  # the same reading of another document
        assert page.locator("[aria-label=readings] [aria-selected=true]").inner_text() == "after priming"

        page.locator(".step").first.focus()
        page.keyboard.press("ArrowDown")
        assert page.evaluate("() => document.activeElement.getAttribute('aria-label')") == "Step 2"
        page.keyboard.press("End")
        assert page.evaluate("() => document.activeElement.getAttribute('aria-label')") == "Step 4"
        box = page.evaluate("() => document.activeElement.getBoundingClientRect().top")
        assert box < 900


def test_a_chart_is_read_by_pointer_and_keys(browser: Any, pages: dict[str, Path]) -> None:
    with Tab(browser, pages["long"]) as page:
        chart = page.locator("#chart-kl")
        chart.focus()
        page.keyboard.press("Home")
        assert page.locator("#tip").inner_text().startswith("step 6")
        page.keyboard.press("ArrowRight")
        assert page.locator("#tip").inner_text().startswith("step 7")
        page.keyboard.press("Escape")
        assert page.locator("#tip").is_hidden()
        chart.locator("svg").hover()
        assert page.locator("#tip").is_visible()
        assert chart.locator(".cursor").get_attribute("hidden") is None


def test_hostile_texts_are_shown_as_they_are(browser: Any, pages: dict[str, Path]) -> None:
    with Tab(browser, pages["hostile"]) as page:
        page.get_by_role("tab", name="Training rollouts").click()
        shown = page.locator("#viewer").inner_text()
        assert "</script><img src=x onerror=alert(1)><b>" in shown
        assert page.locator("#viewer b b, #viewer img").count() == 0


def test_words_that_were_lost_can_be_left_out(browser: Any, pages: dict[str, Path]) -> None:
    with Tab(browser, pages["long"]) as page:
        page.get_by_role("tab", name="Training rollouts").click()
        lost = page.locator("#viewer del")
        documents = page.locator("[role=option]")
        for place in range(documents.count()):
            documents.nth(place).click()
            if lost.count():
                break
        assert lost.first.is_visible()
        page.get_by_label("lost words").uncheck()
        assert lost.first.is_hidden()

"""The page of ``memtrain ui`` in a real headless Chromium, on a real server over a deterministic model."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from notebook_model import NotebookModel, notebook_agent

from memtrain.report.html.diff import ADDED, KEPT, LOST, diff
from memtrain.serving.app import make_app
from memtrain.serving.owners import Owners
from memtrain.serving.store import Store
from memtrain.settings import ServeSettings

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("MEMTRAIN_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium; name one with MEMTRAIN_CHROMIUM")

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
FILLER = "and it rained all day " * 20
TEXT = f"FACT hotel=Ritz {FILLER} FACT city=Rome {FILLER} FACT hotel=Savoy"
HOSTILE = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>\'"&lt;'


@dataclass
class Served:
    """A server that is running, and what is behind it."""

    url: str
    store: Store
    models: list[NotebookModel]


@contextmanager
def serving(folder: Path, names: tuple[str, ...] = ("base", "trained"), delay: float = 0.0) -> Iterator[Served]:
    agents, models = {}, []
    for name in names:
        agents[name], model = notebook_agent(delay)
        models.append(model)
    store = Store(str(folder / "sessions.db"))
    app = make_app(agents, store, ServeSettings(), page=True)
    door = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield Served(f"http://127.0.0.1:{door.getsockname()[1]}/", store, models)
    finally:
        server.should_exit = True
        thread.join(10)
        door.close()
        store.close()


def until(happens: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages; at the end none may have complained or asked anybody but its server."""
    troubles: list[str] = []
    contexts = []

    def open_page(url: str, refused: bool = False, **settings: Any) -> Any:
        """``refused``: the server is going to refuse something, which the console tells."""
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}} | settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: troubles.append(f"{error}"))

        def told(message: Any) -> None:
            if message.type == "error" and not (refused and re.search("status of 4|TrustedHTML", message.text)):
                troubles.append(message.text)

        page.on("console", told)
        page.on("request", lambda asked: None if asked.url.startswith((url, "blob:")) else troubles.append(asked.url))
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def mode(page: Any, name: str) -> None:
    page.locator(f"input[name=mode][value={name}]").check(force=True)


def run(page: Any, name: str, text: str) -> None:
    """Does one thing and waits for its end."""
    mode(page, name)
    page.fill("#text", text)
    page.click("#send")
    idle(page)


def wait(page: Any, script: str) -> None:
    """Until it holds. Playwright's own wait evaluates strings in the page, which the page's policy forbids."""
    until(lambda: bool(page.evaluate(script)))


def notice(page: Any, words: str) -> None:
    until(lambda: words in str(page.locator("#notice").text_content()))


def idle(page: Any) -> None:
    wait(page, "document.body.getAttribute('aria-busy') === 'false' && !document.querySelector('#send').disabled")


def memory(page: Any, column: int = 0) -> str:
    """What is kept and added, as a reader without the marks sees it."""
    script = """node => { const copy = node.cloneNode(true);
        for (const gone of copy.querySelectorAll('del, .unseen')) gone.remove(); return copy.textContent }"""
    return str(page.locator(".words").nth(column).evaluate(script))


def sessions(page: Any) -> list[str]:
    found = page.evaluate("fetch('v1/memory?limit=1000').then(r => r.json())")
    return [row["session_id"] for row in found["data"]]


def test_first_paint_and_policy(served: Served, opened: Callable[..., Any]) -> None:
    page = opened(served.url, refused=True)
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert painted < 1000
    with pytest.raises(playwright.Error, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<p>x'")
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    answer = page.request.get(served.url)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    for path in ("page/../page.py", "page/..%2fpage.py", "page/%2e%2e/__init__.py", "page/none.js"):
        assert page.request.get(served.url + path).status == 404
    assert "/page/" not in page.request.get(served.url + "openapi.json").text()


def test_a_text_is_read_piece_by_piece(served: Served, opened: Callable[..., Any]) -> None:
    page = opened(served.url)
    run(page, "read", TEXT)
    column = page.locator(".column").nth(1)
    assert memory(page, 1).split() == ["FACT", "hotel=Savoy", "FACT", "city=Rome"]
    page.locator(".column").nth(1).locator(".earlier").click()
    assert column.locator("output").text_content() == "piece 2 of 3"
    assert memory(page, 1).split() == ["FACT", "hotel=Ritz", "FACT", "city=Rome"]
    assert column.locator(".words ins").all_text_contents() == ["[added: FACT city=Rome]"]
    assert column.locator(".count").text_content() == "+2 −0 words, 2 kept"
    column.locator("input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    assert column.locator(".words del").all_text_contents() == ["[lost: Ritz]"]
    decoration = column.locator(".words del").evaluate("node => getComputedStyle(node).textDecorationLine")
    assert decoration == "line-through"
    column.locator(".marks").uncheck()
    assert column.locator(".words ins, .words del").count() == 0
    assert "Read 3 pieces in" in str(column.locator(".log").text_content())


def test_pieces_are_shown_while_they_are_read(tmp_path: Path, opened: Callable[..., Any]) -> None:
    with serving(tmp_path, delay=0.3) as served:
        page = opened(served.url)
        page.fill("#text", TEXT)
        page.keyboard.press("Control+Enter")
        wait(page, "document.querySelector('.words').textContent.includes('Ritz')")
        assert page.locator("#stop").is_enabled()
        assert "1 of 3 pieces read" in str(page.locator(".progress").first.text_content())
        assert "pieces read" in str(page.locator("#live").text_content())
        idle(page)
        assert page.locator(".progress").first.is_hidden()


def test_files(served: Served, opened: Callable[..., Any], tmp_path: Path) -> None:
    good, odd, empty = tmp_path / "notes <b>.txt", tmp_path / "photo.txt", tmp_path / "empty.txt"
    good.write_text("FACT hotel=Zoë-1")
    odd.write_bytes(b"\xff\xd8\xff\xe0")
    empty.write_text(" \n")
    page = opened(served.url)
    page.set_input_files("#file", [good])
    until(lambda: "notes <b>.txt, 16 characters" in str(page.locator("#files").text_content()))
    page.set_input_files("#file", [odd])
    notice(page, "photo.txt is not UTF-8 text")
    page.set_input_files("#file", [empty])
    notice(page, "empty.txt is empty")
    drop = page.evaluate_handle(
        "() => { const data = new DataTransfer(); data.items.add(new File(['FACT city=Rome'], 'b.txt')); return data }"
    )
    mode(page, "ask")
    page.dispatch_event("body", "dragenter", {"dataTransfer": drop})
    assert page.locator("#drop").is_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": drop})
    page.wait_for_selector("#files li:nth-child(2)")
    assert page.locator("#drop").is_hidden()
    assert page.locator("input[name=mode][value=read]").is_checked()
    page.click("#send")
    idle(page)
    assert memory(page).split() == ["FACT", "hotel=Zoë-1", "FACT", "city=Rome"]
    assert page.locator("#files li").count() == 0
    page.set_input_files("#file", [good])
    page.wait_for_selector("#files li")
    run(page, "chat", "hotel?")
    assert "Zo" in str(page.locator(".log .model").first.text_content())


def test_example_text(served: Served, opened: Callable[..., Any]) -> None:
    page = opened(served.url)
    page.click("#example")
    wait(page, "document.querySelector('#text').value.includes('lighthouse')")


def test_chat_and_questions_to_the_memory(served: Served, opened: Callable[..., Any]) -> None:
    page = opened(served.url)
    mode(page, "ask")
    page.fill("#text", "hotel?")
    page.keyboard.press("Enter")
    notice(page, "There is no memory to ask yet")
    mode(page, "chat")
    page.fill("#text", "FACT hotel=Ritz")
    page.press("#text", "Shift+Enter")
    assert page.input_value("#text") == "FACT hotel=Ritz\n"
    page.press("#text", "Enter")
    idle(page)
    assert page.locator("#notice").text_content() == ""
    run(page, "chat", "FACT hotel=Savoy")
    run(page, "chat", "FACT hotel=Savoy")  # said twice is two turns
    assert page.locator(".turn").first.text_content() == "turn 3"
    run(page, "ask", "hotel?")
    last = page.locator(".log").nth(1).locator("li").last
    assert last.locator("b").text_content() == "trained, from memory alone"
    assert last.locator("p").text_content() == "Savoy"
    assert page.locator(".turn").first.text_content() == "turn 3"
    assert "tokens read" in str(page.locator(".log").first.text_content())


def test_two_models_have_a_session_each(served: Served, opened: Callable[..., Any]) -> None:
    page = opened(served.url)
    run(page, "read", "FACT hotel=Ritz")
    names = sessions(page)
    assert len(names) == 2
    assert {name.rpartition("@")[2] for name in names} == {"base", "trained"}
    assert len({name.rpartition("@")[0] for name in names}) == 1
    assert [model.asked for model in served.models] == [1, 1]
    page.uncheck("#compare")
    assert page.locator(".column").nth(1).is_hidden()
    run(page, "chat", "FACT city=Rome")
    assert [model.asked for model in served.models] == [3, 1]
    page.check("#compare")
    assert "Rome" not in memory(page, 1)
    assert page.locator("#conversations li").count() == 1


def test_one_model_is_enough(tmp_path: Path, opened: Callable[..., Any]) -> None:
    with serving(tmp_path, ("only/one model",)) as served:
        page = opened(served.url)
        assert page.locator("#compare").is_hidden()
        run(page, "read", "FACT hotel=Ritz")
        assert page.locator(".column").count() == 1
        assert sessions(page)[0].endswith("@only-one-model")


def test_a_conversation_is_opened_again(tmp_path: Path, opened: Callable[..., Any]) -> None:
    with serving(tmp_path) as served:
        page = opened(served.url)
        run(page, "read", TEXT)
        run(page, "chat", "FACT hotel=Grand")
        page.reload()
        page.wait_for_selector("body[data-ready]")
        wait(page, "document.querySelector('.turn').textContent === 'turn 2'")
        assert "hotel=Grand" in memory(page, 1)
        assert "FACT hotel=Grand" in str(page.locator(".log").nth(1).text_content())
        page.click("#new")
        assert page.locator(".words").first.text_content() == "No memory yet."
        page.click("#conversations .open")
        wait(page, "document.querySelector('.turn').textContent === 'turn 2'")
        assert page.locator("#conversations .open").get_attribute("aria-current") == "true"
        page.request.put(served.url + "v1/memory/from-elsewhere", data={"memory": "FACT a=1"})
    with serving(tmp_path) as served:
        page = opened(served.url)
        page.locator("#conversations .open", has_text="from-elsewhere").click()
        wait(page, "document.querySelector('.words').textContent.includes('a=1')")
        assert page.locator(".column").nth(1).is_hidden()


def test_edit(served: Served, opened: Callable[..., Any]) -> None:
    page = opened(served.url, refused=True)
    run(page, "read", "FACT hotel=Ritz")
    column = page.locator(".column").first
    column.locator(".edit").click()
    column.locator(".editing textarea").fill(f"FACT hotel=Plaza {HOSTILE}")
    page.keyboard.press("Escape")
    assert "Plaza" not in memory(page)
    column.locator(".edit").click()
    column.locator(".editing textarea").fill("FACT hotel=Plaza")
    column.locator("button", has_text="Save").click()
    wait(page, "document.querySelector('.words').textContent.includes('Plaza')")
    run(page, "ask", "hotel?")
    assert column.locator(".log li").last.locator("p").text_content() == "Plaza"
    assert page.locator(".log").nth(1).locator("li").last.locator("p").text_content() == "Ritz"
    # Meanwhile somebody else writes: this page's edit is refused, and it shows what is there.
    mine = next(name for name in sessions(page) if name.endswith("@base"))
    page.request.put(f"{served.url}v1/memory/{mine}", data={"memory": "FACT hotel=Other"})
    column.locator(".edit").click()
    column.locator(".editing textarea").fill("FACT hotel=Late")
    column.locator("button", has_text="Save").click()
    page.wait_for_selector("#notice p")
    notice(page, "moved on")
    wait(page, "document.querySelector('.turn').textContent === 'turn 3'")
    page.fill("#text", "hotel?")
    page.click("#send")
    notice(page, "A memory is being edited: save it or cancel first.")
    assert column.locator(".editing textarea").input_value() == "FACT hotel=Late"  # what was typed is not lost
    column.locator(".cancel").click()
    assert "hotel=Other" in memory(page)


def test_export_and_delete(served: Served, opened: Callable[..., Any]) -> None:
    page = opened(served.url, refused=True)
    run(page, "read", TEXT)
    with page.expect_download() as download:
        page.get_by_role("button", name=re.compile("^Export ")).click()
    data = json.loads(Path(download.value.path()).read_text())
    assert [session["turns"][0]["memory"].split()[1] for session in data] == ["hotel=Savoy"] * 2
    delete = page.get_by_role("button", name=re.compile("^Delete FACT"))
    delete.click()
    assert "the memories of 2 models" in str(page.locator("#confirm-text").text_content())
    assert page.evaluate("document.activeElement.textContent") == "Cancel"
    page.keyboard.press("Enter")
    assert len(sessions(page)) == 2
    assert page.evaluate("document.activeElement.textContent") == "Delete"
    delete.click()
    page.click("#confirm-yes")
    page.wait_for_selector("#none:not([hidden])")
    assert sessions(page) == []
    assert page.locator(".words").first.text_content() == "No memory yet."
    run(page, "read", "FACT a=1")
    for name in sessions(page):  # somebody else deletes it
        page.request.delete(f"{served.url}v1/memory/{name}")
    page.click("#new")
    page.click("#conversations .open")
    notice(page, "There is no session")
    assert page.locator("#name").text_content() == "New conversation"
    page.wait_for_selector("#none:not([hidden])")
    for number in range(3):
        page.click("#new")
        run(page, "read", f"FACT a={number}")
    page.click("#delete-all")
    page.keyboard.press("Escape")
    assert len(sessions(page)) == 6
    page.click("#delete-all")
    page.click("#confirm-yes")
    page.wait_for_selector("#none:not([hidden])")
    assert sessions(page) == []


def test_a_long_read_is_stopped(tmp_path: Path, opened: Callable[..., Any]) -> None:
    with serving(tmp_path, delay=0.2) as served:
        page = opened(served.url, refused=True)
        run(page, "read", "FACT hotel=Ritz")
        page.fill("#text", " ".join(f"FACT k{n}={n} {FILLER}" for n in range(200)))
        page.click("#send")
        wait(page, "document.querySelector('.words').textContent.includes('k1=')")
        assert page.evaluate("document.activeElement.id") == "stop"
        page.keyboard.press("Enter")
        idle(page)
        until(lambda: all(model.cancelled == 1 for model in served.models))
        asked = [model.asked for model in served.models]
        assert "Stopped. Nothing of what was under way is kept." in str(page.locator(".log").first.text_content())
        assert memory(page).split() == ["FACT", "hotel=Ritz"]
        assert page.locator(".turn").first.text_content() == "turn 1"
        assert page.evaluate("document.activeElement.id") == "text"
        time.sleep(0.6)
        assert [model.asked for model in served.models] == asked  # nobody works on
        page.click("#new")
        page.fill("#text", TEXT)
        page.click("#send")
        page.click("#stop")  # of a session that is not there yet
        idle(page)
        assert page.locator("#notice").text_content() == ""
        run(page, "read", "FACT city=Rome")
        assert memory(page).split() == ["FACT", "city=Rome"]


def test_hostile_text_stays_text(served: Served, opened: Callable[..., Any], tmp_path: Path) -> None:
    page = opened(served.url)
    file = tmp_path / '<img src=x onerror="window.hacked=1">.txt'
    file.write_text(f"FACT a=1 {HOSTILE}")
    page.set_input_files("#file", [file])
    page.wait_for_selector("#files li")
    run(page, "read", HOSTILE)
    run(page, "chat", f"FACT b=2 {HOSTILE}")
    page.locator(".edit").first.click()
    page.locator(".editing textarea").first.fill(f"{HOSTILE} FACT c=3")
    page.locator(".editing .primary").first.click()
    wait(page, "document.querySelector('.words').textContent.includes('c=3')")
    assert HOSTILE in memory(page)
    run(page, "ask", f"c? {HOSTILE}")
    page.get_by_role("button", name=re.compile("^Delete -?img|^Delete ")).first.click()
    page.keyboard.press("Escape")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    wait(page, "document.querySelector('.words').textContent.includes('onerror')")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main script, main a").count() == 0


def test_keyboard_alone(served: Served, opened: Callable[..., Any]) -> None:
    page = opened(served.url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the input"
    page.keyboard.press("Enter")
    page.keyboard.type("FACT hotel=Ritz")
    page.keyboard.press("Control+Enter")
    idle(page)
    assert "Ritz" in memory(page)
    for _ in range(40):  # back to the choice of what to do
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.name") == "mode":
            break
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("input[name=mode][value=ask]").is_checked()
    page.keyboard.press("Tab")
    page.keyboard.type("hotel?")
    page.keyboard.press("Enter")
    idle(page)
    assert page.locator(".log").first.locator("li").last.locator("p").text_content() == "Ritz"
    # Everything that can be used is reached, and shows that it has the focus.
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    reached, outlines = set(), set()
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            """() => { const node = document.activeElement;
                const shown = node.type === 'radio' ? node.nextElementSibling : node;
                const name = node.id || node.className || node.textContent || node.type;
                return [name, getComputedStyle(shown).outlineStyle] }"""
        )
        if name in reached and name == "theme":
            break
        if page.evaluate("document.activeElement === document.body"):
            continue  # on the way round by the browser's own controls
        reached.add(name)
        outlines.add((outline, name if outline != "solid" else ""))
    assert {"theme", "new", "open", "compare", "marks", "edit", "words", "log", "text", "send", "delete-all"} <= reached
    assert outlines == {("solid", "")}


def test_everything_has_a_name(served: Served, opened: Callable[..., Any]) -> None:
    page = opened(served.url)
    run(page, "read", TEXT)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, textarea, [role=region], ol')].filter(node =>
            !node.closest('[hidden], template') && node.checkVisibility() &&
            !(node.ariaLabel || node.labels?.length || (node.tagName === 'BUTTON' && node.textContent.trim())))
            .map(node => node.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("h1").count() == 1
    assert page.evaluate("document.documentElement.lang") == "en"
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(node => node.id)")
    assert len(ids) == len(set(ids))


def test_a_key_is_asked_for_and_not_kept(tmp_path: Path, browser: Any) -> None:
    with serving(tmp_path) as served:
        key = Owners(served.store).add("anna")
        context = browser.new_context()
        page = context.new_page()
        page.goto(served.url)
        page.wait_for_selector("#key[open]")
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        wait(page, "document.querySelector('#key-text').textContent.includes('does not know this key')")
        page.keyboard.type(key)
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-ready]")
        run(page, "read", "FACT hotel=Ritz")
        assert "Ritz" in memory(page, 1)
        assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        assert key not in page.content()
        page.reload()
        page.wait_for_selector("#key[open]")
        page.keyboard.press("Escape")
        page.wait_for_selector("#notice p")
        notice(page, "asks for an API key, and none was given")
        context.close()


def test_a_server_that_went_away(tmp_path: Path, browser: Any) -> None:
    context = browser.new_context()
    page = context.new_page()
    with serving(tmp_path) as served:
        page.goto(served.url)
        page.wait_for_selector("body[data-ready]")
    run(page, "read", "FACT hotel=Ritz")
    notice(page, "The server does not answer")
    assert page.locator("#send").is_enabled()
    context.close()


def test_phone(served: Served, opened: Callable[..., Any]) -> None:
    page = opened(served.url, viewport={"width": 360, "height": 740})

    def fits() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360

    fits()
    run(page, "read", f"{TEXT} {'x' * 300} FACT {'y' * 200}=1")
    fits()
    assert [column.is_visible() for column in page.locator(".column").all()] == [True, False]
    page.get_by_role("tab", name="base").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent") == "trained"
    assert [column.is_visible() for column in page.locator(".column").all()] == [False, True]
    run(page, "chat", "z" * 400)
    fits()
    page.locator(".edit").nth(1).click()
    fits()
    page.click("#list-toggle")
    assert page.locator("#conversations .open").is_visible()
    fits()
    page.get_by_role("button", name=re.compile("^Delete FACT")).click()
    fits()
    page.keyboard.press("Escape")


def test_light_and_dark_can_be_read(served: Served, opened: Callable[..., Any]) -> None:
    page = opened(served.url, color_scheme="light")
    run(page, "read", TEXT)
    run(page, "chat", "FACT hotel=Grand")
    for theme, dark in (("", False), ("dark", True), ("light", False)):
        page.select_option("#theme", theme)
        page.evaluate("Promise.all(document.getAnimations().map(each => each.finished))")
        contrasts = page.evaluate(CONTRAST)
        assert min(contrasts.values()) >= 4.5, contrasts
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", ground))) < 60) == dark
    page.select_option("#theme", "")
    page.emulate_media(color_scheme="dark")
    assert max(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor")))) < 60


CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                          return [...canvas.getImageData(0, 0, 1, 1).data] };
  const linear = c => c <= 10.3 ? c / 3294.6 : ((c / 255 + .055) / 1.055) ** 2.4;
  const light = colour => colour.slice(0, 3).map(linear)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const ground = node => { for (; node; node = node.parentElement) {
    const colour = rgb(getComputedStyle(node).backgroundColor); if (colour[3] > 250) return colour } };
  const found = {};
  for (const node of document.querySelectorAll('h1, h2, h3, p, b, label, button:enabled, output, ins, del, span, em')) {
    if (!node.checkVisibility() || node.closest('.unseen') || !node.textContent.trim()) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))];
    const name = `${node.tagName} ${node.id} ${node.className} in ${node.parentElement.className}`;
    found[name] = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  }
  return found;
}"""


@pytest.mark.parametrize("spaced", [True, False])
def test_changes_lose_and_invent_nothing(served: Served, opened: Callable[..., Any], spaced: bool) -> None:
    page = opened(served.url)
    rng = random.Random(0)
    letters = ["a ", "b ", "Rome ", "Paris, ", "\n"] if spaced else ["東", "京", "a", " ", ". "]
    cases = [["".join(rng.choices(letters, k=rng.randrange(12))).strip() for _ in range(2)] for _ in range(300)]
    script = "cases => import('/page/changes.js').then(m => cases.map(([a, b]) => m.changed(a, b)))"
    for (before, after), runs in zip(cases, page.evaluate(script, cases), strict=True):
        assert "".join(text for kind, text in runs if kind != "lost") == after
        old = "".join(text for kind, text in runs if kind != "added")
        assert "".join(old.split()) == "".join(before.split())
        assert all(text for _, text in runs)


def test_changes_of_the_page_are_those_of_the_report(served: Served, opened: Callable[..., Any]) -> None:
    page = opened(served.url)
    cases = [
        ("hotel: Ritz, Rome", "hotel: Savoy, Rome"),
        ("Anna lives in Paris and works for Brandt", "Anna lives in Rome and paints for Holt"),
        ("The old lamp, of oil", "A new light, of gas"),
        ("東京に住む", "大阪に住む"),
        ("", "something new"),
        ("something old", ""),
        ("the same", "the same"),
    ]
    script = "cases => import('/page/changes.js').then(m => cases.map(([a, b]) => m.changed(a, b)))"
    names = {KEPT: "same", ADDED: "added", LOST: "lost"}
    for (before, after), runs in zip(cases, page.evaluate(script, cases), strict=True):
        theirs = [(names[op], text.strip()) for op, text in diff(before, after) if text.strip()]
        assert [(kind, text.strip()) for kind, text in runs] == theirs


def test_changes_of_large_texts_are_found_soon(served: Served, opened: Callable[..., Any]) -> None:
    page = opened(served.url)
    start = time.monotonic()
    page.evaluate("import('/page/changes.js').then(m => m.changed('a b '.repeat(20000), 'b c '.repeat(20000)))")
    page.evaluate("import('/page/changes.js').then(m => m.changed('a b '.repeat(990), 'b c '.repeat(990)))")
    assert time.monotonic() - start < 3

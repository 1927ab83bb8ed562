"""The page of the playground in a real browser, with real runs."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanolm.inference.load import load_run
from nanolm.playground.server import PlaygroundServer
from nanolm.playground.session import playground_runs
from tests.browser import SIZES, Browser
from tests.run_fixtures import LONG_NAME, make_run

pytestmark = pytest.mark.slow

BIGRAM, GPT = ".writer:nth-child(1)", ".writer:nth-child(2)"
HTML = "<img src=x onerror=alert(1)>&lt;"


def serve(paths: list[Path], port: int = 0) -> Iterator[PlaygroundServer]:
    server = PlaygroundServer(playground_runs([load_run(str(path), device="cpu") for path in paths]), port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.close()


@pytest.fixture(scope="module")
def playground(pair: Path) -> Iterator[PlaygroundServer]:
    yield from serve([pair / "bigram", pair / "gpt"])


@pytest.fixture(scope="module")
def of_bytes(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaygroundServer]:
    """A run of bytes with a hostile name."""
    folder = tmp_path_factory.mktemp("bytes")
    yield from serve([make_run(folder / LONG_NAME, text, "model=gpt", "tokenizer=byte", "trainer.max_steps=6")])


def open_page(browser: Browser, server: PlaygroundServer, size: str = "desktop", theme: str = "light") -> None:
    browser.driver.get_log("browser")
    browser.open(server.url, size, theme)
    browser.wait("return document.querySelector('.writer') && document.querySelector('#seed')")


def set_slider(browser: Browser, label: str, value: float) -> None:
    browser.js(
        "const slider = document.querySelector(`#sliders input[aria-label='${arguments[0]}']`); "
        "slider.value = arguments[1]; slider.dispatchEvent(new Event('input'))",
        label,
        value,
    )


def write(browser: Browser, prompt: str, seconds: float = 60) -> None:
    """Type a prompt, and wait until all texts are written."""
    browser.js("document.getElementById('prompt').value = arguments[0]", prompt)
    browser.click("#write")
    browser.wait("return !document.body.classList.contains('writing')", seconds)


def text_of(browser: Browser, card: str, kind: str = "") -> str:
    return "".join(browser.texts(f"{card} .text[role] .token{kind}"))


def hover(browser: Browser, selector: str) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    found = browser.driver.find_element(By.CSS_SELECTOR, selector)
    browser.js("arguments[0].scrollIntoView({block: 'center'})", found)
    ActionChains(browser.driver, duration=0).move_to_element(found).perform()


def tap(browser: Browser, selector: str) -> None:
    """Tap with a finger."""
    x, y = browser.js(
        "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'}); "
        "const box = e.getClientRects()[0]; return [box.x + box.width / 2, box.y + box.height / 2]",
        selector,
    )
    command = browser.driver.execute_cdp_cmd
    command("Emulation.setTouchEmulationEnabled", {"enabled": True})
    command("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    command("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    command("Emulation.setTouchEmulationEnabled", {"enabled": False})


def press(browser: Browser, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(browser.driver, duration=0).send_keys(*keys).perform()


@pytest.mark.parametrize(("size", "theme"), list(itertools.product(SIZES, ("light", "dark"))))
def test_page_writes_compares_and_explains(
    browser: Browser, playground: PlaygroundServer, size: str, theme: str, tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By

    open_page(browser, playground, size, theme)
    browser.driver.find_element(By.ID, "prompt").send_keys("12 and ")
    set_slider(browser, "temperature", 0.7)
    # Counts of tokens at every change of the page.
    browser.js(
        "window.counts = []; new MutationObserver(() => window.counts.push(document.querySelectorAll('.token').length))"
        f".observe(document.querySelector('{GPT} .text'), {{childList: true}})"
    )
    browser.click("#write")
    browser.wait("return !document.body.classList.contains('writing')", 60)
    assert browser.js("return window.counts.length") > 20
    for card in (BIGRAM, GPT):
        assert text_of(browser, card, ".prompt") == "12 and "
        assert len(browser.texts(f"{card} .text[role] .token:not(.prompt)")) == 200
    assert text_of(browser, BIGRAM) != text_of(browser, GPT)
    assert all(
        "200 tokens" in status and "nats per token" in status for status in browser.texts(".writer [role=status]")
    )
    colours = browser.js(
        f"return [...document.querySelectorAll('{GPT} .token')].map((each) => getComputedStyle(each).backgroundColor)"
    )
    assert len(set(colours)) > 10

    if size == "phone":
        tap(browser, f"{GPT} .token:nth-child(30)")
    else:
        hover(browser, f"{BIGRAM} .token:nth-child(20)")
        assert len(browser.texts("#details .bar")) in (10, 11)
        assert browser.js("return document.querySelector('.attention').hidden")
        browser.click(f"{GPT} .token:nth-child(30)")
    shares = [float(text.strip("<%")) for text in browser.texts("#details .bar > span:last-child")]
    assert shares[:6] == sorted(shares[:6], reverse=True)
    assert browser.js("return !document.getElementById('details').hidden")
    box = browser.js("const b = document.getElementById('details').getBoundingClientRect(); return [b.left, b.right]")
    assert 0 <= box[0] < box[1] <= SIZES[size][0]

    assert not browser.texts(f"{BIGRAM} .attention")
    browser.wait("return document.querySelectorAll('.heads canvas').length === 4")
    # A context of 16 tokens, of which 4 are dropped at once.
    assert len(browser.texts(".attended .token")) == 29 - 16
    browser.click(".heads [aria-label='layer 1, head 1']")
    assert browser.js("return document.activeElement.getAttribute('aria-label')") == "layer 1, head 1"
    assert browser.texts(".attention .note")[0].startswith("Layer 1, head 1: ")
    browser.click(".attention button[value=read]")
    browser.wait("return document.querySelectorAll('.attended .token').length === 30 - 16")

    pytest.importorskip("matplotlib", reason="the extra nanolm[plot] is not installed")
    pixels = browser.picture(tmp_path / f"{size}_{theme}.png")
    assert pixels.shape[1] == SIZES[size][0]
    assert (pixels[:, :4].mean() < 0.3) == (theme == "dark")
    assert browser.js("return document.documentElement.scrollWidth") == SIZES[size][0]
    assert browser.console_messages() == []
    assert all(url.startswith((playground.url, "data")) for url in browser.requests())


def test_same_seed_writes_the_same_text(browser: Browser, playground: PlaygroundServer) -> None:
    open_page(browser, playground)
    texts = []
    for seed in ("3", "3", "4"):
        browser.js("document.getElementById('seed').value = arguments[0]", seed)
        write(browser, "1")
        texts.append(text_of(browser, GPT))
    assert texts[0] == texts[1] != texts[2]
    browser.click("[aria-label='new seed']")
    browser.wait("return !document.body.classList.contains('writing')")
    assert browser.js("return document.getElementById('seed').value") != "4"


def test_keyboard_reaches_tokens_and_heads(browser: Browser, playground: PlaygroundServer) -> None:
    from selenium.webdriver.common.keys import Keys

    open_page(browser, playground)
    browser.js("document.getElementById('prompt').focus()")
    press(browser, "12")
    browser.driver.switch_to.active_element.send_keys(Keys.CONTROL, Keys.ENTER)
    browser.wait("return document.body.classList.contains('writing')")
    browser.wait("return !document.body.classList.contains('writing')")
    while browser.js("return document.activeElement.getAttribute('aria-label')") != "text of gpt":
        press(browser, Keys.TAB)
    active = f"return [...document.querySelectorAll('{GPT} .token')].findIndex((each) => each.matches('.active'))"
    assert browser.js(active) == 2
    assert len(browser.texts("#details .bar")) >= 10
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert browser.js(active) == 3
    press(browser, Keys.ARROW_DOWN)
    below = browser.js(active)
    press(browser, Keys.ARROW_UP)
    assert below > 4
    assert browser.js(active) < below
    press(browser, Keys.END)
    assert browser.js(active) == 201
    press(browser, Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ENTER)
    browser.wait("return document.querySelectorAll('.heads canvas').length === 4")
    press(browser, Keys.ESCAPE)
    assert browser.js("return document.getElementById('details').hidden")
    while not browser.js("return document.activeElement.matches('.heads button')"):
        press(browser, Keys.TAB)
    press(browser, Keys.ENTER)
    assert browser.texts(".attention .note")[0].startswith("Layer 0, head 0: ")
    assert browser.console_messages() == []


def test_stop_ends_the_text(browser: Browser, playground: PlaygroundServer) -> None:
    open_page(browser, playground)
    set_slider(browser, "tokens", 9)  # 5000
    browser.js(
        "new MutationObserver((_, observer) => { if (document.querySelectorAll('.token:not(.prompt)').length > 5) "
        "{ observer.disconnect(); document.getElementById('stop').click(); } })"
        f".observe(document.querySelector('{GPT} .text'), {{childList: true}})"
    )
    browser.click("#write")
    browser.wait(
        f"return document.querySelector('{GPT} [role=status]').textContent.endsWith('stopped') && "
        "!document.body.classList.contains('writing')"
    )
    wait_for_no_streams(playground)
    count = len(browser.texts(f"{GPT} .text[role] .token"))
    assert 0 < count < 5000
    assert len(browser.texts(f"{GPT} .text[role] .token")) == count
    assert browser.js("return document.getElementById('stop').disabled")


def test_closed_tab_ends_the_text(browser: Browser, playground: PlaygroundServer) -> None:
    open_page(browser, playground)
    set_slider(browser, "tokens", 9)
    browser.click("#write")
    browser.wait(f"return document.querySelectorAll('{GPT} .token').length > 5")
    browser.driver.get("about:blank")
    wait_for_no_streams(playground)


def wait_for_no_streams(server: PlaygroundServer) -> None:
    deadline = time.monotonic() + 10
    while server.n_streams:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_mistakes_are_shown(browser: Browser, playground: PlaygroundServer) -> None:
    open_page(browser, playground)
    write(browser, "12 € <b>")
    for status in browser.texts(".writer [role=status]"):
        assert "'€' (U+20AC)" in status
        assert "tokenizer=byte" in status
    write(browser, "1" * 1_000_000)
    assert all("at most 262,144" in status for status in browser.texts(".writer [role=status]"))
    browser.js("document.getElementById('seed').value = '1.5'")
    browser.click("#write")
    assert browser.texts("#problem")[0].startswith('seed is "1.5"')
    browser.js("document.getElementById('seed').value = '1'")
    write(browser, "12")
    assert browser.js("return document.getElementById('problem').hidden")
    assert len(browser.texts(f"{GPT} .text[role] .token")) == 202


def test_names_and_tokens_are_never_markup(browser: Browser, of_bytes: PlaygroundServer) -> None:
    open_page(browser, of_bytes, "phone")
    assert browser.texts(".writer h2 span") == [LONG_NAME]
    write(browser, HTML)
    assert text_of(browser, ".writer", ".prompt") == HTML
    assert not browser.js("return document.querySelectorAll('main img, main script, main b').length")
    tap(browser, ".token:nth-child(1)")
    browser.wait("return document.querySelectorAll('.heads canvas').length")
    assert browser.texts("#details code")[0] == "<"
    assert browser.js("return document.documentElement.scrollWidth") == SIZES["phone"][0]
    assert browser.console_messages() == []


def test_tokens_without_a_character_can_be_reached(browser: Browser, of_bytes: PlaygroundServer) -> None:
    open_page(browser, of_bytes)
    write(browser, "é ☃")
    prompt: list[Any] = browser.texts(".text[role] .token.prompt")
    assert prompt == ["", "é", " ", "", "", "☃"]
    hover(browser, ".text[role] .token:nth-child(4)")
    assert browser.texts("#details code")[0] == "\\xe2"
    hover(browser, ".text[role] .token:nth-child(8)")
    assert len(browser.texts("#details .bar")) >= 10


def test_ended_server_is_reported(browser: Browser, pair: Path) -> None:
    servers = serve([pair / "bigram"])
    server = next(servers)
    open_page(browser, server)
    for _ in servers:
        pass
    write(browser, "1")
    assert "start `nanolm playground` again" in browser.texts(".writer [role=status]")[0]


def test_two_tabs_write(browser: Browser, playground: PlaygroundServer) -> None:
    open_page(browser, playground)
    first = browser.driver.current_window_handle
    set_slider(browser, "tokens", 6)
    browser.click("#write")
    browser.driver.switch_to.new_window("tab")
    open_page(browser, playground)
    write(browser, "12")
    assert len(browser.texts(f"{GPT} .text[role] .token")) == 202
    browser.driver.close()
    browser.driver.switch_to.window(first)
    browser.wait("return !document.body.classList.contains('writing')")
    assert len(browser.texts(f"{GPT} .text[role] .token:not(.prompt)")) == 500

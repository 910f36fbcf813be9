"""The console in a real browser: make an edit, see it live, roll it back; at a desk and on a phone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from serving import Running, running

FRANCE = "The capital of France is"
SIZES = {"desk": (1440, 1000), "phone": (390, 844)}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path / "store") as found:
        yield found


def opened(browser: Browser, served: Running, size: str, token: str = "admin") -> Page:
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(30_000)
    page.on("dialog", lambda dialog: dialog.accept())
    page.on("pageerror", lambda error: pytest.fail(f"the page broke: {error}"))
    page.goto(f"{served.url}/console#{token}")
    return page


def shot(page: Page, name: str) -> None:
    """Kept where WISE_SHOTS names a folder, to be looked at."""
    folder = os.environ.get("WISE_SHOTS")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


@pytest.mark.parametrize("size", sorted(SIZES))
def test_an_edit_is_made_seen_and_rolled_back(browser: Browser, served: Running, size: str) -> None:
    page = opened(browser, served, size)
    expect(page.locator("#status")).to_have_class("dot on", timeout=30_000)
    assert "admin" not in page.url  # the token is taken out of the address
    expect(page.locator("#commit")).to_be_disabled()

    page.fill("#prompt", FRANCE)
    page.fill("#target", "Lyon")
    page.fill("#subject", "France")
    page.fill("#paraphrases", "The capital city of France is")
    page.fill("#probes", "The capital of Spain is")
    page.click("#preview")
    rows = page.locator("table.preview tbody tr")
    expect(rows).to_have_count(3, timeout=60_000)
    assert [rows.nth(i).locator("td").all_inner_texts()[1:] for i in range(3)] == [
        ["Paris", "Lyon"], ["Paris", "Lyon"], ["Madrid", "Madrid"]
    ]
    expect(page.locator("#version")).to_have_text("version 0")
    shot(page, f"{size}-preview")

    page.click("#commit")
    expect(page.locator("#edits li")).to_have_attribute("data-status", "live", timeout=60_000)
    expect(page.locator("#version")).to_have_text("version 1")
    page.click("#ask button")
    expect(page.locator(".says dd").last).to_have_text("Lyon")
    expect(page.locator(".says dd").first).to_have_text("Paris")
    assert page.locator(".token.spoke").count() >= 1
    assert page.locator(".tokens").inner_text().endswith("is Lyon.</s>")
    assert page.locator(".bar.open").count() >= 1
    expect(page.locator(".tile b").nth(3)).to_have_text("1", timeout=10_000)
    page.click("#versions li[data-version='1'] button:text('Diff')")
    expect(page.locator(".diff .plus")).to_contain_text("Lyon")
    shot(page, f"{size}-live")

    page.click("#versions li[data-version='0'] button:text('Roll back')")
    expect(page.locator("#version")).to_have_text("version 2", timeout=30_000)
    expect(page.locator("#edits li")).to_have_attribute("data-status", "retired")
    page.click("#ask button")
    expect(page.locator(".says dd").last).to_have_text("Paris")
    shot(page, f"{size}-back")
    wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    assert not wide, "the page is wider than the screen"
    page.close()


def test_what_goes_wrong_is_said(browser: Browser, served: Running) -> None:
    page = opened(browser, served, "desk", token="nobody")
    expect(page.locator("#notice")).to_contain_text("the token is not known")
    expect(page.locator("#status")).to_have_class("dot off")
    page.close()
    page = opened(browser, served, "desk", token="reader")
    expect(page.locator("#status")).to_have_class("dot on")
    page.fill("#prompt", FRANCE)
    page.fill("#target", "Lyon")
    page.click("#preview")
    expect(page.locator("#notice")).to_contain_text("scope reader")
    page.close()


def test_the_page_loads_nothing_from_elsewhere(browser: Browser, served: Running) -> None:
    asked: list[str] = []
    page = browser.new_page()
    page.on("request", lambda request: asked.append(request.url))
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text) if message.type == "error" else None)
    page.goto(f"{served.url}/")
    expect(page.locator("#notice")).to_contain_text("Give a token")
    assert page.url == f"{served.url}/console"
    assert all(url.startswith((served.url, "data:")) for url in asked)
    assert not refused, refused
    page.close()

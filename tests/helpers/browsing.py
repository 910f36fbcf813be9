"""The console in a real browser, for the tests of it: pages, what can be read on them, and pictures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from serving import PATIENCE, Running

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SIZES = {"desk": (1280, 900), "phone": (390, 844)}
needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)"),
]
expect.set_options(timeout=1000 * PATIENCE)

CONTRAST = """() => {
  const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const paint = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (css) => {
    paint.clearRect(0, 0, 1, 1); paint.fillStyle = css; paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = rgba(getComputedStyle(at).backgroundColor);
      if (found[3] > 250) return found;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || !element.checkVisibility() || element.closest('.hidden, .skip, option, button:disabled')) continue;
    count += 1;
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) poor.push(`${text.slice(0, 40)}: ${((a + .05) / (b + .05)).toFixed(2)}`);
  }
  return { count, poor };
}"""
"""How many visible texts there are, and those that stand out too little for WCAG 2.2 AA."""
UNNAMED = """() => [...document.querySelectorAll('button, input, select, textarea, summary, a, [role=tab]')]
  .filter((element) => element.checkVisibility() && !element.ariaLabel && !element.labels?.length
    && !element.textContent.trim() && !element.title).map((element) => element.outerHTML)"""
"""Controls that a screen reader would have no name for."""


@contextmanager
def browsing() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def opened(
    browser: Browser, served: Running, *, token: str = "admin", size: str = "desk", **options: Any
) -> Iterator[Page]:
    """The console, connected if the token is known. A dialog is accepted; an error of the page fails the test."""
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, **options)
    page.set_default_timeout(1000 * PATIENCE)
    wrong: list[str] = []
    page.on("dialog", lambda dialog: dialog.accept())
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{served.url}/console#{token}")
    if token in ("reader", "editor", "admin"):
        expect(page.locator("#status")).to_have_class("dot on")
    try:
        yield page
    finally:
        page.close()
    assert not wrong, wrong


def shot(page: Page, name: str) -> None:
    """Kept where WISE_SHOTS names a folder, to be looked at."""
    folder = os.environ.get("WISE_SHOTS")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def ask(page: Page, words: str) -> None:
    """Sends a message, and waits until its answer has come."""
    count = page.locator("#turns .assistant").count()
    page.fill("#words", words)
    page.press("#words", "Enter")
    expect(page.locator("#turns .assistant .meta")).to_have_count(count + 1)
    expect(page.locator("#send")).to_be_enabled()


def wide(page: Page) -> bool:
    """Whether the page is wider than the screen."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def notice(page: Page, kind: str = "problem") -> Any:
    """The notices of a kind that are shown."""
    return page.locator(f".notice.{kind}")


def capital(country: str, target: str, **more: Any) -> dict[str, Any]:
    """An edit of a capital, as it is submitted."""
    return {"prompt": f"The capital of {country} is", "target": target, "subject": country, **more}

"""Debian's Chromium, driven by Playwright, and what a page open in it did."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pytest

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def chromium(*arguments: str) -> Iterator[Any]:
    """Playwright's Browser, started with these arguments besides ours. Where there is none the test
    is skipped with the reason, but not in CI: there it fails."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _without("playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        _without("there is no chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS, *arguments])
        try:
            yield running
        finally:
            running.close()


def _without(reason: str) -> NoReturn:
    if os.environ.get("TESTS_NEED_BROWSER"):
        pytest.fail(reason)
    pytest.skip(reason)


class Visit:
    """One page in a browser of its own, and all that it asked for, logged or opened."""

    def __init__(self, browser: Any, origin: str, **context: Any) -> None:
        self.origin = origin
        self._context = browser.new_context(**context)
        self.page = page = self._context.new_page()
        page.set_default_timeout(10_000)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda line: self._complain(line.type, line.text))
        page.on("pageerror", lambda error: self._complain("error", str(error)))
        page.on("dialog", self._dialog)

    def open(self, path: str = "/api/memory-status", *, clock: bool = False) -> Any:
        """The page, shown. With `clock`, `pass_time` moves its timers."""
        if clock:
            self.page.clock.install()
        self.page.goto(self.origin + path)
        return self.page

    def pass_time(self, seconds: float) -> None:
        self.page.clock.run_for(int(seconds * 1000))

    def left_the_origin(self) -> list[str]:
        """Requests to anywhere else. A data: URL is no request."""
        mine = urlsplit(self.origin)[:2]
        return [url for url in self.asked if urlsplit(url)[:2] != mine and url[:5] != "data:"]

    def screenshot(self, name: str, folder: Path) -> None:
        """Into `folder`, and into $SCREENSHOTS where that is set."""
        picture = self.page.screenshot(full_page=True)
        for place in (folder, os.environ.get("SCREENSHOTS")):
            if place:
                Path(place).mkdir(parents=True, exist_ok=True)
                (Path(place) / f"{name}.png").write_bytes(picture)

    def close(self) -> None:
        self._context.close()

    def _complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def _dialog(self, dialog: Any) -> None:
        self.complaints.append(f"a dialog opened: {dialog.message}")
        dialog.dismiss()

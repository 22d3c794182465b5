"""The docs as a site (`make docs`): it builds without a warning, its links lead somewhere, and it
is readable in a browser, on a phone, in the dark and offline."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from helpers.browser import Visit, chromium
from helpers.docs import DOCS, ROOT
from helpers.servers import clean_environ

if importlib.util.find_spec("mkdocs") is None:
    pytest.skip("make docs installs MkDocs, which builds the site", allow_module_level=True)

WIDTHS = (1200, 390)
SCHEMES = ("light", "dark")
# How far the page reaches to the right of the window, and what reaches there without a scroll bar.
TOO_WIDE = """() => {
  const width = document.documentElement.clientWidth;
  const reach = document.documentElement.scrollWidth;
  return reach > width ? `${location.pathname}: ${reach} of ${width} pixels` : "";
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=clean_environ({"NO_MKDOCS_2_WARNING": "1"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def origin(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Page(HTMLParser):
    """The links, the anchors and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {""}
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        self.links += [found[name] for name in ("href", "src") if name in found]

    def handle_data(self, data: str) -> None:
        self.text += data


def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_page_of_docs_is_on_the_site(site: Path) -> None:
    built = {path.stem for path in site.glob("*.html")}
    assert built >= {page.stem for page in DOCS.glob("*.md")} | {"CHANGELOG", "benchmarks"}


def test_no_link_or_anchor_of_the_built_site_is_dead(site: Path) -> None:
    found = pages(site)
    dead = []
    for path, page in found.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link) or path.name == "404.html":  # whose links are absolute
                continue
            target, _, anchor = unquote(link).partition("#")
            file = (path.parent / target).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            known = found[file].anchors if file in found else {"", anchor}
            if not file.exists() or anchor not in known:
                dead.append(f"{path.name}: {link}")
    assert not dead


def test_lists_and_blocks_are_shown_as_such(site: Path) -> None:
    """GitHub takes lists and fences that MkDocs takes for text."""
    wrong = [
        f"{path.name}: {mark[0].strip()}"
        for path, page in pages(site).items()
        for mark in [re.search(r"\n(?:\* |\d\. |```|\|).*", page.text)]
        if mark and "<pre" not in mark[0]
    ]
    assert not wrong


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_its_window_or_asks_another_host(
    site: Path, origin: str, tmp_path: Path, width: int, scheme: str
) -> None:
    wide: list[str] = []
    with chromium() as browser:
        look = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
        visit = Visit(browser, origin, **look)
        for path in sorted(site.glob("*.html")):
            page = visit.open(f"/{path.name}")
            wide += filter(None, [page.evaluate(TOO_WIDE)])
            if path.stem in ("index", "settings", "survive", "status"):
                visit.screenshot(f"docs-{path.stem}-{width}-{scheme}", tmp_path)
        shown = visit.page.evaluate("document.body.dataset.mdColorScheme")
        assert shown == {"light": "default", "dark": "slate"}[scheme]
        assert not wide
        assert not visit.left_the_origin()
        assert not visit.complaints
        visit.close()


@pytest.mark.parametrize("from_folder", [False, True], ids=["served", "from a folder"])
def test_the_search_finds_512_and_asks_no_other_host(
    site: Path, origin: str, from_folder: bool
) -> None:
    with chromium() as browser:
        address = site.as_uri() if from_folder else origin
        visit = Visit(browser, address, viewport={"width": 1200, "height": 900})
        page = visit.open("/index.html")
        page.locator("label.md-search__icon[for=__search]").first.click(force=True)
        page.locator("input.md-search__input").first.press_sequentially("512")
        result = page.locator(".md-search-result__item").first
        result.wait_for()
        assert "512" in result.inner_text()
        assert not visit.left_the_origin()
        visit.close()

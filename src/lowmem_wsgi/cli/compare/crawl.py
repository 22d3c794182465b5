"""Find the pages of a site from its first one: links on the same host, a bounded number of them."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Protocol
from urllib.parse import urljoin, urlsplit

from ..safe_pages import CHANGES, MOST_PAGES
from .asked import Asked, encoded

# Requests in all, those included whose pages are left out.
MOST_ASKED = 3 * MOST_PAGES
# Pages that differ in the query alone, as those of a calendar do.
MOST_QUERIES = 3
# Characters of a page that are searched for links.
MOST_TEXT = 2_000_000


class Page(Protocol):
    """An answer: status 0 where none came, or not whole."""

    @property
    def status(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def location(self) -> str: ...
    @property
    def body(self) -> bytes: ...


def crawl(get: Callable[[str], Page], goes_on: Callable[[], bool] = lambda: True) -> Asked:
    """Ask for `/` and the pages that it leads to. Return those that are answered 200.

    `goes_on`: False once no more pages are to be asked for.
    """
    waiting, seen, queries = deque(["/"]), {"/"}, Counter({"/": 1})
    found: list[str] = []
    changing: set[str] = set()
    asked = 0
    while waiting and asked < MOST_ASKED and len(found) < MOST_PAGES and goes_on():
        path = waiting.popleft()
        page = get(path)
        asked += 1
        if page.status == 200:
            found.append(path)
        hrefs = [page.location] if page.location else []
        if page.status == 200 and page.kind.startswith(("text/html", "application/xhtml")):
            hrefs = links(page.body[:MOST_TEXT].decode("utf-8", "replace"))
        for target in (inside(href, path) for href in hrefs):
            if not target or target in seen:
                continue
            seen.add(target)
            place = target.partition("?")[0]
            queries[place] += 1
            if CHANGES.search(target):
                changing.add(place)
            elif queries[place] <= MOST_QUERIES:
                waiting.append(target)
    return Asked(tuple(found), tuple(_notes(changing, len(found) if waiting else 0)))


def links(text: str) -> list[str]:
    """Return the targets of a page's links, in order; not of those that robots must not follow."""
    reader = _Links()
    with contextlib.suppress(AssertionError):  # Python's parser, of <![
        reader.feed(text)
    return reader.found


def inside(href: str, page: str) -> str:
    """Return the path and query that a link of a page leads to; "" if it leaves the host."""
    try:
        here = urlsplit(urljoin(f"http://{_HERE}{page}", href.strip()))
    except ValueError:  # such as http://[
        return ""
    if here.scheme not in ("http", "https") or here.netloc != _HERE:
        return ""
    return encoded((here.path or "/") + (f"?{here.query}" if here.query else ""))


def _notes(changing: set[str], enough: int) -> list[str]:
    notes = []
    if changing:
        names = sorted(changing)
        shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
        notes.append(f"left out: pages whose name says that they change something ({shown})")
    if enough:
        notes.append(f"left out: pages beyond the first {enough}")
    return notes


# A host that no page names.
_HERE = "site.invalid"


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        href = given.get("href")
        if tag == "a" and href and "nofollow" not in (given.get("rel") or ""):
            self.found.append(href)

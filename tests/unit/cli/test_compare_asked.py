"""The list of requests of `lowmem-wsgi compare`: a file of paths, a HAR file, a crawl."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_wsgi.cli.compare.asked import MOST_REQUESTS, Asked, WrongRequests, read
from lowmem_wsgi.cli.compare.crawl import MOST_ASKED, MOST_QUERIES, crawl, inside, links
from lowmem_wsgi.cli.safe_pages import MOST_PAGES


def har(*requests: tuple[str, str]) -> str:
    entries = [{"request": {"method": method, "url": url}} for method, url in requests]
    return json.dumps({"log": {"version": "1.2", "entries": entries}})


# --- A file


def test_a_line_is_a_path_or_get_and_a_path() -> None:
    text = "# pages\n/\nGET /clients?page=2\n\n  get /a b \n/ü#top\n/a%20b\n"
    assert read(text) == Asked(("/", "/clients?page=2", "/a%20b", "/%C3%BC", "/a%20b"))


def test_a_file_of_windows_is_read() -> None:
    assert read("\ufeffGET /\r\n/a\r\n").paths == ("/", "/a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "there is no request"),
        ("# nothing\n", "there is no request"),
        ("/\nhello\n", "line 2: 'hello': expected GET /path, or /path"),
        ("/\nPOST /login\n", "line 2: 'POST /login': compare sends GET only"),
        ("http://example.org/\n", "line 1: 'http://example.org/': expected GET /path"),
        ("//example.org/\n", "line 1: '//example.org/': expected GET /path"),
        ("/a\0b\n", "line 1: '/a\\x00b': expected GET /path"),
        ("GET\n", "line 1: 'GET': expected GET /path"),
        ("/\n" * (MOST_REQUESTS + 1), "10001 requests are too many: at most 10000 are sent"),
        ("{", "neither lines such as GET /path nor a HAR file"),
        ('{"log": {"entries": [{}]}}', "neither lines such as GET /path nor a HAR file"),
        ('{"log": {"entries": 3}}', "neither lines such as GET /path nor a HAR file"),
        ('{"log": {"entries": []}}', "the HAR file has no request"),
        (har(("POST", "https://example.org/")), "the HAR file has no GET request to example.org"),
        (har(("GET", "data:text/plain,x")), "the HAR file has no request"),
        (har(("GET", "http://[")), "neither lines such as GET /path nor a HAR file"),
    ],
)
def test_what_is_no_list_of_requests_is_told_in_one_line(text: str, expected: str) -> None:
    with pytest.raises(WrongRequests) as raised:
        read(text)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_of_a_har_file_the_gets_to_the_first_host_are_taken() -> None:
    text = har(
        ("GET", "https://example.org"),
        ("GET", "https://example.org/a?b=c d#e"),
        ("POST", "https://example.org/login"),
        ("GET", "https://cdn.example.net/x.js"),
        ("GET", "https://fonts.example.net/y.css"),
        ("GET", "https://example.org/"),
    )
    assert read(text) == Asked(
        ("/", "/a?b=c%20d", "/"),
        (
            "left out: 1 request not by GET",
            "left out: 2 requests to other hosts than example.org",
        ),
    )


@given(st.text())
def test_any_text_is_a_list_of_paths_or_wrong(text: str) -> None:
    try:
        asked = read(text)
    except WrongRequests as error:
        wrong = str(error)
        assert "\n" not in wrong
        return
    assert asked.paths
    for path in asked.paths:
        assert path.startswith("/")
        assert path.isascii()
        assert path.isprintable()
        assert " " not in path


# --- A crawl


class Page(NamedTuple):
    status: int = 200
    body: bytes = b""
    kind: str = "text/html; charset=utf-8"
    location: str = ""


class Site:
    def __init__(self, **pages: Page) -> None:
        self.pages: dict[str, Page] = {f"/{name}": page for name, page in pages.items()}
        self.asked: list[str] = []

    def get(self, path: str) -> Page:
        self.asked.append(path)
        return self.pages.get(path, Page(404))


def page(*hrefs: str) -> Page:
    return Page(body="".join(f'<p><a href="{href}">x</a>' for href in hrefs).encode())


def test_the_pages_that_links_lead_to_are_found_once() -> None:
    site = Site(a=page("/", "b#x", "/a"), b=page("c?d=e"), **{"c?d=e": page()})
    site.pages["/"] = page("/a", "/a#top", "/none", "/moved", "/gone")
    site.pages["/moved"] = Page(302, location="/b")
    site.pages["/gone"] = Page(500)
    found = crawl(site.get)
    assert found == Asked(("/", "/a", "/b", "/c?d=e"))
    assert len(site.asked) == len(set(site.asked)) == 7


def test_a_page_that_changes_something_is_left_out_and_told() -> None:
    site = Site(a=page())
    site.pages["/"] = page("/logout", "/items/1/delete", "/a", "/a?action=delete", "/x/delete")
    found = crawl(site.get)
    assert site.asked == ["/", "/a"]
    assert found.notes == (
        "left out: pages whose name says that they change something "
        "(/a, /items/1/delete, /logout …)",
    )


def test_a_site_without_end_is_bounded() -> None:
    asked: list[str] = []

    def get(path: str) -> Page:
        asked.append(path)
        return page(*(f"/page/{len(asked)}/{number}" for number in range(10)))

    found = crawl(get)
    assert len(found.paths) == len(asked) == MOST_PAGES
    assert found.notes == (f"left out: pages beyond the first {MOST_PAGES}",)


def test_a_site_of_errors_and_a_calendar_are_bounded() -> None:
    asked: list[str] = []

    def get(path: str) -> Page:
        asked.append(path)
        links = (f"/none/{len(asked)}/{number}" for number in range(10))
        return page(*links) if path == "/" else Page(302, location=f"/to/{len(asked)}")

    assert crawl(get).paths == ("/",)
    assert 10 < len(asked) <= MOST_ASKED
    days = Site(day=page())
    days.pages["/"] = page(*(f"/day?d={number}" for number in range(100)))
    days.pages |= {f"/day?d={number}": page() for number in range(100)}
    assert len(crawl(days.get).paths) == 1 + MOST_QUERIES


def test_a_slow_site_is_left_when_time_is_over() -> None:
    site = Site(a=page("/b"), b=page())
    site.pages["/"] = page("/a", "/b")
    found = crawl(site.get, lambda: len(site.asked) < 2)
    assert found == Asked(("/", "/a"), ("left out: pages beyond the first 2",))


def test_where_the_first_page_is_an_error_nothing_is_found() -> None:
    assert crawl(lambda path: Page(400)) == Asked(())


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("/a", "/a"),
        ("a", "/dir/a"),
        ("../a?b=c#d", "/a?b=c"),
        ("?page=2", "/dir/page?page=2"),
        ("", "/dir/page"),
        (" /a ", "/a"),
        ("/ü b", "/%C3%BC%20b"),
        ("//other.example/a", ""),
        ("https://other.example/a", ""),
        ("mailto:me@example.org", ""),
        ("javascript:void(0)", ""),
        ("http://[", ""),
    ],
)
def test_a_link_inside_the_site(href: str, expected: str) -> None:
    assert inside(href, "/dir/page") == expected


def test_links_that_robots_must_not_follow_and_forms_are_left() -> None:
    text = """<a href=/a>x<A HREF='/b'><a rel="nofollow" href="/c"><a name=x><form action=/d>
        <link href=/e><img src=/f><a href="/g?a=1&amp;b=2"><a href"""
    assert links(text) == ["/a", "/b", "/g?a=1&b=2"]


@given(st.text(), st.sampled_from(["/", "/a/b", "/a?b=c"]))
def test_any_link_is_a_path_or_none(href: str, path: str) -> None:
    found: Any = inside(href, path)
    assert found == "" or (found.startswith("/") and found.isascii() and " " not in found)

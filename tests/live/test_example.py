"""The example app as people run it: under Gunicorn, with the library's config."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.example import CONFIG, EXAMPLE, Browser
from helpers.servers import Reply, Server, serve


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    tmp = tmp_path_factory.mktemp("example")
    with serve(
        "app:app", tmp_path=tmp, config=CONFIG, cwd=EXAMPLE, CLIENTS_DIR=str(tmp / "data")
    ) as server:
        yield server


@pytest.fixture
def visitor(site: Server) -> Browser:
    return Browser(site)


@pytest.fixture
def member(site: Server) -> Browser:
    browser = Browser(site)
    assert browser.log_in().status == 200
    return browser


def rows(reply: Reply) -> int:
    return len(re.findall(r'href="/clients/\d+"', reply.text))


def test_the_first_page_shows_five_clients_of_a_few_thousand(visitor: Browser) -> None:
    reply = visitor.get("/")
    assert rows(reply) == 5
    assert "3,0" in reply.text


def test_a_page_of_the_list_has_ten_rows_at_most(visitor: Browser) -> None:
    assert rows(visitor.get("/clients")) == 10
    assert rows(visitor.get("/clients?per_page=1000")) == 10
    assert rows(visitor.get("/clients?per_page=3")) == 3
    assert visitor.get("/clients?page=2").text != visitor.get("/clients").text


def test_the_limits_are_the_middlewares(tmp_path: Path) -> None:
    data = {"CLIENTS_DIR": str(tmp_path / "data"), "LOWMEM_HOME_ROWS": "2", "LOWMEM_MAX_ROWS": "4"}
    with serve("app:app", tmp_path=tmp_path, config=CONFIG, cwd=EXAMPLE, env=data) as site:
        assert rows(Browser(site).get("/")) == 2
        assert rows(Browser(site).get("/clients?per_page=1000")) == 4


def test_search_finds_and_says_when_it_does_not(visitor: Browser) -> None:
    found = re.search(r'href="/clients/\d+"[^>]*>([^<]+)<', visitor.get("/clients").text)
    assert found
    reply = visitor.get("/clients?" + urllib.parse.urlencode({"q": found[1]}))
    assert found[1] in reply.text
    assert rows(visitor.get("/clients?q=nobody-is-called-this")) == 0


def test_hostile_text_is_shown_not_run(visitor: Browser) -> None:
    reply = visitor.get("/clients?q=" + urllib.parse.quote('"><script>alert(1)</script>'))
    assert "<script" not in reply.text


def test_adding_and_editing_needs_a_login(visitor: Browser) -> None:
    for page in ("/clients/new", "/clients/1/edit", "/import", "/files"):
        assert "password" in visitor.get(page).text


def test_a_member_adds_and_edits_a_client(member: Browser) -> None:
    client = {"name": "Ada Lovelace", "email": "ada@example.org", "city": "London", "phone": ""}
    reply = member.post("/clients/new", client)
    assert "Ada Lovelace" in reply.text
    (edit,) = set(re.findall(r'href="(/clients/\d+/edit)"', reply.text))
    reply = member.post(edit, {**client, "city": "Marylebone"})
    assert "Marylebone" in reply.text


def test_a_form_with_errors_says_which_and_keeps_what_was_typed(member: Browser) -> None:
    reply = member.post("/clients/new", {"name": "Only A Name", "email": "no", "city": ""})
    assert reply.status == 422
    assert "Only A Name" in reply.text
    assert reply.text.count("aria-invalid") >= 2


def test_a_post_without_the_forms_token_is_refused(member: Browser) -> None:
    assert member._sent("POST", "/clients/new", b"name=x", {}).status == 400


def test_logging_out_ends_the_session(member: Browser) -> None:
    member.post("/", {}, to="/logout")
    assert "password" in member.get("/clients/new").text


def test_a_wrong_password_is_told(visitor: Browser) -> None:
    reply = visitor.post("/login", {"name": "demo", "password": "wrong"})
    assert reply.status == 422


def csv_of(count: int, tag: str) -> bytes:
    lines = [f"Person {n},{tag}{n}@example.org,Kiel,\n" for n in range(count)]
    return ("name,email,city,phone\n" + "".join(lines)).encode()


def test_a_csv_is_imported_whole_or_not_at_all(member: Browser) -> None:
    assert "23" in member.upload("/import", "people.csv", csv_of(23, "good")).text
    bad = csv_of(5, "bad") + b"Nobody,not an address,Kiel,\n"
    reply = member.upload("/import", "people.csv", bad)
    assert "7" in reply.text  # the line
    assert rows(member.get("/clients?q=bad0@example.org")) == 0


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00\x01" * 100, b"one,two\n1,2\n", b"\x89PNG\r\n\x1a\n" * 50]
)
def test_what_is_no_csv_is_refused_clearly(member: Browser, content: bytes) -> None:
    reply = member.upload("/import", "people.csv", content)
    assert reply.status == 422


def test_an_upload_over_the_cap_is_413_and_one_within_is_kept(member: Browser) -> None:
    assert member.upload("/files", "big.bin", b"x" * 600 * 1024).status == 413
    reply = member.upload("/files", "notes.txt", b"hello")
    assert "notes.txt" in reply.text
    assert member.get("/files/notes.txt").body == b"hello"


def test_static_files_are_cached_for_30_seconds(visitor: Browser) -> None:
    assert visitor.get("/static/style.css").headers["Cache-Control"] == "max-age=30"


def test_pages_need_nothing_from_elsewhere(visitor: Browser) -> None:
    for page in ("/", "/clients", "/login"):
        links = re.findall(r'(?:src|href|action)="([^"]+)"', visitor.get(page).text)
        assert links
        assert all(link.startswith(("/", "#")) for link in links)


def test_errors_are_answered_in_the_sites_own_style(visitor: Browser) -> None:
    for path, status in (("/nothing", 404), ("/clients/999999999", 404)):
        reply = visitor.get(path)
        assert reply.status == status
        assert "/static/style.css" in reply.text


def test_two_workers_that_start_at_once_make_one_database_and_one_key(tmp_path: Path) -> None:
    with serve(
        "app:app",
        tmp_path=tmp_path,
        cwd=EXAMPLE,
        workers=2,
        CLIENTS_DIR=str(tmp_path / "data"),
    ) as site:
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: site.get("/"), range(16)))
        assert {reply.status for reply in replies} == {200}
        browser = Browser(site)
        browser.log_in()
        for _ in range(8):
            assert "password" not in browser.get("/clients/new").text


def test_the_export_streams_every_client(site: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)
    connection.request("GET", "/clients.csv")
    response = connection.getresponse()
    assert response.headers["Transfer-Encoding"] == "chunked"
    assert len(response.read().splitlines()) > 3000
    connection.close()


def test_what_it_needs_beside_python_is_at_most_20_mb() -> None:
    """Everything its requirements bring, as installed here, bytecode included."""
    code = """
import importlib.metadata as m, re, sys
todo, seen, size = ["flask", "gunicorn", "lowmem-wsgi"], set(), 0
while todo:
    name = re.split(r"[ ;<>=!\\[(~]", todo.pop())[0].lower().replace("_", "-")
    if name in seen: continue
    seen.add(name)
    try: dist = m.distribution(name)
    except m.PackageNotFoundError: continue
    size += sum(f.locate().stat().st_size for f in dist.files or [] if f.locate().is_file())
    todo += [r for r in dist.requires or [] if "extra ==" not in r]
print(size)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2 * 1024**2 < int(done.stdout) <= 20 * 1024**2

"""The example app as people run it: under Gunicorn, with the library's config."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import requires
from pathlib import Path

import pytest

import lowmem_wsgi
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


def test_a_page_of_the_list_has_ten_rows_at_most(member: Browser) -> None:
    assert rows(member.get("/clients")) == 10
    assert rows(member.get("/clients?per_page=1000")) == 10
    assert rows(member.get("/clients?per_page=3")) == 3
    assert member.get("/clients?page=2").text != member.get("/clients").text


@pytest.mark.parametrize("page", ["9999", "0", "-1", "two", "", "9" * 400])
def test_a_page_that_is_not_there_is_404_and_says_which_is_the_last(
    member: Browser, page: str
) -> None:
    reply = member.get(f"/clients?page={page}")
    assert reply.status == 404
    assert re.search(r"The last is 30[0-9]\.", reply.text)
    assert member.get(f"/files?page={page}").status == 404


def test_strangers_see_no_addresses_and_no_numbers(visitor: Browser, member: Browser) -> None:
    for browser, seen in ((visitor, 0), (member, 5)):
        text = browser.get("/").text.replace("<wbr>", "")
        assert len(re.findall(r"@[a-z0-9-]+\.example<", text)) == seen
        assert len(re.findall(r">\+[0-9 ]{9,}<", text)) == seen


def test_the_limits_are_the_middlewares(tmp_path: Path) -> None:
    data = {"CLIENTS_DIR": str(tmp_path / "data"), "LOWMEM_HOME_ROWS": "2", "LOWMEM_MAX_ROWS": "4"}
    with serve("app:app", tmp_path=tmp_path, config=CONFIG, cwd=EXAMPLE, env=data) as site:
        assert rows(Browser(site).get("/")) == 2
        member = Browser(site)
        member.log_in()
        assert rows(member.get("/clients?per_page=1000")) == 4


def test_search_finds_and_says_when_it_does_not(member: Browser) -> None:
    found = re.search(r'href="/clients/\d+"[^>]*>([^<]+)<', member.get("/clients").text)
    assert found
    reply = member.get("/clients?" + urllib.parse.urlencode({"q": found[1]}))
    assert found[1] in reply.text
    assert rows(member.get("/clients?q=nobody-is-called-this")) == 0


def test_hostile_text_is_shown_not_run(member: Browser) -> None:
    reply = member.get("/clients?q=" + urllib.parse.quote('"><script>alert(1)</script>'))
    assert "alert(1)" in reply.text
    assert "<script" not in reply.text


@pytest.mark.parametrize(
    "page",
    [
        *("/clients", "/clients/1", "/clients.csv", "/clients.xlsx", "/clients/new"),
        *("/clients/1/edit", "/import", "/import/excel", "/files", "/files/notes.txt"),
    ],
)
def test_the_list_its_exports_and_every_change_need_a_login(site: Server, page: str) -> None:
    reply = site.get(page)
    assert reply.status == 302
    assert reply.headers["Location"] == "/login?" + urllib.parse.urlencode({"next": page}, safe="/")


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
    refused = member.upload("/files", "big.bin", b"x" * 600 * 1024)
    assert refused.status == 413
    assert "larger than the 512 KB allowed here" in refused.text
    reply = member.upload("/files", "notes.txt", b"hello")
    assert "notes.txt" in reply.text
    assert member.get("/files/notes.txt").body == b"hello"


def test_static_files_are_cached_for_30_seconds(visitor: Browser) -> None:
    assert visitor.get("/static/style.css").headers["Cache-Control"] == "max-age=30"


def test_pages_need_nothing_from_elsewhere(visitor: Browser, member: Browser) -> None:
    for browser, page in ((visitor, "/"), (visitor, "/login"), (member, "/clients")):
        links = re.findall(r'(?:src|href|action)="([^"]+)"', browser.get(page).text)
        assert links
        assert all(link.startswith(("/", "#")) for link in links)


def test_errors_are_answered_in_the_sites_own_style(member: Browser) -> None:
    for path, status in (("/nothing", 404), ("/clients/999999999", 404)):
        reply = member.get(path)
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


def test_the_export_streams_every_client(site: Server, member: Browser) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)
    cookies = "; ".join(f"{name}={value}" for name, value in member.cookies.items())
    connection.request("GET", "/clients.csv", headers={"Cookie": cookies})
    response = connection.getresponse()
    assert response.headers["Transfer-Encoding"] == "chunked"
    assert len(response.read().splitlines()) > 3000
    connection.close()


def test_what_it_needs_beside_python_is_at_most_20_mb(tmp_path: Path) -> None:
    """Its requirements installed into an empty directory, bytecode included."""
    lean = set((EXAMPLE / "requirements.txt").read_text(encoding="utf-8").split())
    assert "lowmem-wsgi" in lean
    lean.remove("lowmem-wsgi")  # what is tested, installed already
    lean.update(row for row in requires("lowmem-wsgi") or [] if "extra ==" not in row)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path), *lean]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if "Could not find a version" in done.stderr:
        pytest.skip("pip reaches no index here")
    assert done.returncode == 0, done.stderr
    names = {path.name.partition("-")[0].lower() for path in tmp_path.glob("*.dist-info")}
    assert {"flask", "gunicorn", "werkzeug", "psutil"} <= names
    assert not names & {"pandas", "numpy", "matplotlib", "openpyxl", "sqlalchemy"}
    places = (tmp_path, Path(lowmem_wsgi.__file__).parent)
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    assert 5 * 1024**2 < size <= 20 * 1024**2, f"{size / 1024**2:.1f} MB"

"""The example's Excel import and export and its chart: heavy work that leaves no weight."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from werkzeug.datastructures import FileStorage

from helpers.browser import Visit, chromium
from helpers.example import CONFIG, EXAMPLE, Browser
from helpers.servers import Reply, Server, serve, wait_for
from lowmem_wsgi import OffloadBusy, OffloadDied, OffloadMemoryError, OffloadTimeout

pytest.importorskip("pandas")
openpyxl = pytest.importorskip("openpyxl")
pytest.importorskip("matplotlib")

MB = 1024 * 1024
HEADER = ["name", "email", "city", "phone"]
Rows = Sequence[Sequence[object]]


def workbook(rows: Rows, header: Sequence[object] = HEADER) -> bytes:
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Clients")
    sheet.append(header)
    for row in rows:
        sheet.append(row)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def people(count: int, tag: str) -> list[list[object]]:
    return [[f"Person {n}", f"{tag}{n}@sheet.example", "Kiel", ""] for n in range(count)]


@pytest.fixture(scope="module")
def large() -> bytes:
    return workbook(people(50_000, "large"))


@contextlib.contextmanager
def served(tmp: Path, **env: str) -> Iterator[Server]:
    env = {"WEB_CONCURRENCY": "1", "CLIENTS_DIR": str(tmp / "data"), **env}
    env = {"XDG_RUNTIME_DIR": str(tmp), "MPLCONFIGDIR": str(tmp), **env}
    with serve("app:app", tmp_path=tmp, config=CONFIG, cwd=EXAMPLE, env=env) as server:
        yield server


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("excel")) as server:
        yield server


@pytest.fixture
def member(site: Server) -> Browser:
    return logged_in(site)


def logged_in(site: Server) -> Browser:
    browser = Browser(site)
    assert browser.log_in().status == 200
    return browser


def database(site: Server) -> sqlite3.Connection:
    path = Path(site.env["CLIENTS_DIR"]) / "clients.sqlite3"
    return sqlite3.connect(path, timeout=30)


def count(site: Server, tag: str) -> int:
    with contextlib.closing(database(site)) as conn:
        query = "SELECT count(*) FROM clients WHERE email LIKE ?"
        return int(conn.execute(query, (f"{tag}%@sheet.example",)).fetchone()[0])


def newest(site: Server) -> int:
    with contextlib.closing(database(site)) as conn:
        return int(conn.execute("SELECT max(id) FROM jobs").fetchone()[0])


def send(member: Browser, content: bytes, name: str = "people.xlsx") -> int:
    """The number of the job that it becomes."""
    reply = member.upload("/import/excel", name, content)
    assert reply.status == 200, reply.text
    return newest(member.site)


def state(member: Browser, job: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(member.get(f"/imports/{job}.json").text)
    return found


def outcome(member: Browser, job: int) -> Reply:
    """The page of the job once it is over."""
    wait_for(lambda: state(member, job)["over"], f"the import: {member.site.log}", 120)
    return member.get(f"/imports/{job}")


def text_of(reply: Reply) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", reply.text).split())


# --- In


def test_50000_rows_are_imported_while_the_worker_stays_as_small_as_it_was(
    tmp_path: Path, large: bytes
) -> None:
    with served(tmp_path) as site:
        member = logged_in(site)
        for page in ("/", "/clients", "/import/excel"):
            member.get(page)
        (pid,) = site.workers()
        worker = psutil.Process(pid)
        before = most = worker.memory_info().rss
        job = send(member, large)
        seen = set()

        def over() -> bool:
            nonlocal most
            most = max(most, worker.memory_info().rss)
            now = state(member, job)
            seen.add((now["step"], now["done"]))
            return bool(now["over"])

        wait_for(over, f"the import: {site.log}", 120)
        assert "50,000 clients were imported" in member.get(f"/imports/{job}").text
        assert count(site, "large") == 50_000
        # Its way could be seen, in more than one step of it.
        assert {"reading", "checking"} <= {step for step, _ in seen}
        assert len(seen) > 4
        assert (most - before) / MB <= 4  # 3, and a margin for a busy machine
        assert (worker.memory_info().rss - before) / MB <= 3.5
        mapped = {Path(entry.path).name for entry in worker.memory_maps()}
        assert not any("pandas" in name or "numpy" in name for name in mapped)


def test_an_import_goes_on_when_its_page_is_closed_and_another_worker_knows_of_it(
    tmp_path: Path,
) -> None:
    with served(tmp_path, WEB_CONCURRENCY="2") as site:
        job = send(logged_in(site), workbook(people(2000, "closed")))
        # Nobody looks any more. Later anybody may, at any worker.
        wait_for(lambda: count(site, "closed") == 2000, f"the clients: {site.log}", 60)
        other = logged_in(site)
        with ThreadPoolExecutor(4) as pool:
            pages = list(pool.map(lambda _: other.get(f"/imports/{job}"), range(8)))
        assert all("2,000 clients were imported" in page.text for page in pages)
        assert "people.xlsx" in other.get("/import/excel").text


def test_a_worker_that_is_killed_leaves_the_job_interrupted_and_nothing_imported(
    tmp_path: Path, large: bytes
) -> None:
    with served(tmp_path) as site:
        member = logged_in(site)
        job = send(member, large)
        wait_for(lambda: state(member, job)["step"] == "reading", "it to read")
        (worker,) = site.workers()
        (child,) = psutil.Process(worker).children()
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: site.workers() not in ([], [worker]), "a new worker")
        page = text_of(outcome(logged_in(site), job))
        assert "Interrupted" in page
        assert "Nothing was imported" in page
        wait_for(lambda: not child.is_running(), "the child to end with its worker")
        assert count(site, "large") == 0
        # And the next one is as ever.
        again = logged_in(site)
        assert (
            "3 clients were imported" in outcome(again, send(again, workbook(people(3, "n")))).text
        )


def test_a_worker_that_is_replaced_first_finishes_what_it_can(tmp_path: Path) -> None:
    with served(tmp_path) as site:
        member = logged_in(site)
        job = send(member, workbook(people(2000, "replaced")))
        (worker,) = site.workers()
        os.kill(worker, signal.SIGTERM)
        page = outcome(logged_in(site), job).text
        assert "2,000 clients were imported" in page
        assert count(site, "replaced") == 2000


def test_imports_at_once_take_turns(member: Browser, site: Server) -> None:
    jobs = [send(member, workbook(people(50, f"turn{n}-"))) for n in range(3)]
    for job in jobs:
        assert "50 clients were imported" in outcome(member, job).text


# --- What is wrong with a file


def bad_rows() -> list[list[object]]:
    rows = people(20, "bad")
    rows[15][1] = "nobody at all"  # row 17 of the sheet
    rows[3][3] = "call me"
    rows[9][2] = None
    rows[19][1] = "bad0@sheet.example"
    return rows


def test_what_is_wrong_is_told_by_row_and_column_and_nothing_is_imported(
    member: Browser, site: Server
) -> None:
    page = text_of(outcome(member, send(member, workbook(bad_rows()))))
    assert "Nothing was imported. 4 cells need a correction" in page
    assert "Row 17 email “nobody at all”: Not an email address" in page
    assert "Row 5 phone “call me”" in page
    assert "Row 11 city This is needed" in page
    assert "Row 21 email “bad0@sheet.example”: In row 2 already" in page
    assert count(site, "bad") == 0


def test_clients_that_are_in_the_list_already_are_named(member: Browser, site: Server) -> None:
    outcome(member, send(member, workbook(people(3, "twice"))))
    page = text_of(outcome(member, send(member, workbook(people(5, "twice")))))
    assert "3 cells need a correction" in page
    assert "Row 4 email “twice2@sheet.example”: In the list already" in page
    assert count(site, "twice") == 3


def test_many_problems_are_counted_and_the_first_ten_told(member: Browser) -> None:
    page = outcome(member, send(member, workbook([["x", "y", "z", ""]] * 300)))
    assert "300 cells need a correction; the first 10" in text_of(page)
    assert page.text.count("Row ") == 10


def zipped(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr(name, content)
    return out.getvalue()


def bomb() -> bytes:
    """A real workbook whose sheet unpacks to 200 MB."""
    out = io.BytesIO(workbook(people(1, "bomb")))
    with zipfile.ZipFile(out, "a", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("xl/worksheets/sheet2.xml", b"<a/>" * (50 * MB))
    return out.getvalue()


def cut_short() -> bytes:
    """A workbook whose sheet is not well-formed."""
    out = io.BytesIO()
    whole = zipfile.ZipFile(io.BytesIO(workbook(people(9, "cut"))))
    with whole, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as parts:
        for name in whole.namelist():
            content = whole.read(name)
            parts.writestr(name, content[:400] if "sheet1" in name else content)
    return out.getvalue()


BAD = {
    "nothing": (b"", "Not an Excel workbook"),
    "text": (b"name,email\n" * 100, "Not an Excel workbook"),
    "an old workbook": (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000),
        "An old workbook (.xls)",
    ),
    "another zip": (zipped("notes.txt", b"hello"), "some other zip file"),
    "an empty shell": (zipped("[Content_Types].xml", b""), "Not a workbook that can be read"),
    "half a sheet": (cut_short(), "Not a workbook that can be read"),
    "a bomb": (bomb(), "It unpacks to 200 MB, and may to 64"),
    "no rows": (workbook([]), "There are no rows below the header"),
    "an empty sheet": (workbook([], [None]), "The first sheet is empty"),
    "no column": (
        workbook([["A", "a@sheet.example", "Kiel"]], HEADER[:3]),
        "Row 1 Columns missing: phone",
    ),
    "a column more": (
        workbook([[*people(1, "more")[0], "x"]], [*HEADER, "notes"]),
        "Row 1 Columns this list has no place for: notes",
    ),
}


@pytest.mark.parametrize(("content", "words"), BAD.values(), ids=BAD)
def test_a_file_that_is_no_sheet_of_clients_is_refused(
    member: Browser, content: bytes, words: str
) -> None:
    page = text_of(outcome(member, send(member, content)))
    assert "Nothing was imported." in page
    assert words in page


def test_a_form_without_a_file_is_shown_again(member: Browser) -> None:
    reply = member.post("/import/excel", {})
    assert reply.status == 422
    assert "Choose a file first" in reply.text


def test_numbers_dates_blank_rows_and_columns_are_read_as_people_mean_them(
    member: Browser, site: Server
) -> None:
    rows: Rows = [
        [None, 1234, "odd1@sheet.example", "Kiel", 4943155],
        [],
        [None, "  Two \u00a0 words ", "ODD2@sheet.example", "Kiel", "+49 1"],
    ]
    page = outcome(member, send(member, workbook(rows, [None, "Name", " EMAIL ", "City", "Phone"])))
    assert "2 clients were imported" in page.text, text_of(page)
    with contextlib.closing(database(site)) as conn:
        found = conn.execute("SELECT name, phone FROM clients WHERE email LIKE 'odd%'").fetchall()
    assert sorted(found) == [("1234", "4943155"), ("Two words", "+49 1")]


def test_a_sheet_with_too_many_rows_is_refused(member: Browser) -> None:
    # Narrow ones, or it would be too large a file first.
    page = outcome(member, send(member, workbook([["a"]] * 60_001, ["name"])))
    assert "More than 60,000 rows" in page.text


def test_a_file_over_the_limit_is_413_which_names_the_setting(
    member: Browser, site: Server
) -> None:
    job = send(member, workbook(people(1, "small")))
    reply = member.upload("/import/excel", "big.xlsx", os.urandom(4 * MB))
    assert reply.status == 413
    assert "4 MB" in reply.text
    refusal = next(line for line in site.log.splitlines() if "413 Content" in line)
    assert "/import/excel" in refusal
    assert "LOWMEM_UPLOAD_LIMITS" in refusal
    assert newest(site) == job


def test_what_others_may_not_see_needs_a_login(site: Server) -> None:
    stranger = Browser(site)
    for page in ("/import/excel", "/imports/1", "/imports/1.json", "/clients.xlsx"):
        assert "password" in stranger.get(page).text


def test_a_job_that_is_not_there_is_404(member: Browser) -> None:
    assert member.get("/imports/999999").status == 404
    assert member.get(f"/imports/{2**70}").status == 404


# --- What a child may come to


@pytest.fixture
def excel_jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield importlib.import_module("excel_jobs")
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(EXAMPLE) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("error", "state", "words"),
    [
        (OffloadMemoryError("needed more"), "refused", "more than the 160 MB of memory"),
        (OffloadBusy("no room"), "failed", "send it again"),
        (OffloadTimeout("too slow"), "failed", "took too long"),
        (OffloadDied("killed", -11), "failed", "in the log"),
        (ValueError("?"), "failed", "in the log"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_child_that_comes_to_nothing_ends_its_job(
    excel_jobs: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    state: str,
    words: str,
) -> None:
    future: Future[None] = Future()
    monkeypatch.setattr(
        excel_jobs.spreadsheets, "import_clients", Mock(submit=Mock(return_value=future))
    )
    config = {"CLIENTS_DB": str(tmp_path / "db.sqlite3"), "JOBS": str(tmp_path / "jobs")}
    pool = excel_jobs.db.pool(config["CLIENTS_DB"], 1)
    job = excel_jobs.start(pool, config, FileStorage(io.BytesIO(b"x"), "x.xlsx"), 10)
    with pool.connection() as conn:
        assert excel_jobs.jobs.get(conn, config["JOBS"], job).state == "waiting"
    future.set_exception(error)
    with pool.connection() as conn:
        found = excel_jobs.jobs.get(conn, config["JOBS"], job)
        assert found.state == state
        assert words in found.message
        conn.close()
    assert list((tmp_path / "jobs").iterdir()) == []  # no lock is left


# --- Out


def test_an_export_can_be_imported_again(tmp_path: Path) -> None:
    with served(tmp_path) as site:
        member = logged_in(site)
        reply = member.get("/clients.xlsx")
        assert reply.status == 200
        assert "clients.xlsx" in reply.headers["Content-Disposition"]
        book = openpyxl.load_workbook(io.BytesIO(reply.body), read_only=True)
        rows = list(book.active.iter_rows(values_only=True))
        book.close()
        assert list(rows[0]) == HEADER
        with contextlib.closing(database(site)) as conn:
            listed = conn.execute("SELECT name, email, city, phone FROM clients ORDER BY id")
            assert [tuple(cell or "" for cell in row) for row in rows[1:]] == listed.fetchall()
            conn.execute("DELETE FROM clients")
            conn.commit()
        page = outcome(member, send(member, reply.body)).text
        assert "3,000 clients were imported" in page


def test_the_chart_is_a_png_that_is_drawn_anew_only_for_new_counts(tmp_path: Path) -> None:
    with served(tmp_path, LOWMEM_CACHE_TIMEOUT="0.01") as site:
        member = logged_in(site)

        def pictures() -> dict[str, float]:
            return {p.name: p.stat().st_mtime for p in (tmp_path / "data").glob("by-month-*.png")}

        reply = member.get("/clients/by-month.png")
        assert reply.headers["Content-Type"] == "image/png"
        assert reply.body.startswith(b"\x89PNG\r\n")
        assert len(reply.body) > 5000
        drawn = pictures()
        assert len(drawn) == 1
        member.get("/clients/by-month.png")
        assert pictures() == drawn
        member.post("/clients/new", {"name": "A B", "email": "a@b.example", "city": "C"})
        assert member.get("/clients/by-month.png").body != reply.body
        assert len(pictures()) == 1
        assert pictures() != drawn


def test_the_first_page_has_the_figures_of_the_chart_as_text(member: Browser) -> None:
    page = member.get("/").text
    assert re.search(r'<img src="/clients/by-month.png"[^>]*alt="Bar chart of [^"]+"', page)
    assert len(re.findall(r'<th scope="row">[A-Z][a-z]{2} \d{4}</th>', page)) == 12


# --- Without


def test_without_the_packages_those_pages_say_what_to_install_and_others_work(
    tmp_path: Path,
) -> None:
    hide = "import sys\nsys.modules.update(pandas=None, openpyxl=None, matplotlib=None)\n"
    (tmp_path / "without.py").write_text(hide + "from app import app\n")
    path = os.pathsep.join((str(tmp_path), str(EXAMPLE)))
    env = {"CLIENTS_DIR": str(tmp_path / "data"), "PYTHONPATH": path}
    with serve("without:app", tmp_path=tmp_path, config=CONFIG, cwd=EXAMPLE, env=env) as site:
        member = logged_in(site)
        for page in ("/import/excel", "/clients.xlsx", "/clients/by-month.png"):
            reply = member.get(page)
            assert reply.status == 501
            assert "pip install -r requirements-excel.txt" in reply.text
        home = member.get("/")
        assert home.status == 200
        assert "/clients/by-month.png" not in home.text
        assert "requirements-excel.txt" in home.text
        assert member.get("/import").status == 200


# --- An older database


def test_a_database_from_before_there_were_jobs_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite3"
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.executescript(
            "CREATE TABLE clients (id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL"
            " UNIQUE, city TEXT NOT NULL, phone TEXT NOT NULL, folded TEXT NOT NULL);"
            "INSERT INTO clients VALUES (1, 'A', 'a@old.example', 'Kiel', '', 'a');"
            "PRAGMA user_version = 1;"
        )
    code = (
        "import db; from forms import Client\n"
        f"with db.pool({str(path)!r}, 1).connection() as conn:\n"
        "    db.insert_clients(conn, [Client('B', 'b@new.example', 'Kiel', '')])\n"
        "    print(db.count_matches(conn, ''), sum(db.clients_by_month(conn).values()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=EXAMPLE, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["2", "1"]


# --- In a browser


@pytest.mark.parametrize("script", [True, False], ids=["with script", "without"])
def test_the_page_of_an_import_keeps_itself_up_to_date(
    site: Server, tmp_path: Path, script: bool
) -> None:
    sheet = tmp_path / "clients.xlsx"
    sheet.write_bytes(workbook(people(4000, f"browser{script}".lower())))
    with chromium() as browser:
        visit = Visit(
            browser, f"http://127.0.0.1:{site.port}", java_script_enabled=script, viewport=PHONE
        )
        page = visit.open("/login")
        page.fill("#name", "demo")
        page.fill("#password", "demo")
        page.click("main button")
        visit.open("/import/excel")
        page.set_input_files("#file", sheet)
        page.click("main form button")
        page.get_by_text("4,000 clients were imported").wait_for(timeout=60_000)
        visit.screenshot(f"excel-import-{script}", tmp_path)
        assert page.locator("nav a[aria-current]").first.inner_text() == "Import"
        assert visit.left_the_origin() == []
        assert visit.complaints == []
        visit.close()


PHONE = {"width": 390, "height": 800}

"""`lowmem-wsgi compare`: its figures are the servers', and it leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.browser import Visit, chromium
from helpers.cgroup import memory_cgroup
from helpers.commands import assert_refused
from helpers.servers import HERE, SLOWER, clean_environ, wait_for
from lowmem_wsgi.system.cgroup import own_directories

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc/self/smaps_rollup"
)

MB = 1024 * 1024
COMMAND = [sys.executable, "-m", "lowmem_wsgi", "compare"]
QUICK = ("--rounds", "3", "--seconds", "200ms")
TOO_FAINT = (HERE / "contrast.js").read_text()
SERVED = """\
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
"""
# 60 MB that stay, and a page that takes 80 MB. Its code wraps the app itself. Each request tells
# in a file how it is served.
SITE = """\
import gc, json, os, sys, time
from flask import Flask, request
from lowmem_wsgi import LowMemory

app = Flask(__name__)
app.wsgi_app = LowMemory(app.wsgi_app)
kept = bytearray(60 << 20)
kept[::4096] = b"x" * len(kept[::4096])
collected = []
gc.callbacks.append(lambda phase, info: collected.append(info["generation"]))

@app.before_request
def tell():
    way = "ours" if "_LOWMEM_STARTED" in os.environ else "bare"
    way = "document" if sys.flags.optimize == 2 else way
    with open("/proc/self/cgroup") as file:
        cgroup = file.read()
    told = {
        "wrapped": "lowmem.level" in request.environ,
        "threshold": gc.get_threshold(),
        "depth": sys.getrecursionlimit(),
        "bytecode": not sys.dont_write_bytecode,
        "full": collected.count(2) // 2,
        "cgroup": cgroup,
        "host": request.host,
        "pid": os.getpid(),
    }
    with open(f"told-{way}", "a") as file:
        file.write(json.dumps(told) + "\\n")

@app.get("/")
def home():
    pages = ("/a", "/b", "/spike", "/logout", "//b.example/")
    return "".join(f'<a href="{page}">x</a>' for page in pages)

@app.get("/a")
@app.get("/b")
def small():
    return "small"

@app.get("/spike")
def spike():
    held = b"x" * (80 << 20)
    time.sleep(0.15)  # a plain process is looked at every 0.1 s
    return str(len(held))

@app.get("/logout")
def logout():
    open("logged-out", "w").close()
    return ""
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "app.py").write_text(SERVED)
    return tmp_path


def environ(folder: Path, **env: str) -> dict[str, str]:
    return clean_environ({"TMPDIR": str(folder / "tmp"), **env})


def run(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words],
        cwd=folder,
        env=environ(folder, **env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=400 * SLOWER,
    )


def left(folder: Path, command: int) -> list[object]:
    """What a command has left: processes in the folder, cgroups, temporary files."""
    found: list[object] = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if path.readlink() == folder:
                found.append(int(path.parent.name))
    for _, own in own_directories():
        found += Path(own).glob(f"lowmem-wsgi-{command}-*")
    return [*found, *(folder / "tmp").iterdir()]


# --- The figures


@pytest.mark.parametrize("where", ["cgroup", "processes"])
def test_a_flask_site_is_served_three_ways(where: str, site: Path) -> None:
    (site / "app.py").write_text(SITE)
    if where == "cgroup":
        with memory_cgroup(64 * MB):  # else skipped
            pass
    plain = [] if where == "cgroup" else ["--no-cgroup"]
    done = run(site, "app:app", "--json", *QUICK, *plain)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["measured_in"] == where
    assert found["requests"] == ["/", "/a", "/b", "/spike"]
    assert found["notes"] == [
        "left out: pages whose name says that they change something (/logout)"
    ]
    assert not (site / "logged-out").exists()
    for each in found["contenders"].values():
        assert each["troubles"] == []
        assert (each["failed"], each["oom_kills"]) == (0, 0)
        assert each["requests"] >= 3 * 4
        assert 0 < each["p50_seconds"]["median"] <= each["p99_seconds"]["median"]
        assert len(each["requests_per_second"]["rounds"]) == 3
        assert 75 * MB < each["initial_bytes"]["median"] < 160 * MB
        assert each["peak_bytes"]["median"] > each["initial_bytes"]["median"] + 60 * MB
        assert max(reading["bytes"] for reading in each["memory"]) > 140 * MB

    told = {way: told_by(site / f"told-{way}") for way in ("bare", "ours", "document")}
    assert all(not each["wrapped"] for each in told["bare"] + told["document"])
    assert all(each["wrapped"] for each in told["ours"])
    assert {(*each["threshold"], each["depth"]) for each in told["document"]} == {(25, 1, 1, 200)}
    assert all(each["depth"] > 200 for each in told["bare"] + told["ours"])
    assert not any(each["bytecode"] for each in told["document"])
    # A worker in each round, and one to look at the pages; a new one for each three requests.
    workers = {way: len({each["pid"] for each in lines}) for way, lines in told.items()}
    assert workers["bare"] == 4
    assert workers["ours"] >= 3
    assert workers["document"] >= 6
    # The second request comes after the three collections of the first.
    assert told["document"][1]["full"] >= told["document"][0]["full"] + 3
    assert told["bare"][1]["full"] <= told["bare"][0]["full"] + 1
    # The first to be asked is without a limit: it only shows which pages there are.
    inside = ["lowmem-wsgi-" in each["cgroup"] for each in told["ours"] + told["document"]]
    assert set(inside) == {where == "cgroup"}


def told_by(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_table_and_a_page_from_a_list_of_requests(site: Path) -> None:
    (site / "list.txt").write_text("GET /a\n/b?c=d\n")
    words = ("app:app", *QUICK, "--requests", "list.txt", "--html", "out.html")
    done = run(site, *words, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert "2 requests of list.txt" in done.stdout
    assert re.search(r"  peak +[\d.]+ MB +[\d.]+ MB .* under 200 MB\n", done.stdout)
    assert "\x1b" not in done.stdout
    with chromium() as browser:
        visit = Visit(browser, "file://")
        page = visit.open(str(site / "out.html"))
        for width in (1200, 390):
            page.set_viewport_size({"width": width, "height": 844})
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                found = page.evaluate(TOO_FAINT)
                assert found["faint"] == []
                assert found["count"] > 40
                visit.screenshot(f"compare-{width}-{scheme}", site)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            for cell in page.locator("td").all():  # a figure is one line, and what differs another
                assert cell.evaluate("cell => cell.scrollWidth <= cell.clientWidth")
        assert page.locator("path.line").count() >= 3
        assert page.locator("tbody tr").count() >= 8
        assert visit.complaints == []
        assert visit.left_the_origin() == []
        visit.close()
    before = (site / "out.html").read_bytes()
    again = run(site, *words)
    assert again.returncode == 2
    assert again.stderr == "lowmem-wsgi: --html out.html exists already: give another name\n"
    assert (site / "out.html").read_bytes() == before


def test_a_limit_that_none_fits_in_is_told(site: Path) -> None:
    with memory_cgroup(64 * MB):  # else skipped
        pass
    (site / "app.py").write_text("x = b'x' * (80 << 20)\n" + SERVED)
    done = run(site, "app:app", *QUICK, "--limit", "48MB")
    expected = "none of the three is served in 48 MB: the kernel kills it as it starts: "
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"lowmem-wsgi: {expected}")
    assert len(done.stderr.splitlines()) == 1


# --- What cannot be compared

BOOM = "raise ValueError('no database')\n"
ERRORS = """\
def app(environ, start_response):
    start_response("400 Bad Request", [])
    return [b""]
"""
WRONG: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no module": (("ap:app",), 1, "no module named 'ap'; did you mean app?"),
    "no name": (("app:ap",), 1, "app has no 'ap'; did you mean app?"),
    "no app": (("app:text",), 1, "text is not callable: str"),
    "raises": (("boom:app",), 1, "boom.py:1: ValueError: no database"),
    "syntax": (("syntax:app",), 1, "syntax.py:1: SyntaxError"),
    "ends": (("ends:app",), 1, "ends the process (exit status 3) while it imports ends"),
    "hangs": (("hangs:app", "--timeout", "1s"), 1, "is not loaded after 1 s"),
    "answers nothing": (("killed:app", "--timeout", "2s"), 1, "no answer after 2 s"),
    "no such host": (("errors:app",), 1, "GET / is answered 400; if the site answers one host"),
    "no such page": (
        ("app:app", "--requests", "none.txt"),
        2,
        "--requests none.txt: No such file or directory",
    ),
    "a post": (("app:app", "--requests", "post.txt"), 2, "post.txt: line 1: 'POST /x': compare"),
    "no list": (("app:app", "--requests", "app.pyc"), 2, "app.pyc: this is no text in UTF-8"),
    "a folder": (("app:app", "--requests", "."), 2, "--requests .: Is a directory"),
    "no text": (("",), 2, "'': expected MODULE:APP, such as app:app"),
    "a path": (("app.py:app",), 2, "did you mean app:app?"),
    "nothing": ((), 2, "required: MODULE:APP"),
    "no size": (("app:app", "--limit", "5TB"), 2, "expected a size from 32MB, such as 512MB"),
    "too small": (("app:app", "--limit", "1MB"), 2, "expected a size from 32MB, such as 512MB"),
    "few rounds": (("app:app", "--rounds", "2"), 2, "expected a number from 3 to 99, not '2'"),
    "no time": (("app:app", "--seconds", "0"), 2, "expected a time up to 1h, such as 4s, not"),
    "no host": (("app:app", "--host", "a b"), 2, "expected a host's name, such as www.example"),
    "no option": (("app:app", "--nope"), 2, "unrecognized arguments: --nope"),
    "a file": (("app:app", "--html", "app.py"), 2, "--html app.py exists already: give another"),
    "no folder": (("app:app", "--html", "none/x.html"), 2, "expected a file in a folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line(case: str, site: Path) -> None:
    words, code, expected = WRONG[case]
    modules = {
        "app": SERVED + "text = 'x'\n",
        "boom": BOOM,
        "syntax": "app = (",
        "ends": "import os\nos._exit(3)\n",
        "hangs": "import time\ntime.sleep(600)\n",
        "killed": "import os, signal\napp = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n",
        "errors": ERRORS,
    }
    for name, text in modules.items():
        (site / f"{name}.py").write_text(text)
    (site / "app.pyc").write_bytes(b"\xff\xfe\x00")
    (site / "post.txt").write_text("POST /x\n")
    done = run(site, *words)
    assert_refused(done, code, expected)
    assert left(site, 0) == []
    assert (site / "app.py").read_text() == modules["app"]


def test_a_wrong_setting_is_told_as_run_tells_it(site: Path) -> None:
    done = run(site, "app:app", LOWMEM_MAX_UPLOAD="lots")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lowmem-wsgi: LOWMEM_MAX_UPLOAD='lots': expected a size")
    assert len(done.stderr.splitlines()) == 1


# --- Ctrl-C


@contextlib.contextmanager
def on_a_terminal(folder: Path, *words: str, sent: int) -> Iterator[tuple[Any, Any]]:
    """Start the command with stderr on a terminal. Yield the process, and a reader of stderr."""
    ours, theirs = pty.openpty()
    text = bytearray()

    def read(until: str = "") -> str:
        """All of stderr up to this text; to its end without one."""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while not until or until.encode() not in text:
                text.extend(os.read(ours, 4096))
        return text.decode()

    with subprocess.Popen(
        [*COMMAND, *words],
        cwd=folder,
        env=environ(folder, TERM="xterm"),
        stdout=subprocess.PIPE,
        stderr=theirs,
        # A job in the background ignores SIGINT.
        preexec_fn=partial(signal.signal, sent, signal.SIG_DFL),  # noqa: PLW1509 - no threads yet
    ) as process:
        os.close(theirs)
        try:
            yield process, read
        finally:
            os.close(ours)
            process.kill()


# The app leaves a process behind in a session of its own, which waits for nobody.
BUSY = "import subprocess\nsubprocess.Popen(['sleep', '600'], start_new_session=True)\n" + SERVED
POINTS = (
    ("which pages there are", signal.SIGINT),
    ("round 1 of 3, bare: start", signal.SIGINT),
    ("round 1 of 3, bare: requests", signal.SIGINT),
    ("round 1 of 3, bare: rest", signal.SIGTERM),
    ("round 1 of 3, lowmem-wsgi: start", signal.SIGINT),
    ("round 1 of 3, lowmem-wsgi: requests", signal.SIGHUP),
    ("round 1 of 3, document: start", signal.SIGTERM),
    ("round 1 of 3, document: requests", signal.SIGINT),
)


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point[0])
def test_a_stopped_command_leaves_nothing(point: tuple[str, signal.Signals], site: Path) -> None:
    until, sent = point
    (site / "app.py").write_text(BUSY)
    words = ("app:app", "--rounds", "3", "--seconds", "500ms", "--html", "out.html")
    with on_a_terminal(site, *words, sent=sent) as (process, read):
        assert until in read(until)
        process.send_signal(sent)
        process.send_signal(sent)  # an impatient user
        errors = read()
        out = process.stdout.read()
        assert process.wait(60) == 130
    assert (out, errors.splitlines()[-1][-20:]) == (b"", "lowmem-wsgi: stopped")
    assert "Traceback" not in errors
    assert left(site, process.pid) == []
    assert not (site / "out.html").exists()


def test_a_page_that_never_ends_does_not_hold_up_ctrl_c(site: Path) -> None:
    slow = SERVED.replace('b"hello"', "open('asked', 'w') and time.sleep(600) or b''")
    (site / "app.py").write_text("import time\n" + slow)
    with on_a_terminal(site, "app:app", sent=signal.SIGINT) as (process, read):
        wait_for((site / "asked").exists, "the request")
        process.send_signal(signal.SIGINT)
        assert "lowmem-wsgi: stopped" in read()
        assert process.wait(60) == 130
    assert left(site, process.pid) == []


def test_a_killed_command_takes_the_servers_with_it(site: Path) -> None:
    with on_a_terminal(site, "app:app", *QUICK, sent=signal.SIGINT) as (process, read):
        read("bare: requests")
        process.kill()
        process.wait(60)

    def processes() -> list[object]:
        return [each for each in left(site, process.pid) if isinstance(each, int)]

    wait_for(lambda: processes() == [], "the end of the servers")
    for _, own in own_directories():
        for group in Path(own).glob(f"lowmem-wsgi-{process.pid}-*"):
            wait_for(lambda group=group: not (group / "cgroup.procs").read_text(), "its end")  # type: ignore[misc]
            group.rmdir()


# --- On a terminal


def test_the_progress_is_a_bar_and_the_clients_are_outside_the_cgroup(site: Path) -> None:
    with memory_cgroup(64 * MB):  # else skipped
        pass
    with on_a_terminal(site, "app:app", *QUICK, sent=signal.SIGINT) as (process, read):
        seen = read("round 1 of 3, lowmem-wsgi: requests")
        assert "[1/27] round 1 of 3, bare: start" in seen
        assert re.search(r"#+-+ \[5/27\] round 1 of 3, lowmem-wsgi: requests", seen)
        assert "lowmem-wsgi-" not in Path(f"/proc/{process.pid}/cgroup").read_text()
        groups = [
            group
            for _, own in own_directories()
            for group in Path(own).glob(f"lowmem-wsgi-{process.pid}-*")
        ]
        assert len(groups) == 1
        served = [int(pid) for pid in (groups[0] / "cgroup.procs").read_text().split()]
        assert len(served) >= 2  # Gunicorn's master and its worker
        assert process.pid not in served
        process.send_signal(signal.SIGINT)
        read()
        assert process.wait(60) == 130


def test_help_says_what_it_does(site: Path) -> None:
    done = run(site, "--help")
    assert done.returncode == 0
    for word in ("--requests FILE", "--limit SIZE", "--html FILE", "--json", "Exit status"):
        assert word in done.stdout
    assert textwrap.dedent(done.stdout) == done.stdout

"""`lowmem-wsgi trace`: the line that leaks is named, under load, on a server with two workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from helpers.load import crowd
from helpers.servers import APPS, Server, serve, wait_for

TOKEN = "tökén"
HEADERS = {"Authorization": f"Bearer {TOKEN}".encode().decode("latin-1")}
PATH = "/api/memory-status/trace"
LEAKS = {
    line.rpartition("# LEAK ")[2].strip(): number
    for number, line in enumerate((APPS / "leaks.py").read_text().splitlines(), 1)
    if "  # LEAK " in line
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("site")
    env = {"LOWMEM_ADMIN_TOKEN": TOKEN, "WEB_CONCURRENCY": "2", "LOWMEM_MEMORY_LIMIT": "2GB"}
    with serve("leaks:app", "run", tmp_path=folder, env=env) as running:
        yield running


def started(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lowmem_wsgi", "trace", *words]
    env = {**os.environ, "LOWMEM_ADMIN_TOKEN": ""}
    return subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def ran(*words: str) -> tuple[int, str, str]:
    with started(*words) as process:
        out, err = process.communicate(timeout=200)
        return process.returncode, out, err


def address(site: Server) -> str:
    return f"http://127.0.0.1:{site.port}"


def told(site: Server) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(site.request("GET", PATH, headers=HEADERS).body)
    return result


def post(site: Server, query: str, **headers: str) -> int:
    return site.request("POST", f"{PATH}?{query}", headers={**HEADERS, **headers}).status


@pytest.mark.parametrize("leak", LEAKS)
def test_the_line_that_leaks_is_named_first_under_load(site: Server, leak: str) -> None:
    with crowd(site.port, 3, f"/{leak}", "/clean/1", pause=0.05):
        code, out, err = ran(
            *(address(site), "--token", TOKEN, "--route", f"/{leak}"), "--requests", "8", "--json"
        )
    assert (code, err) == (0, "")
    trace = json.loads(out)
    first = trace["lines"][0]
    at = [(row["file"], row["line"]) for row in first["stack"]]
    assert (str(APPS / "leaks.py"), LEAKS[leak]) in at, trace
    assert first["file"] == str(APPS / "leaks.py")
    assert trace["pid"] in site.workers()
    cost = trace["cost"]
    assert 0 < cost["busy_seconds"] <= cost["on_seconds"] <= cost["seconds"]
    assert cost["most_bytes"] > 0


def test_a_value_that_is_replaced_is_no_leak(site: Server) -> None:
    with crowd(site.port, 3, "/replaces", pause=0.05):
        code, out, _ = ran(
            *(address(site), "--token", TOKEN, "--route", "GET /replaces", "--requests", "8"),
            "--json",
        )
    assert code == 0
    trace = json.loads(out)
    assert trace["paired"]
    assert all(line["bytes_per_request"] < 100_000 for line in trace["lines"])


def test_the_report_shows_the_code_the_stack_and_the_cost(site: Server) -> None:
    with crowd(site.port, 3, "/list", pause=0.05):
        code, out, err = ran(address(site), "--token", TOKEN, "--route", "/list", "--requests", "2")
    assert (code, err) == (0, "")
    first = next(line for line in out.splitlines() if "a request  " in line)
    assert f"leaks.py:{LEAKS['list']}  listed.append(bytearray" in first
    assert "called at flask/app.py:" in out
    assert "A request took " in out
    assert "all given back" in out


def test_one_trace_at_a_time_in_all_workers_and_ctrl_c_ends_it(site: Server) -> None:
    process = started(address(site), "--token", TOKEN, "--route", "/nobody-asks")
    try:
        wait_for(lambda: told(site)["state"] == "running", "a trace")
        assert told(site)["route"] == "/nobody-asks"
        # Whichever worker answers.
        assert {post(site, "route=/list") for _ in range(10)} == {409}
        code, _, err = ran(address(site), "--token", TOKEN, "--route", "/list")
        assert code == 1
        assert "A trace runs in this site already" in err
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "the site stops the trace" in err
    assert "Traceback" not in err
    wait_for(lambda: told(site)["state"] == "stopped", "its end")


def test_a_worker_that_dies_during_a_trace_is_told(site: Server) -> None:
    process = started(address(site), "--token", TOKEN, "--route", "/nobody-asks")
    try:
        wait_for(lambda: told(site)["state"] == "running", "a trace")
        os.kill(told(site)["pid"], signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert "ended during the trace" in err
    assert out.strip() == ""
    wait_for(lambda: len(site.workers()) == 2, "a fresh worker")


def test_another_site_or_nobody_may_not_start_a_trace(site: Server) -> None:
    assert site.request("POST", f"{PATH}?route=/list").status == 401
    assert site.request("GET", PATH).status == 401
    assert post(site, "route=/list", **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert post(site, "route=list") == 400
    assert post(site, "route=/list&requests=0") == 400


def test_a_trace_is_refused_while_memory_is_short(tmp_path: Path) -> None:
    env = {"LOWMEM_ADMIN_TOKEN": TOKEN, "LOWMEM_MEMORY_LIMIT": "40MB", "LOWMEM_RECYCLE": "off"}
    env |= {"LOWMEM_WARN_AT": "8MB", "LOWMEM_CRITICAL_AT": "39MB", "LOWMEM_CEILING": "off"}
    with serve("routes:app", "gthread", tmp_path=tmp_path, env=env) as short:
        short.get("/")
        wait_for(lambda: post(short, "route=/list") == 503, "warn")


NONSENSE = {
    "no such host": (["http://nobody.invalid", "--route", "/x"], 1, "cannot be reached"),
    "no server": (["http://127.0.0.1:1", "--route", "/x"], 1, "cannot be reached"),
    "no address": (["localhost", "--route", "/x"], 2, "expected an address"),
    "no port": (["http://127.0.0.1:99999", "--route", "/x"], 2, "expected an address"),
    "no route": (["http://127.0.0.1:1"], 2, "--route"),
    "a wrong route": (["http://127.0.0.1:1", "--route", "x y"], 2, "expected a path"),
    "no number": (["http://127.0.0.1:1", "--route", "/x", "--requests", "-1"], 2, "--requests"),
}


@pytest.mark.parametrize("words", NONSENSE)
def test_nonsense_is_one_line(words: str) -> None:
    given, expected, said = NONSENSE[words]
    code, out, err = ran(*given, "--token", "t")
    assert (code, out) == (expected, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_without_a_token_it_says_so_and_with_a_wrong_one_too(site: Server) -> None:
    code, _, err = ran(address(site), "--route", "/x")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "LOWMEM_ADMIN_TOKEN" in err
    code, _, err = ran(address(site), "--route", "/x", "--token", "wrong")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "the token is wrong" in err


class Other(BaseHTTPRequestHandler):
    """No site of LowMemory's: answers each path in a way of its own."""

    def do_POST(self) -> None:
        kind, body, code = {
            "/html/trace": ("text/html", b"<h1>Hello</h1>", 200),
            "/broken/trace": ("application/json", b'{"state": "run', 200),
            "/list/trace": ("application/json", b"[1, 2]", 200),
            "/moved/trace": ("text/plain", b"", 301),
            "/down/trace": ("text/html", b"<h1>Bad gateway</h1>", 502),
        }.get(self.path.partition("?")[0], ("text/plain", b"no", 404))
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if code == 301:
            self.send_header("Location", "https://elsewhere.invalid/")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def other() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/html", "answers text/html, and no trace"),
        ("/broken", "answers application/json, and no trace"),
        ("/list", "answers application/json, and no trace"),
        ("/moved", "leads to https://elsewhere.invalid/"),
        ("/down", "the site answers 502"),
        ("/none", "is not there (404)"),
    ],
)
def test_what_is_no_site_of_ours_is_one_line(other: str, path: str, said: str) -> None:
    code, out, err = ran(f"http://{other}{path}", "--route", "/x", "--token", "t")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert said in err


def test_no_tls_is_one_line(other: str) -> None:
    code, out, err = ran(f"https://{other}", "--route", "/x", "--token", "t")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "TLS failed" in err


def test_replace_this_worker_loses_no_request(site: Server) -> None:
    before = site.workers()
    with crowd(site.port, 3, "/clean/1", pause=0.01) as clients:
        answer = site.request("POST", "/api/memory-status/replace", headers=HEADERS)
        assert answer.status == 200
        pid = json.loads(answer.body)["pid"]
        assert pid in before
        wait_for(lambda: pid not in site.workers(), "its end")
        wait_for(lambda: len(site.workers()) == 2, "a fresh worker")
        count = len(clients.answers)
        wait_for(lambda: len(clients.answers) > count + 50, "answers of the fresh worker")
    assert clients.failed == []
    assert "recycled, as asked for" in site.log


def test_a_server_that_cannot_replace_a_worker_says_why(tmp_path: Path) -> None:
    env = {"LOWMEM_ADMIN_TOKEN": TOKEN}
    with serve("routes:app", "waitress", tmp_path=tmp_path, env=env) as waitress:
        answer = waitress.request("POST", "/api/memory-status/replace", headers=HEADERS)
        assert answer.status == 409
        assert "This server cannot replace a worker" in answer.text
        status = json.loads(waitress.request("GET", "/api/memory-status", headers=HEADERS).body)
        assert "This server cannot replace a worker" in status["irreplaceable"]


def test_the_password_prompt_logs_no_warning(tmp_path: Path) -> None:
    env = {"LOWMEM_ADMIN_TOKEN": TOKEN}
    with serve("routes:app", "gthread", tmp_path=tmp_path, env=env) as own:
        assert own.get("/api/memory-status", Accept="text/html").status == 401
        assert "401" not in own.log
        wrong = {"Authorization": "Bearer wrong"}
        assert own.request("GET", "/api/memory-status", headers=wrong).status == 401
        assert "401 Unauthorized" in own.log

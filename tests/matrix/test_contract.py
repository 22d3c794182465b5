"""What LowMemory promises, on each server with each framework, as a client sees it.

The tests of a cell share a site, and run in this order: the last ones fill it and stop it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import time
from collections.abc import Iterator

from helpers.load import crowd
from helpers.servers import SLOWER
from lowmem_wsgi.memory.levels import LEVELS

from .site import LIFETIME, LIMIT, MB, Site

CAP = 512 * 1024
FIVE_MB = 5 * MB
CANNOT = "its server cannot replace it"
CHUNKED = {"Transfer-Encoding": "chunked"}


def pieces(size: int) -> Iterator[bytes]:
    for _ in range(size // 65536):
        yield b"x" * 65536


def upload(data: bytes) -> tuple[bytes, dict[str, str]]:
    """A form with one file: its body and headers."""
    head = b'--edge\r\nContent-Disposition: form-data; name="f"; filename="data.bin"\r\n'
    kind = b"Content-Type: application/octet-stream\r\n\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    return head + kind + data + b"\r\n--edge--\r\n", headers


# --- Requests


def test_a_request_is_answered_and_valid(site: Site) -> None:
    assert site.get("/").keys() == {"pid"}
    assert site.get("/valid").keys() == {"pid"}
    reply = site.server.get("/")
    assert reply.headers["Content-Type"].startswith("application/json")


def test_each_request_is_followed_by_the_three_passes(site: Site) -> None:
    def runs() -> int:
        status = site.status()
        assert status["gc"]["passes"] == 3
        return int(status["gc"]["runs"]) if not status["requests"]["in_flight"] else -1

    for _ in range(3):
        before = runs()
        site.get("/")
        site.wait(lambda before=before: runs() > before, "the passes")
        assert runs() == before + 1


def test_an_error_of_the_app_is_500_and_the_site_goes_on(site: Site) -> None:
    assert site.ask("/error", {}).status == 500
    site.get("/")
    site.wait(lambda: site.status()["requests"]["in_flight"] == 0, "the request's end", 5)


# --- Uploads


def test_a_declared_upload_over_the_cap_is_413_and_the_view_does_not_run(site: Site) -> None:
    before = site.get("/seen")["read"]
    reply = site.server.request("POST", "/read", b"x" * FIVE_MB)
    assert reply.status == 413
    assert "512 KB" in reply.text
    assert site.get("/seen")["read"] == before


def test_of_a_chunked_upload_the_view_never_sees_more_than_the_cap(site: Site) -> None:
    try:
        site.server.request("POST", "/read", pieces(FIVE_MB), CHUNKED, chunked=True)
    except OSError:
        pass  # the server has cut it off
    assert all(length <= CAP for length in site.get("/seen")["read"])


def test_a_chunked_upload_over_the_cap_is_413(site: Site) -> None:
    reply = site.server.request("POST", "/read", pieces(FIVE_MB), CHUNKED, chunked=True)
    assert reply.status == 413
    assert "512 KB" in reply.text


def test_an_upload_below_the_cap_arrives(site: Site) -> None:
    reply = site.server.request("POST", "/read", b"x" * CAP)
    assert (reply.status, json.loads(reply.body)) == (200, {"length": CAP})
    body, headers = upload(b"y" * 100_000)
    reply = site.server.request("POST", "/form", body, headers)
    assert reply.status == 200, site.log
    assert json.loads(reply.body) == {"name": "data.bin", "length": 100_000}


def test_a_chunked_upload_below_the_cap_arrives(site: Site) -> None:
    reply = site.server.request("POST", "/read", pieces(CAP), CHUNKED, chunked=True)
    assert (reply.status, json.loads(reply.body)) == (200, {"length": CAP})


def test_after_a_413_the_connection_serves_on_or_is_closed(site: Site) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", site.server.port, timeout=30 * SLOWER)
    with contextlib.closing(connection):
        connection.request("POST", "/read", b"x" * FIVE_MB)
        response = connection.getresponse()
        assert (response.status, b"512 KB" in response.read()) == (413, True)
        if response.will_close:
            assert connection.sock is None
        connection.request("GET", "/")  # on a new connection, where the server has closed
        assert connection.getresponse().status == 200


def test_a_client_that_stops_sending_is_answered_and_so_are_others(site: Site) -> None:
    head = f"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: {FIVE_MB}\r\n\r\n".encode()
    address = ("127.0.0.1", site.server.port)
    with socket.create_connection(address, timeout=10 * SLOWER) as idle:
        idle.sendall(head + b"x" * 1000)
        assert idle.recv(65536).startswith(b"HTTP/1.1 413")
        site.wait(lambda: site.ask("/", {}).status == 200, "another request", 12)


# --- Streams


def test_a_stream_is_whole_and_closed_once(site: Site) -> None:
    before = site.get("/seen")["closed"]["short"]
    reply = site.server.get("/stream?short")
    assert (reply.status, reply.text) == (200, "one two three")
    assert reply.headers["Content-Type"].startswith("text/")
    site.wait(lambda: site.get("/seen")["closed"]["short"] > before, "close()")
    assert site.get("/seen")["closed"]["short"] == before + 1


def test_a_stream_whose_client_leaves_is_closed_once(site: Site) -> None:
    before = site.get("/seen")["closed"]["endless"]
    with socket.create_connection(("127.0.0.1", site.server.port), timeout=30) as client:
        client.sendall(b"GET /stream?endless HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while b"one" not in received:
            piece = client.recv(65536)
            assert piece, received
            received += piece
    site.wait(lambda: site.get("/seen")["closed"]["endless"] > before, "close()")
    assert site.get("/seen")["closed"]["endless"] == before + 1
    site.wait(lambda: site.status()["requests"]["in_flight"] == 0, "the request's end", 5)


# --- Sessions


def test_a_session_in_use_lives_on_and_a_replay_ends(site: Site) -> None:
    used: dict[str, str] = {}
    left: dict[str, str] = {}
    assert site.user("/login?ana", used) == "ana"
    assert site.user("/login?ben", left) == "ben"
    replay = dict(left)
    end = time.monotonic() + LIFETIME + 2
    while time.monotonic() < end:
        assert site.user("/who", used) == "ana"
        time.sleep(0.1)
    # A replay is refused however often it is sent.
    assert site.user("/who", dict(replay)) is None
    assert site.user("/who", dict(replay)) is None


def test_a_cookie_of_before_the_logout_or_forged_is_refused(site: Site) -> None:
    cookies: dict[str, str] = {}
    assert site.user("/login?ana", cookies) == "ana"
    replay = dict(cookies)
    forged = {name: value.replace("lm2.", "lm2.x") for name, value in replay.items()}
    assert site.user("/who", forged) is None
    site.user("/logout", cookies)
    assert site.user("/who", cookies) is None
    # Where the cookie holds the session itself, only its end makes the replay worthless.
    site.wait(lambda: site.user("/who", dict(replay)) is None, "the session's end", LIFETIME + 5)


# --- The status


def test_the_status_and_the_cleanup_answer_whom_they_should(site: Site) -> None:
    assert site.server.get("/api/memory-status").status == 401
    assert site.server.request("POST", "/api/force-cleanup").status in (401, 403)
    status = site.status()
    assert status["memory"]["limit_bytes"] == LIMIT
    assert any(worker["this"] for worker in status["workers"])
    before = status["cleanups"]["count"]
    assert site.status("/api/force-cleanup")["steps"]
    assert site.status()["cleanups"]["count"] == before + 1


# --- Memory


def test_a_hungry_request_is_503_and_its_neighbours_are_answered(site: Site) -> None:
    pid = site.get("/")["pid"]
    with crowd(site.server.port, 2, "/", pause=0.01) as others:
        for _ in range(3):
            reply = site.ask("/hungry", {})
            assert reply.status == 503, site.log
            assert reply.headers["Retry-After"]
    assert not others.failed
    assert {json.loads(answer.text)["pid"] for answer in others.answers} == {pid}
    assert site.group.kills() == 0


def test_a_worker_that_has_grown_is_replaced_or_the_log_says_why_not(site: Site) -> None:
    pids: set[int] = set()
    with crowd(site.server.port, 2, "/leak?kb=128", pause=0.035) as leaks:

        def filled() -> bool:
            now = site.status()
            missing = LIMIT * 5 // 6 - now["memory"]["used_bytes"]
            if missing > 0:
                site.ask(f"/leak?kb={min(missing, 16 * MB) // 1024 + 1}", {})
            return LEVELS.index(now["status"]) >= LEVELS.index("warn") or acted()

        def acted() -> bool:
            pids.update(json.loads(a.text)["pid"] for a in [*leaks.answers] if a.status == 200)
            return len(pids) > 1 or CANNOT in site.log

        site.wait(lambda: len(leaks.answers) > 2, "answers")
        site.wait(filled, "warn")
        site.wait(acted, "a fresh worker")
    assert (len(pids) > 1) == site.kind.replaces
    assert (CANNOT in site.log) != site.kind.replaces
    if site.kind.replaces:
        cut = [answer for answer in leaks.failed if answer.status == 0]
        assert leaks.failed == cut, f"{leaks.failed}\n{site.log}"
        assert len(cut) <= site.kind.cuts, f"{cut}\n{site.log}"
        assert "recycled at" in site.log
    assert site.group.kills() == 0


# --- The end


def test_the_server_stops_when_it_is_told_to_and_leaves_nothing(site: Site) -> None:
    process = site.server.process
    process.send_signal(signal.SIGTERM)
    assert process.wait(15 * SLOWER) == site.kind.exit_code, site.log
    left = site.group.path / "cgroup.procs"
    site.wait(lambda: not left.read_text().split(), "all processes to end", 5)
    assert not site.server.listens()

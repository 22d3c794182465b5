"""Under a real memory limit: runaways, leaks, replaced workers, and what the log says of the dead.

On real servers. The containers are smaller than the 512 MB that it is all meant for, so that they
are full sooner.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.cgroup import Cgroup, memory_cgroup
from helpers.load import Crowd, crowd
from helpers.servers import Server, serve, wait_for
from lowmem_wsgi.memory.levels import LEVELS

MB = 1024 * 1024
CONFIG = "python:lowmem_wsgi.gunicorn"
# As `lowmem-wsgi run` has it: malloc gives back pages, and not only whole arenas.
MALLOC = {"PYTHONMALLOC": "malloc", "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072"}
SMALL = 192 * MB
RECYCLED = "recycled at"
DIED = "💀"
TOKEN = {"Authorization": "Bearer t"}


@contextlib.contextmanager
def contained(
    tmp_path: Path, app: str = "survive:bare", *, size: int = SMALL, **how: Any
) -> Iterator[tuple[Server, Cgroup]]:
    """The app in a container of its own, with our config if no server is named."""
    if "server" not in how:
        how = {"config": CONFIG, "WEB_CONCURRENCY": "1", **how}
    with (
        memory_cgroup(size) as group,
        serve(
            app,
            tmp_path=tmp_path,
            cgroup=group.path,
            XDG_RUNTIME_DIR=str(tmp_path),
            env=MALLOC,
            **how,
        ) as server,
    ):
        yield server, group


@contextlib.contextmanager
def served(tmp_path: Path, app: str = "survive:bare", **how: Any) -> Iterator[Server]:
    """The app with our config, without a limit that anything enforces."""
    how = {"config": CONFIG, "WEB_CONCURRENCY": "1", **how}
    with serve(app, tmp_path=tmp_path, XDG_RUNTIME_DIR=str(tmp_path), **how) as server:
        yield server


def boots(server: Server) -> int:
    return server.log.count("Booting worker")


def deaths(server: Server) -> list[str]:
    """Our lines about the dead."""
    return [line for line in server.log.splitlines() if DIED in line]


def told(server: Server) -> dict[str, Any]:
    reply = server.request("GET", "/api/memory-status", headers=TOKEN)
    result: dict[str, Any] = json.loads(reply.body)
    return result


def fill(server: Server, mb: int, level: str) -> None:
    """Keep more, until the site uses so many MB, and is at that level or above."""
    # The kernel counts in batches; all that the start took must be in it.
    loaded = told(server)["memory"]["uss_bytes"]
    wait_for(lambda: told(server)["memory"]["used_bytes"] >= loaded, "the kernel to count")

    def there() -> bool:
        now = told(server)
        missing = mb * MB - now["memory"]["used_bytes"]
        if missing > 0:
            assert server.get(f"/leak?kb={missing // 1024 + 1}").status == 200
        return LEVELS.index(now["status"]) >= LEVELS.index(level)

    wait_for(there, level)


def nobody_was_killed(server: Server, group: Cgroup) -> None:
    assert group.kills() == 0, server.log
    assert not deaths(server), server.log
    assert "requests go on without it" not in server.log, server.log  # a failure of ours
    assert not re.search(r"was sent SIG(?!TERM)|exited with code", server.log), server.log


# --- Requests that grow without end

KINDS = ("pieces", "block", "dicts", "text", "numbers")


@pytest.mark.parametrize("of", ["", "/flask"])
def test_a_request_that_grows_without_end_is_503_and_the_others_do_not_notice(
    tmp_path: Path, of: str
) -> None:
    with contained(tmp_path) as (server, group):
        with crowd(server.port, 3, "/", pause=0.005) as others:
            for kind in KINDS * 2:
                reply = server.get(f"{of}/{kind}")
                assert (kind, reply.status) == (kind, 503), server.log
                assert reply.headers["Retry-After"]
        assert not others.failed
        assert len(others.answers) > 50
        nobody_was_killed(server, group)


# --- Memory that stays referenced


# Two workers have two times as much to load, and half of the room each.
@pytest.mark.parametrize(("workers", "size", "requests"), [(1, 256 * MB, 400), (2, 512 * MB, 600)])
@pytest.mark.parametrize("keep_alive", [False, True], ids=["close", "keep-alive"])
def test_a_leak_of_2_mb_a_request_loses_no_request_and_no_worker(
    tmp_path: Path, workers: int, size: int, requests: int, keep_alive: bool
) -> None:
    with contained(tmp_path, size=size, WEB_CONCURRENCY=str(workers)) as (server, group):
        with crowd(
            server.port, 4, "/flask/leak", most=requests, keep_alive=keep_alive, pause=0.01
        ) as leaks:
            leaks.join()
        assert not leaks.failed, server.log
        assert len(leaks.answers) == requests
        assert server.log.count(RECYCLED) >= 2
        nobody_was_killed(server, group)
        wait_for(lambda: len(server.workers()) == workers, "as many workers as before")


def test_connections_that_clients_keep_open_cost_no_request_of_a_fast_leak(tmp_path: Path) -> None:
    """150 MB a second. When a worker ends, Gunicorn waits two seconds for such connections."""
    with contained(tmp_path, size=512 * MB, WEB_CONCURRENCY="1") as (server, group):
        with (
            crowd(server.port, 2, "/", keep_alive=True, pause=1.5) as keeper,
            crowd(server.port, 4, "/flask/leak", most=300, pause=4 / 75) as leaks,
        ):
            leaks.join()
        assert not leaks.failed, server.log
        assert not keeper.failed, server.log
        assert RECYCLED in server.log
        nobody_was_killed(server, group)


def another_answers(server: Server, leaks: Crowd) -> bool:
    return len({answer.text for answer in leaks.answers}) > 1


def leaking(server: Server, until: Callable[[Server, Crowd], bool] = another_answers) -> Crowd:
    """Leak 6 MB a second from warn on, until another worker answers."""
    # One that starts in a second, or may, is not replaced in its first two.
    wait_for(lambda: told(server)["workers"][0]["age_seconds"] > 2.5, "the worker to be old enough")
    fill(server, 160, "warn")
    with crowd(server.port, 2, "/leak?kb=128", pause=0.035) as leaks:
        wait_for(lambda: until(server, leaks), lambda: f"{until.__name__} in vain: {server.log}")
    return leaks


@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_an_app_that_is_wrapped_in_one_line_has_its_worker_replaced(
    tmp_path: Path, kind: str, options: list[str]
) -> None:
    """By Gunicorn without a config of ours."""
    if kind == "gevent":
        pytest.importorskip("gevent", reason="gevent is not installed")
    how: dict[str, Any] = {"server": kind, "options": options, "LOWMEM_ADMIN_TOKEN": "t"}
    with contained(tmp_path, "survive:app", **how) as (server, group):
        leaks = leaking(server)
        assert not leaks.failed, server.log
        assert RECYCLED in server.log
        nobody_was_killed(server, group)


@pytest.mark.parametrize("kind", ["uwsgi", "mod_wsgi"])
def test_another_server_that_can_replaces_its_worker_too(tmp_path: Path, kind: str) -> None:
    with serve(
        "survive:app",
        kind,
        tmp_path=tmp_path,
        LOWMEM_MEMORY_LIMIT="192MB",
        LOWMEM_ADMIN_TOKEN="t",
        XDG_RUNTIME_DIR=str(tmp_path),
        env=MALLOC,
    ) as server:
        leaks = leaking(server)
        assert not leaks.failed, server.log
        assert server.log.count(RECYCLED) == 1
        assert not deaths(server)


def test_where_the_server_cannot_replace_a_worker_the_log_says_so_once(tmp_path: Path) -> None:
    def it_says_so(server: Server, leaks: Crowd) -> bool:
        return "its server cannot replace it" in server.log

    waitress = contained(tmp_path, "survive:app", server="waitress", LOWMEM_ADMIN_TOKEN="t")
    with waitress as (server, group):
        leaks = leaking(server, it_says_so)
        assert len({answer.text for answer in leaks.answers if answer.status == 200}) == 1
        assert server.log.count("its server cannot replace it") == 1
        assert "use Gunicorn, uWSGI or mod_wsgi" in server.log
        assert group.kills() == 0


# --- What a worker died of


@contextlib.contextmanager
def asked(server: Server, path: str) -> Iterator[None]:
    """A request that is in flight, and may fail."""

    def ask() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            server.get(path)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    wait_for(lambda: f"at {path.partition('?')[0]}" in server.log, "it to be in flight")
    yield
    thread.join(30)


def death(server: Server) -> str:
    """The one line about the one that is dead."""
    wait_for(lambda: deaths(server), lambda: f"the line: {server.log}")
    (line,) = deaths(server)
    return line


def test_of_a_worker_killed_from_outside_the_log_names_the_request(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        server.get("/")
        (worker,) = server.workers()
        with asked(server, "/slow?seconds=30"):
            os.kill(worker, signal.SIGKILL)
            line = death(server)
        assert f"worker {worker} died: crash, or a kill from outside." in line
        assert "In flight: GET /slow (for " in line
        assert "OOM" not in line
        assert "timeout" not in line
        assert server.get("/").status == 200


def test_of_an_oom_kill_the_log_names_the_request_and_its_growth(tmp_path: Path) -> None:
    off = {"LOWMEM_CEILING": "off", "LOWMEM_RECYCLE": "off"}
    with contained(tmp_path, size=128 * MB, **off) as (server, group):
        with contextlib.suppress(OSError, http.client.HTTPException):
            server.get("/steps")
        line = death(server)
        assert group.kills() == 1
        assert "died: OOM kill." in line
        assert "In flight: GET /steps (for " in line
        grown = re.search(r"the worker grew ([\d.]+) MB meanwhile", line)
        assert grown, line
        assert 30 < float(grown[1]) < 128
        assert server.get("/").status == 200


def test_after_an_oom_kill_a_kill_from_outside_is_not_taken_for_another(tmp_path: Path) -> None:
    off = {"LOWMEM_CEILING": "off", "LOWMEM_RECYCLE": "off"}
    with contained(tmp_path, size=128 * MB, **off) as (server, group):
        with contextlib.suppress(OSError, http.client.HTTPException):
            server.get("/pieces")
        assert "died: OOM kill." in death(server)
        server.get("/")
        with asked(server, "/slow?seconds=30"):
            os.kill(newest(server), signal.SIGKILL)
            wait_for(lambda: len(deaths(server)) == 2, lambda: f"another line: {server.log}")
        assert "died: crash, or a kill from outside. In flight: GET /slow" in deaths(server)[1]
        assert group.kills() == 1


@pytest.mark.parametrize(
    ("path", "options", "seconds"),
    [("/slow?seconds=60", ["-k", "sync", "--threads", "1"], "1"), ("/stuck", [], "5")],
    ids=["sync", "gthread"],
)
def test_of_a_timeout_the_log_names_the_request(
    tmp_path: Path, path: str, options: list[str], seconds: str
) -> None:
    """A gthread worker times out when a request lets no other thread have its turn."""
    with served(tmp_path, options=options, WORKER_TIMEOUT=seconds) as server:
        server.get("/")
        with asked(server, path):
            line = death(server)
        assert "died: timeout." in line
        assert f"In flight: GET {path.partition('?')[0]} (for " in line
        assert server.get("/").status == 200


def test_a_worker_that_ends_in_order_is_not_called_dead(tmp_path: Path) -> None:
    with served(tmp_path, MAX_REQUESTS="20") as server:
        for _ in range(50):  # max_requests
            server.get("/")
        wait_for(lambda: boots(server) == 3, "the third worker")
        with asked(server, "/slow?seconds=0.3"):
            os.kill(newest(server), signal.SIGTERM)
        wait_for(lambda: boots(server) == 4, "the fourth worker")
        server.get("/")
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: boots(server) == 5 and len(server.workers()) == 1, "the fifth worker")
        server.get("/")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert not deaths(server), server.log


def newest(server: Server) -> int:
    return max(
        server.workers(), key=lambda pid: server.log.index(f"Booting worker with pid: {pid}")
    )


def test_without_our_config_the_next_worker_tells_of_the_one_that_died(tmp_path: Path) -> None:
    with serve("survive:app", tmp_path=tmp_path, XDG_RUNTIME_DIR=str(tmp_path)) as server:
        server.get("/")
        (worker,) = server.workers()
        with asked(server, "/slow?seconds=30"):
            os.kill(worker, signal.SIGKILL)
            wait_for(lambda: server.workers() not in ([], [worker]), "another worker")
            server.get("/")
            line = death(server)
        assert f"worker {worker} died: crash, or a kill from outside." in line
        assert "In flight: GET /slow (for " in line
        (worker,) = server.workers()
        os.kill(worker, signal.SIGTERM)  # in order: nothing to tell
        wait_for(lambda: boots(server) == 3, "a third worker")
        server.get("/")
        assert deaths(server) == [line]


# --- Signals


@pytest.mark.parametrize("keep_alive", [False, True], ids=["close", "keep-alive"])
def test_requests_sent_before_a_sigterm_are_answered(tmp_path: Path, keep_alive: bool) -> None:
    with served(tmp_path) as server:
        paths = ("/", "/", "/", "/slow?seconds=0.2")
        with crowd(server.port, 4, *paths, keep_alive=keep_alive) as asking:
            began = time.monotonic()
            wait_for(lambda: len(asking.answers) > 60 and time.monotonic() - began > 1.5, "answers")
            moment = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(20) == 0
        # The kernel resets what the server has not accepted yet: that may be half a second old.
        before = [
            answer
            for answer in asking.answers
            if answer.sent is not None and answer.sent < moment - 0.5
        ]
        assert len(before) > 30
        assert all(answer.status == 200 for answer in before), server.log


def reloaded(server: Server, times: int) -> None:
    """Have the worker replaced, for the nth time."""
    server.process.send_signal(signal.SIGHUP)
    wait_for(
        lambda: boots(server) == 1 + times and server.log.count("Worker exiting") == times,
        "another worker",
    )


def answers_more(asking: Crowd, count: int) -> None:
    enough = len(asking.answers) + count
    wait_for(lambda: len(asking.answers) > enough, "answers")


@pytest.mark.parametrize("keep_alive", [False, True], ids=["close", "keep-alive"])
def test_no_request_is_lost_to_reloads(tmp_path: Path, keep_alive: bool) -> None:
    with served(tmp_path) as server:
        paths = ("/", "/", "/", "/slow?seconds=0.2")
        with crowd(server.port, 4, *paths, keep_alive=keep_alive) as asking:
            for reloads in (1, 2):
                answers_more(asking, 40)
                reloaded(server, reloads)
        assert not asking.failed, server.log
        assert len({answer.text for answer in asking.answers}) == 3


def test_a_new_worker_every_three_requests_loses_none(tmp_path: Path) -> None:
    with served(tmp_path, MAX_REQUESTS="3") as server:
        with crowd(server.port, 4, "/", most=200) as asking:
            asking.join()
        assert not asking.failed, server.log
        assert len({answer.text for answer in asking.answers}) > 30
        assert not deaths(server)


# --- When nothing helps

# Nothing that would bring memory down again.
HELPLESS: dict[str, Any] = {
    "LOWMEM_CEILING": "off",
    "LOWMEM_RECYCLE": "off",
    "LOWMEM_ADMIN_TOKEN": "t",
}


def test_after_five_seconds_at_critical_nothing_comes_in_until_there_is_room(
    tmp_path: Path,
) -> None:
    with contained(tmp_path, **HELPLESS) as (server, _):
        server.get("/")
        began = time.monotonic()
        fill(server, 178, "critical")
        assert server.get("/").status == 200
        wait_for(lambda: server.get("/").status == 503, "requests to be refused", seconds=10)
        assert time.monotonic() - began > 4.5
        assert server.get("/").headers["Retry-After"] == "2"
        assert "LOWMEM_CRITICAL_AT" in server.log
        for method, path in (
            *(("GET", "/healthz"), ("GET", "/api/memory-status")),
            *(("POST", "/api/force-cleanup"), ("GET", "/healthz/forget")),
        ):
            assert server.request(method, path, headers=TOKEN).status == 200, path
        wait_for(lambda: server.get("/").status == 200, "requests to be let in again")


def test_at_warn_a_large_upload_is_turned_away_and_a_small_one_is_not(tmp_path: Path) -> None:
    with contained(tmp_path, **HELPLESS, LOWMEM_MAX_UPLOAD="4MB") as (server, _):
        server.get("/")
        large, small = b"x" * (3 * MB), b"x" * 200_000
        assert server.request("POST", "/upload", large).status == 200
        fill(server, 159, "warn")
        reply = server.request("POST", "/upload", large)
        assert (reply.status, reply.headers["Retry-After"]) == (503, "2")
        assert "LOWMEM_WARN_AT" in server.log
        assert server.request("POST", "/upload", small).text == "200000"
        assert server.get("/").status == 200

"""Offloaded calls in real servers, in a real container, and when a worker is killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers.cgroup import memory_cgroup
from helpers.forks import fork
from helpers.servers import APPS, Server, serve, wait_for
from lowmem_wsgi.offload import admission as room

MB = 1024 * 1024
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where tests and children leave each other word; the list of children is in it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    yield tmp_path
    wait_for(lambda: not listed(), "all children to end")


def site(server: str, notes: Path, **more: Any) -> Any:
    return serve(
        "apps.offload_site:app",
        server,
        tmp_path=notes,
        cwd=APPS.parent,
        NOTES=str(notes),
        XDG_RUNTIME_DIR=str(notes),
        **more,
    )


def listed() -> list[room.Child]:
    with room.gate().children() as (running, _):
        return list(running)


def children_of(pid: int) -> list[str]:
    """The pids of a worker's children, zombies too."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [child for path in tasks for child in path.read_text().split()]


def files_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def in_background(pool: ThreadPoolExecutor, server: Server, path: str) -> Any:
    return pool.submit(server.get, path)


KINDS: dict[str, dict[str, Any]] = {
    "sync": {},
    "gthread": {},
    "gevent": {},
    "preloaded": {"server": "gthread", "config": "python:lowmem_wsgi.gunicorn"},
    "preloaded, gevent": {
        "server": "gevent",
        "config": "python:lowmem_wsgi.gunicorn",
        "options": ("-k", "gevent"),
    },
    "waitress": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_calls_end_as_they_should_in_each_server_and_leave_nothing(kind: str, notes: Path) -> None:
    with site(**{"server": kind, "notes": notes, **KINDS[kind]}) as server:
        worker = int(server.get("/").text)
        assert server.get("/double/21").text == "42"
        files = files_of(worker)
        for number in range(20):
            assert server.get(f"/double/{number}").text == str(2 * number)
        assert server.get("/stream/10000").text == str(sum(range(10000)))
        assert upload(server, b"x" * (3 * MB)) == str(3 * MB)
        assert server.get("/die").status == 500
        assert server.get("/endless").status == 500
        assert "leave_with ended with exit code 7, and no result" in server.log
        assert "endless took longer than 0.5 s" in server.log
        assert children_of(worker) == []
        assert files_of(worker) <= files + 1  # the log's, the reader's
        assert int(server.get("/").text) == worker


def upload(server: Server, data: bytes) -> str:
    boundary = b"a-line-between"
    body = (
        b'--%b\r\nContent-Disposition: form-data; name="file"; filename="f.xlsx"\r\n\r\n'
        b"%b\r\n--%b--\r\n" % (boundary, data, boundary)
    )
    kind = f"multipart/form-data; boundary={boundary.decode()}"
    return server.request("POST", "/upload", body, {"Content-Type": kind}).text


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_others_are_served_while_a_call_runs(kind: str, notes: Path) -> None:
    with site(kind, notes) as server, ThreadPoolExecutor(4) as pool:
        slow = in_background(pool, server, "/hold/1/done")
        wait_for((notes / "done.told").exists, "the call to begin")
        for _ in range(20):
            assert server.get("/").status == 200
        assert server.get("/double/4").text == "8"
        assert not slow.done()
        (notes / "done").touch()
        assert slow.result().text == str(MB)


@pytest.mark.parametrize("kind", ["gthread", "gevent", "sync"])
def test_a_child_ends_with_its_worker(kind: str, notes: Path) -> None:
    with site(kind, notes) as server, ThreadPoolExecutor(1) as pool:
        worker = int(server.get("/").text)
        slow = in_background(pool, server, "/hold/1/never")
        wait_for((notes / "never.told").exists, "the call to begin")
        [child] = listed()
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: not room.born(child.pid), "the child to end")
        assert slow.exception() is not None
        assert int(server.get("/").text) != worker


def test_the_worker_loads_nothing_that_only_a_child_needs(notes: Path) -> None:
    with site("gthread", notes) as server:
        server.get("/double/1")
        assert not {"multiprocessing", "lowmem_wsgi.imports.lazy"} & set(
            server.get("/loaded").text.split()
        )


def test_two_calls_that_do_not_both_fit_run_one_after_the_other_and_the_hasty_gets_503(
    notes: Path,
) -> None:
    with (
        memory_cgroup(320 * MB) as group,
        site("gthread", notes, threads=5, cgroup=group.path) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        server.get("/double/1")
        before = group.working_set()
        first = in_background(pool, server, "/hold/120/first")
        wait_for((notes / "first.told").exists, "the first to begin")
        second = in_background(pool, server, "/hold/120/second")
        hasty = server.get("/hold/120/hasty?impatient")
        assert hasty.status == 503
        assert hasty.headers["Retry-After"] == "2"
        assert "no room for apps.heavy_tasks.hold: it may come to 156 MB" in server.log
        assert "(setting: memory=, at_once= and wait= of offload)" in server.log
        assert not (notes / "hasty.told").exists()
        assert not second.done()
        assert not (notes / "second.told").exists()
        (notes / "first").touch()
        assert first.result().text == str(120 * MB)
        wait_for((notes / "second.told").exists, "the second to begin")
        (notes / "second").touch()
        assert second.result().text == str(120 * MB)
        assert group.kills() == 0
        wait_for(lambda: group.working_set() < before + 8 * MB, "memory to be back")


def test_of_three_threads_one_works_one_waits_and_one_serves_the_site(notes: Path) -> None:
    with (
        memory_cgroup(320 * MB) as group,
        site("gthread", notes, threads=3, cgroup=group.path) as server,
        ThreadPoolExecutor(3) as pool,
    ):
        first = in_background(pool, server, "/hold/120/first")
        wait_for((notes / "first.told").exists, "the first to begin")
        others = [in_background(pool, server, f"/hold/120/{name}") for name in ("second", "third")]
        wait_for(lambda: any(other.done() for other in others), "one of them to be told")
        told, waits = sorted(others, key=lambda other: not other.done())
        assert told.result().status == 503  # and not in 60 s
        assert "and another request waits for room already" in server.log
        assert server.get("/").status == 200
        assert not waits.done()
        for name in ("first", "second", "third"):
            (notes / name).touch()
        assert [first.result().status, waits.result().status] == [200, 200]


def test_where_no_child_can_make_room_a_call_that_does_not_fit_is_503_at_once(
    notes: Path,
) -> None:
    with memory_cgroup(184 * MB) as group, site("gthread", notes, cgroup=group.path) as server:
        reply = server.get("/hold/1/patient")  # it would wait 60 s
        assert (reply.status, reply.headers["Retry-After"]) == (503, "2")
        assert "no room for apps.heavy_tasks.hold: it may come to 156 MB" in server.log
        assert "and no other child holds room" in server.log


def test_two_workers_share_the_room(notes: Path) -> None:
    with (
        memory_cgroup(360 * MB) as group,
        site("sync", notes, workers=2, cgroup=group.path) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        first = in_background(pool, server, "/hold/120/first")
        wait_for((notes / "first.told").exists, "the first to begin")
        hasty = server.get("/hold/120/hasty?impatient")
        assert hasty.status == 503  # by the other worker: the first is busy
        (notes / "first").touch()
        assert first.result().status == 200


def test_a_child_that_the_oom_killer_takes_is_out_of_memory_and_the_site_lives(
    notes: Path,
) -> None:
    # Nobody has told the child that there is so little: the limit is lowered while it runs.
    with (
        memory_cgroup(320 * MB) as group,
        site("gthread", notes, cgroup=group.path) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        worker = server.get("/").text
        slow = in_background(pool, server, "/hold/120/never")
        wait_for((notes / "never.told").exists, "the call to begin")
        others = squeeze(group)
        reply = slow.result()
        assert reply.status == 503
        assert "hold was killed by the system: the container is out of memory" in server.log
        assert group.kills() == 1 + others
        group.limit(320 * MB)
        assert server.get("/").text == worker


def squeeze(group: Any) -> bool:
    """Fill what is left from a process of the test's own, which asks to be spared.

    Return whether it was killed all the same: it may take more before it sees the first kill.
    """
    pid = fork()
    if pid == 0:
        try:
            Path("/proc/self/oom_score_adj").write_text("0")
            (group.path / "cgroup.procs").write_text("0")
            held = []
            while group.kills() == 0:
                held.append(b"x" * MB)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])

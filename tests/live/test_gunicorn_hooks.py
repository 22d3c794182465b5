"""`from lowmem_wsgi.gunicorn import *` in a site's own config, and the number of workers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.cgroup import memory_cgroup
from helpers.servers import Server, serve, wait_for
from lowmem_wsgi.system.cgroup import processors
from lowmem_wsgi.workers.fitting import fitting

MB = 1024 * 1024
CONFIG = "python:lowmem_wsgi.gunicorn"
TOKEN = {"Authorization": "Bearer t"}
# Each with its arguments: Gunicorn counts them.
HOOKS = {
    "on_starting": "server",
    "when_ready": "server",
    "on_reload": "server",
    "pre_fork": "server, worker",
    "post_fork": "server, worker",
    "post_worker_init": "worker",
    "worker_abort": "worker",
    "worker_exit": "server, worker",
    "child_exit": "server, worker",
}


def config(tmp_path: Path, hooks: Sequence[str] = (), more: str = "") -> str:
    """A config of the site's own, whose hooks say that they were called."""
    lines = ["from lowmem_wsgi.gunicorn import *", more]
    for name in hooks:
        lines += [f"def {name}({HOOKS[name]}):", f"    print('theirs: {name}', flush=True)"]
    path = tmp_path / "config.py"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def called(server: Server, hook: str) -> int:
    return server.log.count(f"theirs: {hook}\n")


def boots(server: Server) -> int:
    return server.log.count("Booting worker")


def next_worker(server: Server, before: int) -> None:
    wait_for(
        lambda: boots(server) > before and len(server.workers()) == 1,
        lambda: f"a worker: {server.log}",
    )


def ours_are_at_work(server: Server, *, frozen: bool = True) -> None:
    """The app is wrapped, the start-up heap frozen, and the shared page read."""
    reply = server.request("GET", "/api/memory-status", headers=TOKEN)
    assert reply.status == 200, server.log
    assert (json.loads(reply.body)["gc"]["frozen"] > 10_000) == frozen
    (worker,) = server.workers()
    before = boots(server)
    os.kill(worker, signal.SIGKILL)
    wait_for(
        lambda: f"worker {worker} died: crash" in server.log, lambda: f"the line: {server.log}"
    )
    next_worker(server, before)


SETS = (
    ("on_starting", "when_ready"),
    ("when_ready", "pre_fork", "post_worker_init"),
    ("on_starting", "pre_fork", "post_fork", "on_reload"),
    ("worker_exit", "child_exit"),
    tuple(HOOKS),
)


@pytest.mark.parametrize("hooks", SETS, ids=["-".join(hooks) for hooks in SETS[:-1]] + ["all"])
def test_hooks_of_a_sites_own_run_and_so_do_ours(tmp_path: Path, hooks: tuple[str, ...]) -> None:
    """Also after a reload."""
    own = config(tmp_path, hooks)
    with serve("plain:bare", tmp_path=tmp_path, config=own, LOWMEM_ADMIN_TOKEN="t") as server:
        wait_for(lambda: boots(server) == 1, "a worker")
        ours_are_at_work(server)
        before = boots(server)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "Worker exiting" in server.log, "the old worker to end")
        next_worker(server, before)
        ours_are_at_work(server)
        assert server.get("/lowmem").status == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert boots(server) == 4  # two were killed, one reloaded, one told to end
        times = {
            **{"on_starting": 1, "when_ready": 1, "on_reload": 1},
            **{"pre_fork": 4, "post_fork": 4, "post_worker_init": 4},
            **{"worker_abort": 0, "worker_exit": 2, "child_exit": 4},
        }
        assert {hook: called(server, hook) for hook in hooks} == {
            hook: times[hook] for hook in hooks
        }
        assert "Traceback" not in server.log, server.log


def test_worker_abort_of_a_sites_own_runs_and_the_timeout_is_told(tmp_path: Path) -> None:
    own = config(tmp_path, ["worker_abort"], "worker_class, threads, timeout = 'sync', 1, 1")
    with serve("plain:bare", tmp_path=tmp_path, config=own) as server:
        with contextlib.suppress(OSError, http.client.HTTPException):
            server.get("/hold")
        wait_for(lambda: "died: timeout. In flight: GET /hold (for " in server.log, "the line")
        assert called(server, "worker_abort") == 1
        assert server.get("/lowmem").status == 200


def test_without_preloading_the_black_box_is_read_too(tmp_path: Path) -> None:
    own = config(tmp_path, more="preload_app = False")
    with serve("plain:bare", tmp_path=tmp_path, config=own, LOWMEM_ADMIN_TOKEN="t") as server:
        wait_for(lambda: boots(server) == 1, "a worker")
        server.get("/")
        ours_are_at_work(server)
        server.get("/")
        before = boots(server)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "Worker exiting" in server.log, "the old worker to end")
        next_worker(server, before)
        server.get("/")
        ours_are_at_work(server)
        assert "Traceback" not in server.log, server.log


# --- As many workers as memory allows

FITTING = re.compile(r"(\d+) workers?: (\d+) MB up to warn, (\d+) MB loaded")


def started(server: Server) -> int:
    """How many workers there are, once the first has answered."""
    assert server.get("/").status == 200
    wait_for(lambda: boots(server) == len(server.workers()), "the workers")
    return boots(server)


@pytest.mark.parametrize("size", [512, 256])
def test_as_many_workers_as_memory_allows(tmp_path: Path, size: int) -> None:
    with (
        memory_cgroup(size * MB) as group,
        serve("plain:bare", tmp_path=tmp_path, config=CONFIG, cgroup=group.path) as server,
    ):
        wait_for(lambda: FITTING.search(server.log), lambda: f"the line: {server.log}")
        found = FITTING.search(server.log)
        assert found
        count, warn, loaded = (int(number) for number in found.groups())
        assert warn == int(size * 0.78125)
        rounded = (loaded * MB, (loaded + 1) * MB)
        assert count in [fitting(warn * MB, most, processors()) for most in rounded]
        assert count > 1 or size < 512 or processors() < 1
        wait_for(lambda: boots(server) == count, f"{count} workers")
        assert started(server) == count
        before = boots(server)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: server.log.count("Worker exiting") == before, "the old ones to end")
        wait_for(
            lambda: boots(server) == before + count, lambda: f"{count} workers again: {server.log}"
        )
        assert len(FITTING.findall(server.log)) == 2
        wait_for(
            lambda: len(server.workers()) == count, lambda: f"{count} workers again: {server.log}"
        )


def test_of_the_number_that_heroku_sets_by_itself_only_as_many_run_as_fit(tmp_path: Path) -> None:
    """A worker for each 256 MB by Heroku's rule, where only one fits."""
    asked = min(4, 2 * len(os.sched_getaffinity(0)) + 1)
    env: dict[str, Any] = {"DYNO": "web.1", "DYNO_RAM": "1024", "WEB_CONCURRENCY": str(asked)}
    with (
        memory_cgroup(160 * MB) as group,
        serve("plain:bare", tmp_path=tmp_path, config=CONFIG, cgroup=group.path, **env) as server,
    ):
        assert started(server) == 1
        assert FITTING.search(server.log)
        assert "Heroku sets WEB_CONCURRENCY=" in server.log
        assert "but only 1 fit: use --workers for more" in server.log


@pytest.mark.parametrize(
    ("options", "env"),
    [
        ([], {"WEB_CONCURRENCY": "1"}),
        (["-w", "1"], {}),
        ([], {"GUNICORN_CMD_ARGS": "--workers=1"}),
    ],
    ids=["WEB_CONCURRENCY", "command line", "GUNICORN_CMD_ARGS"],
)
def test_a_number_that_somebody_has_given_is_kept(
    tmp_path: Path, options: list[str], env: dict[str, Any]
) -> None:
    with (
        memory_cgroup(512 * MB) as group,
        serve(
            "plain:bare",
            tmp_path=tmp_path,
            config=CONFIG,
            cgroup=group.path,
            options=options,
            **env,
        ) as server,
    ):
        assert started(server) == 1
        before = boots(server)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "Worker exiting" in server.log, "the old worker to end")
        next_worker(server, before)
        assert boots(server) == 2
        assert not FITTING.search(server.log)

"""`gunicorn -c python:lowmem_wsgi.gunicorn`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.servers import APPS, Server, clean_environ, serve, wait_for

CONFIG = "python:lowmem_wsgi.gunicorn"

# What the config is meant to set, and nothing else: Gunicorn takes any name for a setting.
MEANT = {
    *("workers", "threads", "worker_class", "timeout", "max_requests", "preload_app"),
    *("control_socket_disable", "graceful_timeout"),
    *("nworkers_changed", "when_ready", "on_reload", "pre_fork", "child_exit"),
    *("post_worker_init", "worker_abort", "worker_exit"),
}


def module_in_a_process(**env: str) -> dict[str, object]:
    """The settings that Gunicorn would take from the config, read in a process of their own."""
    code = (
        "import json; from gunicorn.config import KNOWN_SETTINGS as K; import lowmem_wsgi.gunicorn"
        " as m; print(json.dumps({s.name: getattr(m, s.name) for s in K if hasattr(m, s.name)},"
        " default=str))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environ(env),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_no_name_of_the_config_is_taken_for_a_setting_by_accident() -> None:
    names = set(module_in_a_process())
    assert names <= MEANT
    assert names >= MEANT - {"control_socket_disable"}  # unknown to Gunicorn before 25


def test_the_numbers_of_the_source_document() -> None:
    assert {**module_in_a_process(), "x": 0}.items() >= {
        "workers": 1,
        "threads": 3,
        "timeout": 10,
        "max_requests": 0,
    }.items()
    assert module_in_a_process(LOWMEM_PRESET="ultra")["max_requests"] == 3


def test_the_four_variables_are_read() -> None:
    settings = module_in_a_process(
        WEB_CONCURRENCY="2", WORKER_CONNECTIONS="5", WORKER_TIMEOUT="20", MAX_REQUESTS="100"
    )
    assert (
        settings.items()
        >= {
            "workers": 2,
            "threads": 5,
            "timeout": 20,
            "max_requests": 100,
        }.items()
    )


@pytest.mark.parametrize(
    # Gunicorn reads WEB_CONCURRENCY before us, and has its own words for it.
    "variable",
    ["WORKER_CONNECTIONS", "WORKER_TIMEOUT", "MAX_REQUESTS"],
)
@pytest.mark.parametrize("value", ["many", "-1", "1.5"])
def test_a_wrong_number_is_named_and_gunicorn_does_not_start(variable: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", CONFIG, "--check-config", "plain:bare"],
        cwd=APPS,
        env=clean_environ({variable: value}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert f"{variable}='{value}': expected a whole number" in done.stderr


def told(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        server.get("/api/memory-status", Authorization="Bearer t").body
    )
    return found


def quick(server: Server) -> bool:
    server.get("/lowmem")
    return bool(told(server)["gc"]["last_seconds"] < 0.05)


def test_an_unwrapped_app_is_wrapped_preloaded_and_frozen(tmp_path: Path) -> None:
    with serve("plain:bare", tmp_path=tmp_path, config=CONFIG, LOWMEM_ADMIN_TOKEN="t") as server:
        assert json.loads(server.get("/lowmem").body)["home_rows"] == 5
        assert told(server)["gc"]["frozen"] > 10_000
        # Of some requests: where the machine is busy, others run in the middle of the passes.
        wait_for(lambda: quick(server), "passes that take less than 50 ms")
        assert len(server.workers()) == 1
        assert "preset balanced" in server.log


def test_an_app_that_is_wrapped_already_is_not_wrapped_again(tmp_path: Path) -> None:
    for app in ("plain:app", "flask_upload:app"):
        with serve(app, tmp_path=tmp_path, config=CONFIG) as server:
            assert server.get("/told").status == 200
            assert server.log.count("preset balanced") == 1


def test_without_preloading_each_worker_wraps_what_it_loads(tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text("from lowmem_wsgi.gunicorn import *\npreload_app = False\n")
    with serve("plain:bare", tmp_path=tmp_path, config=str(config)) as server:
        assert server.get("/lowmem").status == 200


def test_the_command_line_and_gunicorn_cmd_args_beat_the_config(tmp_path: Path) -> None:
    with serve(
        "plain:bare",
        tmp_path=tmp_path,
        config=CONFIG,
        options=["--threads", "2"],
        GUNICORN_CMD_ARGS="--workers 2",
    ) as server:
        wait_for(lambda: len(server.workers()) == 2, "two workers")
        assert server.get("/lowmem").status == 200


def replaced_worker(server: Server) -> None:
    (old,) = server.workers()
    os.kill(old, signal.SIGTERM)
    wait_for(lambda: old not in server.workers() and len(server.workers()) == 1, "a new worker")


def test_a_replaced_worker_is_wrapped_and_frozen_too(tmp_path: Path) -> None:
    with serve("plain:bare", tmp_path=tmp_path, config=CONFIG, LOWMEM_ADMIN_TOKEN="t") as server:
        server.get("/")
        replaced_worker(server)
        assert told(server)["gc"]["frozen"] > 10_000
        # Of some requests: where the machine is busy, others run in the middle of the passes.
        wait_for(lambda: quick(server), "passes that take less than 50 ms")


def test_reload_and_stop_are_orderly(tmp_path: Path) -> None:
    with serve("plain:bare", tmp_path=tmp_path, config=CONFIG) as server:
        server.get("/")
        (old,) = server.workers()
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: old not in server.workers() and server.workers(), "a new worker")
        assert server.get("/lowmem").status == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        assert "Traceback" not in server.log


@pytest.mark.parametrize("options", [["-k", "gevent"], ["-k", "gevent", "--preload"]])
def test_a_gevent_worker_answers_a_backlog_of_first_requests(
    tmp_path: Path, options: list[str]
) -> None:
    """All at once and before any other: the monitor starts while others wait, and with --preload
    our locks are older than gevent's patches."""
    pytest.importorskip("gevent", reason="gevent is not installed")
    config = tmp_path / "config.py"
    config.write_text("timeout = 20\n")
    with serve("plain:app", tmp_path=tmp_path, config=str(config), options=options) as server:
        wait_for(lambda: len(server.workers()) == 1 and "Booting" in server.log, "a worker")
        (worker,) = server.workers()
        os.kill(worker, signal.SIGSTOP)
        request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        with contextlib.ExitStack() as stack:
            waiting = [
                stack.enter_context(
                    socket.create_connection(("127.0.0.1", server.port), timeout=15)
                )
                for _ in range(40)
            ]
            for connection in waiting:
                connection.sendall(request)
            os.kill(worker, signal.SIGCONT)
            answers = [connection.recv(100) for connection in waiting]
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)

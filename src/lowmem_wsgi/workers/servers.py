"""The servers that can replace a worker, and how each is asked for it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Server(NamedTuple):
    """`master`: pid of the process that starts the workers. `size`: how many it keeps.

    `replace(at_once)` asks for a fresh worker in place of this one, which finishes what it has in
    flight. `at_once`: with a master that will not wait for that (see lowmem_wsgi.gunicorn).
    """

    name: str
    master: int
    size: int
    replace: Callable[[bool], None]
    threads: int = 0
    submit: Callable[..., Any] | None = None  # of the pool whose threads they are


def find_server() -> Server | None:
    """The server that this process is a worker of; None for one that cannot replace it."""
    for find in FINDERS:
        try:
            server = find()
        except Exception:  # a module of the same name, another version
            continue
        if server is not None:
            return server
    return None


def _gunicorn() -> Server | None:
    base = sys.modules.get("gunicorn.workers.base")
    # Each worker class handles SIGTERM with a method of its own.
    worker = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if base is None or not isinstance(worker, base.Worker) or worker.ppid != os.getppid():
        return None
    if type(worker).__name__ in LOSES_REQUESTS:
        return None

    def replace(at_once: bool) -> None:
        if at_once:
            with contextlib.suppress(PermissionError):  # a master of root's: `gunicorn --user`
                os.kill(worker.ppid, signal.SIGTTIN)  # one worker more, while this one ends
        try:
            if "gunicorn.workers.gthread" in sys.modules and hasattr(worker, "nr_conns"):
                _empty_gthread(worker)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    pool = getattr(worker, "tpool", None)
    return Server(
        "Gunicorn",
        worker.ppid,
        worker.cfg.workers,
        replace,
        worker.cfg.threads if pool is not None else 0,
        getattr(pool, "submit", None),
    )


# On SIGTERM these two cut connections that they have told the client to keep.
LOSES_REQUESTS = ("TornadoWorker", "GeventPyWSGIWorker")


def _empty_gthread(worker: Any) -> None:
    """Have the threaded worker of Gunicorn 22 to 26 finish what it has: on SIGTERM it drops
    connections that it has accepted (22, 23), or told the client to keep (24 to 26).

    It takes no more of them, and keeps none, until there are none; SIGTERM comes after that. From
    27 on it does so by itself.
    """
    if hasattr(sys.modules["gunicorn.workers.gthread"], "STOP_KEEPALIVE_LINGER"):
        return
    worker.max_keepalived = 0  # so that answers say Connection: close
    if hasattr(worker, "set_accept_enabled"):
        worker.worker_connections = 0
        worker.method_queue.defer(lambda: None)  # wake it up
    else:
        for listener in worker.sockets:
            worker.poller.unregister(listener)
    end = time.monotonic() + worker.cfg.graceful_timeout
    while worker.nr_conns > 0 and time.monotonic() < end:
        time.sleep(0.01)


def _uwsgi() -> Server | None:
    uwsgi = sys.modules.get("uwsgi")  # it exists inside uWSGI alone
    # Without a master, a worker that ends is not started again.
    if uwsgi is None or not uwsgi.worker_id() or not uwsgi.masterpid():
        return None
    return Server("uWSGI", uwsgi.masterpid(), uwsgi.numproc, lambda _: _signal("SIGHUP"))


def _mod_wsgi() -> Server | None:
    mod_wsgi = sys.modules.get("mod_wsgi")
    if mod_wsgi is None or not mod_wsgi.process_group:  # embedded: Apache's own process
        return None
    return Server(
        "mod_wsgi", os.getppid(), mod_wsgi.maximum_processes, lambda _: _signal("SIGUSR1")
    )


FINDERS = (_gunicorn, _uwsgi, _mod_wsgi)


def _signal(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))

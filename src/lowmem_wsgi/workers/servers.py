"""Find the server of this worker, and ask that server to replace the worker."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Server(NamedTuple):
    """A server that can replace its workers.

    `master`: pid of the process that starts the workers. `size`: the number of workers.
    `replace(at_once, patience)`: ask for a fresh worker; this worker then finishes its requests in
    flight. `at_once`: start the fresh worker before this one ends, with a master that handles this
    (see lowmem_wsgi.gunicorn). `patience`: the most seconds to wait for a request on a connection
    that a client keeps open. `threads`: the threads of the worker's pool. `kept()`: return for how
    many seconds the connections that clients keep open now delay the end of the worker. `listens`:
    whether the master takes signals of this worker, and so can start the fresh worker first.
    """

    name: str
    master: int
    size: int
    replace: Callable[[bool, float], None]
    threads: int = 0
    submit: Callable[..., Any] | None = None  # the pool's method
    kept: Callable[[], float] = float
    listens: bool = True


def find_server() -> Server | None:
    """Return the server of this worker process; None for a server that cannot replace workers."""
    for find in FINDERS:
        try:
            server = find()
        except Exception:  # another module of the same name, or another version
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

    def replace(at_once: bool, patience: float) -> None:
        if at_once:
            os.kill(worker.ppid, signal.SIGTTIN)  # start one worker more
        try:
            if "gunicorn.workers.gthread" in sys.modules and hasattr(worker, "nr_conns"):
                _empty_gthread(worker, patience)
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
        lambda: _kept(worker),
        _takes_signals(worker.ppid),
    )


def _takes_signals(pid: int) -> bool:
    """Return whether this process may send signals to another.

    A worker of `gunicorn --user` may not send any to its master, which runs as root.
    """
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _kept(worker: Any) -> float:
    """Return how many seconds Gunicorn's threaded worker waits for the connections it has kept."""
    if not (getattr(worker, "keepalived_conns", None) or getattr(worker, "_keep", None)):
        return 0.0
    linger = getattr(sys.modules["gunicorn.workers.gthread"], "STOP_KEEPALIVE_LINGER", math.inf)
    return float(min(linger, worker.cfg.keepalive))


# On SIGTERM these two close connections that they have promised the client to keep.
LOSES_REQUESTS = ("TornadoWorker", "GeventPyWSGIWorker")


def _empty_gthread(worker: Any, patience: float) -> None:
    """Make the threaded worker of Gunicorn 22 to 26 finish its connections before SIGTERM.

    On SIGTERM this worker drops connections that it has accepted (22, 23), or promised the client
    to keep (24 to 26). So the worker first accepts no connection and keeps none, until none is
    left or `graceful_timeout` has passed. From 27 on Gunicorn does so itself: a connection without
    a request waits for STOP_KEEPALIVE_LINGER seconds, here for `patience` at most.
    """
    gthread: Any = sys.modules["gunicorn.workers.gthread"]
    if hasattr(gthread, "STOP_KEEPALIVE_LINGER"):
        gthread.STOP_KEEPALIVE_LINGER = min(gthread.STOP_KEEPALIVE_LINGER, patience)
        return
    worker.max_keepalived = 0  # so that answers say Connection: close
    if hasattr(worker, "set_accept_enabled"):
        worker.worker_connections = 0
        worker.method_queue.defer(lambda: None)  # wake the worker
    else:
        for listener in worker.sockets:
            worker.poller.unregister(listener)
    end = time.monotonic() + worker.cfg.graceful_timeout
    while worker.nr_conns > 0 and time.monotonic() < end:
        time.sleep(0.01)


def _uwsgi() -> Server | None:
    uwsgi = sys.modules.get("uwsgi")  # exists only inside uWSGI
    # Without a master, uWSGI does not restart a worker that ends.
    if uwsgi is None or not uwsgi.worker_id() or not uwsgi.masterpid():
        return None
    return Server("uWSGI", uwsgi.masterpid(), uwsgi.numproc, lambda *_: _signal("SIGHUP"))


def _mod_wsgi() -> Server | None:
    mod_wsgi = sys.modules.get("mod_wsgi")
    if mod_wsgi is None or not mod_wsgi.process_group:  # embedded in Apache's own process
        return None
    return Server(
        "mod_wsgi", os.getppid(), mod_wsgi.maximum_processes, lambda *_: _signal("SIGUSR1")
    )


FINDERS = (_gunicorn, _uwsgi, _mod_wsgi)


def _signal(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


def start_threads(submit: Callable[..., object], count: int) -> None:
    """Make a pool start all its threads now.

    A thread that cannot start later, at the ceiling, would end the worker. `submit`: of the pool.
    `count`: the number of threads.
    """
    if count < 1:
        return
    together = threading.Barrier(count)

    def wait() -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.1)

    for _ in range(count):
        submit(wait)

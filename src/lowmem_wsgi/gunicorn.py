"""A Gunicorn config that needs nothing else: `gunicorn -c python:lowmem_wsgi.gunicorn app:app`.

Wraps the app if it is not wrapped yet, loads it before forking and freezes what was loaded, and
serves with one worker of three threads. Gunicorn's own numbers keep the variables of the source
document: WEB_CONCURRENCY, WORKER_CONNECTIONS, WORKER_TIMEOUT, MAX_REQUESTS. GUNICORN_CMD_ARGS and
the command line beat what is said here, as they do for any config.

Gunicorn takes every name of this module that is also one of its settings for that setting;
tests hold the list. Helpers begin with an underscore.
"""

from __future__ import annotations

import os as _os
from typing import Any as _Any

from .settings import AMOUNT as _AMOUNT
from .settings import COUNT as _COUNT
from .settings import Kind as _Kind
from .settings import Settings as _Settings
from .settings import SettingsError as _SettingsError

__all__ = [
    "control_socket_disable",
    "max_requests",
    "post_worker_init",
    "pre_fork",
    "preload_app",
    "threads",
    "timeout",
    "when_ready",
    "worker_class",
    "workers",
]

_settings = _Settings.load()


def _variable(name: str, default: int, kind: _Kind[int]) -> int:
    text = _os.environ.get(name, "").strip()
    try:
        return kind.parse(text) if text else default
    except ValueError:
        raise _SettingsError([f"{name}={text!r}: expected {kind.expected}"]) from None


workers = _variable("WEB_CONCURRENCY", 1, _AMOUNT)
# The source document's three connections: with threads, as many requests at once. (Gunicorn's
# worker_connections also counts idle keep-alive connections, which are next to free.)
threads = _variable("WORKER_CONNECTIONS", 3, _AMOUNT)
worker_class = "gthread"
timeout = _variable("WORKER_TIMEOUT", 10, _COUNT)
max_requests = _variable("MAX_REQUESTS", 3 if _settings.preset == "ultra" else 0, _COUNT)

# Workers then share what the master has loaded, and a new worker costs a fork.
preload_app = True

# Gunicorn 25 and later open a control socket, with a thread and asyncio behind it: 3 MB.
control_socket_disable = True


def when_ready(server: _Any) -> None:
    """In the master, before it forks: wrap what is loaded."""
    _log_through(server.log)
    if server.app.callable is not None:
        server.app.callable = _wrapped(server.app.callable)


def pre_fork(server: _Any, worker: _Any) -> None:
    """In the master, before each fork: freeze, so that no pass in a worker touches, and so
    copies, the pages it shares."""
    from .memory.engine import current

    engine = current()
    if engine.collector.freezing if engine else _settings.gc_freeze:
        import gc

        gc.collect()
        gc.freeze()


def post_worker_init(worker: _Any) -> None:
    """In the worker: wrap, where nothing was loaded before forking (`preload_app = False` in a
    config of the site's own)."""
    _log_through(worker.log)
    worker.wsgi = _wrapped(worker.wsgi)


def _wrapped(app: _Any) -> _Any:
    from .guards.keys import layers
    from .middleware import LowMemory

    if any(isinstance(layer, LowMemory) for layer in layers(app)):
        return app
    return LowMemory(app)


def _log_through(gunicorn_log: _Any) -> None:
    """Let our lines out through Gunicorn's error log, unless the app has set up logging itself."""
    from logging import getLogger

    from .log import logger

    if not logger.hasHandlers():
        for handler in gunicorn_log.error_log.handlers:
            logger.addHandler(handler)
        logger.setLevel(getLogger("gunicorn.error").level)

"""A Gunicorn config that needs nothing else: `gunicorn -c python:lowmem_wsgi.gunicorn app:app`.

Wraps the app if it is not wrapped yet, loads it before forking and freezes what was loaded, and
serves with threads. Gunicorn's own numbers keep the variables of the source document:
WEB_CONCURRENCY, WORKER_CONNECTIONS, WORKER_TIMEOUT, MAX_REQUESTS. GUNICORN_CMD_ARGS and the
command line beat what is said here, as they do for any config.

A config of the site's own begins with `from lowmem_wsgi.gunicorn import *`. Hooks that it defines
run after ours of the same name.

Gunicorn takes every name of this module that is also one of its settings for that setting;
tests hold the list. Helpers begin with an underscore.
"""

from __future__ import annotations

import functools as _functools
import os as _os
import sys as _sys
from typing import Any as _Any

from .settings import MB as _MB
from .settings import Settings as _Settings
from .settings import number as _number

_HOOKS = (
    *("when_ready", "on_reload", "pre_fork", "post_worker_init"),
    *("worker_abort", "worker_exit", "child_exit"),
)

__all__ = [  # noqa: PLE0604
    *_HOOKS,
    "nworkers_changed",
    "control_socket_disable",
    "graceful_timeout",
    "max_requests",
    "preload_app",
    "threads",
    "timeout",
    "worker_class",
    "workers",
]

_settings = _Settings.load()


# Where it is not set, as many as memory allows: see _as_many_as_fit.
workers = _number("WEB_CONCURRENCY", 1)
# The source document's three connections: with threads, as many requests at once. (Gunicorn's
# worker_connections also counts idle keep-alive connections, which are next to free.)
threads = _number("WORKER_CONNECTIONS", 3)
worker_class = "gthread"
timeout = _number("WORKER_TIMEOUT", 10)
max_requests = _number("MAX_REQUESTS", 3 if _settings.preset == "ultra" else 0)

# What a worker that ends has to finish its requests. Platforms kill 30 s after SIGTERM (Render,
# Kubernetes), 10 s on some; the master needs some of it.
graceful_timeout = 25

# Workers then share what the master has loaded, and a new worker costs a fork.
preload_app = True

# Gunicorn 25 and later open a control socket, with a thread and asyncio behind it: 3 MB.
control_socket_disable = True


# --- In the master


def nworkers_changed(server: _Any, new: int, old: int | None) -> None:
    """The first hook that runs, before anything is loaded, and again after a SIGHUP; and one that
    few sites define: see to it that our other hooks run besides theirs.

    Also, a worker that asks for another beside it (SIGTTIN) may be gone before that is heard: then
    its place is filled already, and one more would be one too many.
    """
    _chain(server.cfg)
    _show_tracebacks(server)
    _mind_heavy_modules()
    if _gone_before and old is not None and new == old + 1:
        _gone_before.pop()
        server.num_workers = old


def when_ready(server: _Any) -> None:
    """Before it forks: wrap what is loaded, and lay out the page that the workers share."""
    _prepare(server)
    _set_workers(server)


def on_reload(server: _Any) -> None:
    """After a SIGHUP, which has read the config anew."""
    _chain(server.cfg)
    _gone_before.clear()
    _set_workers(server)


def pre_fork(server: _Any, worker: _Any) -> None:
    """Before each fork: freeze, so that no pass in a worker touches, and so copies, the pages it
    shares."""
    _prepare(server)  # where when_ready was the site's
    from .runtime import current

    engine = current()
    if engine.gc_runner.freezing if engine else _settings.gc_freeze:
        import gc

        gc.collect()
        gc.freeze()


def child_exit(server: _Any, worker: _Any) -> None:
    """A worker is gone: what it died of, and one less to make up for."""
    from .runtime import pages

    try:
        replaced = pages.worker_gone(worker.pid, timed_out=worker.aborted)
    except Exception:  # it would end the master
        _failure("The shared page")
        return
    if not replaced:
        return
    if server.num_workers > server.cfg.workers:
        server.num_workers -= 1
    else:
        _gone_before.append(worker.pid)


_gone_before: list[int] = []


# --- In the worker


def post_worker_init(worker: _Any) -> None:
    """Wrap, where nothing was loaded before forking (`preload_app = False` in a config of the
    site's own)."""
    _log_through(worker.log)
    worker.wsgi = _wrapped(worker.wsgi)
    for app in _ours(worker.wsgi):
        app.start()  # with the ceiling in place before the first request


def worker_abort(worker: _Any) -> None:
    """The worker has timed out: what it was at stays on the page."""
    from .runtime import current

    engine = current()
    if engine is not None:
        engine.worker.abort()


def worker_exit(server: _Any, worker: _Any) -> None:
    """The worker ends. Where it has nothing left to do, without the interpreter's own clearing up,
    object by object, of all that the master had loaded: 4 ms for 43 with pandas."""
    import threading

    from .runtime import current

    engine = current()
    ending = _sys.exc_info()[1]
    if engine is None or worker.alive or not isinstance(ending, SystemExit) or ending.code:
        return
    engine.worker.leave()
    pool = getattr(getattr(worker, "tpool", None), "_threads", ())  # they would be waited for
    others = [t for t in threading.enumerate() if t is not threading.main_thread()]
    if not engine.worker.idle() or any(not t.daemon and t not in pool for t in others):
        return
    import atexit

    atexit._run_exitfuncs()
    try:
        _sys.stdout.flush()
        _sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # there is none, or it is closed
        pass
    _os._exit(0)


# --- Helpers


def _prepare(server: _Any) -> None:
    """The hooks, the log, the app, the page; harmless when repeated."""
    _chain(server.cfg)
    _log_through(server.log)
    if server.app.callable is not None:
        server.app.callable = _wrapped(server.app.callable)
    from .runtime import pages

    try:
        for app in _ours(server.app.callable):
            if app.settings.session_cookies:
                app.keys.hold()
        pages.lay_out()
        if f"{__package__}.offload.call" in _sys.modules:  # so that the workers share all of it
            import pickle  # noqa: F401
            import subprocess  # noqa: F401

            from .offload import parent as process  # noqa: F401
    except Exception:  # it would end the master
        _failure("Laying out the shared page")


def _mind_heavy_modules() -> None:
    """Before the app imports them: put that off, or at least watch what it costs."""
    try:
        if _settings.lazy_heavy:
            from .imports import install
        else:
            from .imports.tracker import install  # type: ignore[assignment]
        install(_settings.heavy_modules)
    except Exception:
        _failure("Late imports")


def _show_tracebacks(server: _Any) -> None:
    """Log the traceback of a RuntimeError that the app raises as the master loads it: Gunicorn
    prints its text alone. (Every other error comes with its traceback, and in a worker this one.)
    """
    load, master = server.app.load, _os.getpid()
    if hasattr(load, _CHAINED):
        return

    def logged() -> _Any:
        try:
            return load()
        except RuntimeError:
            if _os.getpid() == master:
                server.log.exception("The app raised an error while it was imported")
            raise

    setattr(logged, _CHAINED, True)
    server.app.load = logged


def _failure(where: str) -> None:
    from .log import failure

    failure(where)


def _set_workers(server: _Any) -> None:
    if server.cfg.config == f"python:{__name__}" and not _asked_for_workers(server.cfg):
        server.cfg.set("workers", _as_many_as_fit(server.log))
        server.num_workers = server.cfg.workers


def _chain(cfg: _Any) -> None:
    """Where the site's config has replaced a hook of ours: ours, and then theirs. (At the end of
    a worker theirs first: ours may not return.)"""
    for name in _HOOKS:
        ours, theirs = globals()[name], cfg.settings[name].get()
        if theirs is not ours and not hasattr(theirs, _CHAINED):
            order = (theirs, ours) if name == "worker_exit" else (ours, theirs)
            cfg.set(name, (_two if ours.__code__.co_argcount == 2 else _one)(*order))


_CHAINED = "lowmem_wsgi_chained"


# Gunicorn counts a hook's arguments.
def _one(first: _Any, second: _Any) -> _Any:
    def both(server: _Any) -> None:
        first(server)
        second(server)

    setattr(both, _CHAINED, True)
    return both


def _two(first: _Any, second: _Any) -> _Any:
    def both(server: _Any, worker: _Any) -> None:
        first(server, worker)
        second(server, worker)

    setattr(both, _CHAINED, True)
    return both


def _asked_for_workers(cfg: _Any) -> bool:
    """Whether somebody has said how many: WEB_CONCURRENCY, GUNICORN_CMD_ARGS, the command line."""
    if _os.environ.get("WEB_CONCURRENCY", "").strip():
        return True
    parser = cfg.parser()
    given = (cfg.get_cmd_args_from_env(), _sys.argv[1:])
    return any(parser.parse_known_args(words)[0].workers is not None for words in given)


def _as_many_as_fit(gunicorn_log: _Any) -> int:
    from .memory.reading import Memory
    from .settings import threshold_bytes

    usage = Memory(_settings.memory_limit).read()
    if usage.source == "process":  # nobody enforces a limit
        return workers
    loaded = _loaded()
    found = _fitting(threshold_bytes(_settings.warn_at, usage.limit), loaded, _cores())
    gunicorn_log.info(
        "%d worker%s: %d MB up to warn, %d MB loaded; set WEB_CONCURRENCY for another number",
        *(found, "s" * (found > 1), threshold_bytes(_settings.warn_at, usage.limit) // _MB),
        loaded // _MB,
    )
    return found


@_functools.cache
def _loaded() -> int:
    """The master's RSS in bytes, read once, before it forks: what a worker is going to begin with.
    Later the master has grown by its own doings, such as reading the config anew."""
    from .system.procfs import OwnRss

    return OwnRss()()


def _fitting(warn: int, loaded: int, cores: float) -> int:
    """How many workers stay under `warn` bytes, with `loaded` in the master: shared at first, but
    in the course of time each comes to have it to itself, and as much again, and 32 MB for a
    request that needs more. At most two a core, at least one."""
    each = 2 * loaded + 32 * _MB
    return max(1, min((warn - loaded) // each, int(2 * cores)))


def _cores() -> float:
    """The processors that this container may use: a share of one, often."""
    from .system.cgroup import processors

    return processors()


def _wrapped(app: _Any) -> _Any:
    from .middleware import LowMemory

    return app if _ours(app) else LowMemory(app)


def _ours(app: _Any) -> list[_Any]:
    """LowMemory where the app is wrapped already."""
    from .guards.keys import layers
    from .middleware import LowMemory

    return [layer for layer in layers(app) if isinstance(layer, LowMemory)]


def _log_through(gunicorn_log: _Any) -> None:
    """Let our lines out through Gunicorn's error log, unless the app has set up logging itself."""
    from logging import getLogger

    from .log import logger

    if not logger.hasHandlers():
        for handler in gunicorn_log.error_log.handlers:
            logger.addHandler(handler)
        logger.setLevel(getLogger("gunicorn.error").level)

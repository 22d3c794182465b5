"""A Gunicorn config that needs nothing else: `gunicorn -c python:lowmem_wsgi.gunicorn app:app`.

This config wraps the app with LowMemory unless the app is wrapped already. Gunicorn loads the app
before forking, LowMemory freezes the loaded objects, and each worker serves with threads. The
numbers of Gunicorn keep the variables of the source document: WEB_CONCURRENCY, WORKER_CONNECTIONS,
WORKER_TIMEOUT, MAX_REQUESTS. GUNICORN_CMD_ARGS and the command line override this config, as they
override any config.

To write your own config, begin with `from lowmem_wsgi.gunicorn import *`. A hook that you define
runs after LowMemory's hook of the same name.

Gunicorn reads every name of this module that is also a Gunicorn setting; tests check the list. So
the names of helpers begin with an underscore.
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


# Without WEB_CONCURRENCY, as many workers as memory allows: see _as_many_as_fit.
workers: int = _number("WEB_CONCURRENCY", 1)
# The source document's three connections. With threads, this is three requests at once. (Gunicorn's
# worker_connections also counts idle keep-alive connections, which cost next to nothing.)
threads: int = _number("WORKER_CONNECTIONS", 3)
worker_class = "gthread"
timeout: int = _number("WORKER_TIMEOUT", 10)
max_requests: int = _number("MAX_REQUESTS", 3 if _settings.preset == "ultra" else 0)

# Seconds for an ending worker to finish its requests. Platforms kill 30 s after SIGTERM (Render,
# Kubernetes), some after 10 s; the master needs a part of that time.
graceful_timeout = 25

# Workers share the memory of what the master has loaded, and a new worker costs only a fork.
preload_app = True

# Gunicorn 25 and later open a control socket, served by a thread with asyncio: 3 MB.
control_socket_disable = True


# --- In the master


def nworkers_changed(server: _Any, new: int, old: int | None) -> None:
    """Start anew if variables are missing; chain LowMemory's other hooks with the site's.

    Both before Gunicorn loads the app.

    Gunicorn calls this hook first of all hooks, and again after a SIGHUP. Few sites define it.

    A worker may ask for a replacement (SIGTTIN) and be gone before the master handles the signal.
    Gunicorn has then filled the place already, so this hook takes back the extra worker.
    """
    if old is None:
        _start_anew(server)
    _chain(server.cfg)
    _show_tracebacks(server)
    _mind_heavy_modules()
    if _gone_before and old is not None and new == old + 1:
        _gone_before.pop()
        server.num_workers = old


def when_ready(server: _Any) -> None:
    """Wrap the loaded app and make the shared page, before Gunicorn forks."""
    _prepare(server)
    _set_workers(server)
    try:
        _tell_of_lazy_imports(server.log)
        _say_what_is_in_force(server)
    except Exception:  # an error here would end the master
        _failure("The lines at the start", "requests are served all the same")


def on_reload(server: _Any) -> None:
    """Chain the hooks and set the number of workers again: a SIGHUP has reread the config."""
    _chain(server.cfg)
    _gone_before.clear()
    _set_workers(server)


def pre_fork(server: _Any, worker: _Any) -> None:
    """Freeze the heap before each fork, and fill its holes before the first.

    GC passes and new objects in a worker then write to no shared page, and so copy none.
    """
    _prepare(server)  # in case the site has replaced when_ready
    from .runtime import current

    engine = current()
    if engine.gc_runner.freezing if engine else _settings.gc_freeze:
        import gc

        gc.collect()
        gc.freeze()
        _fill_holes()


def child_exit(server: _Any, worker: _Any) -> None:
    """Log why a worker died. If its replacement has started already, expect one worker less."""
    from .runtime import pages

    try:
        replaced = pages.worker_gone(worker.pid, timed_out=worker.aborted)
    except Exception:  # an error here would end the master
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
    """Wrap the app in the worker if the master has not (the site sets `preload_app = False`)."""
    _log_through(worker.log)
    worker.wsgi = _wrapped(worker.wsgi)
    for app in _ours(worker.wsgi):
        app.start()  # arms the ceiling before the first request


def worker_abort(worker: _Any) -> None:
    """Keep the requests of a worker that timed out on the shared page, for the postmortem."""
    from .runtime import current

    engine = current()
    if engine is not None:
        engine.worker.abort()


def worker_exit(server: _Any, worker: _Any) -> None:
    """Exit the worker at once if no work is left.

    This skips the interpreter's own shutdown, which frees all that the master had loaded object by
    object. With pandas the exit takes 4 ms instead of 43.
    """
    import threading

    from .runtime import current

    engine = current()
    ending = _sys.exc_info()[1]
    if engine is None or worker.alive or not isinstance(ending, SystemExit) or ending.code:
        return
    engine.worker.leave()
    pool = getattr(getattr(worker, "tpool", None), "_threads", ())  # a normal exit would join these
    others = [t for t in threading.enumerate() if t is not threading.main_thread()]
    if not engine.worker.idle() or any(not t.daemon and t not in pool for t in others):
        return
    import atexit

    atexit._run_exitfuncs()
    try:
        _sys.stdout.flush()
        _sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # no such stream, or closed
        pass
    _os._exit(0)


# --- Helpers


def _prepare(server: _Any) -> None:
    """Set up the hooks, the log, the app and the shared page. Idempotent."""
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
        import ctypes  # noqa: F401  # which gives memory back; loaded here, the workers share it

        if f"{__package__}.offload.call" in _sys.modules:  # loaded here, the workers share it
            import pickle  # noqa: F401
            import subprocess  # noqa: F401

            from .offload import parent as process  # noqa: F401
    except Exception:  # an error here would end the master
        _failure("Laying out the shared page")


_started_in = _os.getcwd()  # Gunicorn may leave this folder (--chdir)


def _start_anew(server: _Any) -> None:
    """Replace this process by the same command with the variables of `lowmem-wsgi run`, once.

    The process keeps its pid. Only Gunicorn's command does so, at its first start, with this config
    itself: then nothing but Gunicorn is loaded, and no socket, thread or child exists.
    """
    try:
        if not _may_start_anew(server.cfg):
            return
        from .workers.variables import anew

        found = anew(_os.environ)
        if found is None:
            return
        command, environ = found
        folder = _os.getcwd()
        _os.chdir(_started_in)
        try:
            _os.execve(command[0], command, environ)
        finally:  # the system has refused
            _os.chdir(folder)
    except Exception:
        _failure("Starting anew", "Gunicorn goes on without the variables")


def _may_start_anew(cfg: _Any) -> bool:
    """Return whether this is the first start of Gunicorn's command with this config."""
    import threading

    folder, name = _os.path.split(_sys.argv[0])
    return (
        _settings.start_anew
        and (name == "gunicorn" or _os.path.basename(folder) == "gunicorn")
        and cfg.config == f"python:{__name__}"
        and not cfg.daemon  # which is detached already
        and "GUNICORN_PID" not in _os.environ  # the new master of an upgrade (USR2)
        # opentelemetry-instrument takes itself out of the environment when it has run.
        and "opentelemetry.instrumentation" not in _sys.modules
        and threading.active_count() == 1
    )


def _lazy_imports() -> bool:
    """Return whether Python delays imports, and LowMemory chooses which."""
    if _sys.version_info < (3, 15):
        return False
    from .workers.variables import is_lazy

    return is_lazy(_os.environ)


def _tell_of_lazy_imports(gunicorn_log: _Any) -> None:
    """Log what lazy imports have saved by the time that the app is loaded."""
    if not _lazy_imports():
        return
    from .imports.everywhere import waiting

    found = waiting()
    gunicorn_log.info(
        "%d modules (%.1f MB of bytecode) are not loaded: Python imports each at its first use "
        "(setting: LOWMEM_LAZY_IMPORTS)",
        *(len(found), sum(found.values()) / _MB),
    )


def _mind_heavy_modules() -> None:
    """Make imports of heavy modules late, or track their cost, before the app imports them.

    From Python 3.15 on, also let Python delay all imports that may wait.
    """
    try:
        if _lazy_imports():
            from .imports.everywhere import start

            start()
        if _settings.lazy_heavy:
            from .imports import install
        else:
            from .imports.tracker import install  # type: ignore[assignment]
        install(_settings.heavy_modules)
    except Exception:
        _failure("Late imports")


def _show_tracebacks(server: _Any) -> None:
    """Log the traceback of a RuntimeError that the app raises while the master loads it.

    Gunicorn prints only the text of this error. Gunicorn prints the traceback of every other error,
    and in a worker also of a RuntimeError. For a name of an app that is not there, one line is
    enough.
    """
    load, master = server.app.load, _os.getpid()
    if hasattr(load, _CHAINED):
        return

    def logged() -> _Any:
        try:
            return load()
        except Exception as error:
            if _os.getpid() == master:
                _exit_without_app(server, error)
                if isinstance(error, RuntimeError):
                    server.log.exception("The app raised an error while it was imported")
            raise

    setattr(logged, _CHAINED, True)
    server.app.load = logged


def _exit_without_app(server: _Any, error: Exception) -> None:
    """End the master with one line if `module:name` names no app."""
    if server.cfg.paste:  # the app is a file's
        return
    from .imports.app_path import explain

    line = explain(getattr(server.app, "app_uri", None) or "", error)
    if line is not None:
        server.log.error(line)
        _sys.exit(server.APP_LOAD_ERROR)


def _say_what_is_in_force(server: _Any) -> None:
    from .admin.in_force import at_start
    from .memory.reading import Memory

    cfg = server.cfg
    for app in _ours(server.app.callable)[:1]:
        usage = Memory(app.settings.memory_limit).read()
        server.log.info(at_start(app.settings, usage, cfg.workers, cfg.threads, _os.environ))


def _failure(where: str, so: str = "requests go on without it") -> None:
    from .log import failure

    failure(where, so)


def _set_workers(server: _Any) -> None:
    if server.cfg.config == f"python:{__name__}" and not _asked_for_workers(server.cfg):
        server.cfg.set("workers", _as_many_as_fit(server.log))
        server.num_workers = server.cfg.workers


def _chain(cfg: _Any) -> None:
    """Run LowMemory's hook and then the site's, for each hook that the site's config replaces.

    At `worker_exit` the site's hook runs first: LowMemory's hook may exit the process.
    """
    for name in _HOOKS:
        ours, theirs = globals()[name], cfg.settings[name].get()
        if theirs is not ours and not hasattr(theirs, _CHAINED):
            order = (theirs, ours) if name == "worker_exit" else (ours, theirs)
            cfg.set(name, (_two if ours.__code__.co_argcount == 2 else _one)(*order))


_CHAINED = "lowmem_wsgi_chained"


# Two functions, because Gunicorn counts a hook's arguments.
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
    """Return whether WEB_CONCURRENCY, GUNICORN_CMD_ARGS or the command line sets the workers.

    A value of WEB_CONCURRENCY that the platform sets by itself does not count.
    """
    from .workers.platforms import sets_this_itself

    if _os.environ.get("WEB_CONCURRENCY", "").strip() and not sets_this_itself(_os.environ):
        return True
    parser = cfg.parser()
    given = (cfg.get_cmd_args_from_env(), _sys.argv[1:])
    return any(parser.parse_known_args(words)[0].workers is not None for words in given)


def _as_many_as_fit(gunicorn_log: _Any) -> int:
    from .memory.reading import Memory
    from .settings import threshold_bytes
    from .workers.fitting import fitting
    from .workers.platforms import sets_this_itself

    usage = Memory(_settings.memory_limit).read()
    if usage.source == "process":  # no limit is enforced
        return workers
    loaded, platform = _loaded(), sets_this_itself(_os.environ)
    found = fitting(threshold_bytes(_settings.warn_at, usage.limit), loaded, _cores())
    if platform is not None and found < workers:
        gunicorn_log.info(
            "%s sets WEB_CONCURRENCY=%d by itself, but only %d fit: use --workers for more",
            *(platform, workers, found),
        )
    elif platform is not None:
        found = workers
    gunicorn_log.info(
        "%d worker%s: %d MB up to warn, %d MB loaded; set WEB_CONCURRENCY for another number",
        *(found, "s" * (found > 1), threshold_bytes(_settings.warn_at, usage.limit) // _MB),
        loaded // _MB,
    )
    return found


@_functools.cache
def _loaded() -> int:
    """Return the master's RSS in bytes, read once before the first fork: the RSS of a new worker.

    A later reading would include the master's own growth, such as from rereading the config.
    """
    from .system.procfs import OwnRss

    return OwnRss()()


@_functools.cache
def _fill_holes() -> None:
    """Fill the holes of the heap, once: what is taken before each fork would add up."""
    from .system.malloc import fill_holes, malloc_trim

    if _settings.trim:
        malloc_trim()
    fill_holes()


def _cores() -> float:
    """Return how many processors this container may use: often a fraction of one."""
    from .system.cgroup import processors

    return processors()


def _wrapped(app: _Any) -> _Any:
    from .middleware import LowMemory

    return app if _ours(app) else LowMemory(app)


def _ours(app: _Any) -> list[_Any]:
    """Return each LowMemory that already wraps the app, the outermost first."""
    from .guards.keys import layers
    from .middleware import LowMemory

    return [layer for layer in layers(app) if isinstance(layer, LowMemory)]


def _log_through(gunicorn_log: _Any) -> None:
    """Send LowMemory's log to Gunicorn's error log, unless the app has set up logging itself."""
    from logging import getLogger

    from .log import logger

    if not logger.hasHandlers():
        for handler in gunicorn_log.error_log.handlers:
            logger.addHandler(handler)
        logger.setLevel(getLogger("gunicorn.error").level)

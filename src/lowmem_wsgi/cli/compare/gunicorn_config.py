"""Gunicorn's config for the app bare, and for the app as the source document says.

Gunicorn reads this file by its path, so that neither of the two loads LowMemory. The bare app is
served with Gunicorn's own settings, one worker and three threads. With a variable set in the
environment, the document is followed to the letter; where the document leaves room, the reading
that costs less is taken: the threshold is set after the imports, which it would slow.

An app that its own code wraps in LowMemory is served without LowMemory.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time

TYPE_CHECKING = False  # not from typing, which the app may never load
if TYPE_CHECKING:
    from typing import Any

_WRITTEN = "_LOWMEM_COMPARE_AS_WRITTEN" in os.environ
_HEAVY = ("pandas", "numpy", "matplotlib")
_CLEAN_EVERY, _LOOK_EVERY = 10, 30  # seconds
_WARN, _CRITICAL = 400 << 20, 450 << 20  # bytes

worker_class = "gthread"
threads = 3
workers = 1
if _WRITTEN:
    worker_connections = 3
    max_requests = 3
    timeout = 10


def pre_fork(server: Any, worker: Any) -> None:
    if _WRITTEN:
        gc.collect()


def post_fork(server: Any, worker: Any) -> None:
    if _WRITTEN:
        gc.collect()


def post_worker_init(worker: Any) -> None:
    app = _without_lowmemory(worker.wsgi)
    if _WRITTEN:
        gc.set_threshold(25, 1, 1)
        sys.setrecursionlimit(200)
        threading.Thread(target=_clean_up, daemon=True).start()
        threading.Thread(target=_monitor, daemon=True).start()
        app = _collecting(app)
    worker.wsgi = app


def _without_lowmemory(app: Any) -> Any:
    """Return the app as it was before its own code wrapped it: whole, or its `wsgi_app` (Flask)."""
    kind = getattr(sys.modules.get("lowmem_wsgi.middleware"), "LowMemory", ())
    while isinstance(app, kind):
        app = app.app
    while isinstance(getattr(app, "wsgi_app", None), kind):
        app.wsgi_app = app.wsgi_app.app
    return app


def _collecting(app: Any) -> Any:
    """Return the app with three collections after each request, as Flask's after_request does."""

    def collecting(environ: Any, start_response: Any) -> Any:
        answer = app(environ, start_response)
        for _ in range(3):
            gc.collect()
        return answer

    return collecting


def _clean_up() -> None:
    while True:
        time.sleep(_CLEAN_EVERY)
        _remove_heavy()
        gc.collect()


def _monitor() -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    while True:
        time.sleep(_LOOK_EVERY)
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[1]) * page
        if used > _CRITICAL:
            _remove_heavy()
        if used > _WARN:
            for _ in range(3):
                gc.collect()


def _remove_heavy() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in _HEAVY]:
        sys.modules.pop(name, None)

"""In a worker: ask the pages, and measure what each takes and keeps."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from threading import Thread
from typing import Any

from ...settings import KB, MB
from ...system.malloc import OBJECT, find_in_use, malloc_trim
from ...system.procfs import OwnRss, own_uss, read_statm, status_bytes
from .figures import AT_ONCE
from .telling import Tell, one_line
from .traits import jinja_cache

# Requests to one path, at most, and seconds for all of them. The first WARM fill caches.
REQUESTS, SECONDS, WARM = 40, 3.0, 8
# The memory in use is read once every STEP requests. A slow page, too, is asked LEAST times, as
# long as all pages together take less than PATIENCE seconds: less would show no leak.
STEP, LEAST, PATIENCE = 8, 24, 20.0
# Bytes that a STEP may leave behind without being a leak: caches that fill once.
NOISE = 32 * KB
# Seconds for one request: a stream may never end.
ONE_REQUEST = 5.0
# Seconds for the requests that are made at once.
AT_ONCE_SECONDS = 2.0
# A request that takes more bytes than this is made twice, and never beside others.
LARGE = 32 * MB


def ask_all(app: Any, paths: list[str], threads: int, tell: Tell) -> None:
    tell({"at": "worker"})
    in_use = find_in_use(objects=_counts_objects()) or (lambda: OBJECT * sys.getallocatedblocks())
    began = time.monotonic()
    ends, late = began + SECONDS, began + PATIENCE
    worst, ended = 0, []
    for left, path in zip(range(len(paths), 0, -1), paths, strict=True):
        tell({"at": path})
        route = _ask_often(app, path, tell, in_use, (ends - time.monotonic()) / left, late)
        worst = max(worst, route["peak"])
        ended += [path] if route["status"] else []
        tell({"route": route})
    tell({"worker": _memory()})
    if threads > 1 and worst < LARGE:
        tell({"at": AT_ONCE})
        _ask_at_once(app, ended[:8], threads)
        tell({"worker": _memory()})


def _counts_objects() -> bool:
    """Return whether Python counts the objects that are made now.

    Where LowMemory has given the objects to the C library, Python counts only those that are freed:
    its figure falls with each request, and would hide a leak.
    """
    before = sys.getallocatedblocks()
    made = [object() for _ in range(1000)]
    return sys.getallocatedblocks() - before > len(made) / 2


def _memory() -> dict[str, int]:
    gc.collect()
    before = OwnRss()()
    malloc_trim()
    statm = read_statm()
    return {
        "own": own_uss(),
        "anonymous": statm.anonymous if statm else 0,
        "rss": OwnRss()(),
        "free": max(0, before - OwnRss()()),
    }


def _ask_often(
    app: Any, path: str, tell: Tell, in_use: Callable[[], int], seconds: float, late: float
) -> dict[str, Any]:
    """Ask for a path again and again. Return what it took, and what it kept.

    `seconds`: for more than LEAST requests. `late`: the end of time, for fewer.
    """
    ends = time.monotonic() + max(0.05, seconds)
    status, error, peak = 0, "", 0
    done = 0
    marks: list[int] = []
    while done < 2:  # the first request may load and compile what the app keeps
        _forget_peak()
        before = OwnRss()()
        status, error = _ask_for(ONE_REQUEST, app, path)
        peak = max(0, status_bytes("VmHWM:") - before)
        done += 1 if status else 2
    cache = jinja_cache(app)
    templates = 0
    most = REQUESTS if peak < LARGE else done
    while done < most and 0 < status < 500:
        if time.monotonic() > (late if done < LEAST else ends):
            break
        tell({"at": path})  # it is not hung
        _ask_for(ONE_REQUEST, app, path)
        done += 1
        if done >= WARM and (done - WARM) % STEP == 0:
            gc.collect()
            marks.append(in_use())
            templates = templates or len(cache or ())
    growth, steady = growth_of(marks)
    return {
        "path": path,
        "status": status,
        "error": error,
        "peak": peak,
        "requests": done,
        "growth": growth,
        "steady": steady,
        "templates": max(0, len(cache or ()) - templates) if templates else 0,
    }


def growth_of(marks: Sequence[int]) -> tuple[int, bool]:
    """Return what each request keeps, in bytes, and whether that goes on.

    `marks`: the memory in use, once every STEP requests. It goes on if most of the steps kept as
    much, and so did the last. A thread of the app may disturb one step.
    """
    steps = [after - before for before, after in pairwise(marks)]
    if not steps:
        return 0, False
    usual = median(steps)
    alike = sum(step > usual / 2 for step in steps)
    goes_on = len(steps) > 1 and alike >= len(steps) * 3 / 4 and steps[-1] > usual / 2
    return int(usual / STEP), goes_on and usual > NOISE


def _ask_at_once(app: Any, paths: list[str], threads: int) -> None:
    """Ask for all paths in as many threads as a worker has, so that their heaps grow.

    A page that does not end is left behind, after AT_ONCE_SECONDS for all.
    """

    def ask() -> None:
        for path in paths:
            with contextlib.suppress(BaseException):
                _ask(app, path)

    asking = [Thread(target=ask, daemon=True) for _ in range(threads)]
    ends = time.monotonic() + AT_ONCE_SECONDS
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(max(0.0, ends - time.monotonic()))


class _TooLong(BaseException):
    """A request took too long. No handler of the app's catches this."""


def _ask_for(seconds: float, app: Any, path: str) -> tuple[int, str]:
    """Do the same as `_ask`, for so many seconds. Then the status is 0. Main thread only."""

    def stop(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return _ask(app, path)
    except _TooLong:
        return 0, f"did not end within {seconds:g} s"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _ask(app: Any, path: str) -> tuple[int, str]:
    """Make one request by GET, as a client. Return the status, and what the app raised (500)."""
    from urllib.parse import unquote_to_bytes
    from wsgiref.util import setup_testing_defaults

    where, _, query = path.partition("?")
    where = unquote_to_bytes(where).decode("latin-1")  # as PEP 3333 has it
    environ: dict[str, Any] = {
        **{"PATH_INFO": where, "QUERY_STRING": query, "HTTP_HOST": _host(), "SERVER_NAME": _host()},
        **{"HTTPS": "on", "wsgi.url_scheme": "https", "SERVER_PORT": "443"},
        **{"REMOTE_ADDR": "127.0.0.1", "HTTP_USER_AGENT": "lowmem-wsgi doctor"},
        **{"HTTP_ACCEPT": "*/*", "wsgi.multithread": True, "wsgi.multiprocess": True},
    }
    setup_testing_defaults(environ)
    statuses: list[str] = ["500"]

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
        statuses.append(status)
        return lambda _: None

    try:
        body = app(environ, start_response)
        try:
            for _ in body:
                pass
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()
    except Exception as error:
        return 500, one_line(error)
    return int(statuses[-1][:3]), ""


def _host() -> str:
    """Return a host that the site answers: Django refuses others."""
    conf = sys.modules.get("django.conf")
    with contextlib.suppress(Exception):
        for host in conf.settings.ALLOWED_HOSTS if conf is not None else ():
            if host != "*":
                return f"www{host}" if host.startswith(".") else str(host)
    return "localhost"


def _forget_peak() -> None:
    """Set the peak of this process's RSS to what it is now (proc(5), clear_refs)."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")

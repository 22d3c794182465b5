"""A request that ran out of memory: noticed, also where the framework has made a 500 of it."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any

from .. import log
from ..http.body import BODY
from ..http.paths import ROUTE
from ..http.refusals import Refusal
from ..system.shortage import is_shortage
from .admission import RETRY_AFTER, busy

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# In the environ of a request that did; where it was another process's memory (see `elsewhere`),
# with why, and what governs it.
MARK = "lowmem.out_of_memory"
RECEIVING = "Listening to the framework's errors"


def ran_out(environ: WSGIEnvironment, error: BaseException | None) -> bool:
    """Whether `error`, or one that the framework has answered for the app, is of that kind; or
    reading the body was.

    Lets go of what filled the memory: the frames of the traceback hold it. To be asked before
    anything else is made.
    """
    if error is not None:
        _note(environ, error)
    return MARK in environ or (BODY in environ and environ[BODY].short)


def elsewhere(environ: WSGIEnvironment) -> Refusal | None:
    """503 where it was not this process's memory that ran out.

    The class of such an error has a `lowmem_setting`, what governs it; its message says why.
    """
    told = environ.get(MARK)
    return busy(*told) if isinstance(told, tuple) else None


def let_go(error: BaseException) -> None:
    traceback.clear_frames(error.__traceback__)
    error.__context__ = error.__cause__ = None


def refusal(why: str, setting: str) -> Refusal:
    """503: this request asked for more than there is. The others go on."""
    return busy(f"MemoryError in the app, {why}", setting)


def last_resort(start_response: StartResponse) -> list[bytes]:
    """503 where there is no memory to make any other answer."""
    start_response("503 Service Unavailable", _HEADERS)
    return _NOTHING


# Made beforehand.
_HEADERS = [
    ("Content-Length", "0"),
    ("Cache-Control", "no-store"),
    ("Retry-After", f"{RETRY_AFTER}"),
]
_NOTHING: list[bytes] = []


def watch() -> None:
    """Have the frameworks that are loaded tell of the errors that they answer with a 500.

    Flask and Django do so by a signal, sent before they log the error. Harmless when repeated. What
    receives the signal never raises: Django runs its receivers in the midst of its own handling.
    """
    if "flask" in sys.modules:
        from flask import got_request_exception

        got_request_exception.connect(_of_flask)  # RuntimeError in Flask < 2.3 without blinker
    if "django" in sys.modules and "django.core.signals" in sys.modules:
        from django.core import signals

        signals.got_request_exception.connect(_of_django, dispatch_uid=__name__)


def _of_flask(sender: Any = None, exception: Any = None, **extra: Any) -> None:
    try:
        from flask import has_request_context, request

        if exception is not None and has_request_context():
            _note(request.environ, exception)
            if request.url_rule is not None:  # the request is gone when the answer begins
                request.environ.setdefault(ROUTE, request.url_rule.rule)
    except Exception:
        log.failure(RECEIVING)


def _of_django(sender: Any = None, request: Any = None, **extra: Any) -> None:
    try:
        error = sys.exc_info()[1]
        environ = getattr(request, "environ", None)  # a request of ASGI has none
        if error is not None and environ is not None:
            _note(environ, error)
    except Exception:
        log.failure(RECEIVING)


def _note(environ: WSGIEnvironment, error: BaseException) -> None:
    setting = getattr(type(error), "lowmem_setting", None)  # runs no `__getattr__` of the app's
    if setting is not None:
        environ[MARK] = str(error), setting
    elif is_shortage(error):
        environ[MARK] = True
        let_go(error)

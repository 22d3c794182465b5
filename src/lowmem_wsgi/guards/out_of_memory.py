"""Detect that a request ran out of memory, also if the framework answered the error with a 500."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

from .. import log
from ..http.body import BODY
from ..http.paths import ROUTE
from ..http.refusals import Refusal
from ..system.shortage import is_shortage
from .admission import RETRY_AFTER, busy

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# Set in the environ of a request that ran out of memory. If another process ran out (see
# `elsewhere`), the value is a tuple: the reason, and the setting that governs the limit.
MARK = "lowmem.out_of_memory"
RECEIVING = "Listening to the framework's errors"


def ran_out(environ: WSGIEnvironment, error: BaseException | None) -> bool:
    """Return whether the request ran out of memory.

    True if `error` is a memory shortage, if the framework has answered a shortage for the app, or
    if reading the body hit a shortage. Releases the objects that the traceback's frames hold. Call
    this before you allocate anything else.
    """
    if error is not None:
        _note(environ, error)
    return MARK in environ or (BODY in environ and environ[BODY].short)


def elsewhere(environ: WSGIEnvironment) -> Refusal | None:
    """Return a 503 if another process than this one ran out of memory, else None.

    The class of such an error has `lowmem_setting`, the setting that governs the limit. The error's
    message gives the reason.
    """
    refusal = environ.get(MARK)
    return busy(*refusal) if isinstance(refusal, tuple) else None


def let_go(error: BaseException) -> None:
    traceback.clear_frames(error.__traceback__)
    error.__context__ = error.__cause__ = None


def refusal(why: str, setting: str) -> Refusal:
    """Return a 503 for a request that asked for more memory than there is. The others go on."""
    return busy(f"MemoryError in the app, {why}", setting)


def last_resort(start_response: StartResponse) -> list[bytes]:
    """Answer 503 when no memory is left to make any other answer."""
    start_response("503 Service Unavailable", _HEADERS)
    return _NOTHING


# Made at import, before memory is short.
_HEADERS = [
    ("Content-Length", "0"),
    ("Cache-Control", "no-store"),
    ("Retry-After", f"{RETRY_AFTER}"),
]
_NOTHING: list[bytes] = []


def watch(app: object = None) -> None:
    """Make the loaded frameworks report the errors that they answer with a 500. Idempotent.

    Flask and Django send a signal before they log the error. LowMemory's receivers raise nothing,
    but for a MemoryError in Flask: Django calls its receivers in the middle of its own error
    handling. Falcon has no signal: the wrapped `app`, if it is Falcon's, lets a MemoryError out,
    unless the app has a handler of MemoryError itself. A handler of Exception no longer gets a
    MemoryError.
    """
    try:
        if "flask" in sys.modules:
            from flask import got_request_exception

            got_request_exception.connect(_of_flask)  # RuntimeError in Flask < 2.3 without blinker
        if "django" in sys.modules and "django.core.signals" in sys.modules:
            from django.core import signals

            signals.got_request_exception.connect(_of_django, dispatch_uid=__name__)
        if "falcon" in sys.modules:
            kind = getattr(sys.modules["falcon"], "App", ())  # since Falcon 3
            if isinstance(app, kind) and MemoryError not in app._error_handlers:
                app.add_error_handler(MemoryError, _of_falcon)
    except Exception:
        log.failure(RECEIVING)


def _of_falcon(request: Any, response: Any, error: MemoryError, params: Any) -> NoReturn:
    raise error


def _of_flask(sender: Any = None, exception: Any = None, **extra: Any) -> None:
    try:
        from flask import has_request_context, request

        if exception is not None and has_request_context():
            _note(request.environ, exception)
            if request.url_rule is not None:  # Flask drops the request before the answer begins
                request.environ.setdefault(ROUTE, request.url_rule.rule)
    except MemoryError:
        raise  # no memory to note this one: Flask lets it out, and LowMemory answers 503
    except Exception:
        log.failure(RECEIVING)


def _of_django(sender: Any = None, request: Any = None, **extra: Any) -> None:
    try:
        error = sys.exc_info()[1]
        environ = getattr(request, "environ", None)  # an ASGI request has no environ
        if error is not None and environ is not None:
            _note(environ, error)
    except Exception:
        log.failure(RECEIVING)


def _note(environ: WSGIEnvironment, error: BaseException) -> None:
    setting = getattr(type(error), "lowmem_setting", None)  # on the type: runs no app's __getattr__
    if setting is not None:
        environ[MARK] = str(error), setting
    elif is_shortage(error):
        environ[MARK] = True
        let_go(error)

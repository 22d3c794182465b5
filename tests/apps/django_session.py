"""A Django site in one file, its sessions in files that all its workers share.

SESSION_DIR: where they are kept. `bare` knows nothing of us.
"""

from __future__ import annotations

import os
import threading

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from lowmem_wsgi import LowMemory

SECRET = "the Django site's own secret"


def login(request: HttpRequest) -> JsonResponse:
    request.session["user"] = request.META["QUERY_STRING"]
    return who(request)


def who(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"user": request.session.get("user"), "pid": os.getpid()})


def logout(request: HttpRequest) -> JsonResponse:
    request.session.flush()
    return who(request)


def authenticate(request: HttpRequest) -> JsonResponse:
    """Log in as django.contrib.auth does: under a new session key."""
    request.session.cycle_key()
    return login(request)


def cart(request: HttpRequest) -> JsonResponse:
    """What is in the cart, and one more thing where the request names one."""
    kept = request.session.get("cart", [])
    if thing := request.META["QUERY_STRING"]:
        request.session["cart"] = kept = [*kept, thing]
    return JsonResponse({"cart": kept})


def until(request: HttpRequest) -> JsonResponse:
    """End the session so many seconds from now; 0: when the browser is closed."""
    request.session.set_expiry(int(request.META["QUERY_STRING"]))
    return who(request)


# A slow view waits until another request lets it through. A test in the same process puts what
# shall happen meanwhile in `gate`'s place.
_began, _through = threading.Event(), threading.Event()


def gate() -> None:
    _began.set()
    assert _through.wait(30), "nobody opened the gate"
    _began.clear()
    _through.clear()


def slow(request: HttpRequest) -> JsonResponse:
    """Read the session, and take a while."""
    read = who(request)
    gate()
    return read


def waiting(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"waiting": _began.is_set()})


def open_gate(request: HttpRequest) -> JsonResponse:
    _through.set()
    return JsonResponse({})


urlpatterns = [
    *(path("login", login), path("who", who), path("logout", logout)),
    *(path("authenticate", authenticate), path("cart", cart), path("until", until)),
    *(path("slow", slow), path("waiting", waiting), path("open", open_gate)),
]

settings.configure(
    ALLOWED_HOSTS=["*"],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=SECRET,
    SESSION_ENGINE="django.contrib.sessions.backends.file",
    SESSION_FILE_PATH=os.environ["SESSION_DIR"],
)
bare = get_wsgi_application()
app = LowMemory(bare)

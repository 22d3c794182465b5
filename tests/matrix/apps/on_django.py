"""The routes of the matrix in Django, its sessions in files (SESSION_DIR)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import acts
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.urls import path

from lowmem_wsgi import LowMemory


def get(act: Callable[[str], dict[str, Any]]) -> Callable[[HttpRequest], JsonResponse]:
    return lambda request: JsonResponse(act(request.META["QUERY_STRING"]))


def read(request: HttpRequest) -> JsonResponse:
    return JsonResponse(acts.body(request.body))


def form(request: HttpRequest) -> JsonResponse:
    file = request.FILES["f"]
    return JsonResponse(acts.form(file.name, file.read()))


def stream(request: HttpRequest) -> HttpResponseBase:
    return StreamingHttpResponse(acts.Streamed(request.META["QUERY_STRING"]))


def login(request: HttpRequest) -> JsonResponse:
    request.session["user"] = request.META["QUERY_STRING"]
    return who(request)


def who(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"user": request.session.get("user")})


def logout(request: HttpRequest) -> JsonResponse:
    request.session.flush()
    return who(request)


urlpatterns = [
    *(path(name[1:], get(act)) for name, act in acts.GETS.items()),
    *(path("read", read), path("form", form), path("stream", stream)),
    *(path("login", login), path("who", who), path("logout", logout)),
]

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATA_UPLOAD_MAX_MEMORY_SIZE=None,
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=acts.SECRET,
    SESSION_ENGINE="django.contrib.sessions.backends.file",
    SESSION_FILE_PATH=os.environ["SESSION_DIR"],
)
app = acts.validated(LowMemory(get_wsgi_application()))

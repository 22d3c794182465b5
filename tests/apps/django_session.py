"""A Django site in one file, its sessions in files that all its workers share.

SESSION_DIR: where they are kept. `bare` knows nothing of us.
"""

from __future__ import annotations

import os

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


urlpatterns = [path("login", login), path("who", who), path("logout", logout)]

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

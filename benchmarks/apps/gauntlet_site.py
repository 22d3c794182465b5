"""The site of the gauntlet: a page of ten clients, a desk with sessions and uploads, and the edge.

Uploads over 512 KB are refused, and a session ends some seconds after its last use. With
GAUNTLET_RULES=flask these two rules are Flask's own, as its documentation has them; else they are
left to LowMemory. GAUNTLET_LIFETIME: seconds.
"""

from __future__ import annotations

import hashlib
import os
import time

from clients import app as clients
from edge import app as edge
from flask import Flask, request, session
from werkzeug.middleware.dispatcher import DispatcherMiddleware

desk = Flask("desk")
desk.secret_key = "not a secret: a benchmark's"
BY_FLASK = os.environ.get("GAUNTLET_RULES") == "flask"
if BY_FLASK:
    desk.config["MAX_CONTENT_LENGTH"] = 512 * 1024
    desk.config["PERMANENT_SESSION_LIFETIME"] = int(os.environ["GAUNTLET_LIFETIME"])


@desk.post("/upload")
def upload() -> str:
    body = request.get_data()
    return f"{len(body)} {hashlib.sha256(body).hexdigest()}"


@desk.get("/login/<name>")
def login(name: str) -> str:
    session.permanent = BY_FLASK
    session["name"] = name
    return name


@desk.get("/who")
def who() -> str:
    """Who is logged in, after so many seconds."""
    name = str(session.get("name", "nobody"))
    time.sleep(request.args.get("seconds", 0.0, float))
    return name


@desk.get("/logout")
def logout() -> str:
    session.clear()
    return who()


@desk.get("/report")
def report() -> str:
    """So many rows, made and dropped."""
    count = request.args.get("rows", 250_000, int)
    return str(len([{"id": n, "name": f"client {n}", "city": "Kiel"} for n in range(count)]))


app = DispatcherMiddleware(clients, {"/edge": edge, "/desk": desk})

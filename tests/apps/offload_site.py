"""A site that offloads. `app` is a Flask app, wrapped."""

from __future__ import annotations

import os
import sys

from flask import Flask, request

import apps.heavy_tasks as tasks
from lowmem_wsgi import LowMemory, offload

flask = Flask(__name__)
impatient = offload(tasks.hold, memory="150MB", wait=0, at_once=8)


@flask.get("/")
def home() -> str:
    return str(os.getpid())


@flask.get("/double/<int:number>")
def double(number: int) -> str:
    return str(tasks.double(number))


@flask.get("/hold/<int:megabytes>/<until>")
def hold(megabytes: int, until: str) -> str:
    function = impatient if "impatient" in request.args else tasks.hold
    until = os.path.join(os.environ["NOTES"], until)
    return str(function(megabytes * tasks.MB, until, until + ".told"))


@flask.get("/die")
def die() -> str:
    tasks.leave_with(7)
    return "never"


@flask.get("/endless")
def endless() -> str:
    tasks.endless()
    return "never"


@flask.get("/stream/<int:count>")
def stream(count: int) -> str:
    return str(sum(tasks.numbers.stream(count)))


@flask.post("/upload")
def upload() -> str:
    return str(tasks.read_file(request.files["file"])[1])


@flask.get("/loaded")
def loaded() -> str:
    return " ".join(sorted(sys.modules))


app = LowMemory(flask, max_upload="8MB")

"""A small Bottle app with a session, for wrap_size.py. It brings no werkzeug of its own."""

from __future__ import annotations

from bottle import Bottle, request, response

SECRET = "not a secret: a benchmark's"


def home() -> str:
    return "home"


def visit() -> str:
    visits = int(request.get_cookie("session", default=0, secret=SECRET)) + 1
    response.set_cookie("session", visits, secret=SECRET, path="/")
    return str(visits)


def style() -> str:
    response.content_type = "text/css"
    return "body { margin: 0 }"


app = Bottle()
app.get("/", callback=home)
app.get("/visit", callback=visit)
app.get("/static/style.css", callback=style)

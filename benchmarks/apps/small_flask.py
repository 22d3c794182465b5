"""A small Flask app with a session, for wrap_size.py."""

from __future__ import annotations

from flask import Flask, Response, session

app = Flask(__name__)
app.secret_key = "not a secret: a benchmark's"


@app.get("/")
def home() -> str:
    return "home"


@app.get("/visit")
def visit() -> str:
    session["visits"] = session.get("visits", 0) + 1
    return str(session["visits"])


@app.get("/static/style.css")
def style() -> Response:
    return Response("body { margin: 0 }", mimetype="text/css")

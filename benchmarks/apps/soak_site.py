"""The example app with a greedy neighbour, for soak.py, which puts the former on PYTHONPATH."""

from __future__ import annotations

from greedy import app as greedy
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from app import app as example

app = DispatcherMiddleware(example.wsgi_app, {"/greedy": greedy})

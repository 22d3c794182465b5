"""The Gunicorn settings of the source document; the worker class and threads of the others."""

from __future__ import annotations

import gc
from typing import Any

worker_class = "gthread"
threads = 3
workers = 1
worker_connections = 3
max_requests = 3
timeout = 10


def pre_fork(server: Any, worker: Any) -> None:
    gc.collect()


def post_fork(server: Any, worker: Any) -> None:
    gc.collect()

"""A site with a heap and routes of any size, for the gauntlet's cost: COST_OBJECTS, COST_ROUTES.

COST_LETTER=1 adds what the source document does after each request.
"""

from __future__ import annotations

import gc
import os

from flask import Flask, Response

app = Flask(__name__)
# Lists, which the garbage collector tracks.
kept: list[list[object]] = [[] for _ in range(int(os.environ.get("COST_OBJECTS", "0")))]


def page(number: int = 0) -> str:
    return f"page {number}"


app.add_url_rule("/", "first", page)
for place in range(int(os.environ.get("COST_ROUTES", "10"))):
    app.add_url_rule(f"/pages/{place}/<int:number>", f"page-{place}", page)

if os.environ.get("COST_LETTER"):
    gc.set_threshold(25, 1, 1)

    @app.after_request
    def collect(response: Response) -> Response:
        for _ in range(3):
            gc.collect()
        return response

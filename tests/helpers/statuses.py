"""Statuses as the server gives them, for the page: at rest, short of memory, at the end of it."""

from __future__ import annotations

import math
import time
from typing import Any

from .fakes import MB

LEAK = "GET /export/<format>"


def at_rest(**changes: Any) -> dict[str, Any]:
    """One worker and its master, an hour old, 61 MB of 512."""
    now = time.time()
    points = [[now - 10 * n, (61 + 2 * math.sin(n / 9)) * MB] for n in range(359, 0, -1)]
    return {
        "status": "ok",
        "memory": {
            "used_bytes": 61 * MB,
            "limit_bytes": 512 * MB,
            "percent": 11.9,
            "source": "cgroup v2",
            "rss_bytes": 41 * MB,
            "uss_bytes": 22 * MB,
            "peak_bytes": 49 * MB,
            "processes_bytes": 58 * MB,
        },
        "thresholds": {"warn_bytes": 400 * MB, "critical_bytes": 450 * MB},
        "gc": {
            "passes": 3,
            "runs": 4210,
            "collected": 120,
            "frozen": 48211,
            "last_seconds": 0.00006,
            "total_seconds": 0.26,
            "freed_bytes": 39 * MB,
        },
        "cleanups": {"count": 0, "last_at": None, "last_freed_bytes": None, "steps": []},
        "requests": {
            "total": 4210,
            "in_flight": 0,
            "uploads_rejected": 1,
            "sessions_expired": 12,
            "shed": 0,
            "out_of_memory": 0,
        },
        "workers": [
            process(7, "master", 31, 9, 20, age=3720, requests=None),
            process(12, "worker", 41, 22, 38, age=3700, requests=4210, this=True),
        ],
        "routes": [
            route("POST /import", 3, 3.1, 22.4, 0),
            route("GET /clients/<n>", 3800, 0.4, 0.3, 0.11),
            route("GET /", 407, -0.2, 0.1, 0.05),
        ],
        "recycles": {"count": 0, "last_at": None},
        "deaths": {"count": 0, "OOM kill": 0, "timeout": 0, "crash": 0},
        "last_death": None,
        "diagnosis": "Nothing stands out: 61 MB of 512 MB, worst request +22 MB at POST /import.",
        "findings": [],
        "irreplaceable": None,
        "version": "0.1.0",
        "history": {"interval_seconds": 10, "points": points, "events": []},
        **changes,
    }


def short_of_memory() -> dict[str, Any]:
    """A leak has brought it over the first threshold; cleanups do not help."""
    now, status = time.time(), at_rest()
    points = [[now - 10 * n, (412 - 0.95 * n + 3 * math.sin(n)) * MB] for n in range(359, 0, -1)]
    status |= {
        "status": "warn",
        "diagnosis": f"{LEAK} grew 291 MB over 1,940 requests and it is still referenced: a leak"
        " there.",
        "routes": [route(LEAK, 1940, 291, 1.1, 0.31), *status["routes"]],
        "cleanups": cleanup(now - 41, 0.3),
    }
    status["memory"] |= {"used_bytes": 412 * MB, "percent": 80.5, "processes_bytes": 405 * MB}
    status["workers"][1] |= {"rss_bytes": 389 * MB, "uss_bytes": 370 * MB, "pss_bytes": 385 * MB}
    status["history"] |= {
        "points": points,
        "events": [event(now - 41 - 30 * n, "cleanup", 0.3, "warn") for n in (2, 1, 0)],
    }
    return status


def at_the_end() -> dict[str, Any]:
    """Eight workers, forty routes, a death, recycling, close to the limit."""
    now, status = time.time(), at_rest()
    points = []
    for n in range(359, 0, -1):
        if 200 < n < 222:
            continue  # nobody was there to read
        used = 250 + (230 - (n % 120) * 1.9) + 6 * math.sin(n)
        points.append([now - 10 * n, used * MB])
    in_flight = [
        {"route": LEAK, "seconds": 4.21, "grown_bytes": 38 * MB},
        {"route": "POST /import", "seconds": 0.4, "grown_bytes": 300 * 1024},
    ]
    workers = [process(7, "master", 31, 4, 12, age=93000, requests=None)]
    workers += [
        process(10010 + n, "worker", 71 + n, 49 + n, 55 + n, age=800 * (n + 1), requests=903 * n)
        for n in range(8)
    ]
    workers[3] |= {"in_flight": in_flight, "this": True}
    workers[5] |= {"state": "retiring"}
    others = [
        route(f"GET /reports/<n>/section-{n}", 1000 - 9 * n, 9 / n - 0.8, 4 / n, n / 40)
        for n in range(1, 39)
    ]
    status |= {
        "status": "critical",
        "diagnosis": "8 workers × 58 MB do not fit in 512 MB: set WEB_CONCURRENCY=4."
        f" {LEAK} grew 180 MB over 40 requests and it is still referenced: a leak there.",
        "findings": [
            {
                "says": "8 workers × 58 MB do not fit in 512 MB: set WEB_CONCURRENCY=4.",
                "remedy": "doctor.md#too-many-workers",
            },
            {
                "says": f"{LEAK} grew 180 MB over 40 requests and it is still referenced: a leak"
                " there.",
                "remedy": "trace.md#when-a-route-grows",
            },
        ],
        "workers": workers,
        "routes": [route(LEAK, 40, 180, 31.5, 0.85), *others, route("other", 88, -1, 0.5, 0)],
        "cleanups": cleanup(now - 12, 4.2),
        "recycles": {"count": 3, "last_at": now - 1240},
        "deaths": {"count": 2, "OOM kill": 1, "timeout": 1, "crash": 0},
        "last_death": {
            "pid": 10003,
            "cause": "OOM kill",
            "at": now - 1200,
            "age_seconds": 1500,
            "requests": 212,
            "rss_bytes": 303.8 * MB,
            "used_before_bytes": 242.5 * MB,
            "used_bytes": 509 * MB,
            "seconds": 0.3,
            "in_flight": [{"route": LEAK, "seconds": 0.4, "grown_bytes": 266 * MB}],
        },
        "heavy": [
            {"module": "pandas", "loaded_at": now - 900, "route": LEAK, "cost_bytes": 38 * MB},
            {"module": "numpy", "loaded_at": None, "route": None, "cost_bytes": 10 * MB},
        ],
    }
    status["memory"] |= {"used_bytes": 481 * MB, "percent": 93.9, "processes_bytes": 476 * MB}
    status["requests"] |= {"shed": 31, "out_of_memory": 4, "total": 25284, "in_flight": 2}
    status["history"] |= {
        "points": points,
        "events": [
            event(now - 2440, "cleanup", 101, "warn"),
            event(now - 2430, "recycle", None, "grown"),
            event(now - 1250, "cleanup", 0, "critical"),
            event(now - 1240, "recycle", None, "grown"),
            event(now - 1200, "death", None, "OOM kill"),
            event(now - 300, "cleanup", 12, "asked"),
            event(now - 12, "cleanup", 4.2, "critical"),
        ],
    }
    return status


def brief() -> dict[str, Any]:
    """All that is told without a token."""
    memory = {"used_bytes": 61 * MB, "limit_bytes": 512 * MB, "percent": 11.9}
    return {"status": "ok", "memory": memory}


def just_started() -> dict[str, Any]:
    """Nothing has been measured, and this system tells little."""
    status = at_rest(routes=[], diagnosis=None)
    status["irreplaceable"] = "This server cannot replace a worker: restart it."
    status["memory"] |= {"source": "process", "uss_bytes": None, "processes_bytes": None}
    status["workers"] = [process(12, "worker", 41, None, None, age=2, requests=0, this=True)]
    status["requests"] |= {"total": 0}
    status["history"] |= {"points": []}
    return status


def asked_for() -> dict[str, Any]:
    """The answer to a forced cleanup."""
    steps = [
        {"step": "trim", "freed_bytes": 31 * MB, "seconds": 0.0041},
        {"step": "caches", "freed_bytes": 0, "seconds": 0.0003},
        {"step": "callback memory.drop_cache", "freed_bytes": 8 * MB, "seconds": 0.012},
        {"step": "collect", "freed_bytes": -40960, "seconds": 0.11, "note": "1,204 objects"},
    ]
    after = 481 * MB - sum(int(step["freed_bytes"]) for step in steps)  # type: ignore[call-overload]
    figures = {"before_bytes": 481 * MB, "after_bytes": after, "freed_bytes": 481 * MB - after}
    return {"at": time.time(), "level": "critical", **figures, "steps": steps}


def traced(**changes: Any) -> dict[str, Any]:
    """A trace that has ended."""
    flask = "/srv/.venv/lib/python3.12/site-packages/flask/app.py"
    line = {
        "file": "/srv/shop/reports.py",
        "line": 41,
        "code": "CACHE[number] = render(rows)",
        "grown_bytes": 5 * MB,
        "blocks": 40,
        "bytes_per_request": MB // 2,
        "windows": 10,
        "types": [{"type": "str", "objects": 2}],
        "stack": [
            {"file": "/srv/shop/reports.py", "line": 41, "code": ""},
            {"file": flask, "line": 902, "code": ""},
            {"file": flask, "line": 917, "code": ""},
        ],
    }
    small = {**line, "line": 88, "code": "seen.append(number)", "bytes_per_request": 96}
    return {
        **{"trace": 1, "state": "done", "why": "All the requests were traced.", "pid": 10003},
        **{"route": LEAK, "requests": 20, "seconds": 60.0, "traced": 20, "came": 160},
        **{"windows": 10, "measured": 10, "paired": True},
        "lines": [line, {**small, "grown_bytes": 960, "windows": 6}],
        "cost": {
            "seconds": 9.2,
            "on_seconds": 0.4,
            "busy_seconds": 0.3,
            "request_seconds": 0.012,
            "untraced_request_seconds": 0.0014,
            "most_bytes": 80_000,
            "cut": 0,
        },
        **changes,
    }


def cleanup(at: float, freed: float) -> dict[str, Any]:
    steps = [
        {"step": "trim", "freed_bytes": int(freed * MB), "seconds": 0.004},
        {"step": "caches", "freed_bytes": 0, "seconds": 0.0002},
        {"step": "collect", "freed_bytes": 0, "seconds": 0.09},
    ]
    return {"count": 3, "last_at": at, "last_freed_bytes": int(freed * MB), "steps": steps}


def process(
    pid: int,
    role: str,
    rss: float,
    uss: float | None,
    pss: float | None,
    *,
    age: float,
    requests: int | None,
    this: bool = False,
) -> dict[str, Any]:
    return {
        "pid": pid,
        "role": role,
        "state": "ready",
        "rss_bytes": rss * MB,
        "uss_bytes": None if uss is None else uss * MB,
        "pss_bytes": None if pss is None else pss * MB,
        "age_seconds": age,
        "requests": requests,
        "in_flight": [],
        "this": this,
    }


def route(name: str, requests: int, grown: float, worst: float, shared: float) -> dict[str, Any]:
    return {
        "route": name,
        "requests": requests,
        "grown_bytes": int(grown * MB),
        "worst_bytes": int(worst * MB),
        "shared": shared,
    }


def event(at: float, kind: str, freed: float | None, what: str) -> dict[str, Any]:
    return {
        "at": at,
        "kind": kind,
        "freed_bytes": None if freed is None else int(freed * MB),
        "what": what,
    }

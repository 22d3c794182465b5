"""The status and the forced cleanup: who may see what, and what it says."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.admin import CLEANUP, STATUS, TOKEN, basic, bearer, get_json, ok, wsgi_header
from helpers.wsgi import Response, call, make_environ, post
from lowmem_wsgi import LowMemory, __version__


def test_without_a_token_the_status_gives_level_and_memory_alone() -> None:
    answer = get_json(LowMemory(ok))
    assert set(answer) == {"status", "memory"}
    assert set(answer["memory"]) == {"used_bytes", "limit_bytes", "percent"}


def test_without_a_token_force_cleanup_is_403_and_names_the_variable() -> None:
    for method in ("GET", "POST"):
        response = call(LowMemory(ok), make_environ(CLEANUP, method))
        assert response.code == 403
        assert b"LOWMEM_ADMIN_TOKEN" in response.body


@pytest.mark.parametrize("headers", [bearer(TOKEN), basic("", TOKEN), basic("any", TOKEN)])
def test_with_the_token_all_is_told(headers: dict[str, str]) -> None:
    wrapped = LowMemory(ok, admin_token=TOKEN, memory_limit="512MB")
    call(wrapped, make_environ())
    answer = get_json(wrapped, **headers)
    assert {key: set(value) for key, value in answer.items() if isinstance(value, dict)} == {
        "memory": {
            *("used_bytes", "limit_bytes", "percent", "source", "about"),
            *("swap_bytes", "swap_limit_bytes"),
            *("rss_bytes", "uss_bytes", "peak_bytes", "processes_bytes", "outside"),
        },
        "thresholds": {"warn_bytes", "critical_bytes"},
        "gc": {
            *("passes", "runs", "collected", "frozen"),
            *("last_seconds", "total_seconds", "freed_bytes", "gave_back"),
        },
        "cleanups": {"count", "last_at", "last_freed_bytes", "steps", "freed_bytes"},
        "requests": {
            *("total", "in_flight", "uploads_rejected", "sessions_expired", "shed"),
            "out_of_memory",
        },
        "recycles": {"count"},
        "deaths": {"OOM kill", "timeout", "crash"},
        "allocator": {"PYTHONMALLOC", "MALLOC_ARENA_MAX"},
    }
    assert set(answer) >= {"now", "closed", "ceiling", "replaceable"}
    assert set(answer) >= {"status", "workers", "routes", "diagnosis", "version"}
    assert answer["version"] == __version__
    assert answer["requests"]["total"] == 1
    assert answer["gc"]["runs"] == 1
    assert answer["memory"]["limit_bytes"] == 512 * 1024**2
    assert answer["thresholds"]["warn_bytes"] == 400 * 1024**2
    (worker,) = answer["workers"]
    assert set(worker) == {
        *("pid", "role", "state", "this", "age_seconds", "requests", "in_flight"),
        *("born_bytes", "held_bytes", "rss_bytes", "uss_bytes", "pss_bytes"),
    }
    assert 0 < worker["uss_bytes"] <= worker["rss_bytes"]


def test_the_level_follows_the_thresholds() -> None:
    def level(limit: str) -> str:
        wrapped = LowMemory(ok, memory_limit=limit)
        wrapped.runtime.monitor.running = True  # and so not begun by the request
        for _ in range(5):
            wrapped.runtime.monitor.tick()
        try:
            return str(get_json(wrapped)["status"])
        finally:
            wrapped.close()

    assert [level("100GB"), level("1MB")] == ["ok", "critical"]


WRONG = [
    {},
    {"HTTP_AUTHORIZATION": ""},
    {"HTTP_AUTHORIZATION": "Bearer"},
    {"HTTP_AUTHORIZATION": "Bearer "},
    {"HTTP_AUTHORIZATION": "Basic"},
    {"HTTP_AUTHORIZATION": "Basic !!!"},
    {"HTTP_AUTHORIZATION": "Basic " + base64.b64encode(b"\xff\xfe").decode()},
    {"HTTP_AUTHORIZATION": "Digest username=x"},
    {"HTTP_AUTHORIZATION": wsgi_header(TOKEN)},
    bearer("wrong"),
    bearer(TOKEN[:-1]),
    bearer(TOKEN + "x"),
    bearer("x" * 100_000),
    bearer("日本語"),
    basic(TOKEN, ""),
    basic("", ""),
]


@pytest.mark.parametrize("path", [STATUS, CLEANUP])
def test_every_wrong_token_is_401_with_the_same_answer(path: str) -> None:
    wrapped = LowMemory(ok, admin_token=TOKEN)
    answers = [call(wrapped, make_environ(path, **wrong)) for wrong in WRONG]
    assert {answer.code for answer in answers} == {401}
    assert len({answer.body for answer in answers}) == 1
    assert len({str(answer.headers) for answer in answers}) == 1
    assert (answers[0].header("WWW-Authenticate") or "").startswith("Basic ")
    assert wrapped.runtime.cleanups.count == 0


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=80))
def test_any_authorization_header_is_read_or_refused(header: str) -> None:
    wrapped = LowMemory(ok, admin_token=TOKEN)
    assert call(wrapped, make_environ(STATUS, HTTP_AUTHORIZATION=header)).code == 401


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=80))
def test_a_token_in_the_query_string_is_not_looked_at(query: str) -> None:
    wrapped = LowMemory(ok, admin_token=TOKEN)
    for text in (query, f"token={TOKEN}", f"admin_token={TOKEN}"):
        assert call(wrapped, make_environ(STATUS, QUERY_STRING=text)).code == 401


def test_force_cleanup_answers_bytes_before_after_and_by_step() -> None:
    wrapped = LowMemory(ok, admin_token=TOKEN)
    for method in ("GET", "POST"):
        response = call(wrapped, make_environ(CLEANUP, method, **bearer(TOKEN)))
        answer = json.loads(response.body)
        assert answer["before_bytes"] - answer["after_bytes"] == answer["freed_bytes"]
        assert sum(step["freed_bytes"] for step in answer["steps"]) == answer["freed_bytes"]
        assert [step["step"] for step in answer["steps"]] == ["trim", "caches", "collect"]
        assert abs(answer["at"] - time.time()) < 60
    assert wrapped.runtime.cleanups.count == 2
    assert get_json(wrapped, **bearer(TOKEN))["cleanups"]["count"] == 2


@pytest.mark.parametrize(
    ("site", "code"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200)]
)
def test_another_sites_page_cannot_force_a_cleanup(site: str, code: int) -> None:
    wrapped = LowMemory(ok, admin_token=TOKEN)
    environ = make_environ(CLEANUP, "POST", **basic("", TOKEN), HTTP_SEC_FETCH_SITE=site)
    assert call(wrapped, environ).code == code
    assert wrapped.runtime.cleanups.count == (code == 200)


def test_the_cleanup_method_runs_the_same_ladder() -> None:
    wrapped = LowMemory(ok)
    assert wrapped.cleanup()["steps"]
    assert wrapped.status()["cleanups"]["count"] == 1


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        (STATUS, "POST", "GET, HEAD"),
        (STATUS, "DELETE", "GET, HEAD"),
        (CLEANUP, "PUT", "GET, HEAD, POST"),
    ],
)
def test_other_methods_are_405(path: str, method: str, allowed: str) -> None:
    response = call(LowMemory(ok), make_environ(path, method))
    assert (response.code, response.header("Allow")) == (405, allowed)


def test_head_answers_without_a_body_and_cleans_nothing() -> None:
    wrapped = LowMemory(ok, admin_token=TOKEN)
    for path in (STATUS, CLEANUP):
        response = call(wrapped, make_environ(path, "HEAD", **bearer(TOKEN)), strict=True)
        assert (response.code, response.body) == (200, b"")
    assert wrapped.runtime.cleanups.count == 0


def test_an_unknown_format_is_refused_with_those_that_are_known() -> None:
    response = call(LowMemory(ok), make_environ(STATUS, QUERY_STRING="format=yaml"))
    assert response.code == 400
    assert b"json" in response.body


def test_the_routes_go_where_the_settings_put_them() -> None:
    wrapped = LowMemory(ok, status_path="/über", cleanup_path="/sauber")
    assert set(get_json(wrapped, wsgi_header("/über"))) == {"status", "memory"}
    assert call(wrapped, make_environ("/sauber")).code == 403
    assert call(wrapped, make_environ(STATUS)).body == b"ok"


def test_a_body_sent_to_a_route_does_not_matter() -> None:
    wrapped = LowMemory(ok, admin_token=TOKEN)

    def sent(**extra: Any) -> Response:
        return call(wrapped, post(CLEANUP, b"x" * 1000, **extra))

    assert sent(**bearer(TOKEN)).code == 200
    assert sent().code == 401


def test_apps_find_level_and_limits_in_the_environ_and_cannot_change_them() -> None:
    seen: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert environ["lowmem.level"] == "ok"
        seen.append(environ["lowmem.limits"])
        start_response("200 OK", [])
        return []

    call(LowMemory(app, home_rows=7), make_environ())
    assert dict(seen[0]) == {
        "max_upload": 512 * 1024,
        "session_lifetime": 600.0,
        "home_rows": 7,
        "max_rows": 10,
        "batch_size": 5,
        "cache_timeout": 15.0,
        "pool_size": 1,
    }
    with pytest.raises(TypeError):
        seen[0]["home_rows"] = 9

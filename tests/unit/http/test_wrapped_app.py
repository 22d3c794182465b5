"""LowMemory taken for the app that it wraps: the error says what to write instead."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bottle
import pytest
from flask import Flask

from helpers.servers import clean_environ
from helpers.wsgi import call, make_environ
from lowmem_wsgi import LowMemory


def plain(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"ok"]


@pytest.fixture
def wrap() -> Iterator[Any]:
    made = []

    def wrapped(app: Any) -> Any:
        made.append(LowMemory(app))
        return made[-1]

    yield wrapped
    for one in made:
        one.close()


@pytest.mark.parametrize("name", ["run", "route", "config", "test_client", "cli"])
def test_what_a_flask_app_has_is_said_to_be_had_by_wrapping_what_is_inside(
    wrap: Any, name: str
) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(wrap(Flask("shop")), name)
    assert f"no attribute '{name}'" in str(caught.value)
    assert "app.wsgi_app = LowMemory(app.wsgi_app)" in str(caught.value)


def test_what_another_app_has_is_said_to_be_the_apps(wrap: Any) -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'run'\. The wrapped app has one"):
        wrap(bottle.Bottle()).run()


def test_what_nobody_has_is_told_in_pythons_own_words(wrap: Any) -> None:
    with pytest.raises(AttributeError, match=r"^'LowMemory' object has no attribute 'rnu'$"):
        wrap(Flask("shop")).rnu()


def test_hasattr_and_getattr_with_a_default_ask_without_an_error(wrap: Any) -> None:
    wrapped = wrap(Flask("shop"))
    assert not hasattr(wrapped, "run")
    assert getattr(wrapped, "config", None) is None
    assert hasattr(wrapped, "status")


def test_no_code_of_the_apps_runs_to_find_out(wrap: Any) -> None:
    class Touchy:
        __call__ = staticmethod(plain)

        @property
        def run(self) -> None:
            raise RuntimeError("outside of a request")

    with pytest.raises(AttributeError, match="The wrapped app has one"):
        _ = wrap(Touchy()).run


def test_a_copy_serves_as_well_and_an_object_that_is_not_made_yet_asks_nothing(wrap: Any) -> None:
    assert call(copy.copy(wrap(plain)), make_environ()).body == b"ok"
    empty = LowMemory.__new__(LowMemory)
    with pytest.raises(AttributeError, match=r"has no attribute 'anything'$"):
        _ = empty.anything  # type: ignore[attr-defined]


def test_under_the_flask_command_a_wrapped_flask_app_is_warned_of(
    wrap: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "true")
    with caplog.at_level(logging.WARNING, "lowmem_wsgi"):
        app = Flask("shop")
        app.wsgi_app = wrap(app.wsgi_app)  # type: ignore[method-assign]
        assert not caplog.records
        wrap(app)
    assert "app.wsgi_app = LowMemory(app.wsgi_app)" in caplog.text


@pytest.mark.parametrize("named", ["shop", "shop:app"])
def test_the_flask_command_says_it_beside_its_own_error(tmp_path: Path, named: str) -> None:
    (tmp_path / "shop.py").write_text(
        "from flask import Flask\n"
        "from lowmem_wsgi import LowMemory\n"
        "app = LowMemory(Flask(__name__))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", named, "routes"],
        cwd=tmp_path,
        env=clean_environ({"PATH": os.environ["PATH"]}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Write: app.wsgi_app = LowMemory(app.wsgi_app)" in done.stderr

"""Python 3.15: imports wait for their first use, under `run` and the config."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from helpers.servers import serve

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 15), reason="Python delays imports from 3.15 on"
)

CONFIG = "python:lowmem_wsgi.gunicorn"
LINE = re.compile(r"(\d+) modules \([0-9.]+ MB of bytecode\) are not loaded: .*LOWMEM_LAZY_IMPORTS")
SITE = """
import decimal
import sys

from flask import Flask

app = Flask(__name__)

from site_views import NAME  # registers a route


@app.get("/loaded/<name>")
def loaded(name):
    return str(name in sys.modules)


page = app.jinja_env.from_string("{{ name }} as a page")


@app.get("/page")
def template():
    return page.render(name=NAME)


@app.get("/use")
def use():
    return str(decimal.Decimal(1))
"""
VIEWS = """
import sys

NAME = "views"
app = sys.modules["site_app"].app


@app.get("/view")
def view():
    return "a view"
"""


@pytest.mark.parametrize("how", ["run", "-c"])
def test_what_is_not_used_is_not_loaded_and_a_site_is_whole(tmp_path: Path, how: str) -> None:
    (tmp_path / "site_app.py").write_text(SITE)
    (tmp_path / "site_views.py").write_text(VIEWS)
    kind, config = ("gthread", CONFIG) if how == "-c" else ("run", None)
    with serve("site_app:app", kind, tmp_path=tmp_path, cwd=tmp_path, config=config) as server:
        assert server.get("/view").text == "a view"
        for name in ("decimal", "werkzeug.serving", "werkzeug.test"):
            assert server.get(f"/loaded/{name}").text == "False"
        assert server.get("/page").text == "views as a page"
        assert server.get("/use").text == "1"
        assert server.get("/loaded/decimal").text == "True"
        found = LINE.search(server.log)
        assert found, server.log
        assert int(found[1]) > 30


def test_the_setting_turns_it_off(tmp_path: Path) -> None:
    (tmp_path / "site_app.py").write_text(SITE)
    (tmp_path / "site_views.py").write_text(VIEWS)
    env = {"LOWMEM_LAZY_IMPORTS": "off"}
    with serve("site_app:app", "run", tmp_path=tmp_path, cwd=tmp_path, env=env) as server:
        assert server.get("/loaded/werkzeug.serving").text == "True"
        assert not LINE.search(server.log)


def test_heavy_modules_wait_as_well_where_they_are_to(tmp_path: Path) -> None:
    (tmp_path / "heavyweight.py").write_text("VALUE = 'heavy'\n")
    (tmp_path / "site_app.py").write_text(
        "import heavyweight\n" + SITE + "\n@app.get('/heavy')\ndef heavy():\n"
        "    return heavyweight.VALUE\n"
    )
    (tmp_path / "site_views.py").write_text(VIEWS)
    env = {"LOWMEM_LAZY_HEAVY": "on", "LOWMEM_HEAVY_MODULES": "heavyweight"}
    with serve("site_app:app", "run", tmp_path=tmp_path, cwd=tmp_path, env=env) as server:
        assert server.get("/loaded/heavyweight").text == "False"
        assert server.get("/heavy").text == "heavy"
        assert server.get("/loaded/heavyweight").text == "True"


def test_an_error_at_the_first_use_names_the_import_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "site_app.py").write_text(
        "import broken\n" + SITE + "\n@app.get('/broken')\ndef use_it():\n    return broken.x\n"
    )
    (tmp_path / "site_views.py").write_text(VIEWS)
    env = {"LOWMEM_LAZY_HEAVY": "on", "LOWMEM_HEAVY_MODULES": "broken"}
    with serve("site_app:app", "run", tmp_path=tmp_path, cwd=tmp_path, env=env) as server:
        assert server.get("/broken").status == 500
        assert f'File "{tmp_path}/site_app.py", line 1, in <module>' in server.log
        assert "ZeroDivisionError" in server.log

"""Which imports may wait for their first use, on Python 3.15 and later."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from lowmem_wsgi.imports import everywhere, never_late

python: Any = sys


@pytest.mark.parametrize(
    ("importer", "name"),
    [
        ("werkzeug", "werkzeug.serving"),
        ("flask.app", "werkzeug.routing"),
        ("gunicorn.util", "importlib.metadata"),
        ("lowmem_wsgi.gunicorn", "lowmem_wsgi.settings"),
        ("inspect", "ast"),
        ("app", "decimal"),
        ("shop.models", "email.message"),
        ("__main__", "json"),
    ],
)
def test_it_may_wait(importer: str, name: str) -> None:
    assert everywhere.may_wait(importer, name)


@pytest.mark.parametrize(
    ("importer", "name"),
    [
        ("app", "app.views"),  # registers routes
        ("app", "pandas"),
        ("sqlalchemy.orm", "sqlalchemy.orm.strategies"),
        ("app", "gevent.monkey"),
        ("flask.cli", "gevent"),
        ("gevent.monkey", "threading"),
        ("app", "readline"),
        ("app", "jsonlib"),
        (None, "jinja2.runtime"),  # a template's
    ],
)
def test_it_is_imported_at_once(importer: str | None, name: str) -> None:
    assert not everywhere.may_wait(importer, name)


def test_each_package_that_never_waits_has_its_reason() -> None:
    assert all(never_late.BREAKS.values())


def test_before_3_15_nothing_changes() -> None:
    if sys.version_info < (3, 15):
        everywhere.start()
        assert everywhere.waiting() == {}


@pytest.mark.skipif(sys.version_info < (3, 15), reason="Python 3.15 delays imports")
def test_the_filter_is_set_once_and_a_sites_own_stays() -> None:
    mode = python.get_lazy_imports()
    try:
        everywhere.start()
        everywhere.start()
        assert python.get_lazy_imports_filter() is everywhere.may_wait
        assert python.get_lazy_imports() == "all"
        python.set_lazy_imports_filter(lambda *_: False)
        own = python.get_lazy_imports_filter()
        everywhere.start()
        assert python.get_lazy_imports_filter() is own
    finally:
        python.set_lazy_imports_filter(None)
        python.set_lazy_imports(mode)

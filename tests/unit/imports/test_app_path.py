"""`module:name` as Gunicorn reads it, and what is said where it names no app."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowmem_wsgi.imports.app_path import (
    App,
    NoSuchApp,
    explain,
    hint,
    load,
    modules_in,
    nearest,
    parse_app,
)

SITE = """\
def app(environ, start_response):
    return [b"hello"]


def create_app(title="none", *, debug=False):
    return lambda environ, start_response: [title.encode(), debug]


number = 1
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "shop_site.py").write_text(SITE)
    (tmp_path / "shop_broken.py").write_text("import no_such_package_anywhere\n")
    (tmp_path / "shop_package").mkdir()
    (tmp_path / "shop_package" / "wsgi.py").write_text("application = print\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("shop_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "app"),
    [
        ("app:app", App("app", "app")),
        ("mysite.wsgi", App("mysite.wsgi", "application")),
        ("app: create ", App("app", "create")),
        ("app:create_app()", App("app", "create_app", "create_app()")),
        ("app:make('a', [1], x={'b': None})", App("app", "make", "make('a', [1], x={'b': None})")),
        ("app:make(-1, x=1.5)", App("app", "make", "make(-1, x=1.5)")),
    ],
)
def test_an_app_is_read_as_gunicorn_reads_it(text: str, app: App) -> None:
    assert parse_app(text) == app
    assert parse_app(str(app)) == app


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "app:", ":app", "a b:app", "app::app", "app:app:app", "app:a.b", "app:f(x)"),
        *("app:f(*a)", "app:f(**{})", "app:f()()", "app:1", "app:f(", "app:\x00", "-x", "app..b:c"),
        *("app:f({[]: 1})", "a.py:b\nc", "./a.py:b\nc", "app:" + "(" * 500),
    ],
)
def test_any_other_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(NoSuchApp, match=r"expected |did you mean ") as refused:
        parse_app(text)
    assert "\n" not in str(refused.value)


def test_for_a_path_the_module_is_named() -> None:
    with pytest.raises(NoSuchApp, match=r"such as src\.app:main$"):
        parse_app("./src/app.py:main")
    with pytest.raises(NoSuchApp, match=r"did you mean app:app\?$"):
        parse_app("app.py")
    with pytest.raises(NoSuchApp, match=r"did you mean app:create_app\('x'\)\?$"):
        parse_app("app.py:create_app('x')")


def test_the_nearest_name_is_named_and_none_that_is_far() -> None:
    assert hint(nearest("ap", ["app", "create_app"])) == "; did you mean app?"
    assert hint(nearest("ap", ["zebra"])) == ""
    assert hint(nearest("ap", [])) == ""


def test_the_modules_of_a_folder_and_of_its_packages(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    for name in ("app.py", "site/wsgi.py", "site/deep/er.py", "no-module.py", "docs/readme.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert modules_in(str(folder)) == ["app", "site", "site.wsgi"]
    assert modules_in(str(folder / "none")) == []


def test_an_app_a_factory_and_the_usual_name() -> None:
    assert load("shop_site:app")({}, None) == [b"hello"]
    assert load("shop_site:create_app('x', debug=True)")({}, None) == [b"x", True]
    assert load("shop_package.wsgi") is print


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("shop_sit:app", "no module 'shop_sit'; did you mean shop_site:app?"),
        ("shop_site.py:app", "no module 'shop_site.py'; did you mean shop_site:app?"),
        ("shop_package.wsg", "did you mean shop_package.wsgi:application?"),
        ("shop_site:ap", "shop_site has no 'ap'; did you mean shop_site:app?"),
        ("shop_site:create_ap()", "did you mean shop_site:create_app()?"),
        ("shop_site:nothing_like_it", "did you mean shop_site:app?"),
        ("shop_site", "shop_site has no 'application'; did you mean shop_site:app?"),
        ("shop_site:number", "'shop_site:number' is an int, and no WSGI app"),
        ("shop_site:app[0]", "expected a name or a call"),
        ("shop_site:create_app(x)", "expected a name or a call"),
        ("shop_site:", "expected a name or a call"),
        ("./shop_site.py", "expected MODULE:APP, such as shop_site:app"),
        ("", "expected MODULE:APP, such as app:app"),
        (":app", "expected MODULE:APP"),
        ("a\0b:app", "expected MODULE:APP"),
        ("nothing_at_all_like_it:app", "here are shop_broken, "),
    ],
)
def test_what_names_no_app_is_one_line_with_the_nearest_name(path: str, told: str) -> None:
    with pytest.raises(NoSuchApp) as raised:
        load(path)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_the_apps_own_code_raises_is_its_own() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package_anywhere") as raised:
        load("shop_broken:app")
    assert explain("shop_broken:app", raised.value) is None
    assert explain("shop_site:app", KeyError("x")) is None


def test_gunicorns_errors_are_explained() -> None:
    util = pytest.importorskip("gunicorn.util")
    for path, told in (
        ("shop_sit:app", "did you mean shop_site:app?"),
        ("shop_site.py:app", "did you mean shop_site:app?"),
        ("shop_site:ap", "did you mean shop_site:app?"),
        ("shop_site:number", "callable"),
        ("shop_site:app[0]", "expected a name or a call"),
    ):
        with pytest.raises(Exception) as raised:  # noqa: PT011 - Gunicorn has one kind for each
            util.import_app(path)
        assert told in str(explain(path, raised.value))


def test_an_error_of_the_apps_own_is_not_explained_by_its_name() -> None:
    assert explain("my-app:app", ValueError("DATABASE_URL is not set")) is None

"""Find the app that `module:name` names, as Gunicorn does, and say in one line what is wrong.

`module:name` and `module:factory("argument")` are Gunicorn's forms. Without a name, the name is
`application`.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

NAME = "application"  # Gunicorn's default
# Names that apps usually have. Offered where no name is near.
FACTORIES = ("create_app", "make_app")
USUAL = ("app", "application", *FACTORIES, "wsgi", "wsgi_app")


class NoSuchApp(Exception):
    """`module:name` names no app. The message is one line, with the nearest real name."""


class App(NamedTuple):
    """A module, and a name in the module: the app, or the function that makes the app."""

    module: str
    name: str
    call: str = ""  # `create_app('x')` for a function; literal arguments only

    def __str__(self) -> str:
        return f"{self.module}:{self.call or self.name}"


def parse_app(text: str) -> App:
    """Return the app that `module`, `module:name` or `module:function(...)` names.

    Imports nothing. Raises NoSuchApp for any other text.
    """
    module, colon, expression = text.partition(":")
    meant = module.removesuffix(".py").strip("./").replace("/", ".")
    if not _is_module(meant):
        meant = "app"
    app = _read(meant, expression.strip() if colon else "app")
    example = app or App(meant, "app")
    if not _is_module(module):
        raise NoSuchApp(f"{text!r}: expected MODULE:APP, such as {example}")
    if module != meant:  # a file
        raise NoSuchApp(f"no module {module!r}{hint(str(example))}")
    if app is None:
        raise NoSuchApp(
            f"{text!r}: expected a name or a call after the colon, such as {example}, "
            f"or {module}:create_app('x')"
        )
    return app if colon else App(module, NAME)


def load(text: str) -> Any:
    """Import the module, and return the app, or what its factory returns.

    The directory of the app must be on sys.path. Raises NoSuchApp, and what the module raises.
    """
    named = parse_app(text)
    try:
        module = importlib.import_module(named.module)
    except ModuleNotFoundError as error:
        absent = _absent(named, error)
        raise NoSuchApp(absent) if absent else error from None
    if not hasattr(module, named.name):
        raise NoSuchApp(_no_such_name(named, vars(module)))
    app = getattr(module, named.name)
    if named.call:
        arguments, keywords = _arguments(ast.parse(named.call, mode="eval").body)
        app = app(*arguments, **keywords)
    if not callable(app):
        name = type(app).__name__
        article = "an" if name[0] in "aeiouAEIOU" else "a"
        kind = "None" if app is None else f"{article} {name}"
        raise NoSuchApp(f"{text!r} is {kind}, and no WSGI app")
    return app


def explain(text: str, error: BaseException) -> str | None:
    """Return in one line why Gunicorn found no app. None if the app's own code raised `error`.

    Call this after Gunicorn has tried to import the app. Imports nothing.
    """
    by_gunicorn = str(error).startswith("Failed to find application")  # for the path of a file
    kind = type(error).__name__
    if not (by_gunicorn or kind in ("ModuleNotFoundError", "AppImportError")):
        return None
    try:
        app = parse_app(text)
    except NoSuchApp as wrong:
        return str(wrong)
    if isinstance(error, ModuleNotFoundError):
        return _absent(app, error)
    module = sys.modules.get(app.module)
    if module is not None and type(error).__name__ == "AppImportError":
        if not hasattr(module, app.name):
            return _no_such_name(app, vars(module))
        return f"{text!r} names no WSGI app: {error}"
    return None


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the nearest of the names; "" if none is near."""
    return next(iter(difflib.get_close_matches(name, names, n=1)), "")


def hint(name: str) -> str:
    """Return `; did you mean NAME?` for a message; "" without a name."""
    return f"; did you mean {name}?" if name else ""


def modules_in(folder: str, depth: int = 2) -> list[str]:
    """Return the modules and packages in a folder, those of packages too, `depth` levels deep."""
    try:
        entries = sorted(os.listdir(folder))
    except OSError:  # also for a file
        return []
    found = []
    for entry in entries:
        name, extension = os.path.splitext(entry)
        if not name.isidentifier() or name.startswith("__"):
            continue
        if extension == ".py":
            found.append(name)
        elif depth > 1 and not extension:
            below = modules_in(os.path.join(folder, entry), depth - 1)
            found += [name, *(f"{name}.{module}" for module in below)] if below else []
    return found


def _is_module(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _read(module: str, expression: str) -> App | None:
    """Return the app that the text after the colon names; None if it is no name and no call."""
    try:
        node = ast.parse(expression, mode="eval").body
        if isinstance(node, ast.Name):
            return App(module, node.id)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            _arguments(node)
            return App(module, node.func.id, ast.unparse(node))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass
    return None


def _arguments(call: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of a call. Raises ValueError if one is no literal, as for `**x`."""
    if any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("** in a call")
    return (
        [ast.literal_eval(argument) for argument in call.args],
        {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords},
    )


def _absent(app: App, error: ModuleNotFoundError) -> str | None:
    """Return what to tell if the app's own module is the one not found; else None."""
    name = error.name or ""
    if name != app.module and not app.module.startswith(name + "."):
        return None
    here = modules_in(".")
    near = nearest(app.module, here)
    if near:
        return f"no module {app.module!r}{hint(str(app._replace(module=near)))}"
    found = f"here are {', '.join(here[:4])}" if here else "here is no Python file"
    return f"no module {app.module!r} in {os.getcwd()}; {found}"


def _no_such_name(app: App, names: Mapping[str, Any]) -> str:
    calls = [name for name, value in names.items() if callable(value) and name[0] != "_"]
    near = nearest(app.name, calls) or next((name for name in USUAL if name in calls), "")
    call = "()" if near in FACTORIES else ""
    return f"{app.module} has no {app.name!r}{hint(near and f'{app.module}:{near}{call}')}"

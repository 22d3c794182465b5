"""How the doctor's child tells what it finds, and what went wrong."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

Tell = Callable[[dict[str, Any]], None]


def raised(error: BaseException) -> dict[str, Any]:
    """Return the failure of a process that has raised."""
    return {"kind": "raised", "text": one_line(error), "lines": _last_lines(error)}


def one_line(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno})"
    return " ".join("".join(traceback.format_exception_only(type(error), error)).split())[:300]


def _last_lines(error: BaseException) -> list[str]:
    """Return the last lines of the traceback, of the app's code rather than of the doctor's."""
    if isinstance(error, SyntaxError):
        return [f"{error.filename}:{error.lineno}: {(error.text or '').strip()}"]
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and not frame.filename.startswith(_HERE)
    ]
    return [f"{frame.filename}:{frame.lineno}: {frame.line}" for frame in frames[-3:]]


_HERE = __file__.rpartition("/cli/")[0]

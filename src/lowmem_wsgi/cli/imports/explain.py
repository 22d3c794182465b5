"""Say on stderr why an app cannot be loaded."""

from __future__ import annotations

import sys

from ...imports.app_path import App, hint, modules_in, nearest
from ..tell import tell
from .process import Failure

LINES = 8  # of a traceback, or of what the app has printed


def explain(app: App, failure: Failure, folder: str) -> None:
    """Say in one line why the app cannot be loaded, then show its last lines."""
    at = failure.at.removeprefix(folder + "/")
    if failure.kind == "module":
        tell(f"{app}: {failure.message}{hint(nearest(app.module, modules_in(folder)))}")
    elif failure.kind == "name":
        tell(f"{app}: {app.module} {failure.message}{hint(nearest(app.name, failure.names))}")
    elif failure.kind == "kind":
        tell(f"{app}: {app.call or app.name} {failure.message}")
    elif failure.kind == "raised":
        tell(f"{app} cannot be loaded: {at + ': ' if at else ''}{failure.message}")
    else:
        tell(f"{app} {failure.message}{' (' + at + ')' if at else ''}")
    for line in failure.lines[-LINES:]:
        print(f"  {line}", file=sys.stderr)

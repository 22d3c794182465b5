"""What to write instead, where code takes the wrapper for the app that it wraps."""

from __future__ import annotations

import logging
import os

from .. import log

FLASK = "app.wsgi_app = LowMemory(app.wsgi_app)"


def no_attribute(app: object, name: str) -> str:
    """Return the message of an AttributeError: LowMemory, wrapped around `app`, has no `name`.

    Runs no code of the app's.
    """
    message = f"'LowMemory' object has no attribute {name!r}"
    if name.startswith("_") or not _has(app, name):
        return message
    if _has(app, "wsgi_app"):  # Flask
        return f"{message}. Keep the Flask app, and wrap what is inside: {FLASK}"
    return f"{message}. The wrapped app has one: keep the app under a name of its own and use that"


def warn_of_flask_run(app: object) -> None:
    """Log a warning where the `flask` command loads an app that is wrapped as a whole."""
    if os.environ.get("FLASK_RUN_FROM_CLI") == "true" and _has(app, "wsgi_app"):
        log.once(
            logging.WARNING,
            "flask run",
            "The flask command needs the Flask app and does not serve LowMemory(app). Write: %s",
            FLASK,
        )


def _has(app: object, name: str) -> bool:
    return hasattr(type(app), name) or name in getattr(app, "__dict__", ())

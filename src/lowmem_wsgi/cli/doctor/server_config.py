"""What Gunicorn would do: its settings in force, without starting it."""

from __future__ import annotations

import os
import re
import sys
from typing import Any


def gunicorn_config(words: list[str], path: str | None, guess: str | None) -> dict[str, Any]:
    """Return Gunicorn's settings in force: of the command line, its variable and its config."""
    from gunicorn.app.wsgiapp import WSGIApplication

    class Look(WSGIApplication):  # type: ignore[misc]
        def init(self, parser: Any, opts: Any, args: Any) -> None:
            super().init(parser, opts, args)
            # Not None, which Gunicorn refuses: the config, read later, may name the app.
            self.app_uri: str = path or self.app_uri or ""

    before = [*sys.argv]
    sys.argv[:] = ["gunicorn", *words]
    try:
        found = Look("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn")
        cfg = found.cfg
        parser = cfg.parser()
        given = [parser.parse_known_args(part)[0] for part in (cfg.get_cmd_args_from_env(), words)]
        cfg.worker_class  # noqa: B018 - the master imports it, too
        for folder in cfg.pythonpath.split(",") if cfg.pythonpath else ():
            if os.path.abspath(folder) not in sys.path:
                sys.path.insert(0, os.path.abspath(folder))
    finally:
        sys.argv[:] = before
    names = ("workers", "threads", "preload_app", "max_requests", "graceful_timeout")
    return {
        **{name: getattr(cfg, name) for name in names},
        "app": found.app_uri or cfg.wsgi_app or guess,
        "kind": cfg.worker_class_str,
        "config": cfg.config or "",
        "workers_given": any(part.workers is not None for part in given),
        "from_cores": _names_cores(cfg.config),
    }


def _names_cores(config: str | None) -> bool:
    """Return whether the config computes with the machine's cores."""
    try:
        with open((config or "").removeprefix("file:"), encoding="utf-8") as file:
            return re.search(r"^\s*workers\s*=.*cpu_count", file.read(), re.MULTILINE) is not None
    except (OSError, ValueError):
        return False

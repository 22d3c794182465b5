"""Serve an app with a server that has no command line of its own: `serve.py SERVER module:app`."""

from __future__ import annotations

import importlib
import logging
import os
import sys


def main(server: str, target: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
    sys.path.insert(0, os.getcwd())
    module, _, name = target.partition(":")
    app = getattr(importlib.import_module(module), name)
    if server == "waitress":
        import waitress

        waitress.serve(app, listen="127.0.0.1:0", threads=3)
    else:
        from werkzeug.serving import run_simple

        run_simple("127.0.0.1", 0, app, threaded=True)


main(*sys.argv[1:])

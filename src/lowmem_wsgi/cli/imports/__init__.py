"""`lowmem-wsgi imports app:app`: what each import of an app costs, and what could be saved."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import sysconfig
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ...imports.app_path import App, NoSuchApp, parse_app
from ...settings import Settings, SettingsError, parse_size
from ..options import Parser, count, kind, positive_duration
from ..progress import Progress
from ..tell import FAILED, WRONG, colour, show, tell
from . import icicle, report, tree, trials
from .explain import explain
from .process import measure


def main(argv: Sequence[str]) -> int:
    """Run the command. Return its exit code: 0; 1, the app cannot be loaded; 2, wrong usage.

    Raises KeyboardInterrupt, also for SIGTERM.
    """
    progress = Progress()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(argv, progress)
    except SystemExit as end:  # of argparse
        return int(end.code or 0)
    finally:
        progress.clear()
        signal.signal(signal.SIGTERM, before)


def _run(argv: Sequence[str], progress: Progress) -> int:
    options = _parser().parse_args(argv)
    try:
        app = parse_app(options.app)
        heavy = Settings.load().heavy_modules
    except SettingsError as error:
        tell(*error.problems)
        return WRONG
    except NoSuchApp as error:
        tell(str(error))
        return WRONG
    chart = options.html
    try:
        if chart is not None and chart.is_file() and not icicle.is_page(chart):
            tell(f"--html {chart}: this file is not a chart of imports; give another name")
            return WRONG
    except OSError as error:
        tell(f"--html {chart}: {error.strerror}")
        return FAILED
    if not os.path.exists("/proc/self/statm"):
        tell("imports needs Linux: it reads /proc/self/statm")
        return FAILED
    run = partial(measure, app, options.timeout)
    progress.tell(f"{app}, as it is")
    measured = run()
    progress.clear()
    folder = os.getcwd()
    if measured.failure is not None:
        explain(app, measured.failure, folder)
        return FAILED
    own = partial(is_own, app, folder)
    modules = tree.build(str(app), measured.events)
    packages = tree.by_package(modules, own)
    found = None
    if options.tries:
        chosen = trials.candidates(packages, own, heavy, options.least)[: options.tries]
        progress.expect(2 * len(chosen) + 2)
        found = trials.attempt(chosen, modules.bytes, run, progress.tell, own)
        progress.clear()
    made = report.Report(
        str(app), platform.python_version(), modules, packages, options.least, found, folder
    )
    try:
        if options.json:
            show(json.dumps(report.document(made), indent=1))
        else:
            show(report.text(made, colour(sys.stdout, os.environ)))
    except OSError as error:
        tell(f"cannot print: {error.strerror}")
        return FAILED
    if chart is not None:
        try:
            chart.write_bytes(icicle.page(made))
        except OSError as error:
            tell(f"--html {chart}: {error.strerror}")
            return FAILED
    return 0


def is_own(app: App, folder: str, node: tree.Node) -> bool:
    """Return whether the node is the app's own code, and no package that the app uses."""
    if tree.package(node.name) == tree.package(app.module) or node.name == app.call:
        return True
    library = (sysconfig.get_path("stdlib") + "/", sys.base_prefix + "/lib/", sys.prefix + "/lib/")
    installed = "/site-packages/" in node.file or "/dist-packages/" in node.file
    return (
        node.file.startswith(folder.rstrip("/") + "/")
        and not installed
        and not node.file.startswith(library)
    )


def _parser() -> Parser:
    parser = Parser(
        "imports",
        description="Show what each import of an app costs, as measured in a fresh process, and "
        "what could be late or left out. The app is imported once to measure it, and two times "
        "for each package that is tried. Linux.",
        epilog="Exit status: 0; 1 if the app cannot be loaded; 2 for wrong usage.",
    )
    add = parser.add_argument
    add("app", metavar="MODULE:APP", help="as for Gunicorn: app:app, 'app:create_app()'")
    add(
        "--html",
        metavar="FILE",
        type=kind("a file in a folder that exists", _writable),
        help="write a chart to look at in a browser",
    )
    add("--json", action="store_true", help="print all figures as JSON")
    add(
        "--least",
        metavar="SIZE",
        type=kind("a size, such as 1MB", parse_size),
        default="1MB",
        help="show, and try, what takes this much (default: %(default)s)",
    )
    add(
        "--try",
        dest="tries",
        metavar="N",
        type=kind("a number from 0 to 999", count(0, 999)),
        default=5,
        help="how many packages to try late and left out (default: %(default)s)",
    )
    add(
        "--timeout",
        metavar="TIME",
        type=kind("a time, such as 2m", positive_duration),
        default="2m",
        help="how long the app may take to load (default: %(default)s)",
    )
    return parser


def _writable(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(text)
    return path

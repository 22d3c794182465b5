"""`lowmem-wsgi doctor [app:app]`: say in a minute what is wrong with a site's memory.

The exit code is 0 for a site without a finding, ADVICE for one that could do better, DIE for one
that would die, and UNUSABLE where the doctor cannot examine: a wrong option, or no such app.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import NoReturn

from ...settings import MB, parse_duration, parse_size
from ..progress import Progress
from ..tell import show, tell
from . import deployment, report
from .examine import Asked, NothingToExamine, examine
from .figures import Figures
from .files import NAMES, Exists, Written, refuse_existing, write
from .findings import DIE, Finding, findings

CLEAN, ADVISED, DEADLY = 0, 1, 2
# Not argparse's 2, which is a finding here. The number is EX_USAGE of sysexits.h.
UNUSABLE = 64
# A limit below this leaves no room for an interpreter with an app.
LEAST = 32 * MB


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        tell(f"{message}; lowmem-wsgi doctor --help lists what there is")
        raise SystemExit(UNUSABLE)


def main(argv: Sequence[str]) -> int:
    """Examine the site, print what was found, and return the exit code."""
    try:
        given = _parser().parse_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    if os.name == "nt":
        tell("the doctor does not run on Windows: run it on Linux, best in the site's own image")
        return UNUSABLE
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    progress = Progress()
    try:
        if given.write:
            refuse_existing(given.write)
        figures = examine(
            Asked(
                app=given.app,
                limit=given.limit,
                platform=given.platform or given.write,
                start=given.start,
                paths=[] if given.no_requests else given.request,
                seconds=given.seconds,
            ),
            os.environ,
            progress=progress.tell,
        )
        progress.clear()
        found = findings(figures)
        code = exit_code(found, figures.worker is not None)
        shown = report.as_json(figures, found, code) if given.json else None
        show(shown or report.text(figures, found, sys.stdout, os.environ))
        if given.write:
            return _write(given.write, figures) or code
    except (NothingToExamine, Exists) as error:
        tell(str(error))
        return UNUSABLE
    except OSError as error:
        tell(f"the doctor cannot work here: {error}")
        return UNUSABLE
    except KeyboardInterrupt:
        return 130
    except Exception:  # Python's own exit code for it would mean: advice
        progress.clear()
        traceback.print_exc()
        return UNUSABLE
    finally:
        progress.clear()
    return code


def check(environ: Mapping[str, str], words: Sequence[str]) -> int:
    """Do the doctor's fast part for `run --check`: all that can be told without loading the app.

    Print the findings on stderr. Return the exit code.
    """
    start = ["lowmem-wsgi", "run", *words]
    try:
        figures = examine(Asked(load=False), environ, deployment.Deployment("run", tuple(start)))
    except (NothingToExamine, OSError) as error:
        tell(str(error))
        return UNUSABLE
    found = findings(figures)
    tell(*(f"{finding.name}: {finding.figure}. {finding.remedy}" for finding in found))
    return exit_code(found)


def exit_code(found: Sequence[Finding], measured: bool = True) -> int:
    """Return the exit code. `measured`: an app that was loaded had a worker; else it would die."""
    if any(finding.level == DIE for finding in found) or not (found or measured):
        return DEADLY
    return ADVISED if found else CLEAN


def _write(platform: str, figures: Figures) -> int:
    """Write the platform's file, and tell what to do beside it. Return an exit code other than 0 if
    nothing was written."""
    if figures.worker is None:
        tell(f"{NAMES[platform]} was not written: the app could not be measured")
        return UNUSABLE
    made: Written = write(platform, figures)
    print(f"\nwrote {made.name}" + "".join(f"\n    {line}" for line in made.then), file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lowmem-wsgi doctor",
        description="Load the app under the limit, ask its pages by GET, and say what is wrong: "
        "worst first, each with one line that mends it. Each page is asked up to 40 times, and the "
        "app uses its real database and files; --no-requests asks for none.",
        epilog="Exit code: 0 nothing found, 1 advice, 2 the site would die, "
        f"{UNUSABLE} wrong usage. docs/doctor.md explains each finding.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("app", nargs="?", metavar="MODULE:APP", help="as for Gunicorn; also a factory's call")
    add("--limit", type=_limit, metavar="SIZE", help="such as 512MB; without it, the container's")
    add("--platform", choices=deployment.GRACE, help="where the site runs or will run")
    add("--start", metavar="COMMAND", help="how the site is started; without it, from its files")
    add(
        "--request",
        action="append",
        metavar="PATH",
        type=_path,
        help="ask for this page instead of those found; again for another",
    )
    add("--no-requests", action="store_true", help="ask for no page")
    add(
        "--seconds",
        type=_seconds,
        default=30.0,
        metavar="TIME",
        help="after so long without progress the app counts as hung (30s)",
    )
    add("--json", action="store_true", help="print all figures for a program")
    add("--write", choices=NAMES, help="write the platform's file, filled with what was measured")
    return parser


def _limit(text: str) -> int:
    try:
        size = parse_size(text)
    except (ValueError, KeyError):
        size = 0
    if size < LEAST:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size from 32MB such as 512MB")
    return size


def _seconds(text: str) -> float:
    try:
        seconds = parse_duration(text)
    except (ValueError, KeyError):
        seconds = 0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a duration such as 30s or 2m")
    return seconds


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a path that starts with /")
    return text

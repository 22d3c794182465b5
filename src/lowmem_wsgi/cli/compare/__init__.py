"""`lowmem-wsgi compare app:app`: serve the app bare, with lowmem-wsgi, and by the old advice."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ...imports.app_path import NoSuchApp, parse_app
from ...settings import MB, Settings, SettingsError, format_size
from ..imports.explain import LINES, explain
from ..imports.process import measure
from ..progress import Progress
from ..tell import FAILED, WRONG, colour, show, tell
from . import chart, report
from .arguments import parser
from .asked import Asked, WrongRequests, read
from .contenders import CONTENDERS, in_round
from .figures import Round
from .load import Answer
from .server import can_limit
from .stopping import Stop
from .trial import NotServed, Site, attempt, look

MOST_FILE = 100 * MB  # of a list of requests


def main(argv: Sequence[str]) -> int:
    """Run the command. Return its exit code: 0; 1, it cannot be compared; 2, wrong usage.

    Raises KeyboardInterrupt, also for SIGTERM.
    """
    try:
        options = parser().parse_args(argv)
    except SystemExit as end:  # of argparse
        return int(end.code or 0)
    progress = Progress()
    try:
        return _run(options, progress)
    except _Cannot as error:
        progress.clear()
        tell(str(error))
        return error.code
    except NotServed as error:
        progress.clear()
        _explain(options, error)
        return FAILED
    finally:
        progress.clear()


class _Cannot(Exception):
    """The command cannot go on. The message is one line."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def _run(options: argparse.Namespace, progress: Progress) -> int:
    asked = _checked(options)
    stop = Stop()
    with stop.noted():
        try:
            made = _compare(options, asked, stop, progress)
        except OSError as error:
            raise _Cannot(f"compare cannot work here: {error}") from None
        stop.check()
    progress.clear()
    try:
        if options.json:
            show(json.dumps(report.document(made), indent=1))
        else:
            show(report.text(made, colour(sys.stdout, os.environ)))
    except OSError as error:
        raise _Cannot(f"cannot print: {error.strerror}") from None
    if options.html is not None:
        _write(options.html, chart.page(made))
    return 0


def _checked(options: argparse.Namespace) -> Asked | None:
    """Refuse what cannot be compared, before anything is started. Return the requests, if given."""
    try:
        parse_app(options.app)
        Settings.load()
    except SettingsError as error:
        raise _Cannot("; ".join(error.problems), WRONG) from None
    except NoSuchApp as error:
        raise _Cannot(str(error), WRONG) from None
    if options.html is not None and os.path.lexists(options.html):
        raise _Cannot(f"--html {options.html} exists already: give another name", WRONG)
    if not os.path.exists("/proc/self/statm"):
        raise _Cannot("compare needs Linux: it reads /proc")
    if find_spec("gunicorn") is None:
        raise _Cannot("Gunicorn is not installed: pip install 'lowmem-wsgi[gunicorn]'")
    if options.requests is None:
        return None
    try:
        if options.requests.stat().st_size > MOST_FILE:
            raise WrongRequests("the file is larger than 100 MB")
        return read(options.requests.read_text("utf-8"))
    except OSError as error:
        raise _Cannot(f"--requests {options.requests}: {error.strerror}", WRONG) from None
    except UnicodeDecodeError:
        raise _Cannot(f"--requests {options.requests}: this is no text in UTF-8", WRONG) from None
    except WrongRequests as error:
        raise _Cannot(f"--requests {options.requests}: {error}", WRONG) from None


def _compare(
    options: argparse.Namespace, asked: Asked | None, stop: Stop, progress: Progress
) -> report.Report:
    site = Site(options.app, options.limit, options.timeout, options.host, os.environ)
    progress.tell("the bare app's pages" if asked else "which pages there are")
    pages, answers = look(site, asked, stop)
    refused = [answer for answer in answers if answer.failed or answer.status >= 400]
    if not pages.paths or len(refused) == len(answers):
        raise _Cannot(_nothing_to_ask(answers, pages.notes))
    cgroup = options.cgroup and can_limit(options.limit)
    rounds: dict[str, list[Round]] = {each.name: [] for each in CONTENDERS}
    progress.expect(options.rounds * len(CONTENDERS) * 3)
    for number in range(options.rounds):
        for contender in in_round(number):
            begun = f"round {number + 1} of {options.rounds}, {contender.name}: "
            rounds[contender.name].append(
                attempt(
                    contender,
                    site,
                    pages.paths,
                    options.seconds,
                    cgroup=cgroup,
                    stop=stop,
                    tell=lambda what, begun=begun: progress.tell(begun + what),  # type: ignore[misc]
                )
            )
    if not any(each.answers for found in rounds.values() for each in found):
        why = next(each.failure for found in rounds.values() for each in found)
        raise _Cannot(f"none of the three is served in {format_size(options.limit)}: {why}")
    return report.Report(
        app=options.app,
        python=platform.python_version(),
        limit=options.limit,
        cgroup=cgroup,
        paths=pages.paths,
        source=f"of {options.requests}" if asked else "found from /",
        notes=(*pages.notes, *_refusals(refused if asked else [])),
        seconds=options.seconds,
        rounds=rounds,
    )


def _nothing_to_ask(answers: Sequence[Answer], notes: Sequence[str]) -> str:
    first = answers[0]
    how = f"is answered {first.status}" if first.status else "has no whole answer"
    say = "; ".join([f"no page to ask for: GET {first.path} {how}", *notes])
    if first.status == 400:
        return f"{say}; if the site answers one host only, name it: --host www.example.org"
    return f"{say}; name pages that the site answers: --requests FILE"


def _refusals(refused: Sequence[Answer]) -> list[str]:
    if not refused:
        return []
    first = refused[0]
    many = "1 request is" if len(refused) == 1 else f"{len(refused)} requests are"
    return [f"{many} answered by an error, the first GET {first.path}: {first.status or 'none'}"]


def _explain(options: argparse.Namespace, error: NotServed) -> None:
    """Say why the bare app is not served: load the app once more, to see whether it loads at all.

    Else the server's last lines say more.
    """
    app = parse_app(options.app)
    try:
        failure = measure(app, options.timeout).failure
    except OSError:  # no process can be started
        failure = None
    if failure is not None:
        explain(app, failure, os.getcwd())
        return
    tell(f"{app} cannot be served: {error}")
    for line in error.lines[-LINES:]:
        print(f"  {line}", file=sys.stderr)


def _write(path: Path, page: bytes) -> None:
    """Write a new file, or none."""
    try:
        with path.open("xb") as file:
            try:
                file.write(page)
                file.flush()
            except OSError:
                with contextlib.suppress(OSError):
                    path.unlink()
                raise
    except FileExistsError:
        raise _Cannot(f"--html {path} exists already: give another name", WRONG) from None
    except OSError as error:
        raise _Cannot(f"--html {path}: {error.strerror}") from None

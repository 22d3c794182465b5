"""What the benchmarks share: servers, a client, statistics, tables, targets."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.servers import Reply
from helpers.servers import Server as Server
from helpers.servers import serve as serve

APPS = Path(__file__).resolve().parent / "apps"
MB = 1024 * 1024
MOST_DROPPED = 1000


class Target:
    """A figure and its bound; `at_least` turns the comparison round."""

    def __init__(self, name: str, figure: float, bound: float, *, at_least: bool = False) -> None:
        self.name = name
        self.figure = figure
        self.bound = bound
        self.met = figure >= bound if at_least else figure <= bound
        self.sign = ">=" if at_least else "<="

    def __str__(self) -> str:
        verdict = "met   " if self.met else "MISSED"
        return f"{verdict}  {self.name}: {self.figure:.2f} ({self.sign} {self.bound:g})"


def parser(doc: str | None, *, rounds: int, requests: int) -> argparse.ArgumentParser:
    """The options of a benchmark that goes in rounds."""
    options = bare_parser(doc)
    options.add_argument("--rounds", type=positive, default=rounds, help=f"default {rounds}")
    options.add_argument(
        "--requests",
        type=positive,
        default=requests,
        help=f"a variant and round, default {requests}",
    )
    return options


def bare_parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    options = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    return options


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def report(options: argparse.Namespace, figures: dict[str, Any], targets: Sequence[Target]) -> int:
    """Print the targets, write the JSON; the exit code."""
    for target in targets:
        print(target)
    if options.json is not None:
        document = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "python": platform.python_version(),
            **{key: value for key, value in vars(options).items() if key not in ("json", "check")},
            "figures": figures,
            "targets": [vars(target) for target in targets],
        }
        options.json.write_text(json.dumps(document, indent=2, default=str) + "\n")
    return int(options.check and not all(target.met for target in targets))


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """The first column to the left, figures to the right."""
    lines = [list(head)] + [
        [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        cells[0] = line[0].ljust(widths[0])
        print("  ".join(cells).rstrip())


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that this share of all is not above."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Round against round, so that a neighbour's noise hits both sides of a ratio."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def shuffled(names: Iterable[str], turn: int | str) -> list[str]:
    """The names in another order each turn, so that none always follows the same one."""
    found = list(names)
    random.Random(turn).shuffle(found)
    return found


# --- Servers


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory for logs, databases and keys, gone afterwards, when we are told to stop too."""
    signal.signal(signal.SIGTERM, _stop)
    with tempfile.TemporaryDirectory(prefix="lowmem-bench-") as directory:
        yield Path(directory)


def _stop(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


@contextlib.contextmanager
def gunicorn(app: str, directory: Path, config: str | None = None, **env: str) -> Iterator[Server]:
    """Gunicorn with one worker of three threads (or what `config` says) that answers already."""
    # The session key of an app without a secret is kept there.
    environ: dict[str, Any] = {"XDG_RUNTIME_DIR": str(directory), **env}
    with serve(app, tmp_path=directory, config=config, cwd=APPS, **environ) as server:
        try:
            with Client(server.port) as client:
                client.get("/")
            yield server
        except Exception:
            print(server.log, file=sys.stderr)
            raise


def worker(server: Server) -> psutil.Process:
    """The one worker; the next, where the server is about to replace it."""
    while True:
        for pid in server.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                found = psutil.Process(pid)
                if found.status() != psutil.STATUS_ZOMBIE:
                    return found
        time.sleep(0.01)


class Client:
    """One keep-alive connection.

    A request that the server drops with the connection is sent again, and counted: a worker
    that is replaced does that. It is one request to whoever waits for it.
    """

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.dropped = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, path: str, cookie: str = "") -> Reply:
        """The answer, read to its end. Raises where it is not 200."""
        headers = {"Cookie": cookie} if cookie else {}
        while (reply := self._try(path, headers)) is None:
            if self.dropped > MOST_DROPPED:
                raise RuntimeError(f"{self.dropped} connections dropped; the last for {path}")
        if reply.status != 200:
            raise RuntimeError(f"{path} was answered {reply.status}: {reply.body[:200]!r}")
        return reply

    def _try(self, path: str, headers: dict[str, str]) -> Reply | None:
        try:
            self._connection.request("GET", path, headers=headers)
            response = self._connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self._connection.close()
            self.dropped += 1
            return None

"""The example app in a container, with somebody who imports a workbook of clients into it."""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from _common import APPS, MB
from _container import OURS, PLAIN, Served, at_rest, served
from _load import Caller

EXAMPLE = APPS.parent.parent / "examples" / "flask_app"
ROWS = 50_000
HEAVY = "pandas, numpy, matplotlib.pyplot, openpyxl"
LOOK_EVERY = 0.02  # s


def workbook(path: Path, rows: int = ROWS) -> Path:
    """A sheet of made-up clients, the same each time for a path of that name."""
    from openpyxl import Workbook

    dice = random.Random(rows)
    names = [
        "Ada",
        "Bruno",
        "Chloe",
        "Dmitri",
        "Eilidh",
        "Farid",
        "Greta",
        "Hugo",
        "Ines",
        "Jarrah",
    ]
    cities = ["Bath", "Berlin", "Bordeaux", "Boston", "Brisbane"]
    book = Workbook()
    sheet = book.active
    sheet.append(["name", "email", "city", "phone"])
    for number in range(rows):
        first, last = dice.choice(names), f"{dice.choice(names)}sen"
        email = f"{first}.{last}.{number}@{path.stem}.example"
        phone = f"+49 30 {dice.randrange(10**8):08}"
        sheet.append([f"{first} {last}", email, dice.choice(cities), phone])
    book.save(path)
    return path


def warm_up() -> None:
    """Have the packages' files in the page cache, charged to nobody that is weighed here: as on a
    host where others have the same image."""
    code = f"import {HEAVY}; import pandas.io.excel, matplotlib.backends.backend_agg"
    subprocess.run([sys.executable, "-c", code], check=True)


@contextlib.contextmanager
def example(side: str, directory: Path, **env: str) -> Iterator[Served]:
    """The app as it is, with our config; or as the document found it: see apps/as_found.py."""
    data = directory / f"data-{time.monotonic_ns()}"
    env = {"CLIENTS_DIR": str(data), "MPLCONFIGDIR": str(directory), **env}
    app, options = {
        OURS: ("app:app", ["--chdir", str(EXAMPLE)]),
        PLAIN: ("as_found:app", []),
    }[side]
    with served(side, app, directory, options=options, env=env) as found:
        yield found


class Member:
    """Somebody who has logged in, and had a look at the pages."""

    def __init__(self, port: int) -> None:
        self._caller = Caller(port, timeout=120)
        token = self._token("/login").decode()
        form = f"csrf_token={token}&name=demo&password=demo".encode()
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        self._caller.ask("/login", form, **kind)
        for page in ("/", "/clients", "/import/excel"):
            self.get(page)

    def _token(self, page: str) -> bytes:
        answer = self._caller.ask(page)
        found = re.search(rb'name="csrf_token" value="([^"]+)"', answer.body)
        if found is None:
            raise RuntimeError(f"{page}: {answer.status} {answer.error}")
        return found[1]

    def get(self, path: str) -> bytes:
        answer = self._caller.ask(path)
        if not answer.ok:
            raise RuntimeError(f"{path}: {answer.status} {answer.error}")
        return answer.body

    def send(self, sheet: Path) -> None:
        """Import it. Returns when the site has answered."""
        edge = b"frontier-of-the-parts"
        part = b'--%s\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
        body = part % (edge, b"csrf_token", b"", self._token("/import/excel"))
        body += part % (edge, b"file", b'; filename="clients.xlsx"', sheet.read_bytes())
        body += b"--%s--\r\n" % edge
        kind = {"Content-Type": f"multipart/form-data; boundary={edge.decode()}"}
        answer = self._caller.ask("/import/excel", body, **kind)
        if answer.status != 303:
            raise RuntimeError(f"the upload: {answer.status} {answer.error} {answer.body[:200]!r}")

    def over(self, job: int) -> bool:
        return bool(json.loads(self.get(f"/imports/{job}.json"))["over"])


@dataclass
class Import:
    """MB and seconds."""

    used_before: float
    peak: float
    used_after: float  # a second after its end
    back_after: float  # until the usage was back within 5 %; -1 where it was not within a second
    own_before: float  # of that without the page cache: memory.stat's rss or anon
    own_after: float
    worker_before: float
    worker_peak: float
    worker_after: float
    took: float


def import_one(found: Served, member: Member, sheet: Path, job: int) -> Import:
    """Send it, wait for its end, weigh."""
    at_rest(found)
    worker = psutil.Process(found.worker())
    used, own, rss = found.container.used_mb, found.container.own_mb, worker.memory_info().rss / MB
    began, most = time.monotonic(), rss
    member.send(sheet)
    while not member.over(job):
        most = max(most, worker.memory_info().rss / MB)
        time.sleep(LOOK_EVERY)
    ended, back = time.monotonic(), -1.0
    while (since := time.monotonic() - ended) < 1:
        most = max(most, worker.memory_info().rss / MB)
        if back < 0 and found.container.used_mb <= used * 1.05:
            back = since
        time.sleep(LOOK_EVERY)
    return Import(
        used_before=used,
        peak=found.container.peak_mb,
        used_after=found.container.used_mb,
        back_after=back,
        own_before=own,
        own_after=found.container.own_mb,
        worker_before=rss,
        worker_peak=most,
        worker_after=worker.memory_info().rss / MB,
        took=ended - began,
    )

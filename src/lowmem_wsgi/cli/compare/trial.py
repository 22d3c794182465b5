"""One trial: start a server, let it come to rest, load it, let it come to rest again."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from .asked import Asked
from .contenders import BARE, CONTENDERS, Contender
from .crawl import crawl
from .figures import Round
from .load import CLIENTS, Answer, Client, drive
from .server import Server, Watch, served
from .stopping import Background, Stop

# The memory is at rest if it has stayed within STEP bytes for so many seconds: after the first
# answer, and after the requests. What moves for longer than MOST is taken as it is.
STEP = 512 * 1024
REST_START, REST_LOAD, MOST = 1.0, 2.0, 20.0
# Kills by the kernel after which a server that never answered is given up.
GIVEN_UP = 2
# Seconds for a page to answer while the pages are looked for.
CRAWL_PATIENCE = 10.0
# Seconds after which no more pages are looked for.
CRAWL_SECONDS = 60.0
# Bytes of a page that are searched for links.
KEPT = 1_000_000


class Site(NamedTuple):
    """What is served. `limit`: bytes. `timeout`: seconds for the first answer."""

    app: str
    limit: int
    timeout: float
    host: str
    environ: Mapping[str, str]


class NotServed(Exception):
    """A server did not answer. The message is one line; `lines`: what the server logged last."""

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines: tuple[str, ...] = tuple(lines)


def look(site: Site, asked: Asked | None, stop: Stop) -> tuple[Asked, list[Answer]]:
    """Serve the app bare, without a limit, and ask for each page once; find the pages if None.

    Raises NotServed. Later on, the files of all packages are in the page cache, charged to no
    contender: as on a host with more than one container of the same image.
    """
    bare = next(each for each in CONTENDERS if each.name == BARE)
    with served(bare, site.app, site.limit, site.environ, cgroup=False) as server:
        client = Client(server.port, site.host, KEPT)
        _first(client, server, asked.paths[0] if asked else "/", site.timeout, stop)
        answers: list[Answer] = []

        def get(path: str) -> Answer:
            answers.append(client.get(path, CRAWL_PATIENCE))
            return answers[-1]

        def work() -> Asked:
            if asked is None:
                ends = time.monotonic() + CRAWL_SECONDS
                return crawl(get, lambda: time.monotonic() < ends)
            for path in dict.fromkeys(asked.paths):
                get(path)
            return asked

        looking = Background(work)
        while not stop.wait(lambda: looking.done, 60.0):
            pass  # each request ends by itself
        return looking.result(), answers


def attempt(
    contender: Contender,
    site: Site,
    paths: Sequence[str],
    seconds: float,
    *,
    cgroup: bool,
    stop: Stop,
    tell: Callable[[str], object],
) -> Round:
    """Return the figures of one round. A server that does not start is a figure, too."""
    tell("start")
    with (
        served(contender, site.app, site.limit, site.environ, cgroup=cgroup) as server,
        Watch(server) as watch,
    ):
        client = Client(server.port, site.host)
        try:
            first = _first(client, server, paths[0], site.timeout, stop)
        except NotServed as error:
            return Round(failure=str(error), kills=server.kills)
        _rest(watch, server, REST_START, stop)
        initial = watch.last
        tell("requests")
        began = time.monotonic()
        numbers = itertools.count()
        clients = [
            Background(drive, client, paths, numbers, seconds, partial(_runs, server))
            for _ in range(CLIENTS)
        ]
        while not stop.wait(lambda: all(each.done for each in clients), 60.0):
            pass  # each client ends by itself
        answers = [answer for each in clients for answer in each.result()]
        ended = time.monotonic()
        tell("rest")
        _rest(watch, server, REST_LOAD, stop)
        readings = list(watch.readings)
        return Round(
            first=first.began + first.seconds - server.started,
            initial=initial,
            idle=watch.last,
            peak=max((used for _, used in readings), default=None),
            answers=tuple((answer.seconds, answer.failed) for answer in answers),
            seconds=ended - began,
            kills=server.kills,
            died=server.ended,
            readings=tuple((moment - began, used) for moment, used in readings),
        )


def _runs(server: Server) -> bool:
    return not server.ended


def _first(client: Client, server: Server, path: str, timeout: float, stop: Stop) -> Answer:
    """Return the first answer, whatever its status. Raises NotServed."""
    ends = time.monotonic() + timeout

    def ask() -> Answer:
        while not (answer := client.get(path, max(0.1, ends - time.monotonic()))).status:
            if server.ended or time.monotonic() > ends:
                break
            time.sleep(0.1)  # cut off: a worker that ended, or is not there yet
        return answer

    asking = Background(ask)

    def given_up() -> bool:
        return server.ended or server.kills >= GIVEN_UP

    while not stop.wait(lambda: asking.done or given_up(), 60.0):
        pass  # the client ends by itself
    if asking.done and asking.result().status:
        return asking.result()
    raise NotServed(_why(server, timeout), server.last_lines())


def _why(server: Server, timeout: float) -> str:
    code = server.code
    if server.kills:
        return "the kernel kills it as it starts: it needs more memory than the limit"
    if code is None:
        return f"no answer after {timeout:g} s"
    return f"it ends as it starts ({f'signal {-code}' if code < 0 else f'exit status {code}'})"


def _rest(watch: Watch, server: Server, seconds: float, stop: Stop) -> None:
    """Wait until the memory stays as it is. A worker that is loading moves it, too."""
    before, since = watch.last, time.monotonic()

    def at_rest() -> bool:
        nonlocal before, since
        if abs(watch.last - before) > STEP:
            before, since = watch.last, time.monotonic()
        return server.ended or time.monotonic() - since > seconds

    stop.wait(at_rest, MOST)

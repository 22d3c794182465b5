"""What survives in 512 MB: Gunicorn with our config, next to plain Gunicorn.

Each scenario starts its servers in a memory cgroup of 512 MB without swap (so: on Linux, as a user
who may make one): one gthread worker of three threads, with our config and the environment of
`lowmem-wsgi run`, and the same of Gunicorn as it comes. Clients do not try again: what is not a
whole answer is a failure.

    runaways      40 requests that allocate without end, beside 1,000 small ones
    leak          2 MB more kept per request: 6 GB in all
    max_requests  a new worker every three requests (LOWMEM_PRESET=ultra; --max-requests 3)
    spikes        20 requests of 150 MB, one after another; then three at once
    signals       kill -9 of the worker, SIGTERM and HUP of the master, under load
    oom           what the log says of an OOM kill, the ceiling being off, and of a timeout

    python benchmarks/survival.py --check
    python benchmarks/survival.py --scenario leak --only ours
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

from _common import MB, Target, bare_parser, percentile, print_table, report, scratch, shuffled
from _container import OURS, PAGE, PLAIN, Served, served
from _load import Answer, Caller, Request, crowd, failures

Figures = dict[str, float | str]
Rows = Iterator[tuple[str, Figures]]


def general(found: Served) -> Figures:
    """What every scenario tells of its server."""
    return {
        "OOM kills": found.container.kills,
        "deaths": found.deaths,
        "peak MB": found.container.peak_mb,
    }


def latencies(answers: Sequence[Answer]) -> Figures:
    times = [1000 * answer.seconds for answer in answers]
    return {
        "p50 ms": median(times),
        "p99 ms": percentile(times, 0.99),
        "slowest ms": max(times),
    }


def counted(answers: Sequence[Answer]) -> Figures:
    wrong = [answer for answer in answers if not answer.ok]
    return {"requests": len(answers), "failed": len(wrong), "failures": failures(wrong)}


def named(log: Callable[[], str], pattern: str, seconds: float = 10) -> bool:
    """Whether a line of the log says so, in good time."""
    end = time.monotonic() + seconds
    while not (found := re.search(pattern, log())) and time.monotonic() < end:
        time.sleep(0.05)
    return found is not None


# --- runaways

KINDS = ("bytearrays", "array", "frame", "dicts", "text")
MOUNTS = ("flask", "propagating", "plain")
RUNAWAYS = {OURS: 40, PLAIN: 6}  # each takes plain Gunicorn's worker with it
BESIDE = 1000


def runaways(side: str, directory: Path) -> Rows:
    paths = [f"/{mount}/{kind}" for mount in MOUNTS for kind in KINDS]
    mixed = [path for turn in range(3) for path in shuffled(paths, turn)][: RUNAWAYS[side]]
    with served(side, "runaways:app", directory) as found:
        with crowd(found.port, 3, "/", pause=0.005) as others:
            caller = Caller(found.port, timeout=15)
            answers = [caller.ask(path) for path in mixed]
            while len(others.answers) < BESIDE:
                time.sleep(0.01)
        refused = [answer for answer in answers if answer.status in (500, 503)]
        yield (
            "",
            {
                "runaways": len(answers),
                "503": sum(answer.status == 503 for answer in answers),
                "500": sum(answer.status == 500 for answer in answers),
                "unanswered": len(answers) - len(refused),
                "slowest s": max(answer.seconds for answer in answers),
                "others": len(others.answers),
                "others failed": sum(not answer.ok for answer in others.answers),
                "others' slowest s": max(answer.seconds for answer in others.answers),
                **general(found),
                "failures": failures(others.answers),
            },
        )
    for kind in KINDS:
        of_kind = [answer for answer in answers if answer.path.endswith(kind)]
        if of_kind:
            yield (
                kind,
                {
                    "runaways": len(of_kind),
                    "503": sum(answer.status == 503 for answer in of_kind),
                    "500": sum(answer.status == 500 for answer in of_kind),
                    "unanswered": sum(answer.status not in (500, 503) for answer in of_kind),
                    "slowest s": max(answer.seconds for answer in of_kind),
                    "failures": failures(of_kind, but=(500, 503)),
                },
            )


# --- leak

LEAKS = 3000
STREAMED = hashlib.sha256(b"".join(b"%0999d\n" % number for number in range(80))).digest()
# Long enough for some streams, each across several workers.
LEAK_PAUSE = 0.03


def leak(side: str, directory: Path) -> Rows:
    yield "connection per request", leaking(side, directory)
    yield "two workers", leaking(side, directory, workers=2)
    yield "keep-alive", leaking(side, directory, keep_alive=True)
    yield "beside a stream", leaking(side, directory, streams=True)


def leaking(
    side: str,
    directory: Path,
    *,
    workers: int = 1,
    keep_alive: bool = False,
    streams: bool = False,
) -> Figures:
    with served(side, "greedy:app", directory, workers=workers) as found:
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            streaming = stack.enter_context(crowd(found.port, 1, "/stream")) if streams else None
            pause = LEAK_PAUSE if streams else 0
            leaks = stack.enter_context(
                crowd(found.port, 4, "/leak", most=LEAKS, keep_alive=keep_alive, pause=pause)
            )
            leaks.join()
            seconds = time.monotonic() - began
        answers = streaming.answers if streaming else []
        cut = sum(hashlib.sha256(answer.body).digest() != STREAMED for answer in answers)
        return {
            **counted(leaks.answers),
            **latencies(leaks.answers),
            "req/s": len(leaks.answers) / seconds,
            "streams": len(answers),
            "cut": cut,
            "workers": found.boots,
            **general(found),
            "RSS sum": found.container.peak_rss_mb,
        }


# --- max_requests

RENEWED = {OURS: 2000, PLAIN: 60}  # plain Gunicorn does not get far


def max_requests(side: str, directory: Path) -> Rows:
    options = ("--max-requests", "3") if side == PLAIN else ()
    env = {"BENCH_DATABASE": str(directory / "clients.db"), "LOWMEM_PRESET": "ultra"}
    with served(side, "clients:app", directory, options=options, env=env) as found:
        began = time.monotonic()
        with crowd(found.port, 4, "/", most=RENEWED[side]) as asking:
            asking.join()
        yield (
            "",
            {
                **counted(asking.answers),
                **latencies(asking.answers),
                "req/s": len(asking.answers) / (time.monotonic() - began),
                "workers": found.boots,
                **general(found),
            },
        )


# --- spikes

SPIKES = 20
SPIKE_MB = 150
ROUNDS_AT_ONCE = 3
GIVE_UP = 2.0  # s


def spikes(side: str, directory: Path) -> Rows:
    with served(side, "greedy:app", directory) as found:
        caller = Caller(found.port)
        for _ in range(20):
            caller.ask("/")
        time.sleep(1)
        before = rss(found)
        answers, waits, left = [], [], []
        for _ in range(SPIKES):
            answers.append(caller.ask(f"/spike?mb={SPIKE_MB}"))
            waits.append(seconds_until(lambda: rss(found) <= 1.05 * before))
            time.sleep(max(0.0, 1 - waits[-1]))
            left.append(rss(found))
        yield (
            "one after another",
            {
                **counted(answers),
                "RSS before MB": before / MB,
                "worst 1 s after MB": max(left) / MB,
                "grown %": 100 * (max(left) / before - 1),
                "back after s": max(waits),
                **general(found),
            },
        )
    with served(side, "greedy:app", directory) as found:
        answers = []
        for _ in range(ROUNDS_AT_ONCE):
            # Held for long enough to be there together.
            with crowd(found.port, 3, f"/spike?mb={SPIKE_MB}&hold=1", most=3) as asking:
                asking.join()
            answers += asking.answers
        yield (
            "three at once",
            {
                "requests": len(answers),
                "200": sum(answer.ok for answer in answers),
                "503": sum(answer.status == 503 for answer in answers),
                "unanswered": sum(answer.status not in (200, 503) for answer in answers),
                **general(found),
                "failures": failures(answers),
            },
        )


def rss(found: Served) -> int:
    """Of the youngest worker."""
    while True:
        with contextlib.suppress(OSError, IndexError):  # it was just replaced
            return int(Path(f"/proc/{found.worker()}/statm").read_text().split()[1]) * PAGE


def seconds_until(condition: Callable[[], bool]) -> float:
    """GIVE_UP, where it takes longer."""
    began = time.monotonic()
    while not condition() and time.monotonic() - began < GIVE_UP:
        time.sleep(0.02)
    return min(GIVE_UP, time.monotonic() - began)


# --- signals

TERMS = 5
HUPS = 3


def signals(side: str, directory: Path) -> Rows:
    yield "kill -9 of the worker", killed(side, directory)
    for keep_alive in (False, True):
        kind = "keep-alive" if keep_alive else "connection per request"
        yield f"TERM, {kind}", terminated(side, directory, keep_alive=keep_alive)
        yield f"HUP, {kind}", hung_up(side, directory, keep_alive=keep_alive)


def some_slow(number: int) -> Request:
    return ("/" if number % 4 else f"/slow/{number}?seconds=0.3"), None


def killed(side: str, directory: Path) -> Figures:
    with served(side, "greedy:app", directory) as found:
        with crowd(found.port, 4, "/") as asking:
            slow = threading.Thread(
                target=Caller(found.port).ask, args=("/slow/in-flight?seconds=20",), daemon=True
            )
            slow.start()
            time.sleep(1)
            before = len(found.server.log)
            os.kill(found.worker(), signal.SIGKILL)
            told = named(lambda: found.server.log[before:], "/slow/in-flight")
            time.sleep(1)
        return {**counted(asking.answers), **general(found), "named in log": int(told)}


def terminated(side: str, directory: Path, *, keep_alive: bool) -> Figures:
    """Failed are requests that were all sent before the signal: after it, there is no server."""
    sent: list[Answer] = []
    for _ in range(TERMS):
        with (
            served(side, "greedy:app", directory) as found,
            crowd(found.port, 4, some_slow, keep_alive=keep_alive) as asking,
        ):
            time.sleep(1)
            moment = time.monotonic()
            found.server.process.send_signal(signal.SIGTERM)
            found.server.process.wait(60)
            asking.stop()
            asking.join()
            sent += [
                answer
                for answer in asking.answers
                if answer.sent is not None and answer.sent < moment
            ]
    return counted(sent)


def hung_up(side: str, directory: Path, *, keep_alive: bool) -> Figures:
    with served(side, "greedy:app", directory) as found:
        with crowd(found.port, 4, some_slow, keep_alive=keep_alive) as asking:
            for _ in range(HUPS):
                time.sleep(1)
                found.server.process.send_signal(signal.SIGHUP)
            time.sleep(2)
        return {**counted(asking.answers), "workers": found.boots, **general(found)}


# --- oom

# The log must have noticed so much of the 450 MB or so by which a runaway grows.
SEEN_MB = 100


def oom(side: str, directory: Path) -> Rows:
    off = {"LOWMEM_CEILING": "off", "LOWMEM_RECYCLE": "off"}
    with served(side, "greedy:app", directory, env=off) as found:
        Caller(found.port).ask("/runaway")
        told = named(lambda: found.server.log, "(?=.*/runaway).*OOM kill")
        grown = re.search(r"/runaway.*?grew ([\d.]+) MB", found.server.log)
        yield (
            "a runaway",
            {
                "named in log": int(told),
                "growth seen MB": float(grown[1]) if grown else 0.0,
                **general(found),
                "log": said(found),
            },
        )
    options = ("--timeout", "3") if side == PLAIN else ()
    env = {"WORKER_TIMEOUT": "3"}
    with served(side, "greedy:app", directory, kind="sync", options=options, env=env) as found:
        Caller(found.port).ask("/slow/hanging?seconds=30")
        told = named(lambda: found.server.log, "(?i)(?=.*/slow/hanging).*timeout")
        yield "a timeout", {"named in log": int(told), **general(found), "log": said(found)}


def said(found: Served) -> str:
    """The first line of the log about a worker's end; ours, where there is one."""
    lines = [line for line in found.server.log.splitlines() if re.search(r"(?i)worker.*\d", line)]
    ends = [line for line in lines if re.search(r"died|was sent|exited|TIMEOUT", line)]
    ours = [line for line in ends if "died" in line]
    return (ours or ends or ["-"])[0]


# --- All of them

Bound = float | tuple[str, float]  # at most; or (">=", at least)
NO_DEATHS: dict[str, Bound] = {"OOM kills": 0, "deaths": 0}
SCENARIOS: dict[str, tuple[Callable[[str, Path], Rows], dict[str, dict[str, Bound]]]] = {
    # By row of the table; "*" is any.
    "runaways": (
        runaways,
        {
            "": {
                **NO_DEATHS,
                "unanswered": 0,
                "slowest s": 5,
                "others failed": 0,
                "others' slowest s": 3,
            }
        },
    ),
    "leak": (leak, {"*": {**NO_DEATHS, "failed": 0, "cut": 0, "peak MB": 480, "p99 ms": 250}}),
    "max_requests": (max_requests, {"*": {**NO_DEATHS, "failed": 0, "req/s": (">=", 30)}}),
    "spikes": (
        spikes,
        {
            "one after another": {**NO_DEATHS, "failed": 0, "back after s": 1},
            "three at once": {"OOM kills": 0, "unanswered": 0},
        },
    ),
    "signals": (
        signals,
        {
            "kill -9 of the worker": {"named in log": (">=", 1)},
            "TERM, connection per request": {"failed": 0},
            "HUP, connection per request": {"failed": 0},
            "TERM, keep-alive": {"failed": 0},
            "HUP, keep-alive": {"failed": 0},
        },
    ),
    "oom": (
        oom,
        {
            "a runaway": {"named in log": (">=", 1), "growth seen MB": (">=", SEEN_MB)},
            "a timeout": {"named in log": (">=", 1)},
        },
    ),
}


def targets(scenario: str, row: str, figures: Figures) -> list[Target]:
    bounds = SCENARIOS[scenario][1]
    found = []
    for key, bound in bounds.get(row, bounds.get("*", {})).items():
        least = isinstance(bound, tuple)
        name = ", ".join(part for part in (scenario, row, key) if part)
        figure = float(figures[key])
        found.append(
            Target(name, figure, bound[1] if isinstance(bound, tuple) else bound, at_least=least)
        )
    return found


def main() -> int:
    options = bare_parser(__doc__)
    options.add_argument("--scenario", action="append", choices=SCENARIOS, help="repeatable")
    options.add_argument("--only", choices=(OURS, PLAIN))
    options.add_argument("--logs", type=Path, metavar="DIR", help="keep the servers' logs there")
    given = options.parse_args()
    figures: dict[str, dict[str, dict[str, Figures]]] = {}
    checked: list[Target] = []
    for scenario in given.scenario or SCENARIOS:
        run = SCENARIOS[scenario][0]
        figures[scenario] = {}
        began = time.monotonic()
        for side in [given.only] if given.only else [OURS, PLAIN]:
            with scratch() as temporary:
                directory = temporary
                if given.logs:
                    directory = given.logs.resolve() / f"{scenario}-{side}"
                    directory.mkdir(parents=True, exist_ok=True)
                figures[scenario][side] = dict(run(side, directory))
        show(scenario, figures[scenario], time.monotonic() - began)
        for row, found in figures[scenario].get(OURS, {}).items():
            checked += targets(scenario, row, found)
    return report(given, figures, checked)


def show(scenario: str, sides: dict[str, dict[str, Figures]], seconds: float) -> None:
    """One table: a column for each figure that any row has; rows of a kind side by side."""
    every = {side: rows for side, rows in sides.items() if rows}
    names = list(dict.fromkeys(itertools.chain.from_iterable(every.values())))
    head = list(
        dict.fromkeys(key for rows in every.values() for row in rows.values() for key in row)
    )
    for text in ("failures", "log"):  # as wide as they like, at the end
        if text in head:
            head.remove(text)
            head.append(text)
    print(f"{scenario} ({seconds:.0f} s)\n", flush=True)
    print_table(
        ["", *head],
        [
            [f"{side}: {name}" if name else side, *(rows[name].get(key, "") for key in head)]
            for name in names
            for side, rows in every.items()
            if name in rows
        ],
    )
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())

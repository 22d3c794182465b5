"""The edge of memory, with all that a user varies varied: every answer arrives.

Each site is a Gunicorn in a memory cgroup of 512 MB without swap, and with a share of one processor
(so: on Linux, as a user who may make cgroups). Clients do not try again. One line a site; the last
lines say which promises were kept by the worst of them.

    runaways   ten kinds of requests that grow without end, two clients beside them
    first_use  numpy, pandas, matplotlib loaded by a request at 360 to 450 MB, beside a stream
    leak       2 MB more kept by each of 3,000 requests, four clients; plain Gunicorn after it
    half_full  a worker that holds 330 MB is asked for 150 MB more
    held       a worker that keeps 200 MB after a MemoryError

    python benchmarks/sweep.py --check
    python benchmarks/sweep.py --scenario runaways --cpu 0.1 --entry run --workers 1 --rounds 2
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _common import (
    APPS,
    Server,
    Target,
    bare_parser,
    percentile,
    positive,
    print_table,
    report,
    scratch,
)
from _container import Container, container
from _load import Caller, crowd, failures
from _runaways import KINDS, ask

from helpers.cgroup import cpu_cgroup
from helpers.servers import SLOWER, serve, wait_for

CONFIG = "python:lowmem_wsgi.gunicorn"
ENTRIES = ("-c", "run", "line")
PLAIN = "plain"  # Gunicorn alone, to compare with
SERVERS = ("gthread", "sync", "gevent")


@dataclass(frozen=True)
class Site:
    """What a user varies."""

    entry: str = "-c"
    workers: str = "1"  # "fit": as many as fit
    cpu: float = 1.0
    kind: str = "gthread"
    blas: str = ""  # OPENBLAS_NUM_THREADS; nothing: not set

    def __str__(self) -> str:
        blas = f", {self.blas} BLAS threads" if self.blas else ""
        return f"{self.entry}, {self.kind}, {self.workers} workers, {self.cpu:g} CPU{blas}"

    @property
    def patience(self) -> float:
        """Seconds that a runaway may take."""
        return 20.0 if self.cpu <= 0.1 else 5.0

    @property
    def beside(self) -> float:
        """Seconds that anybody else may take."""
        return 3.0 if self.cpu >= 1 else 8.0 if self.cpu >= 0.25 else 20.0


@dataclass(frozen=True)
class Running:
    server: Server
    container: Container

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def log(self) -> str:
        return self.server.log


@contextlib.contextmanager
def running(site: Site, directory: Path, **env: str) -> Iterator[Running]:
    """The site, answering already."""
    for name in [name for name in os.environ if name.startswith(("OPENBLAS_NUM", "MALLOC_"))]:
        del os.environ[name]
    environ: dict[str, Any] = {"XDG_RUNTIME_DIR": str(directory), "LOWMEM_MAX_UPLOAD": "4GB", **env}
    if site.workers != "fit":
        environ["WEB_CONCURRENCY"] = site.workers
    if site.blas:
        environ["OPENBLAS_NUM_THREADS"] = site.blas
    how: dict[str, Any] = {"config": CONFIG, "server": "gthread"}
    if site.entry == "run":
        how = {"server": "run"}
    elif site.entry in ("line", PLAIN):
        how = {"server": site.kind, "workers": int(site.workers)}
    options = []
    if site.entry not in ("line", PLAIN) and site.kind != "gthread":
        options = ["-k", site.kind, "--threads", "1"]
    app = "edge_wrapped:app" if site.entry == "line" else "edge:app"
    with (
        container() as limited,
        cpu_cgroup(limited.group, site.cpu) as groups,
        serve(
            app, tmp_path=directory, cwd=APPS, cgroup=groups, options=options, **how, **environ
        ) as server,
    ):
        caller = Caller(server.port)
        wait_for(lambda: caller.ask("/").ok, lambda: f"an answer: {server.log}", 60)
        yield Running(server, limited)


Figures = dict[str, Any]


def ends(found: Running) -> Figures:
    """What went wrong on the server's side."""
    died = re.findall(
        r"Worker \(pid:\s*\d+\) (?:was sent SIG(?!TERM)\w+|exited with code [1-9]\d*)", found.log
    )
    return {
        "kills": found.container.kills,
        "deaths": len(died) + (found.server.process.poll() is not None),
        "threads lost": len(re.findall(r"Exception in thread", found.log)),
        "recycled": found.log.count("recycled at"),
        "peak MB": found.container.peak_mb,
    }


# --- runaways


def runaways(site: Site, directory: Path, given: argparse.Namespace) -> Figures:
    with running(site, directory, SWEEP_PANDAS="yes") as found:
        wrong: Counter[str] = Counter()
        times: list[float] = []
        with crowd(found.port, 2, "/", pause=0.02 if site.cpu >= 1 else 0.1) as others:
            for _turn, kind in itertools.product(range(given.rounds), given.kind or KINDS):
                for answer in ask(found.port, kind, 3 * site.patience * SLOWER):
                    times.append(answer.seconds)
                    late = " late" if answer.seconds > site.patience else ""
                    if answer.status != 503 or late:
                        wrong[f"{kind} {answer.error or answer.status}{late}"] += 1
                        note(
                            found, f"{kind}: {answer.status} {answer.error} {answer.seconds:.2f} s"
                        )
        slow = [a.seconds for a in others.answers]
        return {
            "asked": len(times),
            "not 503": sum(wrong.values()),
            "slowest s": max(times),
            "others": len(others.answers),
            "others lost": sum(not answer.ok for answer in others.answers),
            "others' slowest s": max(slow),
            **ends(found),
            "wrong": ", ".join(f"{count} {what}" for what, count in wrong.items()) or "-",
            "failures": failures(others.answers),
        }


def note(found: Running, text: str) -> None:
    """Leave a mark in the server's log, to find the place later."""
    with found.server.log_path.open("a") as log:
        log.write(f"--- {text}\n")


# --- first use

PACKAGES = ("numpy", "pandas", "matplotlib")
FILLED = (360, 390, 410, 430, 450)


def first_use(site: Site, directory: Path, given: argparse.Namespace) -> Figures:
    """Each package at each filling has a site of its own: nothing is loaded yet."""
    wrong: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    sums: Counter[str] = Counter()
    peak, tries = 0.0, 0
    for package, filled in itertools.product(PACKAGES, FILLED):
        # The leak fills what the test is about; a fresh worker would empty it.
        with running(site, directory, LOWMEM_RECYCLE="off") as found:
            tries += 1
            before = Caller(found.port).ask("/pid").body
            for _ in range(20):
                missing = int(filled - found.container.used_mb)
                if missing <= 0:
                    break
                Caller(found.port).ask(f"/leak?mb={missing}")
                time.sleep(0.1)
            pool = concurrent.futures.ThreadPoolExecutor(1)
            stream = pool.submit(Caller(found.port).ask, "/stream?seconds=4")
            time.sleep(0.5)
            answers = [Caller(found.port, timeout=60).ask(f"/first/{package}") for _ in range(2)]
            streamed = stream.result()
            after = Caller(found.port).ask("/pid").body
            statuses.update(answer.status for answer in answers)
            for answer in answers:
                if answer.status not in (200, 503):
                    wrong[f"{package} at {filled}: {answer.error or answer.status}"] += 1
            if len(streamed.body) != 40_000:
                wrong[f"{package} at {filled}: stream cut"] += 1
            if before != after:
                wrong[f"{package} at {filled}: another worker"] += 1
            ended = ends(found)
            sums.update({key: ended[key] for key in ("kills", "deaths", "threads lost")})
            peak = max(peak, ended["peak MB"])
    return {
        "tries": tries,
        "200": statuses[200],
        "503": statuses[503],
        "wrong": sum(wrong.values()),
        **{key: sums[key] for key in ("kills", "deaths", "threads lost")},
        "peak MB": peak,
        "what": ", ".join(f"{count} {what}" for what, count in wrong.items()) or "-",
    }


# --- leak


def leak(site: Site, directory: Path, given: argparse.Namespace) -> Figures:
    with running(site, directory) as found:
        figures = {**leaked(found, given.leaks), **ends(found)}
    with running(replace(site, entry=PLAIN), directory) as found:
        plain = leaked(found, given.leaks)
    return {**figures, "plain lost": plain["lost"], "plain p99 ms": plain["p99 ms"]}


def leaked(found: Running, count: int) -> Figures:
    began = time.monotonic()
    with crowd(found.port, 4, "/leak", most=count) as leaks:
        leaks.join()
    seconds = time.monotonic() - began
    times = [1000 * answer.seconds for answer in leaks.answers]
    return {
        "asked": len(times),
        "lost": sum(not answer.ok for answer in leaks.answers),
        "p50 ms": percentile(times, 0.5),
        "p99 ms": percentile(times, 0.99),
        "slowest ms": max(times),
        "req/s": len(times) / seconds,
        "failures": failures(leaks.answers),
    }


# --- half full, and held


def half_full(site: Site, directory: Path, given: argparse.Namespace) -> Figures:
    """Until 150 MB are had again; two clients beside."""
    with running(site, directory) as found:
        worst, refused = 0.0, 0
        with crowd(found.port, 2, "/", pause=0.05) as others:
            for _ in range(given.rounds):
                Caller(found.port).ask("/leak?mb=330")
                began = time.monotonic()
                while not (answer := Caller(found.port).ask("/spike?mb=150")).ok:
                    refused += 1
                    if time.monotonic() - began > 30:
                        break
                    time.sleep(0.1)
                worst = max(worst, time.monotonic() - began)
                del answer
        return {
            "rounds": given.rounds,
            "503": refused,
            "again after s": worst,
            "others": len(others.answers),
            "others lost": sum(not answer.ok for answer in others.answers),
            **ends(found),
            "failures": failures(others.answers),
        }


def held(site: Site, directory: Path, given: argparse.Namespace) -> Figures:
    """Until the container is down again."""
    with running(site, directory) as found:
        worst, statuses = 0.0, Counter[int]()
        time.sleep(1)
        before = found.container.used_mb
        with crowd(found.port, 2, "/", pause=0.05) as others:
            for _ in range(given.rounds):
                statuses[Caller(found.port).ask("/hold?mb=200").status] += 1
                began = time.monotonic()
                while found.container.used_mb > before + 100 and time.monotonic() - began < 60:
                    time.sleep(0.1)
                worst = max(worst, time.monotonic() - began)
        return {
            "rounds": given.rounds,
            "not 503": given.rounds - statuses[503],
            "gone after s": worst,
            "others": len(others.answers),
            "others lost": sum(not answer.ok for answer in others.answers),
            **ends(found),
            "failures": failures(others.answers),
        }


# --- All of them

Scenario = Callable[[Site, Path, argparse.Namespace], Figures]


def every(workers: Sequence[str], cpus: Sequence[float], **more: Any) -> list[Site]:
    return [
        Site(entry, number, cpu, **more)
        for entry, number, cpu in itertools.product(("-c", "run"), workers, cpus)
    ]


def runaway_sites() -> list[Site]:
    others = [Site("-c", "1", 1.0, "sync"), Site("-c", "1", 1.0, "gevent")]
    others += [Site("run", "1", 1.0, "sync"), Site("run", "1", 1.0, "gevent")]
    return every(("1", "fit"), (1.0, 0.25, 0.1)) + others


def leak_sites() -> list[Site]:
    found = itertools.product(("1", "2", "3"), (1.0, 0.5, 0.25, 0.1))
    return [Site("-c", number, cpu) for number, cpu in found]


SCENARIOS: dict[str, tuple[Scenario, Callable[[], list[Site]]]] = {
    "runaways": (runaways, runaway_sites),
    "first_use": (
        first_use,
        lambda: [
            Site(entry, "1", 1.0, blas=blas) for entry in ("-c", "run") for blas in ("1", "2", "16")
        ],
    ),
    "leak": (leak, leak_sites),
    "half_full": (half_full, lambda: every(("1", "2"), (1.0, 0.25))),
    "held": (held, lambda: every(("1", "2"), (1.0, 0.25))),
}


def targets(scenario: str, site: Site, figures: Figures) -> Iterator[Target]:
    of_scenario: dict[str, dict[str, float]] = {
        "runaways": {
            **{"not 503": 0, "others lost": 0, "slowest s": site.patience},
            "others' slowest s": site.beside,
        },
        "first_use": {"wrong": 0},
        "leak": {"lost": 0},
        "half_full": {"others lost": 0, "again after s": 5},
        "held": {"others lost": 0, "gone after s": 30},
    }
    always: dict[str, float] = {"kills": 0, "deaths": 0, "threads lost": 0}
    for key, bound in {**always, **of_scenario[scenario]}.items():
        yield Target(f"{scenario}, {site}: {key}", float(figures[key]), bound)


def chosen(given: argparse.Namespace, scenario: str) -> list[Site]:
    sites = SCENARIOS[scenario][1]()
    for attribute in ("entry", "workers", "cpu", "kind_of_server", "blas"):
        wanted = getattr(given, attribute)
        if wanted:
            name = "kind" if attribute == "kind_of_server" else attribute
            kept = [site for site in sites if str(getattr(site, name)) in map(str, wanted)]
            sites = kept
    return sites


def one(job: tuple[str, Site, argparse.Namespace, Path | None]) -> Figures:
    """Return the figures of one site. On Ctrl-C, end this process: it must not begin another."""
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        return measured(*job)
    finally:
        if interrupted:  # whatever else was raised while the site was taken down
            os._exit(130)


def measured(scenario: str, site: Site, given: argparse.Namespace, logs: Path | None) -> Figures:
    with scratch() as temporary:
        directory = temporary
        if logs is not None:
            name = re.sub(r"[^\w.]+", "-", f"{scenario}-{site}").strip("-")
            directory = logs.resolve() / name
            directory.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        found = SCENARIOS[scenario][0](site, directory, given)
        return {**found, "took s": time.monotonic() - began}


def main() -> int:
    options = bare_parser(__doc__)
    options.add_argument("--scenario", action="append", choices=SCENARIOS, help="repeatable")
    options.add_argument("--rounds", type=positive, default=10, help="default 10")
    options.add_argument("--leaks", type=positive, default=3000, help="default 3000")
    options.add_argument("--repeat", type=positive, default=1, help="each site so often, default 1")
    options.add_argument("--jobs", type=positive, default=1, help="sites at a time, default 1")
    options.add_argument("--logs", type=Path, metavar="DIR", help="keep the servers' logs there")
    options.add_argument("--kind", action="append", choices=KINDS, help="of runaway; repeatable")
    options.add_argument(
        "--entry", action="append", choices=ENTRIES, help="repeatable; write --entry=-c"
    )
    options.add_argument("--workers", action="append", help="repeatable")
    options.add_argument("--cpu", action="append", type=float, help="repeatable")
    options.add_argument("--server", action="append", choices=SERVERS, dest="kind_of_server")
    options.add_argument("--blas", action="append", help="OPENBLAS_NUM_THREADS; repeatable")
    given = options.parse_args()
    try:
        return sweep(given)
    except KeyboardInterrupt:  # the sites have got it too, and are taken down
        return 130


def sweep(given: argparse.Namespace) -> int:
    figures: dict[str, list[tuple[str, Figures]]] = {}
    checked: list[Target] = []
    context = multiprocessing.get_context("fork")
    for scenario in given.scenario or SCENARIOS:
        sites = [site for site in chosen(given, scenario) for _ in range(given.repeat)]
        jobs = [(scenario, site, given, given.logs) for site in sites]
        rows: list[tuple[str, Figures]] = []
        with concurrent.futures.ProcessPoolExecutor(given.jobs, mp_context=context) as pool:
            for site, found in zip(sites, pool.map(one, jobs), strict=True):
                rows.append((str(site), found))
                checked += targets(scenario, site, found)
                shown = ", ".join(
                    f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()
                )
                print(f"{scenario}: {site}: {shown}", flush=True)
        figures[scenario] = rows
        head = list(dict.fromkeys(key for _, row in rows for key in row))
        print()
        print_table([scenario, *head], [[n, *(row.get(k, "") for k in head)] for n, row in rows])
        print(flush=True)
    missed = [target for target in checked if not target.met]
    print(f"{len(checked) - len(missed)} of {len(checked)} promises kept\n")
    return report(given, dict(figures), missed)


if __name__ == "__main__":
    sys.exit(main())

"""What a request costs under Gunicorn: bare, wrapped, and by the source document's letter.

One app (Flask, SQLAlchemy, pandas; more than 100,000 objects in its heap) behind five Gunicorns
of one gthread worker with three threads, loaded in turn, round by round, over keep-alive
connections that send the next request as soon as they have the answer. All servers are started
afresh several times, as two processes of the same program differ by some per cent.

Figures are medians over the rounds, ratios medians of the rounds' ratios; "pooled p99" is of all
rounds' requests together. "bare again" is the bare app once more: its distance from 1.00 is what
noise does. Three connections keep the worker busy all the time; --connections 1 shows a request
on its own.

    python benchmarks/request_cost.py --check
"""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import median

import psutil
from _common import (
    MB,
    Client,
    Server,
    Target,
    gunicorn,
    median_ratio,
    parser,
    percentile,
    positive,
    print_table,
    report,
    scratch,
    shuffled,
    worker,
)

WARM_UP = 600  # requests
BARE, AGAIN, LETTER = "bare", "bare again", "source document"
ONE_LINE, CONFIG = "wrapped: one line", "wrapped: config"
# Name: what Gunicorn serves, and the config it serves it with.
SERVED: dict[str, tuple[str, str | None]] = {
    BARE: ("clients:app", None),
    AGAIN: ("clients:app", None),
    ONE_LINE: ("one_line:app", None),
    CONFIG: ("clients:app", "python:lowmem_wsgi.gunicorn"),
    LETTER: ("letter:app", "letter_gunicorn.py"),
}
PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}

Figures = dict[str, float]


class Variant:
    """One way to serve the app, and what each round of load on it showed."""

    def __init__(self, name: str, connections: int) -> None:
        self.name = name
        self._connections = connections
        self.rounds: list[list[float]] = []  # milliseconds of each request
        self.per_second: list[float] = []
        self.rss: list[float] = []
        self.pss: list[float] = []
        self.cpu_seconds = 0.0
        self.dropped = 0

    @contextlib.contextmanager
    def served(self, directory: Path) -> Iterator[Variant]:
        """With a new server, warm."""
        app, config = SERVED[self.name]
        with serve_clients(app, directory, config) as self.server:
            if self.name != LETTER:  # which is new again after three requests
                self.load(WARM_UP)
            yield self

    def load(self, requests: int) -> list[list[float]]:
        """So many requests, spread over the connections; see `drive` for what it gives."""
        share = -(-requests // self._connections)
        with contextlib.ExitStack() as stack:
            clients = [
                stack.enter_context(Client(self.server.port)) for _ in range(self._connections)
            ]
            for client in clients:
                client.get("/")
            with ThreadPoolExecutor(self._connections) as pool:
                spells = list(pool.map(lambda client: drive(client, share), clients))
        self.dropped += sum(client.dropped for client in clients)
        return spells

    def measure(self, requests: int) -> None:
        """One round."""
        began = self._cpu()
        spells = self.load(requests)
        self.cpu_seconds += self._cpu() - began
        seconds = max(spell[-1] for spell in spells) - min(spell[0] for spell in spells)
        self.rounds.append([1000 * (b - a) for spell in spells for a, b in pairwise(spell)])
        self.per_second.append(len(self.rounds[-1]) / seconds)
        # A worker being replaced would disturb the next variant's round: wait for the new one.
        with Client(self.server.port) as client:
            client.get("/")
        self._weigh()
        gc.collect()  # not while we measure: see main

    def _cpu(self) -> float:
        """Seconds of processor time of the master, its worker and its former workers."""
        master = psutil.Process(self.server.process.pid).cpu_times()
        return sum(master[:4]) + sum(worker(self.server).cpu_times()[:2])

    def _weigh(self) -> None:
        found = worker(self.server)
        self.rss.append(found.memory_info().rss / MB)
        both = (psutil.Process(self.server.process.pid), found)
        self.pss.append(sum(process.memory_full_info().pss for process in both) / MB)

    def percentiles(self, share: float) -> list[float]:
        """Round by round, in milliseconds."""
        return [percentile(times, share) for times in self.rounds]

    def figures(self) -> Figures:
        pooled = [time for times in self.rounds for time in times]
        return {
            **{key: median(self.percentiles(share)) for key, share in PERCENTILES.items()},
            "pooled p99": percentile(pooled, 0.99),
            "req/s": median(self.per_second),
            "CPU ms": 1000 * self.cpu_seconds / len(pooled),
            "RSS": median(self.rss),
            "PSS+master": median(self.pss),
            "requests": len(pooled),
            "dropped": self.dropped,
        }

    def ratios(self, bare: Variant, letter: Variant) -> Figures:
        mine, theirs = self.figures(), bare.figures()
        return {
            **{
                f"{key}/bare": median_ratio(self.percentiles(share), bare.percentiles(share))
                for key, share in PERCENTILES.items()
            },
            "pooled p99/bare": mine["pooled p99"] / theirs["pooled p99"],
            "req/s/bare": median_ratio(self.per_second, bare.per_second),
            "CPU/bare": mine["CPU ms"] / theirs["CPU ms"],
            "req/s/letter": median_ratio(self.per_second, letter.per_second),
        }


def drive(client: Client, requests: int) -> list[float]:
    """So many requests, one after the other: when the first began, and when each had ended."""
    moments = [time.perf_counter()]
    for _ in range(requests):
        client.get("/")
        moments.append(time.perf_counter())
    return moments


def serve_clients(
    app: str, directory: Path, config: str | None = None
) -> contextlib.AbstractContextManager[Server]:
    return gunicorn(
        app,
        directory,
        config,
        BENCH_DATABASE=str(directory / "clients.db"),
        BENCH_APP="clients:app",
        PYTHONHASHSEED="0",  # all dictionaries collide alike
    )


def main() -> int:
    options = parser(__doc__, rounds=24, requests=600)
    options.add_argument("--restarts", type=positive, default=6, help="new servers; default 6")
    options.add_argument("--connections", type=positive, default=3, help="default 3")
    options.add_argument(
        "--letter-requests",
        type=positive,
        default=6,
        help="--requests of the source document; default 6",
    )
    given = options.parse_args()
    gc.disable()  # a pause of the client is none of the server
    found = {name: Variant(name, given.connections) for name in SERVED}
    with scratch() as directory:
        # Fills the database, which none of those that are measured should have to.
        with serve_clients("clients:app", directory) as server, Client(server.port) as client:
            objects = int(client.get("/heap").text)
        for restart in range(given.restarts):
            with contextlib.ExitStack() as stack:
                for name in shuffled(found, restart):
                    stack.enter_context(found[name].served(directory))
                for turn in range(restart, given.rounds, given.restarts):
                    for name in shuffled(found, turn):
                        letter = name == LETTER
                        found[name].measure(given.letter_requests if letter else given.requests)

    figures = {name: variant.figures() for name, variant in found.items()}
    ratios = {name: variant.ratios(found[BARE], found[LETTER]) for name, variant in found.items()}
    print(f"{objects:,} objects in the bare app's heap. Milliseconds, requests/s, MB.\n")
    for table in (figures, ratios):
        print_table(["", *table[BARE]], [[name, *row.values()] for name, row in table.items()])
        print()
    return report(
        given, {"objects": objects, "figures": figures, "ratios": ratios}, targets(ratios)
    )


def targets(ratios: dict[str, Figures]) -> list[Target]:
    found = []
    for name in (ONE_LINE, CONFIG):
        row = ratios[name]
        found += [
            Target(f"{name}, p50 / bare", row["p50/bare"], 1.10),
            Target(f"{name}, p99 / bare", row["p99/bare"], 1.00),
            Target(f"{name}, req/s / letter", row["req/s/letter"], 100, at_least=True),
        ]
    return found


if __name__ == "__main__":
    sys.exit(main())

"""Is what the status says true? Sites whose memory goes by a script, and every sentence of theirs.

Each site is Gunicorn with our config in a memory cgroup of 512 MB (so: on Linux, as a user who may
make one), and clients that do what the script says. Meanwhile the status is asked for, 30 times.
Each sentence of each diagnosis is held against what the script has done: the routes that it names,
the figures, the causes. A sentence that is not true of the script is a failure, and so is a site
that is never told what the script would have it told.

    python benchmarks/diagnosis.py --check
    python benchmarks/diagnosis.py --site "a leak" --samples 60
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _common import MB, Target, bare_parser, positive, print_table, report, scratch
from _container import LIMIT, OURS, Served, served
from _load import Caller

STATUS = "/api/memory-status?format=json"
TOKEN = {"LOWMEM_ADMIN_TOKEN": "t"}
EVERY = 0.4  # s, between two samples
# How far a figure may be off what the script knows: a share of that, and so many bytes. What came
# within so many seconds may be in it or not: workers tell each other once a second.
OFF, BYTES, LATE = 0.3, 16 * MB, 2.5


class Facts:
    """What was done to the site, by route as the status calls it."""

    def __init__(self) -> None:
        self.keeps: dict[str, int] = {}  # bytes that each request keeps for good
        self.cache: dict[str, int] = {}  # bytes that a route keeps at most
        self.takes: dict[str, int] = {}  # bytes that a request holds while it runs, at most
        self.began: dict[str, list[float]] = defaultdict(list)
        self.ended: dict[str, list[float]] = defaultdict(list)
        self.workers: set[int] = set()
        # A thread that keeps 1 MB each so many seconds: since when, how many.
        self.thread: tuple[float, float, int] = (0.0, 1.0, 0)
        self.outside: float = 0  # bytes that are in none of the site's processes
        self.at_start: float = 0  # bytes that are there before the first request
        self.oom = False  # whether the kernel may kill
        self.killed: set[int] = set()
        self.failed: list[float] = []  # when an answer was 503
        self._lock = threading.Lock()

    def ask(self, port: int, path: str, timeout: float = 60) -> int:
        """A request of the script's; the status of its answer, 0 where there was none."""
        route = f"GET {path.partition('?')[0]}"
        with self._lock:
            self.began[route].append(time.monotonic())
        answer = Caller(port, timeout=timeout).ask(path)
        with self._lock:
            self.ended[route].append(time.monotonic())
            if answer.status == 503:
                self.failed.append(time.monotonic())
            if path == "/" and answer.body.isdigit():
                self.workers.add(int(answer.body))
        return answer.status

    def count(self, times: Mapping[str, list[float]], route: str, until: float) -> int:
        """How many requests of a route, whose path may have a number."""
        asked = re.compile(re.sub(r"<[^>]*>", "[^/]+", re.escape(route).replace("\\<", "<")))
        with self._lock:
            return sum(
                moment <= until
                for path, moments in times.items()
                if asked.fullmatch(path)
                for moment in moments
            )

    def running(self, route: str, now: float) -> bool:
        """Whether one was in flight, now or just before."""
        return self.count(self.began, route, now) > self.count(self.ended, route, now - 1.5)

    def of_thread(self, now: float) -> float:
        since, every, most = self.thread
        return MB * min(most, max(0.0, now - since) / every)

    def kept(self, route: str, now: float) -> tuple[float, float]:
        """Bytes: at least, at most."""
        if route in self.cache:
            return 0, self.cache[route] * max(1, len(self.workers))
        each = self.keeps.get(route, 0)
        return (
            each * self.count(self.ended, route, now - LATE),
            each * self.count(self.began, route, now),
        )


def size(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"bytes": 1, "KB": 1024, "MB": MB, "GB": 1024 * MB}[unit]


def near(found: float, least: float, most: float) -> bool:
    return (1 - OFF) * least - BYTES <= found <= (1 + OFF) * most + BYTES


S = r"([\d.]+ (?:bytes|KB|MB|GB))"
WHERE = r"(?:and it is still held|[^,]* in the [^,]*)"
R = r"((?:GET|POST) \S+?)"
Judge = Callable[..., bool]
JUDGES: list[tuple[str, Judge]] = []


def judge(pattern: str) -> Callable[[Judge], Judge]:
    """For the sentences of this form: whether one is true."""

    def add(function: Judge) -> Judge:
        JUDGES.append((pattern, function))
        return function

    return add


@judge(rf"{R} grew {S} over (\d+) requests, {S} each, and it is still held: a leak there,(.*)")
def leaks(
    facts: Facts, now: float, route: str, grown: str, requests: str, each: str, cause: str
) -> bool:
    count = facts.count(facts.began, route, now)
    if "thread" in cause and facts.of_thread(now):
        return outside(facts, now, grown)
    kept = near(size(grown), *facts.kept(route, now)) and int(requests) <= count
    return kept and not facts.killed and (route in facts.keeps or route in facts.cache)


@judge(rf"{R} grew {S} in (\d+) workers? that w\w+ replaced, and {S} in .*: a leak there, .*")
def leaked(facts: Facts, now: float, route: str, gone: str, workers: str, held: str) -> bool:
    replaced = max(len(facts.workers) - 1, len(facts.killed))
    found = route in facts.keeps or route in facts.cache
    return (
        found
        and near(size(gone) + size(held), *facts.kept(route, now))
        and 1 <= int(workers) <= replaced + 1
    )


@judge(rf"{R} grew {S}, {WHERE}, but not in its last (\d+) requests: .*")
def filled(facts: Facts, now: float, route: str, grown: str, quiet: str) -> bool:
    return route in facts.cache and near(size(grown), *facts.kept(route, now))


@judge(rf"Memory grew {S} over \d+ requests of (.*?), {WHERE}; they .*")
def overlap(facts: Facts, now: float, grown: str, routes: str) -> bool:
    every = [*facts.keeps, *facts.cache]
    if facts.of_thread(now):
        return outside(facts, now, grown)
    named = "others" in routes or any(route in routes for route in every)
    kept = [facts.kept(route, now) for route in every]
    return named and near(size(grown), *(sum(bounds) for bounds in zip(*kept, strict=True)))


@judge(rf"Memory grew {S} outside of any request.*: a thread of the app keeps it\.")
def outside(facts: Facts, now: float, grown: str) -> bool:
    thread = facts.of_thread(now)
    return thread > 0 and near(size(grown), facts.of_thread(now - LATE) / 2, thread)


@judge(rf"Memory grew {S} that no request is known to keep: .* the (\d+) requests? that ran out.*")
def unknown(facts: Facts, now: float, grown: str, count: str) -> bool:
    return 0 < int(count) <= facts.count(facts.began, "GET /runaway", now)


@judge(r"(\d+) requests? asked for more memory than there was, since the start: .*")
def ran_out(facts: Facts, now: float, count: str) -> bool:
    began = facts.count(facts.began, "GET /runaway", now)
    return 0 < int(count) <= began  # some were refused before they had begun


@judge(
    rf"{R} has been running for ([\d.]+) s, and its worker has grown {S} meanwhile(; other .*)?\."
)
def running(
    facts: Facts, now: float, route: str, seconds: str, grown: str, others: str | None
) -> bool:
    takes: float = facts.takes.get(route, 0)
    if others:  # something beside it has kept that, or it is its own
        takes += sum(facts.kept(each, now)[1] for each in (*facts.keeps, *facts.cache))
    return facts.running(route, now) and size(grown) <= (1 + OFF) * takes + BYTES


@judge(rf"(.*) are running, and their worker has grown {S} meanwhile(?:; other .*)?\.")
def all_running(facts: Facts, now: float, routes: str, grown: str) -> bool:
    named = re.findall(r"GET /[^\s,]*", routes)
    takes = sum(facts.takes.get(route, 0) + facts.kept(route, now)[1] for route in named)
    return all(facts.running(route, now) for route in named) and takes > 0


@judge(rf"Worker (\d+) was killed by the kernel at {S}.*")
def by_the_kernel(facts: Facts, now: float, pid: str, at: str) -> bool:
    return facts.oom and int(pid) not in facts.killed and size(at) <= LIMIT + BYTES


@judge(rf"Worker (\d+) died at {S} \(crash, or a kill from outside\), with (.*) in flight\.")
def died(facts: Facts, now: float, pid: str, at: str, routes: str) -> bool:
    return int(pid) in facts.killed


@judge(rf"(\d+) workers × {S} do not fit in the {S} up to warn: set WEB_CONCURRENCY=(\d+)\.")
def too_many(facts: Facts, now: float, workers: str, each: str, warn: str, fit: str) -> bool:
    total = int(workers) * size(each)
    return total >= size(warn) * 0.98 and int(fit) < int(workers)


@judge(r"Start-up alone takes (\d+) % of the limit.*")
def at_start(facts: Facts, now: float, share: str) -> bool:
    return abs(int(share) / 100 - facts.at_start / LIMIT) < 0.15


@judge(rf"{S} of the container's {S} are in none of these processes(?:: (.*))?\.")
def elsewhere(facts: Facts, now: float, rest: str, used: str, parts: str | None) -> bool:
    return facts.outside > 0 and near(size(rest), 0, facts.outside) and size(rest) <= size(used)


@judge(rf"One request of {R} took {S}: .*")
def one_request(facts: Facts, now: float, route: str, took: str) -> bool:
    takes = max(facts.takes.get(route, 0), facts.cache.get(route, 0), facts.keeps.get(route, 0))
    return takes > 0 and near(size(took), 0, takes)


@judge(rf"Trimming returns {S} a time: .*")
def trimming(facts: Facts, now: float, each: str) -> bool:
    return size(each) <= (1 + OFF) * max(facts.takes.values(), default=0)


@judge(rf"{S} of {S} are in use.*")
def in_use(facts: Facts, now: float, used: str, limit: str) -> bool:
    return size(used) <= size(limit)


@judge(rf"Nothing stands out: {S} of {S}(?:, worst request \+{S} at {R})?\.")
def nothing(
    facts: Facts, now: float, used: str, limit: str, worst: str | None, route: str | None
) -> bool:
    kept = sum(facts.kept(each, now - 2)[0] for each in facts.keeps)
    if max(kept, facts.of_thread(now - LATE), facts.at_start / 2) > 0.2 * LIMIT:
        return False
    known = worst is None or route is None or near(size(worst), 0, _most(facts, route, now))
    return known and not facts.killed


def _most(facts: Facts, route: str, now: float) -> float:
    each = (facts.takes, facts.keeps, facts.cache)
    return max(found.get(route, 0) for found in each)


@judge(r"Everything is answered 503: .*")
def closed(facts: Facts, now: float) -> bool:
    return any(moment > now - 10 for moment in facts.failed)


def verdict(sentence: str, facts: Facts, now: float) -> str:
    """The judge's name where the sentence is true; else what is wrong, after a `!`."""
    for pattern, function in JUDGES:
        found = re.fullmatch(pattern, sentence)
        if found is not None:
            true = function(facts, now, *found.groups())
            return f"{'' if true else '!'}{function.__name__}"
    return "!unknown sentence"


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) (?=[A-Z0-9])", text)


# --- What is done to them


class Script:
    """A running site: its clients, and what they have done."""

    def __init__(self, found: Served) -> None:
        self.served = found
        self.facts = Facts()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []

    def ask(self, path: str) -> int:
        return self.facts.ask(self.served.port, path)

    def client(self, *paths: str, pause: float = 0.02, most: int = 10**9) -> None:
        """One more client, that asks for these in turn."""

        def run() -> None:
            for number in range(most):
                if self._stopped.wait(pause):
                    return
                status = self.ask(paths[number % len(paths)].replace("#", str(number)))
                if status == 0 or status >= 500:
                    time.sleep(0.05)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(20)


Run = Callable[[Script], None]


@dataclass(frozen=True)
class Site:
    """What is done, and names of judges of which each must have had a sentence."""

    run: Run
    told: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    workers: int = 1
    kind: str = "gthread"
    tuned: bool = True
    env: dict[str, str] = field(default_factory=dict)


def _leak(script: Script, *, route: str = "/history", kb: int = 2048, pause: float = 0.02) -> None:
    script.facts.keeps[f"GET {route}"] = kb * 1024
    script.client(f"{route}?kb={kb}", pause=pause)


def quiet(script: Script) -> None:
    script.client("/", pause=0.01)


def a_leak(script: Script) -> None:
    quiet(script)
    script.facts.keeps["GET /history"] = 2 * MB
    script.client("/history?kb=2048", most=75)


def recycled(script: Script) -> None:
    quiet(script)
    _leak(script)


def two_routes(script: Script) -> None:
    for route in ("/history", "/export"):
        script.facts.keeps[f"GET {route}"] = 768 * 1024
    script.client("/history?kb=768", "/", "/export?kb=768", "/", pause=0.01)


def two_routes_at_once(script: Script) -> None:
    quiet(script)
    _leak(script, kb=512, pause=0.01)
    _leak(script, route="/export", kb=512, pause=0.01)


def four_at_once(script: Script) -> None:
    script.facts.keeps["GET /history"] = 256 * 1024
    for _ in range(4):
        script.client("/history?kb=256", "/", "/slow?seconds=0.05", pause=0)


def spikes(script: Script) -> None:
    quiet(script)
    script.facts.takes["GET /spike"] = 150 * MB
    script.client("/spike?mb=150", pause=0.7)


def spikes_alone(script: Script) -> None:
    script.facts.takes["GET /spike"] = 150 * MB
    script.client("/spike?mb=150&piece=64", pause=0.7)


def small_pieces(script: Script) -> None:
    quiet(script)
    script.facts.takes["GET /spike"] = 130 * MB
    script.client("/spike?mb=120&piece=16&hold=0.1", pause=0.7)


def imports(script: Script) -> None:
    script.facts.cache["GET /load"] = 120 * MB
    script.client("/load?mb=120", "/", pause=0.05)


def pandas(script: Script) -> None:
    quiet(script)
    script.facts.cache["GET /heavy"] = 90 * MB
    script.client("/heavy", pause=0.1)


def tmpfs(script: Script) -> None:
    quiet(script)
    script.ask("/tmpfs?mb=220")
    script.facts.outside = 220 * MB


def another_process(script: Script) -> None:
    quiet(script)
    script.ask("/child?mb=220")
    script.facts.outside = 235 * MB


def a_thread(script: Script) -> None:
    quiet(script)
    grow(script, 120, 0.08)


def a_thread_alone(script: Script) -> None:
    grow(script, 120, 0.08)


def grow(script: Script, mb: int, every: float) -> None:
    script.facts.thread = (time.monotonic(), every, mb)
    script.ask(f"/thread?mb={mb}&every={every}")


def a_thread_beside_many(script: Script) -> None:
    for _ in range(4):
        script.client("/", "/slow?seconds=0.02", pause=0)
    grow(script, 120, 0.08)


def filling(script: Script) -> None:
    quiet(script)
    script.facts.cache["GET /cached/<int:number>"] = 80 * MB
    script.client("/cached/#?keys=80", pause=0.02)


def runaways(script: Script) -> None:
    quiet(script)
    script.facts.takes["GET /runaway"] = LIMIT
    script.client("/runaway", pause=1.5)


def a_report(script: Script) -> None:
    quiet(script)
    script.facts.takes["GET /report"] = 220 * MB
    script.client("/report?mb=220&seconds=3", pause=2)


def leak_beside_a_slow_one(script: Script) -> None:
    script.client("/slow?seconds=4", pause=0.1)
    _leak(script, pause=0.03)


def leak_and_thread(script: Script) -> None:
    """The route's is the larger: it must not be hidden by the other."""
    grow(script, 60, 0.05)
    script.facts.keeps["GET /history"] = 2 * MB
    script.client("/history?kb=2048", most=90, pause=0.04)


def worker_killed(script: Script) -> None:
    quiet(script)
    script.facts.keeps["GET /history"] = 1 * MB
    script.client("/history?kb=1024", pause=0.03)

    def kill() -> None:
        for _ in range(2):
            time.sleep(4)
            pid = script.served.worker()
            script.facts.killed.add(pid)
            os.kill(pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()


def killed_by_the_kernel(script: Script) -> None:
    quiet(script)
    script.facts.oom = True
    script.facts.takes["GET /runaway"] = LIMIT
    time.sleep(1)
    script.client("/runaway", pause=1, most=1)


def leak_until_killed(script: Script) -> None:
    """No ceiling, and nothing that replaces a worker: it dies of the leak."""
    script.facts.oom = True
    script.facts.keeps["GET /history"] = 4 * MB
    script.client("/history?kb=4096", pause=0.04)


def at_start_large(script: Script) -> None:
    script.facts.at_start = 330 * MB
    quiet(script)


def many(script: Script) -> None:
    """What each has to itself comes with its first requests."""
    for _ in range(3):
        script.client("/load?mb=78", "/", pause=0.01)
    script.facts.cache["GET /load"] = 78 * MB


def leaks_in_both(script: Script) -> None:
    quiet(script)
    _leak(script, pause=0.02)
    _leak(script, pause=0.02)


OFF_BOTH = {"LOWMEM_CEILING": "off", "LOWMEM_RECYCLE": "off"}
SITES: dict[str, Site] = {
    "nothing wrong": Site(quiet, ("nothing",), never=("in_use",)),
    "nothing wrong, sync": Site(quiet, ("nothing",), kind="sync"),
    "a leak": Site(a_leak, ("leaks",)),
    "a leak, recycled": Site(recycled, ("leaked",)),
    "a leak, recycled, sync": Site(recycled, ("leaked",), kind="sync"),
    "a leak, recycled, pymalloc": Site(recycled, ("leaked",), tuned=False),
    "a leak by two routes": Site(two_routes, ("leaks",)),
    "a leak by two routes at once": Site(two_routes_at_once),
    "a leak, four clients": Site(four_at_once),
    "a leak in two workers, recycled in turn": Site(leaks_in_both, ("leaked",), workers=2),
    "a leak beside a slow request": Site(leak_beside_a_slow_one),
    "a leak, and a smaller one by a thread": Site(leak_and_thread, ("leaks",)),
    "a leak, the worker killed": Site(worker_killed, ("died", "leaked")),
    "a leak until the kernel kills": Site(
        leak_until_killed, ("by_the_kernel", "leaked"), env=OFF_BOTH
    ),
    "a thread that grows": Site(a_thread, ("outside",)),
    "a thread that grows, nobody asking": Site(a_thread_alone, ("outside",)),
    "a thread that grows, four clients": Site(a_thread_beside_many),
    "spikes, nothing beside": Site(spikes_alone, tuned=False),
    "spikes": Site(spikes),
    "spikes of small pieces": Site(small_pieces, tuned=False),
    "a large report": Site(a_report, ("running",)),
    "a cache that fills and stops": Site(filling, ("filled",)),
    "a large module at first use": Site(imports, ("one_request",)),
    "pandas at first use": Site(pandas),
    "files in a tmpfs": Site(tmpfs, ("elsewhere",)),
    "another process": Site(another_process, ("elsewhere",)),
    "many workers": Site(many, ("too_many",), workers=4, env=OFF_BOTH),
    "start-up too large": Site(at_start_large, ("at_start",), env={"BENCH_AT_START": "300"}),
    "runaways": Site(runaways, ("ran_out",)),
    "a runaway that the kernel kills": Site(killed_by_the_kernel, ("by_the_kernel",), env=OFF_BOTH),
}


@dataclass
class Result:
    """How often each judge was asked, and what was false, with when (seconds)."""

    samples: int = 0
    told: Counter[str] = field(default_factory=Counter)
    false: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def run(site: Site, directory: Path, samples: int, *, verbose: bool = False) -> Result:
    result = Result()
    with played(site, directory) as script:
        began = time.monotonic()
        while result.samples < samples:
            moment = time.monotonic()
            document = asked(script.served.port)
            now = time.monotonic()
            if document is None:  # nobody has answered in time: no sentence either
                time.sleep(EVERY)
                continue
            result.samples += 1
            script.facts.workers |= {
                row["pid"] for row in document["workers"] if row["role"] == "worker"
            }
            if verbose:
                print(f"{moment - began:6.1f}  {document['diagnosis']}", flush=True)
            for sentence in sentences(document["diagnosis"]):
                name = verdict(sentence, script.facts, now)
                result.told[name.lstrip("!")] += 1
                if name.startswith("!") or name in site.never:
                    result.false.append(f"{moment - began:.1f} s: {sentence}")
            time.sleep(max(0.0, EVERY - (time.monotonic() - moment)))
    result.missing = [name for name in site.told if not result.told[name]]
    return result


def asked(port: int) -> dict[str, Any] | None:
    answer = Caller(port, timeout=10).ask(STATUS, Authorization="Bearer t")
    return json.loads(answer.body) if answer.ok else None


@contextlib.contextmanager
def played(site: Site, directory: Path) -> Iterator[Script]:
    with served(
        *(OURS, "diagnosed:app", directory),
        workers=site.workers,
        kind=site.kind,
        tuned=site.tuned,
        env={**TOKEN, **site.env},
    ) as found:
        script = Script(found)
        try:
            site.run(script)
            yield script
        finally:
            script.stop()


def main() -> int:
    options = bare_parser(__doc__)
    options.add_argument("--site", action="append", choices=SITES, help="repeatable")
    options.add_argument("--samples", type=positive, default=30, help="of each site, default 30")
    options.add_argument("--verbose", action="store_true", help="print each diagnosis")
    given = options.parse_args()
    rows, figures, targets = [], {}, []
    for name in given.site or SITES:
        if given.verbose:
            print(f"\n{name}\n")
        began = time.monotonic()
        with scratch() as directory:
            found = run(SITES[name], directory, given.samples, verbose=given.verbose)
        told = ", ".join(f"{count} {what}" for what, count in found.told.most_common())
        missing = ", ".join(found.missing) or "-"
        seconds = time.monotonic() - began
        rows.append([name, found.samples, len(found.false), missing, round(seconds), told])
        figures[name] = vars(found)
        targets.append(Target(f"{name}, false", len(found.false), 0))
        targets.append(Target(f"{name}, missing", len(found.missing), 0))
        for text in found.false:
            print(f"FALSE  {name}, {text}", file=sys.stderr, flush=True)
    print_table(["", "samples", "false", "missing", "s", "told"], rows)
    print()
    return report(given, figures, [target for target in targets if not target.met] or targets[:1])


if __name__ == "__main__":
    sys.exit(main())

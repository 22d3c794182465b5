"""Whether a server is after some time what it was at first: memory at rest, threads, descriptors.

The example app and a greedy one, under Gunicorn with our config and the environment of
`lowmem-wsgi run`, in a memory cgroup of 512 MB without swap. Intervals of mixed load (pages,
sessions, uploads, bodies over the limit, leaks, spikes, a runaway) each end in a rest: what leaked
is forgotten, the same few requests are made, and a while later master and worker are weighed.
The medians of the first and of the last third of them are compared: each is of another worker. The
first interval is for warming up.

    python benchmarks/soak.py --minutes 10 --check
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from _common import APPS, MB, Target, bare_parser, positive, print_table, report, scratch
from _container import OURS, Served, served
from _load import Answer, Caller, Request, crowd

EXAMPLE = APPS.parent.parent / "examples" / "flask_app"
CLIENTS = 4
PAUSE = 0.01  # s, between two requests of a client
SETTLED = 200  # requests before a rest
REST = 12  # s, longer than LOWMEM_CLEANUP_INTERVAL: what was freed is given back by then
GROWTH = 5  # %
# Out of a thousand requests; what is left are the example's pages.
MIX: dict[Request, int] = {
    ("/greedy/visit", None): 150,
    ("/greedy/upload", b"x" * 100 * 1024): 100,
    ("/greedy/upload", b"x" * MB): 30,  # over the limit
    ("/greedy/leak", None): 40,
    ("/greedy/spike?mb=60", None): 5,
}
PAGES: Request = ("/", None)

Sample = dict[str, float]


def mixed(number: int) -> Request:
    draw = random.Random(number).randrange(1000)
    for request, share in MIX.items():
        if draw < share:
            return request
        draw -= share
    return PAGES


def expected(answer: Answer) -> bool:
    if answer.path == "/greedy/upload":
        return answer.status in (200, 413)
    if answer.path == "/greedy/runaway":
        return answer.status in (500, 503)
    if answer.path.startswith("/greedy/spike"):
        return answer.status in (200, 503)
    return answer.ok


def load(found: Served, seconds: float) -> list[Answer]:
    """Of mixed requests, with a runaway in the middle."""
    with crowd(found.port, CLIENTS, mixed, pause=PAUSE) as asking:
        time.sleep(seconds / 2)
        runaway = Caller(found.port).ask("/greedy/runaway")
        time.sleep(seconds / 2)
    return [*asking.answers, runaway]


def settle(found: Served) -> None:
    caller = Caller(found.port)
    caller.ask("/greedy/forget")
    caller.ask("/greedy/spike?mb=60")
    # As many at once as there are threads, or a young worker would have fewer.
    with crowd(found.port, CLIENTS, "/greedy/visit") as some:
        while len(some.answers) < SETTLED:
            time.sleep(0.01)
    time.sleep(REST)


def weigh(found: Served) -> Sample:
    sample: Sample = {}
    for name, pid in (("worker", found.worker()), ("master", found.master)):
        process = psutil.Process(pid)
        info = process.memory_full_info()
        sample |= {
            f"{name} RSS": info.rss / MB,
            f"{name} PSS": info.pss / MB,
            f"{name} threads": process.num_threads(),
            f"{name} files": process.num_fds(),
        }
    return sample


def usual(samples: Sequence[Sample]) -> Sample:
    """The median of each figure: every sample is of another worker."""
    names = [name for name in samples[0] if name.startswith(("worker ", "master "))]
    return {name: median(sample[name] for sample in samples) for name in names}


def grown(first: Sample, last: Sample) -> list[Target]:
    targets = []
    for name in first:
        if name.endswith("RSS"):
            percent = 100 * (last[name] / first[name] - 1)
            targets.append(Target(f"{name} at rest, grown %", percent, GROWTH))
        elif not name.endswith("PSS"):
            targets.append(Target(f"{name}, more", last[name] - first[name], 0))
    return targets


def main() -> int:
    options = bare_parser(__doc__)
    options.add_argument("--minutes", type=float, default=10, help="default 10")
    options.add_argument("--interval", type=positive, default=30, help="seconds, default 30")
    options.add_argument("--logs", type=Path, metavar="DIR", help="keep the server's log there")
    given = options.parse_args()
    samples: list[Sample] = []
    answers: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    with scratch() as temporary:
        directory = given.logs or temporary
        directory.mkdir(parents=True, exist_ok=True)
        env = {"PYTHONPATH": str(EXAMPLE), "CLIENTS_DIR": str(directory)}
        with served(OURS, "soak_site:app", directory, env=env) as found:
            end = time.monotonic() + 60 * given.minutes
            while time.monotonic() < end or len(samples) < 3:
                began = time.monotonic()
                for answer in load(found, max(1, given.interval - REST - 1)):
                    answers[f"{answer.path} {answer.status}"] += 1
                    if not expected(answer):
                        wrong[f"{answer.path} {answer.error or answer.status}"] += 1
                settle(found)
                samples.append(
                    {
                        **weigh(found),
                        "workers so far": found.boots,
                        "deaths": found.deaths,
                        "OOM kills": found.container.kills,
                        "peak": found.container.peak_mb,
                        "seconds": time.monotonic() - began,
                    }
                )
    show(samples)
    print("\n".join(f"{count:7d}  {what}" for what, count in sorted(answers.items())), "\n")
    if wrong:
        print("Not as expected:", ", ".join(f"{n} {what}" for what, n in wrong.items()), "\n")
    third = max(1, len(samples) // 3)
    compared = [usual(samples[1 : 1 + third]), usual(samples[-third:])]
    figures: dict[str, Any] = {"samples": samples, "answers": answers, "wrong": wrong}
    targets = [
        *grown(*compared),
        Target("OOM kills", samples[-1]["OOM kills"], 0),
        Target("deaths", samples[-1]["deaths"], 0),
        Target("answers that are not as expected", wrong.total(), 0),
    ]
    return report(given, figures, targets)


def show(samples: Sequence[Sample]) -> None:
    print("Megabytes at rest, after each interval; the first is for warming up.\n")
    print_table(
        ["interval", *samples[0]],
        [[number, *sample.values()] for number, sample in enumerate(samples)],
    )
    print()


if __name__ == "__main__":
    sys.exit(main())

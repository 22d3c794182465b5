"""How long a response waits for its three passes, from its last byte to the third pass that began.

One gthread worker with three threads (tests/apps/plain.py), and so many clients that ask again as
soon as they have the answer. Requests that overlap share passes. Milliseconds; each round starts a
server. The target holds for the median round's worst response.

    python benchmarks/shared_passes.py --check
"""

from __future__ import annotations

import json
import sys
import threading
import time
from bisect import bisect
from statistics import median

from _common import Client, Server, Target, parser, percentile, print_table, report, scratch, serve

CONCURRENCY = 1, 3, 8
MOST = 10  # ms


def waits(server: Server, clients: int, requests: int) -> tuple[list[float], int]:
    """Return the milliseconds that each response has waited, and how many passes there were."""
    with Client(server.port) as client:
        client.get("/")  # the first run looks at the whole heap
        client.get("/count-passes")

    def ask() -> None:
        with Client(server.port) as client:
            for _ in range(requests // clients):
                client.get("/garbage")

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(0.5)
    with Client(server.port) as client:
        told = json.loads(client.get("/told").body)
    began = sorted(told["passes"])
    found = [1000 * (began[bisect(began, moment) + 2] - moment) for moment in told["closed"]]
    return found, len(began)


def main() -> int:
    given = parser(__doc__, rounds=7, requests=200).parse_args()
    rows, figures = [], {}
    for clients in CONCURRENCY:
        worst, everything, passes = [], [], 0
        for _ in range(given.rounds):
            with scratch() as directory, serve("plain:app", tmp_path=directory) as server:
                found, count = waits(server, clients, given.requests)
            worst.append(max(found))
            everything += found
            passes += count
        shares = [percentile(everything, share) for share in (0.5, 0.9, 0.99)]
        each = passes / len(everything)
        rows.append([clients, each, *shares, median(worst), max(worst)])
        figures[f"worst of a round at {clients}"] = median(worst)
    print_table(["clients", "passes each", "p50", "p90", "p99", "worst", "worst of all"], rows)
    print()
    targets = [Target(f"{name}, ms", figure, MOST) for name, figure in figures.items()]
    return report(given, figures, targets)


if __name__ == "__main__":
    sys.exit(main())

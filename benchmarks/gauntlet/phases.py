"""What the gauntlet asks of a contender: one function a phase, and each answer checked."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from _load import Answer, Caller, Crowd, crowd, pieces, upload
from _runaways import ask

from .box import Box

KB, MB = 1024, 1024 * 1024
FAILED, WRONG = "failed", "wrong"  # no whole answer, or an error; an answer that is not right
CLIENTS = 3
NEIGHBOURS, PAUSE = 2, 0.05  # clients beside the damage, and how long each waits in between
LATE = 3.0  # s, at half a CPU and more: a page that comes later is an outage
RUNAWAY_IS_REFUSED = (500, 503)


@dataclass
class Tally:
    """The answers of a phase."""

    asked: int = 0
    failed: int = 0
    wrong: int = 0
    what: dict[str, int] = field(default_factory=dict)  # of those: what came instead
    # Runaways, counted apart: "" where one was refused with 500 or 503 in time, else what came.
    runaways: dict[str, str] = field(default_factory=dict)

    def add(self, verdict: str, what: str) -> None:
        self.asked += 1
        if verdict == FAILED:
            self.failed += 1
        elif verdict == WRONG:
            self.wrong += 1
        if verdict:
            self.what[what] = self.what.get(what, 0) + 1

    def check(self, answer: Answer, good: bool, name: str = "") -> None:
        """One answer. One with another status than 5xx that is not `good` is wrong."""
        broken = answer.status == 0 or answer.status >= 500
        verdict = "" if good else FAILED if broken else WRONG
        came = answer.error or str(answer.status)
        self.add(verdict, f"{name or answer.path}: {came}")


def in_time(answer: Answer, share: float) -> bool:
    """Whether a neighbour was answered before it would have given the site up."""
    return answer.seconds <= LATE / min(1.0, 2 * share)


def is_page(answer: Answer) -> bool:
    """The page of ten clients, whole."""
    body = answer.body
    rows = body.count(b"<tr>") == 10 and b"Client 9<" in body
    return answer.ok and rows and body.rstrip().endswith(b"</table>")


# --- The phases


def uploads(box: Box, tally: Tally) -> None:
    """Bodies of 20 KB and 400 KB arrive; of 2 MB and 20 MB are answered 413. Each with its length,
    and chunked."""
    late = _deadline(box)
    for size in (20 * KB, 400 * KB, 2 * MB, 20 * MB):
        whole = hashlib.sha256(b"".join(pieces(size))).hexdigest()
        for chunked in (False, True):
            if late():
                return
            answer = upload(
                box.port, "/desk/upload", size, box.plan.waits(box.share), chunked=chunked
            )
            fits = size <= 512 * KB
            good = answer.body == f"{size} {whole}".encode() if fits else answer.status == 413
            kind = "chunked " if chunked else ""
            tally.check(answer, good, f"{kind}upload of {size // KB} KB")


def spikes(box: Box, tally: Tally) -> None:
    """150 MB in pieces of 1 MB, and 250,000 dictionaries, taken and dropped; then three requests
    of 80 MB at once. All fit into the container."""
    caller, late = Caller(box.port, timeout=4 * box.plan.waits(box.share)), _deadline(box)
    for _ in range(box.plan.spikes):
        for path, count in (("/edge/spike?mb=150", b"150"), ("/desk/report", b"250000")):
            if late():
                return
            answer = caller.ask(path)
            tally.check(answer, answer.ok and answer.body == count, path)
    for _ in range(box.plan.spikes):
        if late():
            return
        with _crowd(box, 3, "/edge/spike?mb=80", most=3) as three:
            three.join()
        for answer in three.answers:
            tally.check(answer, answer.ok and answer.body == b"80", "three at once")


def leak(box: Box, tally: Tally) -> None:
    """Requests of four clients, each of which keeps 2 MB more."""
    pause, late = 4 / box.plan.leak_rate, _deadline(box)
    with _crowd(box, 4, "/edge/leak", most=box.plan.leaks, pause=pause) as leaks:
        while leaks.busy and not late():
            time.sleep(0.05)
    for answer in leaks.answers:
        tally.check(answer, answer.ok and answer.body.isdigit())


def runaways(box: Box, tally: Tally) -> None:
    """Requests that allocate without end, of several kinds. A kind is refused where all its
    requests are answered 500 or 503 in time, nobody is killed, and the site answers afterwards;
    these requests are counted apart from the neighbours'."""
    patience, late = box.plan.waits(box.share), _deadline(box)
    for kind in box.plan.kinds:
        if late():
            tally.runaways[kind] = "not asked: the time was up"
            continue
        kills = box.container.kills
        lost = [
            answer.error or (str(answer.status) if answer.seconds <= patience else "late")
            for answer in ask(box.port, kind, 2 * patience, prefix="/edge")
            if answer.status not in RUNAWAY_IS_REFUSED or answer.seconds > patience
        ]
        if not box.wait_until_well(box.plan.well / box.share):
            lost.append("the site did not come back")
        if box.container.kills > kills:
            lost.append("killed")
        tally.runaways[kind] = ", ".join(lost)


def sessions(box: Box, tally: Tally) -> None:
    """A session in use lives on; one that is copied and kept is over after its lifetime; a slow
    request of before a logout does not bring it back."""
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(one, box) for one in (_in_use, _replayed, _races)]
        for job in jobs:
            for answer, expected, name in job.result():
                tally.check(answer, answer.ok and answer.body == expected, name)


Checked = tuple[Answer, bytes, str]


def _in_use(box: Box) -> list[Checked]:
    caller, lifetime = _client(box), box.plan.session(box.share)
    found = [(caller.ask("/desk/login/user"), b"user", "login")]
    began = used = found[0][0].began
    while time.monotonic() - began < 1.5 * lifetime:
        time.sleep(lifetime / 5)
        answer = caller.ask("/desk/who")
        # Lifetimes are counted in whole seconds. Whoever was answered too late may be out.
        in_time = answer.ended - used < lifetime - 1
        used = answer.began
        found.append((answer, b"user" if in_time else answer.body, "session in use"))
        if not answer.ok:
            break
    return found


def _replayed(box: Box) -> list[Checked]:
    jar: dict[str, str] = {}
    found = [(_client(box, jar).ask("/desk/login/victim"), b"victim", "login")]
    time.sleep(box.plan.session(box.share) + 2)
    return [*found, (_client(box, dict(jar)).ask("/desk/who"), b"nobody", "replay")]


def _races(box: Box) -> list[Checked]:
    """One after the other: at once, they would have no thread left to race in."""
    return [found for number in range(3) for found in _raced(box, f"racer-{number}")]


def _raced(box: Box, name: str) -> list[Checked]:
    jar: dict[str, str] = {}
    found = [(_client(box, jar).ask(f"/desk/login/{name}"), name.encode(), "login")]
    slow = threading.Thread(target=_client(box, jar).ask, args=("/desk/who?seconds=0.5",))
    slow.start()
    time.sleep(0.1)
    found.append((_client(box, jar).ask("/desk/logout"), b"nobody", "logout"))
    slow.join()
    return [*found, (_client(box, jar).ask("/desk/who"), b"nobody", "logout race")]


def recovery(box: Box, tally: Tally) -> None:
    """The neighbours alone."""
    time.sleep(box.plan.recovery)


class Phase(NamedTuple):
    name: str
    title: str
    run: Callable[[Box, Tally], None]


# In this order, beside two neighbours that ask for the page of ten clients.
DAMAGE = (
    Phase("uploads", "uploads", uploads),
    Phase("spikes", "spikes", spikes),
    Phase("leak", "leak", leak),
    Phase("runaways", "runaways", runaways),
    Phase("sessions", "sessions", sessions),
    Phase("recovery", "recovery", recovery),
)


def steady(box: Box) -> tuple[Tally, list[float], float, float]:
    """A slice of the page of ten clients, by three clients without a pause: the answers, the
    seconds each took, seconds in all, CPU seconds."""
    tally, used, began = Tally(), box.cpu_seconds, time.monotonic()
    with _crowd(box, CLIENTS, "/") as asking:
        time.sleep(box.plan.slice_seconds)
    seconds = time.monotonic() - began
    for answer in asking.answers:
        tally.check(answer, is_page(answer))
    good = [answer.seconds for answer in asking.answers if is_page(answer)]
    return tally, good, seconds, box.cpu_seconds - used


def neighbours(box: Box) -> Crowd:
    """Clients that ask for the page until they are stopped."""
    return Crowd(
        box.port,
        NEIGHBOURS,
        lambda _: ("/", None),
        pause=PAUSE / box.share,
        timeout=box.plan.waits(box.share),
    )


def _deadline(box: Box) -> Callable[[], bool]:
    """Whether the phase that begins now has had its time."""
    end = time.monotonic() + box.plan.phase_seconds / box.share
    return lambda: time.monotonic() > end


def _client(box: Box, jar: dict[str, str] | None = None) -> Caller:
    return Caller(box.port, timeout=box.plan.waits(box.share), cookies=jar)


def _crowd(
    box: Box, clients: int, path: str, *, most: int | None = None, pause: float = 0
) -> contextlib.AbstractContextManager[Crowd]:
    timeout = 4 * box.plan.waits(box.share)
    return crowd(box.port, clients, path, most=most, pause=pause, timeout=timeout)

"""The site's page as this process has it: inherited, shared by a file, or its own; and what the
master writes on it."""

from __future__ import annotations

import contextlib
import os
import sys
import time

from ..system.cgroup import Container
from ..system.private_dir import Refused, private_directory, runtime_directory
from ..system.procfs import read_stat
from . import postmortem as deaths
from .servers import Server
from .shared_page import GONE, REPLACED, RETIRING, Board, is_alive

_board: list[Board] = []  # none or one


def board() -> Board:
    """The page of this process's site; made at first asking."""
    if not _board:
        _board.append(Board.private())
    return _board[0]


def board_of(server: Server | None) -> Board:
    """The page that was made before the fork; else, under a server that has not loaded the app
    before, a file that all its workers open; else one of our own."""
    if _board and _board[0].made_by != os.getpid():
        return _board[0]
    if server is not None:
        with contextlib.suppress(OSError, Refused):
            directory = private_directory(runtime_directory())
            _sweep(directory)
            found = Board.at(os.path.join(directory, _name(server.master)))
            for old in _board:
                old.close()
            _board[:] = [found]
    return board()


def _name(master: int) -> str:
    """Of a server's page. With its start: after a container's restart the pids are the same."""
    stat = read_stat(master)
    start = stat.started if stat is not None else 0 if is_alive(master) else "gone"
    return f"workers-{master}-{start}"


def _sweep(directory: str) -> None:
    """Remove the pages of servers that are gone."""
    for name in os.listdir(directory):
        kind, pid, _ = (*name.split("-"), "", "")[:3]
        if kind == "workers" and pid.isdigit() and name != _name(int(pid)):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(directory, name))


# --- In the master


def lay_out() -> None:
    """In a master, before it forks: the page, and the word that the master looks after it. Harmless
    when repeated."""
    page = board()
    if page.master == os.getpid():
        return
    page.change(master=os.getpid(), kills=Container().out_of_memory_kills() or 0)
    _new_peak()  # of children that were none of the workers


def buried(pid: int, *, timed_out: bool) -> bool:
    """In the master, when a worker is gone: log what it died of. Whether it had been replaced
    before it went."""
    page = board()
    seen = next((seen for seen in page.workers() if seen.pid == pid), None)
    if seen is None:  # gone before its first look
        return False
    kills = Container().out_of_memory_kills() or 0
    why = deaths.cause(
        timed_out=timed_out, killed=kills > page.kills, orderly=deaths.left_in_order(seen)
    )
    page.change(kills=kills)
    if why is None and seen.state & ~GONE in (RETIRING, REPLACED):
        page.released(time.monotonic())
    peak = _new_peak()
    if why is None:
        page.bury(seen)
    else:
        usage = Container().read() if why == deaths.OOM_KILL else None
        deaths.report(page, deaths.completed(seen, peak, usage.limit if usage else 0), why)
    return seen.replaced


_highest = [0]


def _new_peak() -> int:
    """The peak RSS (bytes) of the child that has just been reaped, where it is the largest of all
    so far: only then does the kernel tell (RUSAGE_CHILDREN, getrusage(2)). Else 0."""
    try:
        import resource
    except ImportError:  # Windows has no such master
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    before = _highest[0]
    _highest[0] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    return _highest[0] if _highest[0] > before else 0

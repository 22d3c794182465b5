"""Other processes for a test: forked, so that they share what workers share."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any


def fork() -> int:
    """Fork, beside the threads of earlier tests and of the runner: the child ends soon."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        return os.fork()


@contextlib.contextmanager
def child(work: Callable[[], object], *, stays: bool = True) -> Iterator[int]:
    """The pid of a child that does the work. It has done it by now and `stays` until it is killed,
    here at the latest; else it is about to do it, and ends then."""
    done, tell = os.pipe()
    pid = fork()
    if pid == 0:
        code = 1
        try:
            work()
            os.write(tell, b".")
            code = 0
            while stays:
                signal.pause()
        finally:
            os._exit(code)
    os.close(tell)
    try:
        assert not stays or os.read(done, 1) == b".", "the child has failed"
        yield pid
    finally:
        os.close(done)
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def together(count: int, work: Callable[[], object]) -> list[int]:
    """So many children do the work, and begin at once. Their pids, when all have done it."""
    go, begin = os.pipe()
    pids = []
    for _ in range(count):
        pid = fork()
        if pid == 0:
            code = 1
            try:
                os.close(begin)
                os.read(go, 1)  # nothing, when the parent closes it
                work()
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(go)
    os.close(begin)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * count, "a child has failed"
    return pids


def kill(pid: int) -> None:
    """End a child as the kernel does: without a word. It is gone afterwards."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def asked(question: Callable[[], bool]) -> bool:
    """The answer of another process."""
    pid = fork()
    if pid == 0:
        code = 99
        try:
            code = int(question())
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 1), "the child has failed"
    return bool(code)


def found(look: Callable[[], object]) -> Any:
    """What another process finds, as JSON has it."""
    result, tell = os.pipe()
    pid = fork()
    if pid == 0:
        code = 1
        try:
            os.write(tell, json.dumps(look()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(tell)
    with open(result, "rb") as pipe:
        text = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0, "the child has failed"
    return json.loads(text)

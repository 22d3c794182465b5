"""Import an app in a fresh process, and return what `measure.py` has told of it. Linux only."""

from __future__ import annotations

import contextlib
import io
import marshal
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...imports.app_path import App
from ..children import end_with_parent, no_orphans

SCRIPT = Path(__file__).with_name("measure.py")
# Seconds for a process to end once its figures are here (the app's atexit functions).
GRACE = 2.0
# Seconds between two looks at whether the process still runs.
LOOK = 0.2
# How much of what the app has printed is kept for the message, in bytes.
LAST = 4000
BOOT = "import marshal, sys; exec(marshal.load(sys.stdin.buffer))"

Event = tuple[Any, ...]


class Failure(NamedTuple):
    """Why the app could not be loaded."""

    kind: str  # module, name, kind, raised, ended, timeout
    message: str
    at: str = ""  # file and line
    lines: tuple[str, ...] = ()  # the traceback, or the last lines that the app has printed
    names: tuple[str, ...] = ()  # what the module has instead of the name


class Measured(NamedTuple):
    """What a process has told: its events (see `measure.py`), and why it failed, if it did."""

    events: list[Event]
    failure: Failure | None


def measure(
    app: App,
    timeout: float,
    *,
    late: Sequence[str] | None = None,
    without: Sequence[str] = (),
    moved: Sequence[str] = (),
) -> Measured:
    """Import the app in a fresh interpreter, in this folder. Leave no process behind.

    Whatever child this process gets meanwhile is taken for one of the app's, and killed.
    `timeout`: seconds. `late`: modules to import late, with LowMemory's late imports; None: without
    loading any of LowMemory. `without`: packages that seem not to be installed. `moved`: packages
    that may be imported, but not be used. Raises OSError if no process can be started. The process
    ends with the thread that calls this.
    """
    task = {
        **app._asdict(),
        "late": None if late is None else list(late),
        "without": list(without),
        "moved": list(moved),
    }
    reader, writer = os.pipe()
    with (
        open(reader, "rb", buffering=0) as pipe,
        tempfile.TemporaryFile() as printed,
        no_orphans(),
    ):
        try:
            process = _start(task | {"pipe": writer}, writer, printed.fileno())
        finally:
            os.close(writer)
        code = None
        try:
            data, in_time = _received(pipe.fileno(), process, time.monotonic() + timeout)
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(GRACE if in_time else 0)
        finally:
            _end(process)
        events = list(_events(data))
        printed.seek(max(0, printed.seek(0, os.SEEK_END) - LAST))
        tail = printed.read().decode("utf-8", "replace").splitlines()
    return Measured(events, _failure(events, in_time, code, tail, timeout))


def _start(task: dict[str, Any], pipe: int, printed: int) -> subprocess.Popen[bytes]:
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    code = compile(SCRIPT.read_text("utf-8"), str(SCRIPT), "exec", dont_inherit=True)
    process = subprocess.Popen(
        [sys.executable, *flags, "-c", BOOT],
        stdin=subprocess.PIPE,
        stdout=printed,
        stderr=printed,
        pass_fds=[pipe],
        start_new_session=True,  # a group of its own, to be killed as one
        # A command has no other threads, which could hold a lock.
        preexec_fn=end_with_parent,  # noqa: PLW1509
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:  # it has ended already
        stdin.write(marshal.dumps(code) + marshal.dumps(task))
    return process


def _received(pipe: int, process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bool]:
    """Return what the process writes until it ends or closes the pipe, and whether in time."""
    pieces: list[bytes] = []
    while time.monotonic() < deadline:
        gone = process.poll() is not None  # asked first: what it wrote before that is in the pipe
        if select.select([pipe], [], [], 0 if gone else LOOK)[0]:
            pieces.append(os.read(pipe, 1 << 16))
            if pieces[-1]:
                continue
            gone = True
        if gone:
            return b"".join(pieces), True
    return b"".join(pieces), False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process, and all that the app has started in the process's group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _events(data: bytes) -> Iterator[Event]:
    """Yield the events. The last one may be cut off."""
    file = io.BytesIO(data)
    while file.tell() < len(data):
        try:
            yield marshal.load(file)
        except (EOFError, ValueError, TypeError):
            return


def _failure(
    events: Sequence[Event], in_time: bool, code: int | None, tail: list[str], timeout: float
) -> Failure | None:
    """Return why the app could not be loaded, or None."""
    for event in events:
        if event[0] == "failed":
            _, kind, message, at, lines, names = event
            return Failure(kind, message, at, tuple(lines), tuple(names))
    if any(event[0] == "end" for event in events):
        return None
    inside = [event[5] for event in still_open(events)]
    where = f" while it imports {inside[-1]}" if inside else ""
    at = next((event[6] for event in reversed(still_open(events)) if event[6]), "")
    if not in_time:
        return Failure("timeout", f"is not loaded after {timeout:g} s{where}", at, tuple(tail))
    if not code:
        how = "or closes all its files"
    else:
        how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    return Failure("ended", f"ends the process ({how}){where}", at, tuple(tail))


def still_open(events: Sequence[Event]) -> list[Event]:
    """Return the "open" events without a "close", of the first thread, outermost first."""
    first = next((event[1] for event in events if event[0] == "start"), None)
    found: list[Event] = []
    for event in events:
        if event[0] == "open" and event[1] == first:
            found.append(event)
        elif event[0] == "close" and event[1] == first and found:
            found.pop()
    return found

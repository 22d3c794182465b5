"""Run the app in a child process under the limit, and collect what the child tells.

The child is a fresh interpreter, with the variables that the site is served with. So the doctor
survives whatever the app does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ...settings import MB
from ...system.memory_cgroup import inside, kills, memory_cgroup
from ..children import end_with_parent, no_orphans
from .ends import DONE, ended
from .figures import AT_ONCE

# A limit that no app can load in is raised so many times, to tell what the app needs.
MORE = 3
# Seconds for the child to end once it has told all.
GRACE = 2.0
# Seconds between two looks at whether the child still runs.
LOOK = 0.2
LAST_LINE = json.dumps({DONE: True}).encode() + b"\n"
# Why there is no worker; if none of these is told either, the app has ended the child.
REASONS = ("failure", "no_app", "problems")
# What the child is at -> what that is, for whoever waits.
STEPS = {
    "config": "the server's settings",
    "load": "the app",
    "worker": "a worker",
    AT_ONCE: "the pages side by side",
}


class Plan(NamedTuple):
    """What to measure. `gunicorn`: its command line; None for another server."""

    app: str | None  # None: as the command line says, else `guess`
    guess: str | None
    load: bool  # else, only read the config
    gunicorn: Sequence[str] | None
    environ: Mapping[str, str]
    limit: int
    seconds: float  # until the app counts as hung
    paths: Sequence[str] | None = None  # to ask; None: the child looks for them
    only_secret: bool = False


class Told(NamedTuple):
    """What the child has told. `facts`: the last value of each key."""

    facts: dict[str, Any]
    routes: list[dict[str, Any]]
    real: bool  # whether a cgroup held the limit
    output: tuple[str, ...]  # the last lines that the app printed


def measure(plan: Plan, progress: Callable[[str], object] = lambda _: None) -> Told:
    """Run the child, and return what it told, up to its death if it died.

    `progress`: called with what the child measures now.
    """
    orphans = no_orphans() if sys.platform == "linux" else contextlib.nullcontext()
    with memory_cgroup(plan.limit) as group, tempfile.TemporaryFile() as output, orphans:
        reader, writer = os.pipe()
        inherit = {
            "pipe": writer,
            "app": plan.app,
            "gunicorn": None if plan.gunicorn is None else [*plan.gunicorn],
            "guess": plan.guess,
            "load": plan.load,
            "paths": None if plan.paths is None else [*plan.paths],
            "only_secret": plan.only_secret,
            "data_limit": plan.limit if group is None and sys.platform == "linux" else 0,
        }
        safe = ["-P"] if sys.version_info >= (3, 11) else []
        command = [sys.executable, *safe, "-m", f"{__package__}.child", json.dumps(inherit)]
        process = subprocess.Popen(
            inside(group, command),
            env=dict(plan.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(writer,),
            start_new_session=True,
            # A command has no other threads, which could hold a lock.
            preexec_fn=end_with_parent,  # noqa: PLW1509
        )
        os.close(writer)
        code = None
        try:
            lines, hung = _lines(reader, process, plan.seconds, progress)
            if not hung:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(GRACE)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(
                    process.pid, signal.SIGKILL
                )  # its own session: the child and its children
            process.wait()
        output.seek(max(0, output.seek(0, os.SEEK_END) - 4096))
        last = output.read().decode("utf-8", "replace").splitlines()[-4:]
        told = _told(lines, group is not None, tuple(last))
        if hung:
            told.facts["failure"] = {"kind": "hung"}
        elif (code or _unfinished(plan, told.facts)) and told.facts.keys().isdisjoint(REASONS):
            told.facts["failure"] = ended(code or 0, kills(group) > 0)
        return told


def _unfinished(plan: Plan, facts: Mapping[str, Any]) -> bool:
    return plan.load and ("digest" if plan.only_secret else "worker") not in facts


def _lines(
    reader: int,
    process: subprocess.Popen[bytes],
    seconds: float,
    progress: Callable[[str], object],
) -> tuple[list[bytes], bool]:
    """Read until the child is done or has ended. Return the lines, and whether it hung.

    `seconds`: how long the child may tell nothing.
    """
    import select

    received, ends = b"", time.monotonic() + seconds
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while True:
            gone = process.poll() is not None  # asked first: what it told before is in the pipe
            if select.select([pipe], [], [], 0 if gone else LOOK)[0]:
                piece = pipe.read(65536)
                received += piece
                progress(doing(piece))
                ends = time.monotonic() + seconds
                if not piece or received.endswith(LAST_LINE):
                    return received.splitlines(), False
            elif gone or time.monotonic() > ends:
                return received.splitlines(), not gone


def doing(piece: bytes) -> str:
    """Return what the child measures now, from the latest that it has told."""
    for line in reversed(piece.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:  # a part of a line
            continue
        if "loading" in found:
            return f"the import of {found['loading']}"
        if "at" in found:
            at = str(found["at"])
            return f"GET {at}" if at.startswith("/") else STEPS.get(at, at)
    return "the app"


def _told(lines: Sequence[bytes], real: bool, output: tuple[str, ...]) -> Told:
    facts: dict[str, Any] = {}
    routes: list[dict[str, Any]] = []
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:  # the last line of a process that was killed
            continue
        if "route" in found:
            routes.append(found["route"])
        else:
            for name, value in found.items():
                facts[name] = {**facts[name], **value} if _both(facts.get(name), value) else value
    return Told(facts, routes, real, output)


def _both(old: object, new: object) -> bool:
    return isinstance(old, dict) and isinstance(new, dict)


def size_beyond(plan: Plan, available: int) -> int | None:
    """Return what the app needs that does not load in its limit. None if that cannot be told.

    `available`: the machine's free memory, in bytes.
    """
    more = min(MORE * plan.limit, available // 2)
    if more < plan.limit + 64 * MB:
        return None
    facts = measure(plan._replace(limit=more, paths=())).facts
    return facts.get("loaded")

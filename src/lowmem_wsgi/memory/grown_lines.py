"""The lines whose objects stay, from what tracemalloc has recorded."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

# Seconds to look for the types of objects, and the most objects to visit.
TYPES, VISITS = 0.3, 200_000
# Of what one object holds, the last are looked at: a list, a dict and an lru_cache add there.
NEWEST = 500
# New objects are looked at after those that are so many steps from a module of the app.
DEEP = 5

LIBRARIES = (f"{os.path.dirname(os.__file__)}{os.sep}", "site-packages", "dist-packages")
OURS = f"{os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}{os.sep}"

Place = tuple[str, int]  # file, line
Frames = tuple[Place, ...]  # the newest first
Sizes = dict[Frames, tuple[int, int]]  # bytes and blocks, by stack


class Grown(NamedTuple):
    """The growth of one place, in all windows together."""

    bytes: int
    blocks: int
    windows: int  # in how many windows it has grown
    stack: Frames  # the one that grew most


def is_own(file: str) -> bool:
    """Return whether a file is the app's own: no library's, and none of LowMemory's."""
    return not file.startswith(("<", OURS)) and not any(part in file for part in LIBRARIES)


def place_of(frames: Frames) -> Place:
    """Return the newest place in the app's own code; in a library if there is none."""
    return next((place for place in frames if is_own(place[0])), frames[0])


def by_stack(snapshot: tracemalloc.Snapshot) -> Sizes:
    """Return bytes and blocks by stack, without LowMemory's own."""
    found: Sizes = {}
    for statistic in snapshot.statistics("traceback"):
        frames = frames_of(statistic.traceback)
        if frames and not frames[0][0].startswith((OURS, tracemalloc.__file__)):
            size, count = found.get(frames, (0, 0))
            found[frames] = size + statistic.size, count + statistic.count
    return found


def growth(base: Sizes, last: Sizes) -> Sizes:
    """Return by how much each stack has grown; below 0 if it has shrunk."""
    return {
        stack: (size - base.get(stack, (0, 0))[0], blocks - base.get(stack, (0, 0))[1])
        for stack, (size, blocks) in last.items()
    }


def frames_of(traceback: Iterable[Any]) -> Frames:
    """Return the frames, the newest first, up to LowMemory's."""
    frames = [(frame.filename, frame.lineno) for frame in traceback][::-1]
    first = next((n for n, (file, _) in enumerate(frames) if n and file.startswith(OURS)), None)
    return tuple(frames[:first])


def ranked(windows: list[Sizes]) -> list[tuple[Place, Grown]]:
    """Return each place that has grown: first those that grew in most windows, then by bytes."""
    places: dict[Place, list[tuple[int, int, int, Frames]]] = {}
    for number, grown in enumerate(windows):
        for stack, (size, blocks) in grown.items():
            places.setdefault(place_of(stack), []).append((number, size, blocks, stack))
    found = []
    for place, rows in places.items():
        sizes: Counter[int] = Counter()
        stacks: Counter[Frames] = Counter()
        for number, size, _, stack in rows:
            sizes[number] += size
            stacks[stack] += size
        total = sum(sizes.values())
        if total > 0:
            rose = sum(size > 0 for size in sizes.values())
            blocks = sum(row[2] for row in rows)
            found.append((place, Grown(total, blocks, rose, stacks.most_common(1)[0][0])))
    return sorted(found, key=lambda row: (2 * row[1].windows <= len(windows), -row[1].bytes))


def types_by_place(seconds: float = TYPES) -> dict[Place, Counter[str]]:
    """Count the traced objects that the app's modules, and new objects, lead to: by place and type.

    Visits VISITS objects at most, for so many seconds of this thread's processor time. The
    collector's own list has no frozen objects, so the app's modules come first.
    """
    now = time.thread_time
    end, found, seen = now() + seconds, dict[Place, Counter[str]](), set[int]()
    modules = [*sys.modules.values()]
    front: list[Any] = [
        vars(module) for module in modules if is_own(getattr(module, "__file__", None) or "<")
    ]
    depth = 0
    while front and len(seen) < VISITS and now() < end:
        depth += 1
        nearer, front = front, []
        if depth == DEEP:
            nearer += itertools.islice(gc.get_objects(), VISITS)
        for holder in nearer:
            if now() >= end:
                break
            for thing in gc.get_referents(holder)[-NEWEST:]:
                if id(thing) in seen:
                    continue
                seen.add(id(thing))
                front.append(thing)
                traceback = tracemalloc.get_object_traceback(thing)
                if traceback is None:
                    continue
                frames = frames_of(traceback)
                if frames and not frames[0][0].startswith(OURS):
                    kind = type(thing)
                    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
                    name = f"{module}{kind.__qualname__}"
                    found.setdefault(place_of(frames), Counter())[name] += 1
    return found


def code_at(place: Place) -> str:
    """Return a line of a file, stripped; "" if there is none. Not by linecache, which keeps all."""
    try:
        with open(place[0], encoding="utf-8", errors="replace") as file:
            found = next(itertools.islice(file, place[1] - 1, None), "")
        return found.strip()[:200]
    except (OSError, ValueError):
        return ""


def median(values: Iterable[float]) -> float | None:
    ordered = sorted(values)
    return round(ordered[len(ordered) // 2], 6) if ordered else None

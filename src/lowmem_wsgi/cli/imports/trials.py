"""What could be imported late, or left out, and what that saves: each tried in a fresh process."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from ...imports.never_late import BREAKS
from ...settings import KB
from .process import Failure, Measured
from .tree import PYTHON, Node, build, by_package, package

# Two runs of the same app differ by less (bytes; measured: 0.02 MB on five apps).
NOISE = 256 * KB

Own = Callable[[Node], bool]


class Candidate(NamedTuple):
    """A package that is worth a try."""

    name: str
    bytes: int
    where: str  # file and line of its first import by the app; else by another package


class Trial(NamedTuple):
    """What came of importing packages late, or of leaving them out."""

    saved: int = 0  # bytes of private memory
    failure: Failure | None = None  # why the app did not load
    loaded: tuple[str, ...] = ()  # the packages that were loaded all the same
    at: str = ""  # file and line that loaded the first of them
    used: bool = False  # whether that line uses a late package, and does not import it
    refused: str = ""  # why this was not tried


class Tried(NamedTuple):
    """A package: imported late, not installed, and with its imports moved into functions."""

    candidate: Candidate
    late: Trial
    without: Trial
    moved: Trial | None = None  # tried where a `from` statement hinders a late import


class Found(NamedTuple):
    """All trials; and that of all late at once, None if no more than one can be."""

    tried: list[Tried]
    together: Trial | None
    late: list[str]  # packages that can be late, at once


class Measure(Protocol):
    """Measure the app in a fresh process: see `process.measure`."""

    def __call__(
        self,
        *,
        late: Sequence[str] | None = None,
        without: Sequence[str] = (),
        moved: Sequence[str] = (),
    ) -> Measured: ...


def candidates(packages: Node, own: Own, heavy: Iterable[str], least: int) -> list[Candidate]:
    """Return what to try, the largest first: what the app itself imports, and the heavy ones."""
    direct: dict[str, str] = {}
    anywhere: dict[str, str] = {}
    for node in packages.walk():
        for child in node.children.values():
            anywhere.setdefault(child.name, child.where)
            if own(node) and not own(child) and child.name != PYTHON:
                direct.setdefault(child.name, child.where)
    named = {package(name) for name in heavy} & anywhere.keys()
    found = [
        Candidate(name, outermost(packages, name), direct.get(name) or anywhere[name])
        for name in direct.keys() | named
    ]
    large = [each for each in found if each.bytes >= least]
    return sorted(large, key=lambda each: (-each.bytes, each.name))


def outermost(node: Node, name: str) -> int:
    """Return the bytes of all nodes with this name, each with all below it, none counted twice."""
    if node.name == name:
        return node.bytes
    return sum(outermost(child, name) for child in node.children.values())


def attempt(
    chosen: Sequence[Candidate],
    before: int,
    measure: Measure,
    tell: Callable[[str], object],
    own: Own,
) -> Found:
    """Try each candidate late and left out, and then late all that can be.

    `before`: bytes of private memory as the app is now. `tell`: told what is tried next.
    """
    if not chosen:
        return Found([], None, [])
    tell("with LowMemory's late imports, and none late")
    machinery = measure(late=[])
    equipped = _bytes(machinery)
    hindered = None if machinery.failure is None else "late imports fail here"
    tried = []
    for each in chosen:
        name, broken = each.name, hindered or BREAKS.get(each.name)
        tell(f"{name} late")
        late = Trial(refused=broken) if broken else _late(measure, [name], equipped, own)
        tell(f"without {name}")
        without = _saving(measure(without=[name]), before)
        moved = None
        if late.loaded and not late.used and line(late.at).startswith("from "):
            tell(f"{name} imported in functions")
            moved = _saving(measure(moved=[name]), before)
        tried.append(Tried(each, late, without, moved))
    names = [each.candidate.name for each in tried if can_wait(each.late)]
    # Alone, numpy saves nothing where pandas loads numpy.
    possible = [each.candidate.name for each in tried if not each.late.refused]
    if len(possible) < 2:
        return Found(tried, None, names)
    tell("all late")
    together = _late(measure, possible, equipped, own)
    if together.failure is not None:
        return Found(tried, None, names)
    waiting = [name for name in possible if name not in together.loaded]
    return Found(tried, together, waiting if together.saved > NOISE else [])


def can_wait(trial: Trial) -> bool:
    return not (trial.refused or trial.failure or trial.loaded) and trial.saved > NOISE


def _late(measure: Measure, names: Sequence[str], before: int, own: Own) -> Trial:
    measured = measure(late=names)
    if measured.failure is not None:
        return Trial(failure=measured.failure)
    uses = {
        module: place
        for event in measured.events
        if event[0] == "late"
        for module, place in event[1]
    }
    packages = by_package(build("", measured.events), own)
    wheres: dict[str, str] = {}
    for node in packages.walk():
        wheres.setdefault(node.name, node.where)
    loaded = tuple(name for name in names if name in wheres or name in uses)
    use = uses.get(loaded[0], "") if loaded else ""
    at = use or (wheres.get(loaded[0], "") if loaded else "")
    return Trial(before - packages.bytes, None, loaded, at, bool(use))


def _saving(measured: Measured, before: int) -> Trial:
    if measured.failure is not None:
        return Trial(failure=measured.failure)
    return Trial(before - _bytes(measured))


def _bytes(measured: Measured) -> int:
    return build("", measured.events).bytes


# --- In words


def sentences(
    each: Tried, size: Callable[[int], str], place: Callable[[str], str]
) -> Iterator[str]:
    """Yield what came of it, a line for each trial. `place`: shorten file and line."""
    name, late, without, moved = each.candidate.name, each.late, each.without, each.moved

    def saves(trial: Trial) -> str:
        return f"saves {size(trial.saved)}" if trial.saved > NOISE else "saves nothing"

    if late.refused:
        yield f"late: not tried, {late.refused}"
    elif late.failure is not None:
        yield f"late: {_reason(late.failure, name, place)}"
    elif not late.loaded and late.saved > NOISE:
        yield f"late: {saves(late)} until the app uses {name}"
    elif not late.loaded:
        yield f"late: saves nothing, as all that {name} imports is loaded anyway"
    else:
        where = _quoted(late.at, place)
        yield f"late: {saves(late)}; the app uses {name} while it loads: {where}"
    if moved is not None and moved.failure is not None:
        yield f"imported in functions: {_reason(moved.failure, name, place)}"
    elif moved is not None:
        yield f"imported in functions, not at the top: {saves(moved)} until one is called"
    if without.failure is not None:
        yield f"left out: {_reason(without.failure, name, place)}"
    else:
        yield f"left out: {saves(without)}, and the app loads"


def _reason(failure: Failure, name: str, place: Callable[[str], str]) -> str:
    if failure.kind != "raised":
        return f"the app {failure.message}"
    if failure.message.startswith("Used: "):
        return f"used while the app loads: {_quoted(failure.at, place)}"
    needed = failure.message.startswith("ModuleNotFoundError") and f"'{name}" in failure.message
    message = "" if needed else f" ({failure.message})"
    return f"the app does not load: {_quoted(failure.at, place)}{message}"


def _quoted(where: str, place: Callable[[str], str]) -> str:
    """Return file and line, and the text of the line."""
    return f"{place(where)}  {line(where)}".strip() or "by the interpreter"


def line(where: str) -> str:
    """Return the text of the line; "" if there is none."""
    path, _, number = where.rpartition(":")
    return linecache.getline(path, int(number)).strip() if number.isdecimal() else ""


def names_of(found: Collection[str]) -> str:
    return ",".join(found)

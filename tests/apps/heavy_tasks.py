"""What tests offload: a module of its own, as a site has for it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lowmem_wsgi import offload

if TYPE_CHECKING:
    from werkzeug.datastructures import FileStorage

MB = 1024 * 1024


class Refused(ValueError):
    """With what no exception can be made anew from its args."""

    def __init__(self, row: int, *, column: str) -> None:
        super().__init__(f"row {row}, column {column}")


@offload
def whereabouts() -> dict[str, object]:
    return {"pid": os.getpid(), "group": os.getpgrp(), "modules": sorted(sys.modules)}


@offload(at_once=8, memory="20MB")
def double(number: int) -> int:
    return 2 * number


@offload
def echo(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


@offload
def divide(over: int) -> float:
    return 1 / over


@offload
def refuse() -> None:
    raise Refused(7, column="email")


@offload
def fail_as(module: str, name: str) -> None:
    import importlib

    raise getattr(importlib.import_module(module), name)("of its own kind")


@offload
def stop_iteration() -> None:
    raise StopIteration("stopped")


@offload(memory="100MB")
def allocate(size: int) -> int:
    return len(bytearray(size))


@offload(memory="50MB", timeout="20s")
def fill(kind: str) -> int:
    found: list[Any] = []
    while True:
        found.append({"id": len(found)} if kind == "dicts" else b"x" * int(kind))


@offload(memory="100MB")
def stumble() -> None:
    """As a library's handler that takes each error to have arguments."""
    try:
        bytearray(2048 * MB)
    except Exception as error:
        error.args = (f"{error.args[0]} (sheet: 1)",)
        raise


@offload(timeout=0.5)
def endless() -> None:
    while True:
        pass


@offload(timeout=0.5)
def stuck_in_c() -> int:
    return sum(range(10**15))


@offload
def exit_with(code: object) -> None:
    sys.exit(code)  # type: ignore[arg-type]


@offload
def leave_with(code: int) -> None:
    os._exit(code)


@offload
def leave_in_c(code: int) -> None:
    """As a library does that has no other way to say that it cannot go on."""
    import ctypes

    ctypes.CDLL(None).exit(code)


@offload
def fail_beyond_exception() -> None:
    raise BaseException("no Exception")


@offload
def fail_of(kind: type[Exception], message: str) -> None:
    """As pandas does where numpy cannot be imported."""
    try:
        raise kind(message)
    except Exception:
        raise ImportError("a required dependency is missing") from None


def import_pandas() -> str:
    import pandas

    return str(pandas.__version__)


@offload
def kill_self(signal: int) -> None:
    os.kill(os.getpid(), signal)
    time.sleep(60)


@offload
def unpicklable() -> object:
    return threading.Lock()


@offload
def make(module: str, name: str, *args: Any) -> object:
    import importlib

    return getattr(importlib.import_module(module), name)(*args)


@offload
def shout(size: int) -> int:
    for _ in range(size // MB):
        sys.stdout.write("x" * MB)
    return size


@offload
def grandchild() -> int:
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
    return pid


@offload
def grandchild_that_stays() -> None:
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
    Path(os.environ["TOLD"]).write_text(str(pid))
    os._exit(5)


@offload
def environ(name: str) -> str | None:
    return os.environ.get(name)


@offload
def oom_score() -> int:
    return int(Path("/proc/self/oom_score_adj").read_text())


@offload
def read_file(file: IO[bytes] | FileStorage) -> tuple[bytes, int]:
    data = file.read()
    return data[:20], len(data)


@offload
def write_file(file: IO[bytes], size: int) -> None:
    file.write(b"x" * size)


@offload
def lines_of(files: Sequence[Iterable[bytes]]) -> list[bytes]:
    return [line for file in files for line in file]


@offload
def numbers(count: int) -> Generator[int, None, str]:
    yield from range(count)
    return "all"


@offload(timeout=None)
def blocks(note: str) -> Iterator[bytes]:
    """Of 1 MB each, without end; how many were made is in the file."""
    for number in range(10**6):
        Path(note).write_text(str(number))
        yield b"x" * MB


@offload
def numbers_that_fail(count: int) -> Iterator[int]:
    yield from range(count)
    raise Refused(count, column="id")


@offload
def nested(number: int) -> tuple[int, int, int, list[int]]:
    return os.getpid(), double(number), double.submit(number).result(), list(numbers.stream(3))


@offload(timeout="60s")
def sleep(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@offload(at_once=1, wait=0)
def one_at_a_time(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@offload(memory="150MB", wait="60s", timeout="60s", at_once=8)
def hold(size: int, until: str, told: str) -> int:
    """Use so much memory until there is a file of that name; `told` is one more as it begins."""
    held = b"x" * size
    Path(told).touch()
    while not Path(until).exists():
        time.sleep(0.01)
    return len(held)


def plain(number: int) -> tuple[int, int]:
    return os.getpid(), number + 1

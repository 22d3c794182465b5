"""Run one offloaded call in the child process: a fresh interpreter that makes one call, and ends.

The child writes frames to its channel: a letter, a length, a pickle (see `KINDS`). The child shares
stdout and stderr with the parent, and writes no frames there.

Functions import modules where they use them, because each call pays for each import.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

# The kinds of frames, and their contents.
VALUE = b"v"  # the function's result, or a value that the function yielded
END = b"r"  # no more values; the return value of a generator
ERROR = b"e"  # a Failure
MEMORY = b"m"  # out of memory: the text of the traceback
REFUSED = b"t"  # why the result cannot be sent, as text
EXIT = b"x"  # empty: the function has asked to exit
KINDS = (VALUE, END, ERROR, MEMORY, REFUSED, EXIT)
HEAD = "<cQ"
# The exit code of a child that lacks the memory even to report the shortage.
SPEECHLESS = 239

# Whether this process is such a child. If so, calls of offloaded functions run directly.
inside: bool = False


class Task(NamedTuple):
    """The call that a child must make."""

    module: str
    qualname: str
    streaming: bool

    @property
    def name(self) -> str:
        return f"{self.module}.{self.qualname}"


class HungUp(Exception):
    """The parent has closed the channel."""


class Failure(NamedTuple):
    """An exception of the function: pickled, if possible, and as text."""

    pickled: bytes | None
    kinds: list[tuple[str, str]]  # its class and base classes: module, qualified name
    message: str
    traceback: str


class OpenFile(NamedTuple):
    """A file of the parent: its descriptor in both processes, flags of open(2), position."""

    descriptor: int
    flags: int
    position: int


def find(task: Task) -> Callable[..., Any]:
    """Import the offloaded function."""
    import importlib

    found: Any = importlib.import_module(task.module)
    for part in task.qualname.split("."):
        found = getattr(found, part)
    function: Callable[..., Any] = getattr(found, "offloaded", found)
    return function


def call(task: Task, args: Any, kwargs: Any) -> Any:
    """Make the call in this process, a worker of an executor."""
    return find(task)(*args, **kwargs)


def main(channel: int, lifeline: int, memory: int) -> None:
    """Read a task from the channel, run it, and answer.

    `channel`, `lifeline`: file descriptors. The kernel ends this process when the parent closes the
    lifeline or ends. `memory`: bytes that this process may grow by.
    """
    global inside  # noqa: PLW0603
    inside = True
    end_with(lifeline)
    be_first_to_go()
    limit_memory(memory)
    os.set_inheritable(channel, False)
    os.set_blocking(channel, True)  # gevent's sockets do not block
    try:
        with open(channel, "rb", closefd=False) as job:
            work(Answer(channel), job)
    except HungUp:
        pass
    except MemoryError:  # again, while reporting the first MemoryError
        os._exit(SPEECHLESS)
    leave()


def work(answer: Answer, job: Any) -> None:
    """Make the call that the file `job` describes, and send the answer.

    Reports a SystemExit and raises it again: the process then exits with its code.
    """
    import pickle

    name, files = "the task", list[Any]()
    try:
        task: Task = pickle.load(job)
        name = task.name
        function = find(task)
        args, kwargs = arguments(job, files)
        result = function(*args, **kwargs)
        if task.streaming:
            result = stream(answer, name, result)
        for file in files:
            if not file.closed:
                file.flush()
        if not task.streaming:
            answer.value(VALUE, name, result)
            result = None
        answer.value(END, name, result)
    except HungUp:
        raise
    except Exception as error:
        limit_memory(None)  # reporting the error needs memory
        from ..system.shortage import ran_out

        if ran_out(error):
            answer.send(MEMORY, pickle.dumps(text_of(error)))
        else:
            answer.send(ERROR, pickle.dumps(failure(error)))
    except BaseException:  # SystemExit, KeyboardInterrupt
        answer.send(EXIT, b"")
        raise


def stream(answer: Answer, name: str, result: Any) -> Any:
    """Send each value as the function yields it. Return the generator's return value.

    Waits until the parent reads: the channel buffers little.
    """
    values = iter(result)
    while True:
        try:
            value = next(values)
        except StopIteration as end:
            return end.value
        answer.value(VALUE, name, value)


class Answer:
    """Send frames to the parent."""

    def __init__(self, channel: int) -> None:
        self._channel = channel

    def value(self, kind: bytes, name: str, value: object) -> None:
        """Send a value. Raise MemoryError if memory is too short to pickle the value.

        For a value that cannot be pickled, send the reason and end the process.
        """
        import pickle

        try:
            data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        except MemoryError:
            raise
        except Exception as error:
            why = f"what {name} returned cannot be sent back, {type(value).__name__}: {error}"
            if hasattr(value, "__next__"):
                why += f" (to have what it yields: {name.rpartition('.')[2]}.stream(...))"
            self.send(REFUSED, pickle.dumps(why))
            leave()
        self.send(kind, data)

    def send(self, kind: bytes, data: bytes) -> None:
        """Send a frame. Raise HungUp if the parent has closed the channel."""
        import struct

        try:
            for piece in (struct.pack(HEAD, kind, len(data)), data):
                view = memoryview(piece)
                while view:
                    view = view[os.write(self._channel, view) :]
        except ConnectionError:
            raise HungUp from None


def leave() -> NoReturn:
    """End the process without the interpreter's own shutdown, which frees object by object."""
    import atexit

    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # no such stream, or closed
        pass
    os._exit(0)


# --- An error


def failure(error: BaseException) -> Failure:
    import pickle

    try:
        pickled = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
    except Exception:
        pickled = None
    kinds = [(kind.__module__, kind.__qualname__) for kind in type(error).__mro__]
    try:
        message = str(error)
    except Exception:
        message = "(it cannot be put in words)"
    return Failure(pickled, kinds, message, text_of(error))


def text_of(error: BaseException) -> str:
    """Return the traceback, without the frames of this module."""
    import traceback

    begin = error.__traceback__.tb_next if error.__traceback__ else None
    return "".join(traceback.format_exception(type(error), error, begin or error.__traceback__))


# --- Files of the parent


def arguments(job: Any, files: list[Any]) -> Any:
    """Return the arguments of the call. Open the files among them, and append these to `files`."""
    import pickle

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: OpenFile) -> Any:
            files.append(opened(pid))
            return files[-1]

    return Unpickler(job).load()


def opened(file: OpenFile) -> Any:
    """Open the file again, as a binary file. Reading then does not move the parent's position."""
    descriptor = file.descriptor
    try:
        descriptor = os.open(f"/dev/fd/{file.descriptor}", file.flags | os.O_CLOEXEC)
    except OSError:  # cannot be opened by name: use the parent's own descriptor
        os.set_inheritable(descriptor, False)
    else:
        os.close(file.descriptor)
    os.lseek(descriptor, file.position, os.SEEK_SET)
    access = file.flags & os.O_ACCMODE
    modes = {os.O_RDONLY: "rb", os.O_WRONLY: "wb", os.O_RDWR: "r+b"}
    return open(descriptor, modes[access])


# --- What is different in this process


def end_with(lifeline: int) -> None:
    """Kill this process and its children when no process holds the lifeline's other end.

    On Linux the kernel does so (fcntl(2), F_SETSIG), also while C code holds the GIL. (The signal
    of PR_SET_PDEATHSIG would come already when the *thread* ends that started this process.)
    Elsewhere a thread does so.
    """
    os.set_inheritable(lifeline, False)
    import fcntl
    import signal

    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpid())  # the group that this process leads
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags)
        try:
            gone = os.read(lifeline, 1) == b""  # the parent has ended already
        except BlockingIOError:
            return
        if gone:
            os._exit(1)
    else:
        import threading

        def watch() -> None:
            os.read(lifeline, 1)
            os.killpg(0, signal.SIGKILL)

        threading.Thread(target=watch, daemon=True).start()


def be_first_to_go() -> None:
    """Make the kernel kill this process before the site when the container runs out of memory."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:  # not Linux, or not allowed
        pass


def limit_memory(memory: int | None) -> None:
    """Let this process map at most `memory` more bytes of data than now; None: no limit.

    Sets RLIMIT_DATA (setrlimit(2)). The soft limit before is the parent's ceiling. Does nothing
    outside Linux, where the limit does not count `mmap`.
    """
    if sys.platform != "linux":
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = hard
    if memory is not None:
        try:
            with open("/proc/self/statm", "rb") as file:
                data = int(file.read().split()[5]) * resource.getpagesize()
        except (OSError, ValueError, IndexError):
            return
        limit = data + memory if hard == resource.RLIM_INFINITY else min(data + memory, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))

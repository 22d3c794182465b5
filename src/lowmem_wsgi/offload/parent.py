"""Manage one child process in the parent: start the child, receive its frames, end it.

The child is a fresh interpreter, not a fork. A fork of a process with threads may inherit a lock
that no thread will ever release, and would begin with all of the parent's memory. The code looks up
`subprocess`, `socket` and `time` at each use, because gevent replaces them to let other greenlets
run.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import log
from ..settings import KB, format_size
from ..system.procfs import read_statm
from . import child as _child
from .admission import Gate, size
from .arguments import Arguments
from .errors import (
    OffloadBusy,
    OffloadDied,
    OffloadError,
    OffloadMemoryError,
    OffloadTimeout,
    RemoteTraceback,
)

if TYPE_CHECKING:
    import subprocess

# Seconds between two checks of a child that sends nothing.
LOOK = 0.5
# Seconds for a child to end by itself after its last frame (its atexit functions).
GRACE = 5.0
# A child this near to its limit (bytes) at two checks is stuck: Python 3.11 and later may spin for
# ever if there is no memory even for the error. (Measured: 3 of 10 loops that make dicts, with
# 128 KB left by this count.)
AT_LIMIT = 256 * KB

# For libraries that would otherwise start a thread for each processor, and reserve memory for each.
ENVIRON = {
    "MALLOC_ARENA_MAX": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
}

_BOOT = """\
import sys
sys.path[:] = {path!a}
from lowmem_wsgi.offload.child import main
main({channel}, {lifeline}, {memory})
"""


class Process:
    """A child that runs a task. Call `receive` until END, and `end` in any case.

    `memory`: bytes that the child may grow by. `timeout`: seconds for the whole call (None: any
    time). Raises OffloadBusy if no process can be started. Not thread-safe.
    """

    def __init__(
        self,
        task: _child.Task,
        arguments: Arguments,
        memory: int,
        timeout: float | None,
        gate: Gate,
    ) -> None:
        self.name: str = task.name
        self._memory = memory
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._was_full = False
        self._gate = gate
        self._kills = gate.kills() or 0
        self._parent = os.getpid()
        self._lifeline = -1
        gate.add(self)
        self._popen: subprocess.Popen[bytes]
        self._start(arguments)
        self.pid: int = self._popen.pid

    def _start(self, arguments: Arguments) -> None:
        """Start the child. Raise OffloadBusy if processes, descriptors or memory have run out."""
        try:
            with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
                self._open(arguments, ours, theirs)
                ours.pop_all()  # keep the parent's ends open: `end` closes them
        except OSError as error:
            if error.errno in _NO_MORE:
                raise OffloadBusy(f"no process can be started for {self.name}: {error}") from error
            raise

    def _open(
        self, arguments: Arguments, ours: contextlib.ExitStack, theirs: contextlib.ExitStack
    ) -> None:
        """Open the channel and the lifeline, and start the process.

        The stacks close the parent's (`ours`) and the child's (`theirs`) ends.
        """
        import socket
        import subprocess

        self._channel, channel = socket.socketpair()
        ours.callback(self._channel.close)
        theirs.callback(channel.close)
        lifeline, self._lifeline = os.pipe()
        ours.callback(self.let_go)
        theirs.callback(os.close, lifeline)
        given = (channel.fileno(), lifeline, *arguments.descriptors)
        boot = _BOOT.format(
            path=[str(entry) for entry in sys.path],
            channel=given[0],
            lifeline=lifeline,
            memory=self._memory,
        )
        flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        self._popen = subprocess.Popen(
            [python(), *flags, "-c", boot, self.name],
            stdin=subprocess.DEVNULL,
            pass_fds=given,
            env={**ENVIRON, **os.environ},
            start_new_session=True,  # a process group of its own, which can be killed as one
        )

    def send(self, data: bytes) -> None:
        """Send data. Raise OffloadTimeout.

        Ignores that a child has ended: `receive` then raises the cause.
        """
        view = memoryview(data)
        while view:
            self._wait_at_most(LOOK)
            try:
                view = view[self._channel.send(view) :]
            except TimeoutError:
                self._look()
                if self._has_ended():
                    return
            except ConnectionError:
                return

    def receive(self) -> tuple[bytes, bytearray]:
        """Return the kind and the pickle of the next frame. Raise OffloadError for a dead child."""
        import struct

        kind, length = struct.unpack(_child.HEAD, self._read(struct.calcsize(_child.HEAD)))
        return kind, self._read(length)

    def end(self, *, patiently: bool = False) -> int | None:
        """Kill the child and its process group. Return its exit code, as in `subprocess`.

        `patiently`: first let the child end by itself, for at most GRACE seconds. Idempotent.
        """
        import signal
        import subprocess

        if patiently:
            self._hang_on()
        if self._popen.returncode is None and self._parent == os.getpid():  # not in a fork
            try:
                # The child is not waited for yet, so the pid is still its own. If the child exits
                # by itself, its exit code is set before its channel closes.
                os.killpg(self.pid, signal.SIGKILL)
            except OSError:  # the group is gone
                pass
            try:
                self._popen.wait(GRACE)
            except subprocess.TimeoutExpired:  # stuck in the kernel
                log.failure("Ending a child process")
        self.let_go()
        self._channel.close()
        return self._popen.returncode

    def let_go(self) -> None:
        """Close this process's end of the lifeline. Idempotent."""
        lifeline, self._lifeline = self._lifeline, -1
        if lifeline >= 0:
            os.close(lifeline)

    # --- Helpers

    def _read(self, length: int) -> bytearray:
        data = bytearray(length)
        view, got = memoryview(data), 0
        while got < length:
            # After the child has ended, all its data has arrived. (A process that the child started
            # may still hold the channel open.)
            ended = self._has_ended()
            self._wait_at_most(0 if ended else LOOK)
            try:
                count = self._channel.recv_into(view[got:])
            except (TimeoutError, BlockingIOError):
                if ended:
                    raise self._death() from None
                self._look()
                continue
            except ConnectionError:
                count = 0
            if not count:
                raise self._death()
            got += count
        return data

    def _wait_at_most(self, seconds: float) -> None:
        """Set how long the channel waits, within the call's timeout. Raise OffloadTimeout."""
        left = float("inf") if self._deadline is None else self._deadline - time.monotonic()
        if left <= 0:
            raise self._too_slow()
        self._channel.settimeout(min(seconds, left))

    def _look(self) -> None:
        """Check a silent child. Raise OffloadMemoryError if the child is stuck at its limit."""
        if self._popen.poll() is not None:
            return
        full = self._is_full()
        if full and self._was_full:
            raise self._ran_out()
        self._was_full = full

    def _has_ended(self) -> bool:
        """Return whether the child had ended at the last check."""
        return self._popen.returncode is not None

    def _is_full(self) -> bool:
        """Return whether the child has reached its limit."""
        if sys.platform != "linux":  # no system limit stops the child there
            import psutil

            try:
                rss: int = psutil.Process(self.pid).memory_info().rss
            except psutil.Error:
                return False
            return rss > size(self._memory)
        import resource

        statm = read_statm(self.pid)
        try:
            soft, hard = resource.prlimit(self.pid, resource.RLIMIT_DATA)
        except OSError:  # the child is gone
            return False
        if statm is None:
            return False
        return soft != hard and statm.data > soft - AT_LIMIT

    def _hang_on(self) -> None:
        """Wait until the child has closed its channel, or GRACE is over."""
        until = time.monotonic() + GRACE
        while self._popen.returncode is None and (left := until - time.monotonic()) > 0:
            self._channel.settimeout(min(LOOK, left))
            try:
                if not self._channel.recv(1024):
                    return
            except TimeoutError:
                self._popen.poll()
            except OSError:
                return

    # --- Its end

    def _death(self, *, asked: bool = False) -> OffloadError:
        """End the child, and return the error for the missing result.

        `asked`: the child has announced that it exits.
        """
        import signal

        code = self.end(patiently=asked)
        if code == _child.SPEECHLESS:
            return self._ran_out()
        if code == 1 and not asked and sys.platform == "linux":
            # C code has called exit(), as OpenBLAS does when it gets no memory.
            return OffloadMemoryError(
                f"{self.name} ended with exit code 1, as libraries do that find no memory: it may "
                f"need more than {format_size(self._memory)} (they say why on stderr)"
            )
        if code is None or code >= 0:
            return OffloadDied(f"{self.name} ended with exit code {code}, and no result", code)
        if code == -signal.SIGKILL and (self._gate.kills() or 0) > self._kills:
            return OffloadMemoryError(
                f"{self.name} was killed by the system: the container is out of memory"
            )
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return OffloadDied(f"{self.name} was killed by {name}", code)

    def _too_slow(self) -> OffloadTimeout:
        full = self._is_full()
        self.end()
        if full:
            raise self._ran_out()
        return OffloadTimeout(f"{self.name} took longer than {self._timeout:g} s")

    def _ran_out(self, text: str = "") -> OffloadMemoryError:
        self.end()
        error = OffloadMemoryError(f"{self.name} needed more than {format_size(self._memory)}")
        error.__cause__ = RemoteTraceback(text) if text else None
        return error

    def error(self, kind: bytes, data: bytearray) -> BaseException:
        """Return the exception for a frame that holds no value."""
        import pickle

        if kind == _child.EXIT:
            return self._death(asked=True)
        found: Any = pickle.loads(data)
        if kind == _child.MEMORY:
            return self._ran_out(found)
        if kind == _child.REFUSED:
            return TypeError(found)
        return raised(found)


def _no_more() -> frozenset[int]:
    import errno

    return frozenset((errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE))


_NO_MORE = _no_more()


def python() -> str:
    """Return the path of the interpreter to start. (Inside uWSGI, `sys.executable` is uWSGI.)

    Raises OffloadError if none is found.
    """
    if "python" in os.path.basename(sys.executable or "").lower():
        return sys.executable
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for name in (f"python{version}", "python3", "python"):
        found = os.path.join(sys.exec_prefix, "bin", name)
        if os.access(found, os.X_OK):
            return found
    raise OffloadError(
        f"no Python interpreter was found to start: sys.executable is {sys.executable!r}, and "
        f"there is none in {os.path.join(sys.exec_prefix, 'bin')}"
    )


# --- The contents of frames


def value(name: str, data: bytearray) -> Any:
    """Unpickle a value.

    Raises TypeError if this process would have to import a package for the value: `offload` exists
    to avoid such imports.
    """
    loads, foreign = _loader()
    try:
        return loads(data)
    except foreign as error:
        raise TypeError(
            f"{name} returned a {error}, and this process has not imported that package: return "
            "plain values (.item(), .tolist(), .to_dict()), bytes, or write to a file"
        ) from None


def raised(failure: _child.Failure) -> BaseException:
    """Return the exception that the child raised, with the child's traceback as the cause.

    If the exception cannot be unpickled here, return one of a built-in base class.
    """
    loads, _ = _loader()
    error = None
    if failure.pickled is not None:
        try:
            error = loads(failure.pickled)
        except Exception:  # from a package not loaded here, or with a faulty pickle
            pass
    if not isinstance(error, Exception):
        error = _like(failure)
    error.__cause__ = RemoteTraceback(failure.traceback)
    return error


def _like(failure: _child.Failure) -> Exception:
    import builtins

    module, qualname = failure.kinds[0]
    words = f"{module}.{qualname}: {failure.message}"
    for module, qualname in failure.kinds:
        kind = getattr(builtins, qualname, None) if module == "builtins" else None
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception:
            try:
                return kind(words)
            except TypeError:  # the class needs more arguments
                continue
    return OffloadError(words)


def _loader() -> tuple[Callable[[Any], Any], type[Exception]]:
    """Return a `pickle.loads` that imports no new package, and the exception for other packages.

    The function loads objects of the standard library and of packages that this process has
    imported. So no new package enters this process. This is no protection from the child,
    which runs the app's code as the same user and is trusted (docs/heavy.md).
    """
    import io
    import pickle

    class Foreign(Exception):
        pass

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            package = module.partition(".")[0]
            if package not in sys.modules and package not in sys.stdlib_module_names:
                raise Foreign(f"{module}.{name}")
            return super().find_class(module, name)

    return lambda data: Unpickler(io.BytesIO(data)).load(), Foreign

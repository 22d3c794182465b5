"""Make a call of an offloaded function, from the arguments to the result."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from ..settings import AMOUNT, INTERVAL, LIMIT, Kind, SettingsError, maybe
from ..settings import DURATION as WAIT
from . import child as _child
from .errors import OffloadError, OffloadTimeout

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from .arguments import Arguments
    from .parent import Process

P = ParamSpec("P")
R = TypeVar("R")


class Limits:
    """The parsed keywords of `offload`, in bytes and seconds. Raises SettingsError."""

    def __init__(self, *, memory: object, timeout: object, wait: object, at_once: object) -> None:
        problems: list[str] = []

        def read(name: str, value: object, kind: Kind[Any]) -> Any:
            try:
                return kind.parse(value)
            except (ValueError, KeyError, TypeError, OverflowError):
                problems.append(f"offload({name}={value!r}): expected {kind.expected}")

        self.memory: int | None = read("memory", memory, maybe("none", LIMIT))
        self.timeout: float | None = read("timeout", timeout, maybe("none", INTERVAL))
        self.wait: float = read("wait", wait, WAIT)
        self.at_once: int | None = read("at_once", at_once, maybe("none", AMOUNT))
        if problems:
            raise SettingsError(problems)


class Offloaded(Generic[P, R]):
    """A function that runs in a child process. `offload` makes it. Any thread may call it.

    Call the object, or its methods `submit` or `stream`. LowMemory pickles the arguments and the
    result, and passes a file among the arguments as a file (see arguments.py). Inside a child, a
    call runs the function directly.
    """

    def __init__(
        self,
        function: Callable[P, R],
        limits: Limits,
        executor: Executor | Callable[[], Executor] | None,
    ) -> None:
        _check(function)
        functools.update_wrapper(self, function)
        self.offloaded = function
        self.limits = limits
        self.executor = executor

    def __reduce__(self) -> str:
        return self.offloaded.__qualname__  # pickled by name, as functions are

    def __repr__(self) -> str:
        return f"<offloaded {self.offloaded.__module__}.{self.offloaded.__qualname__}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the function's result, or raise its exception.

        The cause of the exception is the traceback in the child. Raises OffloadError if the call
        fails, TypeError for an argument or a result that cannot be sent.
        """
        if _child.inside:
            return self.offloaded(*args, **kwargs)
        if self.executor is not None:
            return _result_of(self.submit(*args, **kwargs), self)
        return self._result(self._packed(args, kwargs))

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Make the call in a thread of its own. Return a Future.

        You can cancel the Future until there is room for the child. Packs the arguments at once,
        and raises TypeError for an argument that cannot be sent.
        """
        if self.executor is not None and not _child.inside:
            executor: Any = self.executor
            executor = executor if hasattr(executor, "submit") else executor()
            future: Future[R] = executor.submit(_child.call, self._task(), args, kwargs)
            return future
        from concurrent.futures import Future as NewFuture
        from threading import Thread

        future = NewFuture()
        if _child.inside:
            _settle(future, lambda: self.offloaded(*args, **kwargs))
            return future
        arguments = self._packed(args, kwargs)
        begins = future.set_running_or_notify_cancel
        Thread(
            target=_settle,
            args=(future, lambda: self._result(arguments, begins)),
            name=f"offload {self._task().name}",
        ).start()
        return future

    def stream(self, *args: P.args, **kwargs: P.kwargs) -> Generator[Any, None, Any]:
        """Yield the values as the function yields them.

        The first `next` begins the call. The function waits until you ask for more. Closing the
        iterator ends the child. Raises TypeError with an executor.
        """
        if _child.inside:
            return _each(self.offloaded(*args, **kwargs))
        if self.executor is not None:
            raise TypeError(f"{self!r} cannot stream: an executor gives back one result")
        return self._stream(self._packed(args, kwargs))

    # --- A call, step by step

    def _task(self, *, streaming: bool = False) -> _child.Task:
        return _task(self.offloaded)._replace(streaming=streaming)

    def _packed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        from .arguments import pack

        return pack(_task(self.offloaded).name, args, kwargs)

    def _begin(
        self, arguments: Arguments, streaming: bool, begins: Callable[[], bool] = lambda: True
    ) -> Process:
        """Start the child when there is room, and send its task and arguments."""
        import pickle

        from .admission import Request, gate
        from .parent import Process

        if os.name != "posix":
            raise OffloadError("offload starts processes on POSIX systems only: use an executor")
        admission, limits, task = gate(), self.limits, self._task(streaming=streaming)
        memory = limits.memory or admission.default_memory()
        request = Request(task.name, memory, limits.at_once, limits.wait)

        def begin() -> Process:
            if not begins():
                raise _Cancelled
            return Process(task, arguments, memory, limits.timeout, admission)

        try:
            process = admission.start(request, begin)
            try:
                process.send(pickle.dumps(task))
                process.send(arguments.data)
            except BaseException:
                process.end()
                raise
            arguments.sent()
            return process
        finally:
            arguments.close()

    def _result(self, arguments: Arguments, begins: Callable[[], bool] = lambda: True) -> R:
        from .parent import value

        process = self._begin(arguments, False, begins)
        try:
            kind, data = process.receive()
            if kind != _child.VALUE:
                raise process.error(kind, data)
            result: R = value(process.name, data)
            process.receive()  # END
            process.end(patiently=True)
            return result
        finally:
            process.end()

    def _stream(self, arguments: Arguments) -> Generator[Any, None, Any]:
        from .parent import value

        process = self._begin(arguments, True)
        try:
            while True:
                kind, data = process.receive()
                if kind == _child.END:
                    process.end(patiently=True)
                    return value(process.name, data)
                if kind != _child.VALUE:
                    raise process.error(kind, data)
                yield value(process.name, data)
        finally:
            process.end()


def _each(values: Any) -> Generator[Any, None, Any]:
    return (yield from values)


class _Cancelled(Exception):
    """The future was cancelled before there was room."""


def _settle(future: Future[R], work: Callable[[], R]) -> None:
    try:
        result = work()
    except _Cancelled:
        pass
    except BaseException as error:
        if future.running() or future.set_running_or_notify_cancel():
            future.set_exception(error)
    else:
        future.set_result(result)


def _result_of(future: Future[R], offloaded: Offloaded[Any, R]) -> R:
    timeout = offloaded.limits.timeout
    try:
        return future.result(timeout)
    except Exception as error:
        if future.done() and not future.cancelled():
            raise
        if not isinstance(error, TimeoutError) and type(error).__name__ != "TimeoutError":
            raise
        future.cancel()
        raise OffloadTimeout(f"{offloaded!r} took longer than {timeout:g} s") from None


def _check(function: Any) -> None:
    """Raise TypeError for a function that a child could not import by its name."""
    name = getattr(function, "__qualname__", None)
    if not (callable(function) and name and getattr(function, "__module__", None)):
        raise TypeError(f"offload takes a function, not {function!r}")
    if not name.isidentifier():
        raise TypeError(
            f"{function.__module__}.{name} cannot be offloaded: a child imports the function by "
            "its name, so it must be a plain function at the top level of a module"
        )


def _task(function: Any) -> _child.Task:
    """Return the module and name by which a child finds the function.

    Raises TypeError for a function of the main program: an import in the child might start that
    program a second time.
    """
    module = function.__module__
    if module == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        if spec is None or not spec.name:
            raise TypeError(
                f"{function.__qualname__} cannot be offloaded from the main program: move it to a "
                "module of its own, which a child can import"
            )
        module = spec.name
    return _child.Task(module, function.__qualname__, False)

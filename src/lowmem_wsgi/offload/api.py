"""`offload`: run each call of a function in a short-lived child process, to free all its memory.

    # reports.py, a module of its own: the child imports this module, not the app
    from lowmem_wsgi import offload

    @offload(memory="300MB", timeout="1m")
    def totals(sheet):
        import pandas

        return pandas.read_excel(sheet).sum(numeric_only=True).to_dict()

    # app.py
    reports.totals(request.files["sheet"])         # the result, or the function's exception
    reports.totals.submit("clients.xlsx")          # a concurrent.futures.Future

The calling process never imports the modules that the function imports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from .call import Offloaded

P = ParamSpec("P")
R = TypeVar("R")

TIMEOUT, WAIT_FOR_ROOM = "30s", "10s"


@overload
def offload(
    function: Callable[P, R],
    *,
    memory: str | int | None = ...,
    timeout: str | float | None = ...,
    wait: str | float = ...,
    at_once: int | None = ...,
    executor: Executor | Callable[[], Executor] | None = ...,
) -> Offloaded[P, R]: ...
@overload
def offload(
    *,
    memory: str | int | None = ...,
    timeout: str | float | None = ...,
    wait: str | float = ...,
    at_once: int | None = ...,
    executor: Executor | Callable[[], Executor] | None = ...,
) -> Callable[[Callable[P, R]], Offloaded[P, R]]: ...
def offload(
    function: Callable[P, R] | None = None,
    *,
    memory: str | int | None = None,
    timeout: str | float | None = TIMEOUT,
    wait: str | float = WAIT_FOR_ROOM,
    at_once: int | None = None,
    executor: Executor | Callable[[], Executor] | None = None,
) -> Any:
    """Run each call of `function` in a child process of its own.

    memory    bytes that the child may grow by, with its imports; more raises OffloadMemoryError.
              None: 256 MB, or half of the container's limit if that is less
    timeout   seconds that a call may take, with its imports; more raises OffloadTimeout.
              None: any time
    wait      seconds to wait for other children to end if there is no room. Then the call raises
              OffloadBusy; if the app lets that error out, LowMemory answers 503
    at_once   children that may run the function at the same time on this machine. None: as many
              as fit into its memory, up to four
    executor  a concurrent.futures.Executor, or a function that returns one, to make the calls
              instead. LowMemory then ignores `memory`, `wait` and `at_once`

    Write sizes and durations as in settings. Returns the function as an `Offloaded`; without
    `function`, a decorator. Raises SettingsError for wrong values, TypeError for a function that a
    child could not import.
    """
    if function is None:
        return lambda function: offload(
            function,
            memory=memory,
            timeout=timeout,
            wait=wait,
            at_once=at_once,
            executor=executor,
        )
    from .call import Limits, Offloaded

    limits = Limits(memory=memory, timeout=timeout, wait=wait, at_once=at_once)
    return Offloaded(getattr(function, "offloaded", function), limits, executor)

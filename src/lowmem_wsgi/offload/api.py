"""`offload`: each call of a function in a short-lived child process, whose memory all goes back.

    # reports.py, a module of its own: the child imports it, and not the app
    from lowmem_wsgi import offload

    @offload(memory="300MB", timeout="1m")
    def totals(sheet):
        import pandas

        return pandas.read_excel(sheet).sum(numeric_only=True).to_dict()

    # app.py
    reports.totals(request.files["sheet"])         # the result, or the function's exception
    reports.totals.submit("clients.xlsx")          # a concurrent.futures.Future

The process that calls never imports what the function imports.
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
    """Have each call of `function` made in a child process of its own.

    memory    bytes the child may grow by, its imports included; more is OffloadMemoryError; None:
              256 MB, or half of the container's limit where that is less
    timeout   seconds a call may take, its imports included; more is OffloadTimeout; None: any time
    wait      seconds to wait for other children to end where there is no room; then OffloadBusy,
              which becomes a 503 if it is let out
    at_once   how many children may run the function at a time, on this machine; None: as many as
              fit into its memory, up to four
    executor  a concurrent.futures.Executor, or a function that returns one, to make the calls
              instead; `memory`, `wait` and `at_once` are then the executor's business

    Sizes and durations are written as in settings. Raises SettingsError for wrong ones, TypeError
    for a function that no child could import.
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

"""The errors of an offloaded call, besides those that the function itself raises."""

from __future__ import annotations


class OffloadError(Exception):
    """The call failed: no result, and no exception of the function's own."""


class OffloadMemoryError(OffloadError, MemoryError):
    """The function needed more than its `memory`, or the container's OOM killer took the child.

    Also raised if a library ended the child with exit code 1, as OpenBLAS does when it finds no
    memory.
    """

    # The setting for the log line, when the app lets the error out and LowMemory answers 503 (see
    # guards/out_of_memory.py). The error's message gives the reason.
    lowmem_setting = "memory= of offload"


class OffloadTooLarge(OffloadError):
    """The function's `memory` is more than even a single child may use. No child was started.

    This is no MemoryError, because the settings are wrong. LowMemory answers a MemoryError with
    503, and clients would try again.
    """


class OffloadBusy(OffloadError, MemoryError):
    """No room for one more child came within `wait` seconds, or no other child could free room."""

    lowmem_setting = "memory=, at_once= and wait= of offload"


class OffloadTimeout(OffloadError, TimeoutError):
    """The function took longer than its `timeout`. LowMemory killed its child."""


class OffloadDied(OffloadError):
    """The child ended before its result: by a signal, `sys.exit`, `os._exit` or a crash.

    (Not by `os._exit(1)` on Linux, which LowMemory takes for a library's exit: see
    OffloadMemoryError.) `exitcode`: the child's exit code; if negative, the number of the signal
    that killed the child.
    """

    def __init__(self, message: str, exitcode: int | None = None) -> None:
        super().__init__(message)
        self.exitcode = exitcode


class RemoteTraceback(Exception):
    """The traceback in the child, as text: the `__cause__` of the exception in this process."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'

"""The errors of an offloaded call, beside those that the function itself raises."""

from __future__ import annotations


class OffloadError(Exception):
    """The call came to nothing: no result, and no exception of the function's own."""


class OffloadMemoryError(OffloadError, MemoryError):
    """The function needed more than its `memory`, or the container's OOM killer took the child.

    Also where a library ended the child with exit code 1, as OpenBLAS does that finds no memory.
    """

    # The setting for the log line, when the app lets the error out and LowMemory answers 503 (see
    # guards/out_of_memory.py). The message says why.
    lowmem_setting = "memory= of offload"


class OffloadTooLarge(OffloadError):
    """The function's `memory` is more than there is even for a child alone: it was not started.

    No MemoryError, which LowMemory would answer 503, and clients would try again: the settings are
    wrong.
    """


class OffloadBusy(OffloadError, MemoryError):
    """There was no room for one more child within `wait` seconds, or no child to wait for."""

    lowmem_setting = "memory=, at_once= and wait= of offload"


class OffloadTimeout(OffloadError, TimeoutError):
    """The function took longer than its `timeout`. Its child was killed."""


class OffloadDied(OffloadError):
    """The child ended in the middle: killed by a signal, `sys.exit`, `os._exit`, a crash.

    (Not `os._exit(1)`, on Linux: LowMemory takes that for a library's, see OffloadMemoryError.)
    `exitcode` is the child's exit code; negative, the number of the signal that killed it.
    """

    def __init__(self, message: str, exitcode: int | None = None) -> None:
        super().__init__(message)
        self.exitcode = exitcode


class RemoteTraceback(Exception):
    """The traceback in the child, as text: the `__cause__` of the exception here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'

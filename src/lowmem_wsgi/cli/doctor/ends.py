"""How the doctor's child process and its worker end, and what their ends mean."""

from __future__ import annotations

import signal

# What is told last, {DONE: true}. A process that the app has started may hold the pipe open.
DONE = "done"


def ended(code: int, by_kernel: bool = False) -> dict[str, str]:
    """Return the failure that an exit code means. `by_kernel`: the OOM killer was at work.

    A negative code is a signal, as in `subprocess`. Only SIGKILL can be for memory, and SIGABRT:
    a library in C++ that gets no memory aborts.
    """
    if by_kernel or -code in (signal.SIGKILL, signal.SIGABRT):
        return {"kind": "killed", "text": f"signal {-code if code < 0 else 9}"}
    if code < 0:
        return {"kind": "crashed", "text": f"signal {-code}"}
    return {"kind": "exited", "text": f"exit {code}"}

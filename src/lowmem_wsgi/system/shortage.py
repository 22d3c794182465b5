"""Errors that mean "out of memory", whatever their class: the one list of them.

Imports nothing of the package: an offloaded child loads this module at an error, when it has little
memory.
"""

from __future__ import annotations

# How a shortage shows where the error is no MemoryError: the class, and a part of the message.
SIGNS = (
    # CPython, where it has no memory even for the error (errors.c, thread.c).
    (SystemError, "without exception set"),
    (SystemError, "without setting an exception"),
    (RuntimeError, "can't start new thread"),  # a thread's stack takes 8 MB
    # strerror(ENOMEM): mmap, fork, a file of the kernel's.
    (OSError, "Cannot allocate memory"),
    # A library that is loaded: glibc's and musl's dlopen(3), and NumPy half loaded before.
    (ImportError, "failed to map segment"),
    (ImportError, "cannot map zero-fill pages"),
    (ImportError, "annot allocate memory"),
    (ImportError, "Out of memory"),
    (ImportError, "cannot load module more than once per process"),
)


def is_shortage(error: BaseException) -> bool:
    """Return whether `error` itself says that memory ran out."""
    return isinstance(error, MemoryError) or any(
        isinstance(error, kind) and sign in str(error) for kind, sign in SIGNS
    )


def ran_out(error: BaseException | None) -> bool:
    """Return whether `error`, or an error that led to it, says that memory ran out.

    A library's own handler may stumble over the MemoryError (pandas's takes an error to have
    arguments), or make an ImportError of it.
    """
    seen = 0
    while error is not None and seen < 100:
        if is_shortage(error):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False

"""Recognise errors that mean "out of memory", of any class: the only list of them.

Imports nothing of the package: an offloaded child loads this module at an error, when the child has
little memory.
"""

from __future__ import annotations

# Errors of a shortage that are no MemoryError: the class, and a part of the message.
SIGNS = (
    # CPython, when there is no memory even for the error (errors.c, thread.c).
    (SystemError, "without exception set"),
    (SystemError, "without setting an exception"),
    (RuntimeError, "can't start new thread"),  # a thread's stack takes 8 MB
    # strerror(ENOMEM): mmap, fork, a kernel file.
    (OSError, "Cannot allocate memory"),
    # Loading a library: dlopen(3) of glibc and musl, and a NumPy half loaded before.
    (ImportError, "failed to map segment"),
    (ImportError, "cannot map zero-fill pages"),
    (ImportError, "annot allocate memory"),
    (ImportError, "Out of memory"),
    (ImportError, "cannot load module more than once per process"),
)


def is_shortage(error: BaseException) -> bool:
    """Return whether `error` itself means that memory ran out."""
    return isinstance(error, MemoryError) or any(
        isinstance(error, kind) and sign in str(error) for kind, sign in SIGNS
    )


def ran_out(error: BaseException | None) -> bool:
    """Return whether `error`, or an error that led to `error`, means that memory ran out.

    A library's own handler may fail on the MemoryError (pandas expects an error to have arguments),
    or turn the MemoryError into an ImportError.
    """
    seen = 0
    while error is not None and seen < 100:
        if is_shortage(error):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False

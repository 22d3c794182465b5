"""Pack the arguments of a call for a child: files as descriptors, all others pickled.

LowMemory passes a file on disk as its descriptor and its position. LowMemory first copies any other
file (a stream of a request, a BytesIO) to a temporary file without a name, piece by piece. So no
file is ever whole in memory, and no file is left behind.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .child import OpenFile

PIECE = 256 * 1024

# Wrappers around a file, and the attribute with the file. (LowMemory reads from any other wrapper:
# it may return other data than the file beneath, as GzipFile does.)
_WRAPPERS = {
    ("tempfile", "_TemporaryFileWrapper"): "file",
    ("tempfile", "SpooledTemporaryFile"): "_file",
    ("werkzeug", "FileStorage"): "stream",
    ("django", "File"): "file",
}


class Arguments:
    """Packed arguments and the descriptors of their files. The owner must call `close`."""

    def __init__(self) -> None:
        self.data: bytes = b""
        self.descriptors: list[int] = []

    def sent(self) -> None:
        """Drop the data: the child has received it."""
        self.data = b""

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())

    __del__ = close  # for a call that never began


def pack(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
    """Pack the arguments of function `name`.

    Raises TypeError, with the argument's name, for an argument that cannot be sent.
    """
    arguments = Arguments()
    try:
        arguments.data = _dumps((args, dict(kwargs)), arguments)
    except MemoryError:
        arguments.close()
        raise
    except Exception as error:
        arguments.close()
        culprit = _culprit(args, kwargs)
        raise TypeError(f"{culprit} of {name} cannot be sent to the child: {error}") from error
    except BaseException:
        arguments.close()
        raise
    return arguments


def _dumps(value: object, arguments: Arguments) -> bytes:
    import io
    import pickle

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> OpenFile | None:
            return _passed(obj, arguments) if is_file(obj) else None

    data = io.BytesIO()
    Pickler(data, pickle.HIGHEST_PROTOCOL).dump(value)
    return data.getvalue()


def _culprit(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return for the error message which argument cannot be sent."""
    named = [(f"argument {number}", value) for number, value in enumerate(args, 1)]
    named += [(f"argument {name}=", value) for name, value in kwargs.items()]
    for words, value in named:
        arguments = Arguments()
        try:
            _dumps(value, arguments)
        except Exception:
            return f"{words} ({type(value).__name__})"
        finally:
            arguments.close()
    return "an argument"


# --- Files


def is_file(value: Any) -> bool:
    """Return whether the value is a file or file-like: has `read` and `readline`."""
    kind = type(value)
    if kind in _PLAIN or isinstance(value, type):
        return False
    return callable(getattr(value, "read", None)) and callable(getattr(value, "readline", None))


_PLAIN = {str, bytes, int, float, bool, type(None), list, dict, tuple, set}


def _passed(file: Any, arguments: Arguments) -> OpenFile:
    import io

    found = _beneath(file)
    if isinstance(found, io.TextIOBase):
        raise TypeError("a file that is passed must be open in binary mode")
    on_disk = isinstance(found, io.FileIO) or isinstance(getattr(found, "raw", None), io.FileIO)
    if on_disk and found.seekable():
        if found.writable():
            found.flush()
        return _add(found.fileno(), found.tell(), arguments)
    return _spooled(file, arguments)


def _beneath(file: Any) -> Any:
    """Return the file inside the usual wrappers."""
    for _ in range(4):
        kinds = {(kind.__module__.split(".")[0], kind.__name__) for kind in type(file).__mro__}
        inner = next((at for kind, at in _WRAPPERS.items() if kind in kinds), None)
        if inner is None:
            break
        if inner == "_file":
            file.rollover()  # from memory to disk
        file = getattr(file, inner)
    return file


def _spooled(file: Any, arguments: Arguments) -> OpenFile:
    """Copy the rest of the file to a temporary file. Restore the file's position, if possible."""
    import tempfile

    position = file.tell() if _can(file, "seekable") else None
    with tempfile.TemporaryFile() as copy:
        while piece := file.read(PIECE):
            if not isinstance(piece, (bytes, bytearray, memoryview)):
                raise TypeError("a file that is passed must be open in binary mode")
            copy.write(piece)
        copy.flush()
        if position is not None:
            file.seek(position)
        return _add(copy.fileno(), 0, arguments, os.O_RDONLY)


def _can(file: Any, what: str) -> bool:
    return bool(getattr(file, what, bool)())


def _add(
    descriptor: int, position: int, arguments: Arguments, access: int | None = None
) -> OpenFile:
    import fcntl

    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND)
    own = os.dup(descriptor)
    arguments.descriptors.append(own)
    return OpenFile(own, flags if access is None else access, position)

"""A private directory that all processes of this machine and user share."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping


class Refused(Exception):
    """The directory, or a file inside, cannot be trusted. The message gives the reason."""


def runtime_directory(environ: Mapping[str, str] | None = None) -> str:
    """Return the private directory's path: in XDG_RUNTIME_DIR, else in the temporary directory."""
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_RUNTIME_DIR")
    if base and os.path.isabs(base) and os.path.isdir(base):
        return os.path.join(base, "lowmem-wsgi")
    user = os.geteuid() if hasattr(os, "geteuid") else "user"
    return os.path.join(tempfile.gettempdir(), f"lowmem-wsgi-{user}")


def private_directory(path: str) -> str:
    """Make or check the directory: of this user alone, mode 0700, no link. Return the path.

    Raises Refused or OSError.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise Refused(f"{path} is not a directory")
    check_owner(path, found)
    if os.name == "posix" and stat.S_IMODE(found.st_mode) & 0o077:
        raise Refused(f"{path} is open to other users")
    return path


def check_owner(path: str, found: os.stat_result) -> None:
    """Raise Refused if the file belongs to another user."""
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        raise Refused(f"{path} belongs to user {found.st_uid}")

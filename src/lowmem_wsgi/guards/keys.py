"""Find the keys that sign the sessions.

LowMemory takes, in this order: the setting; the app's own secret (Flask, Django); a secret kept in
a private directory that all processes of this user on this machine share. So two workers, or a
worker and its replacement, always accept each other's sessions.

Systems delete old files from temporary directories. So each process that uses the kept secret
renews the file's times while sessions come, and writes the same secret again if the file is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from .. import log
from ..system.private_dir import Refused, check_owner, private_directory, runtime_directory
from .signed_cookie import derive

_FILE = "session-key"
_BYTES = 32


class Keys:
    """The signing keys of one app's sessions. Call an instance to get the keys, oldest to newest.

    Returns an empty tuple if no key can be found; an error in the log then says why. Call again now
    and then, to keep the file of the secret alive. Not thread-safe: calls must not overlap.
    """

    def __init__(
        self,
        setting: tuple[str, ...] | None,
        app: object,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._setting = setting
        self._app = app
        self._environ = environ
        # The secrets that were in the file while this process ran, the latest last.
        self._kept: list[bytes] = []
        # Whether the file's secret is in use. A change to a secret that the app gets later would
        # end all sessions.
        self._in_use = False

    def __call__(self) -> tuple[bytes, ...]:
        own = () if self._in_use else self._own()
        if own:
            return tuple(derive(secret.encode("utf-8", "surrogateescape")) for secret in own)
        try:
            directory = self._keep()
        except (OSError, Refused) as error:
            self._not_kept(error)
        else:
            log.once(
                logging.WARNING,
                "own session key",
                "Sessions are signed with a key kept in %s: it is lost with this machine's disk, "
                "and other machines do not have it. Set LOWMEM_SECRET_KEY to a long random text.",
                directory,
            )
        self._in_use = bool(self._kept)
        return tuple(derive(secret) for secret in self._kept)

    def hold(self) -> None:
        """Read or make the kept secret before a fork, if no other secret is known yet.

        All children then have the same secret, whatever happens to the file. Logs nothing: the app
        may use no sessions, or get a secret of its own later.
        """
        if not self._own():
            with contextlib.suppress(OSError, Refused):
                self._keep()

    def _own(self) -> tuple[str, ...]:
        return self._setting or app_secrets(self._app)

    def _keep(self) -> str:
        """Keep the secret's file alive. Return its directory. Raise Refused or OSError."""
        directory = runtime_directory(self._environ)
        latest = shared_secret(directory, self._kept[-1] if self._kept else None)
        # If another process has made another secret, later processes know only the new one. So sign
        # with the new secret, and still accept sessions signed with the earlier secrets.
        if latest not in self._kept[-1:]:
            self._kept = [*(secret for secret in self._kept if secret != latest), latest]
        return directory

    def _not_kept(self, error: Exception) -> None:
        if self._kept:
            log.once(
                logging.ERROR,
                "session key not kept",
                "The key that signs sessions cannot be kept for the processes that come after this "
                "one: %s. After a restart everybody must log in again. Set LOWMEM_SECRET_KEY to a "
                "long random text.",
                error,
            )
        else:
            log.once(
                logging.ERROR,
                "no session key",
                "Sessions do not end after LOWMEM_SESSION_LIFETIME: there is no key to sign them "
                "with, and %s. Set LOWMEM_SECRET_KEY to a long random text.",
                error,
            )


def app_secrets(app: object) -> tuple[str, ...]:
    """Return the secrets of the Flask or Django app inside `app`, oldest to newest."""
    for layer in layers(app):
        try:
            found = _layer_secrets(layer)
        except Exception:  # a proxy, a property, Django without a SECRET_KEY: no secret here
            continue
        if found:
            return found
    return ()


def _layer_secrets(layer: Any) -> tuple[str, ...]:
    module = type(layer).__module__.partition(".")[0]
    if module == "django" and (settings := _django_settings()) is not None:
        return _texts(settings.SECRET_KEY_FALLBACKS, settings.SECRET_KEY)
    # Flask, and apps with the same convention. The class is not checked: subclasses live in the
    # user's modules.
    config = getattr(layer, "config", None)
    if isinstance(config, Mapping) and config.get("SECRET_KEY"):
        return _texts(config.get("SECRET_KEY_FALLBACKS"), config["SECRET_KEY"])
    return ()


def layers(app: object) -> Iterator[Any]:
    """Yield the app and the apps that it wraps, outermost first, as far as LowMemory can see them.

    Follows bound methods (app.wsgi_app) and the attributes in which middleware usually keeps the
    wrapped app.
    """
    seen: set[int] = set()
    todo = [app]
    while todo and len(seen) < 50:
        layer = todo.pop(0)
        if layer is None or id(layer) in seen:
            continue
        seen.add(id(layer))
        yield layer
        inside = getattr(layer, "__dict__", None) or {}
        todo.append(getattr(layer, "__self__", None))
        todo += [inside.get(name) for name in ("app", "wsgi_app", "application", "__wrapped__")]


def _django_settings() -> Any:
    conf = sys.modules.get("django.conf")
    return conf.settings if conf is not None and conf.settings.configured else None


def _texts(fallbacks: object, secret: Any) -> tuple[str, ...]:
    """Return fallbacks and secret, oldest to newest.

    `fallbacks` has the newest first, as in Flask and Django.
    """
    older = fallbacks[::-1] if isinstance(fallbacks, (list, tuple)) else ()
    return tuple(
        value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
        for value in (*older, secret)
        if value
    )


def shared_secret(directory: str, known: bytes | None = None) -> bytes:
    """Return the secret kept in the directory, and renew its file's times.

    Without a file, write the `known` secret, else a new one. If another process writes the file at
    the same moment, return that process's secret. Raises Refused or OSError.
    """
    path = os.path.join(private_directory(directory), _FILE)
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    draft = f"{path}.{os.getpid()}.{secrets.token_hex(8)}"
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(known or secrets.token_bytes(_BYTES))
    try:
        os.link(draft, path)  # unlike a rename, never replaces another process's file
    except FileExistsError:
        pass
    finally:
        os.unlink(draft)
    return _read(path)


def _read(path: str) -> bytes:
    # Open as binary, and follow no symbolic link. Not every system has these flags.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    file = os.open(path, flags)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise Refused(f"{path} is not a file")
        check_owner(path, found)
        secret = os.read(file, _BYTES + 1)
        os.utime(path)  # systems delete old files from temporary directories
    finally:
        os.close(file)
    if len(secret) != _BYTES:
        raise Refused(f"{path} holds no key of {_BYTES} bytes")
    return secret

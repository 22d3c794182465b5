"""Enforce the session lifetime: end session cookies after a set time, with any framework.

On the way in, LowMemory takes each session cookie out of its signed envelope (signed_cookie.py). If
the cookie is expired, forged, from the future or unsigned, LowMemory removes the cookie from the
request, and the app sees no session. On the way out, LowMemory puts the app's own Set-Cookie in an
envelope.

A second cookie, the stamp, keeps a session in use alive beyond its lifetime. The stamp holds only
the time of the last use and fits one envelope. LowMemory never sends a session's value by itself.
So a slow response cannot bring back a session that another request has changed or ended meanwhile:
the stamp of the slow response then fits no cookie of the browser.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from .. import log
from ..http.paths import PATH, wsgi_path
from ..http.refusals import report
from . import set_cookie
from .guard import Guard, Headers
from .signed_cookie import BadEnvelope, OpenedSession, seal, stamp, unseal

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# The key of the environ under which `enter` leaves for `amend`: the time, the opened sessions, and
# the stamps of the request by session name.
OPENED = "lowmem.sessions"

# RFC 6265 §6.1 asks browsers to accept 4096 bytes a cookie. Browsers accept no more for name and
# value.
MOST_BYTES = 4096

# LowMemory sends a stamp after this share of the lifetime: often enough that a used session does
# not run out, seldom enough that not every response carries a cookie. A response that takes longer
# than this share carries no stamp. By then the browser may have a newer session with a stamp of its
# own, which the late stamp would replace.
RENEW_AFTER = 0.1

# The name of the stamp's cookie is the session's name and this suffix. A suffix keeps prefixes that
# browsers interpret (__Host-, __Secure-) at the front.
STAMP_SUFFIX = ".lowmem"

# A request may carry one stamp for each session cookie of the name: one for each Path or Domain.
# LowMemory reads at most so many of one name, so that a header full of stamps costs little.
MOST_STAMPS = 8

# Seconds after which LowMemory calls `find_keys` again. The call also keeps the keys' file alive.
FIND_KEYS_EVERY = 60.0
# ... and seconds after a call that returned no keys.
RETRY_KEYS = 5.0

_CACHED = re.compile(r"(?:max-age|s-maxage)=\"?0*[1-9]")

SETTING = "LOWMEM_SESSION_LIFETIME"

_NOTHING: tuple[float, list[OpenedSession], dict[str, list[str]]] = (0.0, [], {})

SET_COOKIE = len("set-cookie")


class Sessions(Guard):
    """The guard for the session cookies `names`, with a `lifetime` in seconds.

    `find_keys`: return the keys, oldest to newest; without keys, sessions pass unchanged. LowMemory
    first calls `find_keys` at the first session, because a Flask app gets its secret after the app
    is wrapped. Later calls come at most every FIND_KEYS_EVERY seconds, with a session's request.
    `count`: called with the name of a counter. `clock`: Unix time in seconds.
    """

    name = "The session lifetime"
    protects = True

    def __init__(
        self,
        names: Sequence[str],
        lifetime: float,
        find_keys: Callable[[], Sequence[bytes]],
        *,
        count: Callable[[str], None] = lambda name: None,
        sliding: bool = True,
        static_prefix: str = "/static/",
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._names = frozenset(names)
        self._stamps = {name + STAMP_SUFFIX: name for name in names}
        self._lifetime = lifetime
        self._find_keys = find_keys
        self._keys: Sequence[bytes] = ()
        self._find_at = float("-inf")
        self._sliding = sliding
        self._static_prefix = wsgi_path(static_prefix)
        self._clock = clock or time.time
        self._lock = threading.Lock()
        self._count = count
        # Parsers disagree on where a cookie's name begins. Python's http.cookies, which Bottle
        # uses, starts a new cookie after white space, other parsers after a comma. Django strips
        # Unicode white space from names, here as UTF-8 bytes. WebOb begins a name at any letter
        # that a name may have. So LowMemory must catch "secure session=...",
        # "\xc2\xa0session=..." and "x[session=..." too.
        gap = r'[\x00-\x20",\[\\\]\x7f-\xff]'
        either = "|".join(re.escape(name) for name in (*names, *self._stamps))
        self._hidden = re.compile(f"(?:^=*|{gap})(?:{either}){gap}*=")

    def after_fork(self) -> None:
        """Make a new lock in a new child process: a thread of the parent may hold the old lock."""
        self._lock = threading.Lock()

    def _keys_at(self, now: float) -> Sequence[bytes]:
        if now >= self._find_at:
            with self._lock:
                if now >= self._find_at:
                    self._keys = self._find_keys()
                    self._find_at = now + (FIND_KEYS_EVERY if self._keys else RETRY_KEYS)
        return self._keys

    def enter(self, environ: WSGIEnvironment, number: int = 0) -> None:
        """Replace each envelope in the request by its value. Remove envelopes that do not open."""
        header = environ.get("HTTP_COOKIE")
        if header and any(name in header for name in self._names):
            self._open(environ, header)

    def _open(self, environ: WSGIEnvironment, header: str) -> None:
        now = self._clock()
        keys = self._keys_at(now)
        if not keys:
            return
        # The cookies to keep: a part of the header as text, or a session's name and value.
        parts: list[str | tuple[str, str]] = []
        stamps: dict[str, list[str]] = {}
        for piece in header.split(";"):
            part = piece.strip(" \t")  # no other white space: in Latin-1, \xa0 may be half an "à"
            name, _, value = part.partition("=")
            name, value = name.rstrip(" \t"), value.lstrip(" \t")
            if name in self._names:
                parts.append((name, value))
            elif name in self._stamps:
                stamps.setdefault(self._stamps[name], []).append(value)
            elif part and not self._hidden.search(part):
                parts.append(part)
        kept: list[str] = []
        opened: list[OpenedSession] = []
        for found in parts:
            if isinstance(found, str):
                kept.append(found)
                continue
            name, value = found
            fitting = stamps.get(name, ())[:MOST_STAMPS] if self._sliding else ()
            try:
                session = unseal(name, value, keys, int(now), self._lifetime, fitting)
            except BadEnvelope as error:
                self._ended(environ, name, error.reason)
            else:
                kept.append(f"{name}={session.value}")
                opened.append(session)
        if kept:
            environ["HTTP_COOKIE"] = "; ".join(kept)
        else:
            del environ["HTTP_COOKIE"]
        if opened:
            environ[OPENED] = (now, opened, stamps)

    def amend(self, environ: WSGIEnvironment, status: str, headers: Headers) -> Headers:
        """Put the app's session cookies in envelopes, and add stamps. Return the headers."""
        setting = False
        for name, value in headers:  # most responses need only this loop, so no generator here
            if len(name) == SET_COOKIE and name.lower() == "set-cookie":
                setting = setting or set_cookie.parse(value)[0] in self._names
        if not setting and OPENED not in environ:
            return headers
        asked_at, opened, stamps = environ.get(OPENED, _NOTHING)
        now = self._clock()
        keys = self._keys_at(now)
        if not keys:
            return headers
        if setting:
            # The app sets these cookies itself: LowMemory adds no stamp.
            named = {set_cookie.parse(v)[0] for n, v in headers if n.lower() == "set-cookie"}
            opened = [session for session in opened if session.name not in named]
            headers = [
                sent for header in headers for sent in self._sent(environ, header, now, stamps)
            ]
        if (
            opened
            and self._sliding
            and now - asked_at <= self._lifetime * RENEW_AFTER
            and self._may_renew(environ, headers)
        ):
            headers = headers + self._renewals(opened, now)
        return headers

    def _sent(
        self,
        environ: WSGIEnvironment,
        header: tuple[str, str],
        now: float,
        stamps: Mapping[str, object],
    ) -> Headers:
        """Return the headers to send for one header of the app.

        A session's cookie goes in an envelope; any other header goes unchanged.
        """
        if header[0].lower() != "set-cookie":
            return [header]
        name, value, attributes = set_cookie.parse(header[1])
        if name not in self._names:
            return [header]
        _, semicolon, rest = header[1].partition(";")
        left = set_cookie.seconds_left(attributes, now)
        if left is not None and left <= 0:
            if name not in stamps:
                return [header]
            return [header, (header[0], f"{name}{STAMP_SUFFIX}={semicolon}{rest}")]
        sealed = self._sealed(environ, name, value, attributes, left, now)
        return [(header[0], f"{name}={sealed}{semicolon}{rest}")]

    def _sealed(
        self,
        environ: WSGIEnvironment,
        name: str,
        value: str,
        attributes: set_cookie.Attributes,
        left: int | None,
        now: float,
    ) -> str:
        """Return the envelope of a session that the app ends in `left` seconds; None: no end."""
        lasting = [pair for pair in attributes if pair[0].lower() not in set_cookie.ENDS]
        if not any(key.lower() == "path" and path.startswith("/") for key, path in lasting):
            # The browser takes the session's path from this page. A stamp set by another page must
            # name that path. Otherwise the browser would not send the stamp with every session.
            lasting.append(("Path", set_cookie.default_path(environ)))
        end = None if left is None else math.ceil(now + left)
        sealed = seal(name, value, set_cookie.pack(lasting), self._keys[-1], int(now), end)
        size = len(name) + 1 + len(sealed)
        if size > MOST_BYTES:
            log.limited(
                logging.ERROR,
                ("cookie too large", name),
                "Cookie %s is %d bytes in its envelope (%d without) and browsers drop what is over "
                "%d: its changes are lost. Keep less in the session, or take the name out of "
                "LOWMEM_SESSION_COOKIES.",
                name,
                size,
                len(name) + 1 + len(value),
                MOST_BYTES,
            )
        return sealed

    def _renewals(self, opened: Sequence[OpenedSession], now: float) -> Headers:
        """Return a stamp for each session whose last stamp is old enough."""
        due = now - self._lifetime * RENEW_AFTER
        renewed = [
            ("Set-Cookie", self._stamp(session, now))
            for session in opened
            if session.used_at <= due
            # A stamp cannot prolong a session beyond the end that the app gave it.
            and (session.end is None or session.used_at + self._lifetime < session.end)
        ]
        # The response now depends on the cookie: tell caches.
        return [*renewed, ("Vary", "Cookie")] if renewed else []

    def _stamp(self, session: OpenedSession, now: float) -> str:
        value = stamp(session.name, session.text, self._keys[-1], int(now))
        header = f"{session.name}{STAMP_SUFFIX}={value}; {session.attributes.replace(';', '; ')}"
        if session.end is None:
            return header  # ends with the browser, as the session's cookie does
        return f"{header}; Max-Age={math.ceil(min(self._lifetime, session.end - now))}"

    def _may_renew(self, environ: WSGIEnvironment, headers: Headers) -> bool:
        """Return whether to send stamps.

        False if a shared cache may keep the response, and so hand the session to other clients.
        """
        path = str(environ.get(PATH, environ.get("PATH_INFO", "")))
        if path.startswith(self._static_prefix):
            return False
        policy = ",".join(v for name, v in headers if name.lower() == "cache-control").lower()
        if "public" in policy or (not policy and any(n.lower() == "expires" for n, _ in headers)):
            return False
        if "private" in policy or "no-store" in policy or "no-cache" in policy:
            return True
        return not _CACHED.search(policy)

    def _ended(self, environ: WSGIEnvironment, name: str, reason: str) -> None:
        self._count("sessions_expired")
        if reason == "ended":
            why, setting = "past the end that the app gave it", "Max-Age or Expires, by the app"
        else:
            why, setting = f"{reason}, {self._lifetime:g} s allowed", SETTING
        report(environ, "session ended", f"cookie {name} is {why}", setting)

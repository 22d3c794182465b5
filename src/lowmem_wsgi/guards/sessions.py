"""The session lifetime: a session cookie is honoured for so long, by any framework.

On the way in, each session cookie is taken out of its signed envelope (see envelope.py), or
out of the request where it is expired, forged, from the future or bare: the app then sees no
session. On the way out, the app's own Set-Cookie is put in an envelope. A session in use is
sent again once a tenth of its lifetime has passed.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .. import log
from . import set_cookie
from .envelope import BadEnvelope, Letter, seal, unseal
from .paths import PATH, wsgi_path
from .refusals import report

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

Headers = list[tuple[str, str]]

# Where `open` leaves the letters that `amend` may send again.
LETTERS = "lowmem.sessions"

# RFC 6265 §6.1 asks browsers for 4096 bytes a cookie; they give no more for name and value.
MOST_BYTES = 4096

# A session is sent again after this share of its lifetime: often enough that a used one does not
# run out, seldom enough that not every response carries a cookie.
RENEW_AFTER = 0.1

_CACHED = re.compile(r"(?:max-age|s-maxage)=\"?0*[1-9]")

SETTING = "LOWMEM_SESSION_LIFETIME"


SET_COOKIE = len("set-cookie")


class Sessions:
    """The rule for the cookies `names`; `lifetime` in seconds.

    `find_keys` is called once, at the first session: a Flask app gets its secret after it is
    wrapped. It gives the keys oldest to newest; where it gives none, sessions pass untouched.
    """

    def __init__(
        self,
        names: Sequence[str],
        lifetime: float,
        find_keys: Callable[[], Sequence[bytes]],
        *,
        sliding: bool = True,
        static_prefix: str = "/static/",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._names = frozenset(names)
        self._lifetime = lifetime
        self._find_keys = find_keys
        self._keys: Sequence[bytes] | None = None
        self._sliding = sliding
        self._static_prefix = wsgi_path(static_prefix)
        self._clock = clock
        self._lock = threading.Lock()
        self.expired = 0
        # Python's http.cookies, which Bottle uses, starts a new cookie after white space, and
        # others after a comma; Django strips what is white space in Unicode, here in UTF-8's
        # bytes, from names; WebOb begins a name wherever a letter of one can stand. Neither
        # "secure session=..." nor "\xc2\xa0session=..." nor "x[session=..." may get past us.
        gap = r'[\x00-\x20",\[\\\]\x7f-\xff]'
        either = "|".join(re.escape(name) for name in names)
        self._hidden = re.compile(f"(?:^=*|{gap})(?:{either}){gap}*=")

    def after_fork(self) -> None:
        """In a new child: the lock may have been held by a thread that the child does not have."""
        self._lock = threading.Lock()

    @property
    def keys(self) -> Sequence[bytes]:
        if self._keys is None:
            with self._lock:
                if self._keys is None:
                    self._keys = self._find_keys()
        return self._keys

    def open(self, environ: WSGIEnvironment) -> None:
        """Replace envelopes in the request by what is in them; take out what does not open."""
        header = environ.get("HTTP_COOKIE")
        if not header or not any(name in header for name in self._names) or not self.keys:
            return
        now = int(self._clock())
        kept: list[str] = []
        letters: list[tuple[str, Letter]] = []
        for piece in header.split(";"):
            part = piece.strip(" \t")  # and no other white space: in Latin-1 it may be half an "à"
            name, _, value = part.partition("=")
            name, value = name.rstrip(" \t"), value.lstrip(" \t")
            if name not in self._names:
                if not self._hidden.search(part):
                    kept.append(part)
                continue
            try:
                letter = unseal(name, value, self.keys, now, self._lifetime)
            except BadEnvelope as error:
                self._ended(environ, name, error.reason)
            else:
                kept.append(f"{name}={letter.value}")
                letters.append((name, letter))
        cookies = "; ".join(part for part in kept if part)
        if cookies:
            environ["HTTP_COOKIE"] = cookies
        else:
            del environ["HTTP_COOKIE"]
        if letters:
            environ[LETTERS] = letters

    def amend(self, environ: WSGIEnvironment, headers: Headers) -> Headers:
        """The response's headers, the app's session cookies in envelopes, used ones sent again."""
        letters: list[tuple[str, Letter]] = environ.get(LETTERS) or []
        setting = False
        for name, value in headers:  # for most responses all there is to do: no generator
            if len(name) == SET_COOKIE and name.lower() == "set-cookie":
                setting = setting or set_cookie.parse(value)[0] in self._names
        if (not letters and not setting) or not self.keys:
            return headers
        now = self._clock()
        if setting:
            letters = list(letters)
            headers = [
                (name, self._sealed(environ, value, now, letters))
                if name.lower() == "set-cookie"
                else (name, value)
                for name, value in headers
            ]
        if letters and self._sliding and self._may_renew(environ, headers):
            headers = headers + self._renewals(letters, now)
        return headers

    def _sealed(
        self, environ: WSGIEnvironment, header: str, now: float, letters: list[tuple[str, Letter]]
    ) -> str:
        name, value, attributes = set_cookie.parse(header)
        if name not in self._names:
            return header
        # The app has spoken: nothing to send again.
        letters[:] = [pair for pair in letters if pair[0] != name]
        kept = set_cookie.relative(attributes, now, self._lifetime)
        if kept is None:
            return header  # a deletion
        again = kept
        if not any(key.lower() == "path" and path.startswith("/") for key, path in kept):
            # The browser takes the path from this page. Sent again from another, it must say so:
            # else there would be two cookies, and logging out would end one.
            again = [*kept, ("Path", set_cookie.default_path(environ))]
        return self._rendered(name, value, kept, now, again)

    def _rendered(
        self,
        name: str,
        value: str,
        attributes: set_cookie.Attributes,
        now: float,
        again: set_cookie.Attributes | None = None,
    ) -> str:
        sealed = seal(name, value, set_cookie.pack(again or attributes), self.keys[-1], int(now))
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
        return set_cookie.render(name, sealed, attributes, now)

    def _renewals(self, letters: list[tuple[str, Letter]], now: float) -> Headers:
        due = now - self._lifetime * RENEW_AFTER
        renewed = [
            ("Set-Cookie", self._rendered(name, letter.value, attributes, now))
            for name, letter in letters
            if letter.sealed_at <= due
            for attributes in (set_cookie.unpack(letter.attributes),)
        ]
        # What is sent depends on the cookie now, and caches should know.
        return [*renewed, ("Vary", "Cookie")] if renewed else []

    def _may_renew(self, environ: WSGIEnvironment, headers: Headers) -> bool:
        """Not where a shared cache may keep the response, and hand the session to others."""
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
        with self._lock:
            self.expired += 1
        report(
            environ,
            "session ended",
            f"cookie {name} is {reason}, {self._lifetime:g} s allowed",
            SETTING,
        )

"""Make and open the signed envelope of a session cookie, and its stamp. No clock, no I/O.

The envelope is the session cookie's value. LowMemory makes an envelope each time the app sets the
cookie, and never sends the same envelope twice:

    lm2.<mac>.<time>.<end>.<attributes>.<how><value>

mac         HMAC-SHA256 over the cookie's name and all later fields, cut to 128 bits (RFC 2104 §5
            asks for at least half the hash), in base64url
time        Unix seconds, in hex, when the app set the cookie
end         Unix seconds, in hex, when the cookie ends by the app's Max-Age or Expires; empty
            without these
attributes  the attributes of the Set-Cookie, in base64url, without Max-Age and Expires. A browser
            does not send them back, and LowMemory sends the stamp with the same attributes.
how, value  "p" and the value unchanged; or "b" and the value in base64url, if the value has a
            character that is no cookie-octet (RFC 6265)

The stamp is the value of a second cookie. The stamp holds the time of the session's last use:

    lm2.<mac>.<time>

mac         HMAC-SHA256 over the session cookie's name, the time and the whole envelope
time        Unix seconds, in hex, of the use

A stamp fits one envelope. A stamp is worthless without its envelope, and for a cookie that the app
has changed meanwhile.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Sequence

_VERSION = "lm2"
_MAC_BYTES = 16
_PLAIN = re.compile(r"[!#-+\--:<-\[\]-~]*")  # cookie-octet, RFC 6265 §4.1.1
_TIME = re.compile(r"[0-9a-f]{1,16}")

# Seconds that an envelope may come from the future. A clock may be set back while the site runs,
# and the clocks of machines that share a key differ. LowMemory refuses an envelope from further
# ahead, as itsdangerous does.
SKEW = 60


class BadEnvelope(Exception):
    """The cookie does not open. `reason`: unsigned, forged, future, expired or ended.

    Expired: not used for the lifetime. Ended: past the end that the app itself set.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class OpenedSession:
    """An opened envelope. `text`: the envelope. `used_at`: the last known use, Unix seconds."""

    __slots__ = ("attributes", "end", "name", "text", "used_at", "value")

    def __init__(
        self, name: str, text: str, value: str, attributes: str, used_at: int, end: int | None
    ) -> None:
        self.name: str = name
        self.text: str = text
        self.value: str = value
        self.attributes: str = attributes
        self.used_at: int = used_at
        self.end: int | None = end


def derive(secret: bytes) -> bytes:
    """Return the signing key for a secret. A label separates this key from the secret's other uses.

    LowMemory never signs with the raw secret, which may serve others too.
    """
    return hmac.digest(secret, b"lowmem-wsgi session envelope 1", "sha256")


def seal(
    name: str, value: str, attributes: str, key: bytes, now: int, end: int | None = None
) -> str:
    """Return the envelope for a cookie's value. `now` and `end` are in Unix seconds.

    Raises UnicodeEncodeError if the value is not Latin-1 (PEP 3333).
    """
    stored = "p" + value if _PLAIN.fullmatch(value) else "b" + _encode(value.encode("latin-1"))
    until = "" if end is None else f"{end:x}"
    rest = f"{now:x}.{until}.{_encode(attributes.encode('latin-1'))}.{stored}"
    return f"{_VERSION}.{_mac(name, rest, key)}.{rest}"


def stamp(name: str, envelope: str, key: bytes, now: int) -> str:
    """Return the stamp for a use of this envelope's session at `now` (Unix seconds)."""
    return f"{_VERSION}.{_stamp_mac(name, f'{now:x}', envelope, key)}.{now:x}"


def unseal(
    name: str,
    text: str,
    keys: Sequence[bytes],
    now: int,
    lifetime: float,
    stamps: Sequence[str] = (),
) -> OpenedSession:
    """Open an envelope, if the session was used at most `lifetime` seconds ago.

    One of `keys` must have signed the envelope, or a stamp of this envelope. So a stamp by the
    newest key keeps a session after the key of its envelope is removed. Raises BadEnvelope.
    """
    version, _, signed = text.partition(".")
    if version != _VERSION:
        raise BadEnvelope("unsigned")
    mac, _, rest = signed.partition(".")
    stamped_at = _latest(name, text, keys, now, stamps)
    if not stamped_at and not any(_same(mac, _mac(name, rest, key)) for key in keys):
        raise BadEnvelope("forged")
    # The signature proves that `seal` wrote the rest.
    time, until, attributes, stored = rest.split(".", 3)
    sealed_at, end = int(time, 16), int(until, 16) if until else None
    if sealed_at > now + SKEW:
        raise BadEnvelope("future")
    if end is not None and now >= end:
        raise BadEnvelope("ended")
    used_at = max(sealed_at, stamped_at)
    if now - used_at >= lifetime:
        raise BadEnvelope("expired")
    value = stored[1:] if stored[:1] == "p" else _decode(stored[1:])
    return OpenedSession(name, text, value, _decode(attributes), used_at, end)


def _latest(
    name: str, envelope: str, keys: Sequence[bytes], now: int, stamps: Sequence[str]
) -> int:
    """Return the latest stamp's time (Unix seconds) that fits the envelope; 0 if none does."""
    latest = 0
    for text in stamps:
        version, _, signed = text.partition(".")
        mac, _, time = signed.partition(".")
        if version != _VERSION or not _TIME.fullmatch(time):
            continue
        used_at = int(time, 16)
        if latest < used_at <= now + SKEW and any(
            _same(mac, _stamp_mac(name, time, envelope, key)) for key in keys
        ):
            latest = used_at
    return latest


def _mac(name: str, rest: str, key: bytes) -> str:
    # A name is a token without NUL, so two different pairs (name, rest) make different messages.
    message = f"{name}\0{rest}".encode("utf-8", "surrogatepass")  # two texts, two messages
    return _encode(hmac.digest(key, message, "sha256")[:_MAC_BYTES])


def _stamp_mac(name: str, time: str, envelope: str, key: bytes) -> str:
    # No name contains a space, so a stamp's MAC never equals an envelope's. No time contains a dot.
    return _mac(f"stamp {name}", f"{time}.{envelope}", key)


def _same(mac: str, ours: str) -> bool:
    return hmac.compare_digest(mac.encode("latin-1", "replace"), ours.encode())


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> str:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("latin-1")

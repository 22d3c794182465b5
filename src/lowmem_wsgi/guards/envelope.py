"""The signed, timestamped envelope a session cookie travels in. Pure: no clock, no I/O.

    lm1.<mac>.<time>.<attributes>.<how><value>

mac         HMAC-SHA256 over the cookie's name and all that follows, cut to 128 bits (RFC 2104 §5
            wants at least half the hash) and in base64url
time        Unix seconds of the last use, in hex
attributes  of the Set-Cookie, base64url: a browser does not send them back, and a session that
            slides is to be sent again with the attributes it had
how, value  "p" and the value as it is, or "b" and the value in base64url, where it holds
            something that is not RFC 6265's cookie-octet
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Sequence

_VERSION = "lm1"
_MAC_BYTES = 16
_PLAIN = re.compile(r"[!#-+\--:<-\[\]-~]*")  # cookie-octet, RFC 6265 §4.1.1

# Clocks of machines that share a key differ by this much at most (seconds). A later envelope
# is from the future, and refused, as itsdangerous does.
SKEW = 5


class BadEnvelope(Exception):
    """This cookie does not open. `reason`: bare, forged, future or expired."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Letter:
    """What was in an envelope: the app's value, its attributes, when it was sealed."""

    __slots__ = ("attributes", "sealed_at", "value")

    def __init__(self, value: str, attributes: str, sealed_at: int) -> None:
        self.value = value
        self.attributes = attributes
        self.sealed_at = sealed_at


def derive(secret: bytes) -> bytes:
    """The signing key under our own label: a secret shared with others is never used raw."""
    return hmac.digest(secret, b"lowmem-wsgi session envelope 1", "sha256")


def seal(name: str, value: str, attributes: str, key: bytes, now: int) -> str:
    """The envelope for a cookie's value. UnicodeEncodeError if it is not Latin-1 (PEP 3333)."""
    stored = "p" + value if _PLAIN.fullmatch(value) else "b" + _encode(value.encode("latin-1"))
    rest = f"{now:x}.{_encode(attributes.encode('latin-1'))}.{stored}"
    return f"{_VERSION}.{_mac(name, rest, key)}.{rest}"


def unseal(name: str, text: str, keys: Sequence[bytes], now: int, lifetime: float) -> Letter:
    """What `seal` put in, if any of `keys` signed it at most `lifetime` seconds ago.

    Raises BadEnvelope.
    """
    version, _, signed = text.partition(".")
    if version != _VERSION:
        raise BadEnvelope("bare")
    mac, _, rest = signed.partition(".")
    if not any(_same(mac, _mac(name, rest, key)) for key in keys):
        raise BadEnvelope("forged")
    # What follows was written by seal: the signature says so.
    time, attributes, stored = rest.split(".", 2)
    sealed_at = int(time, 16)
    if sealed_at > now + SKEW:
        raise BadEnvelope("future")
    if now - sealed_at >= lifetime:
        raise BadEnvelope("expired")
    value = stored[1:] if stored[:1] == "p" else _decode(stored[1:])
    return Letter(value, _decode(attributes), sealed_at)


def _mac(name: str, rest: str, key: bytes) -> str:
    # A name is a token and has no NUL, so no two (name, rest) make the same message.
    message = f"{name}\0{rest}".encode("latin-1", "replace")
    return _encode(hmac.digest(key, message, "sha256")[:_MAC_BYTES])


def _same(mac: str, ours: str) -> bool:
    return hmac.compare_digest(mac.encode("latin-1", "replace"), ours.encode())


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> str:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("latin-1")

"""Ask a site's trace route. Each problem is one line that says what to do."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlencode

SECONDS = 15.0  # for an answer
MOST = 1024 * 1024  # bytes of an answer


class Unreachable(Exception):
    """No answer came."""


class Refused(Exception):
    """An answer came, and is no trace. `status`: of HTTP; 0 for none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect turns POST into GET, and may lead elsewhere with the token."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Site:
    """A site. `url`: of its status. `token`: the site's LOWMEM_ADMIN_TOKEN."""

    def __init__(self, url: str, token: str) -> None:
        self._url = f"{url}/trace"
        # As http.client sends headers; UTF-8, as the site compares the token.
        self._authorization = "Bearer " + token.encode("utf-8", "surrogateescape").decode("latin-1")
        self._open = urllib.request.build_opener(_NoRedirect).open

    def ask(self, method: str, **query: str) -> dict[str, Any]:
        """Return the JSON that the site answers. Raises Unreachable and Refused."""
        request = urllib.request.Request(
            self._url + (f"?{urlencode(query)}" if query else ""),
            method=method,
            headers={"Authorization": self._authorization, "Accept": "application/json"},
        )
        try:
            with self._open(request, timeout=SECONDS) as answer:
                body, kind = answer.read(MOST), answer.headers.get_content_type()
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from None
        except urllib.error.URLError as error:
            raise Unreachable(self._why(error.reason)) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(self._why(error)) from None
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("state"), str):
            raise Refused(
                f"{self._url} answers {kind}, and no trace: is this a site with lowmem-wsgi, and "
                "is its LOWMEM_STATUS_PATH the address that you gave?"
            )
        return found

    def _refused(self, error: urllib.error.HTTPError) -> Refused:
        status, place = error.code, self._url
        if status == 401:
            said = f"{place}: the token is wrong; give the site's LOWMEM_ADMIN_TOKEN"
        elif 300 <= status < 400:
            said = f"{place} leads to {_short(error.headers.get('Location', 'elsewhere'))}: give "
            said += "the address that it leads to"
        elif status in (404, 405):
            said = f"{place} is not there ({status}): is this a site with lowmem-wsgi, and is its "
            said += "LOWMEM_STATUS_PATH the address that you gave?"
        else:
            said = f"{place}: {_detail(error) or f'the site answers {status}'}"
        return Refused(said, status)

    def _why(self, error: object) -> str:
        if isinstance(error, ssl.SSLError):
            reason = getattr(error, "verify_message", "") or error.reason or "no TLS"
            return f"{self._url}: TLS failed ({_short(reason)}); is it https, with a certificate?"
        if isinstance(error, TimeoutError):
            return f"{self._url}: no answer in {SECONDS:.0f} s"
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return f"{self._url}: cannot be reached ({_short(reason)})"


def _detail(error: urllib.error.HTTPError) -> str:
    """Return what LowMemory says of a refusal; "" if the answer is none of LowMemory's."""
    try:
        found = json.loads(error.read(MOST))["detail"]
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return ""
    return _short(found) if isinstance(found, str) else ""


def _short(text: object) -> str:
    """Return a text from outside on one line."""
    words = " ".join(str(text).split())[:200]
    return "".join(sign if sign.isprintable() else "?" for sign in words)

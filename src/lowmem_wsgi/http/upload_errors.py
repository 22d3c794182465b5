"""What reading a body raises in the app, where the body cannot be had.

HTTPExceptions for Flask and other users of werkzeug, which answer them with their status; OSErrors
for those who expect a failed upload to be one (Django). Whatever becomes of them, the client gets
that status: the middleware sees to it.
"""

from __future__ import annotations

from werkzeug.exceptions import BadRequest, RequestEntityTooLarge


class UploadTooLarge(RequestEntityTooLarge, OSError):
    """The body went past its limit."""


class UploadBroken(BadRequest, OSError):
    """The server could not read the body: it is malformed, or the client left."""

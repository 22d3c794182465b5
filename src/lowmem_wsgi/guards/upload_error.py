"""What a body over its limit raises in the app that reads it."""

from __future__ import annotations

from werkzeug.exceptions import RequestEntityTooLarge


class UploadTooLarge(RequestEntityTooLarge, OSError):
    """The body went past the limit while the app was reading it.

    An HTTPException for Flask and other users of werkzeug, which answer it with 413; an OSError
    for those who expect a broken upload to be one (Django). Whatever becomes of it, the client
    gets the 413: the middleware sees to that.
    """

"""The errors that an app gets when it reads a body that cannot be read.

The errors are HTTPExceptions for Flask and other users of werkzeug, which answer with the error's
status. The errors are also OSErrors, for frameworks that expect one from a failed upload (Django).
The middleware sends that status to the client, whatever the app does with the error.
"""

from __future__ import annotations

from werkzeug.exceptions import BadRequest, RequestEntityTooLarge


class UploadTooLarge(RequestEntityTooLarge, OSError):
    """The body is larger than its limit."""


class UploadBroken(BadRequest, OSError):
    """The server could not read the body: the body is malformed, or the client left."""

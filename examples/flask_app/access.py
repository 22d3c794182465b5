"""Who may do what: the login, the token that every form carries, safe redirects."""

import secrets

from flask import request, session

# The one user of this demonstration; the login page states both.
USER = "demo"
PASSWORD = "demo"


def logged_in() -> bool:
    """Whether this session belongs to the user."""
    return "user" in session


def log_in(name: str, password: str) -> bool:
    """Begin a session if name and password are right."""
    # Both are compared, each in constant time: the answer's timing tells nothing of either.
    right = _same(name, USER) & _same(password, PASSWORD)
    if right:
        session.clear()  # nothing from before the login is taken along, the token included
        session["user"] = USER
    return right


def csrf_token() -> str:
    """The session's token, for the hidden field of a form; made when first asked for."""
    if "csrf_token" not in session:
        session["csrf_token"] = secrets.token_urlsafe(16)
    token: str = session["csrf_token"]
    return token


def csrf_ok() -> bool:
    """Whether the form came from a page of this site, in this session."""
    token = session.get("csrf_token", "")
    return bool(token) and _same(request.form.get("csrf_token", ""), token)


def local_path(target: str) -> str | None:
    """`target` if it leads to a page of this site, else None."""
    # Browsers read "//host", "/\host" and "/<tab>/host" as another site.
    if target.startswith("/") and target.isprintable() and "\\" not in target:
        return None if target.startswith("//") else target
    return None


def _same(given: str, expected: str) -> bool:
    return secrets.compare_digest(given.encode(), expected.encode())

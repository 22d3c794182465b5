"""What makes a client acceptable, in a form as in a file."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Client(NamedTuple):
    name: str
    email: str
    city: str
    phone: str


COLUMNS = Client._fields

_LONGEST = {"name": 100, "email": 254, "city": 80, "phone": 30}
_EMAIL = re.compile(r"[a-z0-9][a-z0-9._%+'-]*@([a-z0-9-]+\.)+[a-z0-9-]{2,}", re.ASCII)
_PHONE = re.compile(r"\+?[0-9 ()./-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def clean_client(values: Mapping[str, str]) -> tuple[Client, dict[str, str]]:
    """A client from what was typed, and what is wrong with it by field."""
    # split() and join() also make the no-break spaces of a copied cell ordinary ones.
    client = Client(*(" ".join(values.get(column, "").split()) for column in COLUMNS))
    client = client._replace(email=client.email.lower())
    errors: dict[str, str] = {}

    for column, value in zip(COLUMNS, client, strict=True):
        if not value and column != "phone":
            errors[column] = "This is needed."
        elif len(value) > _LONGEST[column]:
            errors[column] = f"At most {_LONGEST[column]} characters, please."
        elif _CONTROL.search(value):
            errors[column] = "This has control characters in it."
        elif column in ("name", "city") and value[0] in "=+-@":
            # A spreadsheet would run it as a formula when it opens the exported file.
            errors[column] = "This cannot start with = + - or @."

    if "email" not in errors and not _EMAIL.fullmatch(client.email):
        errors["email"] = "Not an email address: it should look like ada@example.com."
    if "phone" not in errors and client.phone and not _is_phone(client.phone):
        errors["phone"] = "Only digits, spaces and ( ) . / - after an optional +."
    return client, errors


def _is_phone(value: str) -> bool:
    return bool(_PHONE.fullmatch(value)) and any(char.isdigit() for char in value)


def wrong_header(header: Sequence[str], kind: str) -> str:
    """What is wrong with a file's names of columns; nothing, if nothing is."""
    expected = ", ".join(COLUMNS)
    if not any(header):
        return f"The file is empty, or its first line is: that one must read {expected}."
    if not set(header) & set(COLUMNS):
        return f"Not {kind}: the first line must read {expected}."
    if missing := [name for name in COLUMNS if name not in header]:
        return f"Columns missing: {', '.join(missing)}."
    if unknown := [name or "(no name)" for name in header if name not in COLUMNS]:
        # Leaving them out would lose data without a word.
        return f"Columns this list has no place for: {', '.join(unknown)[:100]}."
    if len(header) > len(COLUMNS):
        return "A column is there twice."
    return ""

"""The app's own folder: the secret key and the uploaded files."""

import os
import secrets
import tempfile
from typing import NamedTuple

from werkzeug.datastructures import FileStorage
from werkzeug.utils import secure_filename

DRAFT = ".draft-"  # no upload's name: secure_filename() leaves no leading dot


class StoredFile(NamedTuple):
    name: str
    size: int
    changed: float


def secret_key(folder: str) -> str:
    """The key kept in `folder`, made on the first run, the same for every worker."""
    path = os.path.join(folder, "secret_key")
    if not os.path.exists(path):
        # A temporary file is for its owner's eyes only. Where a worker that started with us
        # was first, its key stands: nobody reads half a key, or replaces one that is in use.
        with tempfile.NamedTemporaryFile("w", dir=folder, encoding="ascii") as draft:
            draft.write(secrets.token_urlsafe(32))
            draft.flush()
            _name(draft.name, path)
    with open(path, encoding="ascii") as file:
        return file.read()


def save_upload(folder: str, upload: FileStorage) -> str | None:
    """Keep an upload under a safe name of its own; None where its name has nothing safe in it."""
    stem, extension = os.path.splitext(secure_filename(upload.filename or ""))
    if not stem:
        return None
    # Saved whole before it gets its name: a worker killed half-way leaves nothing in the list.
    with tempfile.NamedTemporaryFile(dir=folder, prefix=DRAFT) as draft:
        upload.save(draft)
        draft.flush()
        name = f"{stem[:100]}{extension[:20]}"
        number = 1
        while not _name(draft.name, os.path.join(folder, name)):
            # A second "report.pdf" becomes "report-2.pdf": nothing is overwritten.
            number += 1
            name = f"{stem[:100]}-{number}{extension[:20]}"
    return name


def _name(draft: str, path: str) -> bool:
    """Give a finished file its name in one step, unless the name is taken."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    return True


def stored_files(folder: str) -> list[StoredFile]:
    """The uploaded files, newest first."""
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(DRAFT):
                found = entry.stat()
                files.append(StoredFile(entry.name, found.st_size, found.st_mtime))
    return sorted(files, key=lambda file: (-file.changed, file.name))

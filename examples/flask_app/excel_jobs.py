"""An Excel import as a job: the worker's part of it.

The request that brings the file starts it and is answered at once. Nobody has to wait: the child
process writes how far it is into the database, where any worker finds it (see jobs.py).
"""

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from werkzeug.datastructures import FileStorage

import db
import jobs
import spreadsheets
from lowmem_wsgi import OffloadBusy, OffloadMemoryError, OffloadTimeout

# What a child may come to, and what to say of it.
ENDS: tuple[tuple[type[BaseException], str, str], ...] = (
    (OffloadBusy, "failed", "Too much else is going on. Please send it again."),
    (
        OffloadMemoryError,
        "refused",
        f"Reading it takes more than the {spreadsheets.MEMORY} of memory that an"
        " import may have. Split it into smaller files.",
    ),
    (OffloadTimeout, "failed", "It took too long. Split it into smaller files."),
    (BaseException, "failed", "Something broke. It is our fault, and it is in the log."),
)
STEPS = {
    "": "Waiting for its turn",
    "reading": "Reading the file",
    "checking": "Checking the rows",
    "storing": "Storing the clients",
}


def start(pool: db.Pool, config: Mapping[str, Any], upload: FileStorage, most: int) -> int:
    """Import a workbook in the background; the number of the job. `most`: problems to tell of."""
    path, folder = config["CLIENTS_DB"], config["JOBS"]
    with pool.connection() as conn:
        job, lock = jobs.begin(conn, folder, upload.filename or "")

    def over(future: "Future[None]") -> None:
        db.drop_counts()
        try:
            if error := future.exception():
                state, words = next(end[1:] for end in ENDS if isinstance(error, end[0]))
                if words == ENDS[-1][-1]:
                    logging.getLogger("app").error("Import %d failed", job, exc_info=error)
                with pool.connection() as conn:
                    jobs.end(conn, job, state, words)
        except jobs.Gone:
            pass
        finally:
            jobs.release(folder, job, lock)

    try:
        # The upload goes along as an open file, and so outlives the request.
        future = spreadsheets.import_clients.submit(path, job, upload.stream, most)
    except BaseException:
        jobs.release(folder, job, lock)
        raise
    future.add_done_callback(over)
    return job


def progress(job: jobs.Job) -> str:
    """How far it has come, for people."""
    words = STEPS[job.step]
    if job.step == "reading" and job.total:
        return f"{words}: {job.done * 100 // job.total} %"
    if job.step == "checking":
        return f"{words}: {job.done:,} of {job.total:,}"
    return words

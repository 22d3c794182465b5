"""What a command of lowmem-wsgi says."""

from __future__ import annotations

import subprocess


def assert_refused(done: subprocess.CompletedProcess[str], code: int, expected: str) -> None:
    """It has ended with `code`, and one line on stderr has what is `expected`.

    The lines below, if any, are the app's own or its server's, and no traceback of ours.
    """
    first, *rest = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (code, "")
    assert first.startswith("lowmem-wsgi: ")
    assert expected in first
    assert all(line.startswith("  ") for line in rest)
    assert "lowmem_wsgi" not in "".join(rest)

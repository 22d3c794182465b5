"""Where it was measured, and with what."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import psutil

from matrix.kinds import version

PACKAGES = (
    *("lowmem-wsgi", "gunicorn", "uWSGI", "granian", "waitress", "mod_wsgi", "Flask"),
    *("SQLAlchemy", "pandas", "numpy", "matplotlib"),
)


def machine() -> dict[str, Any]:
    v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "memory MB": psutil.virtual_memory().total >> 20,
        "kernel": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "cgroup": "v2" if v2 else "v1",
    }


def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def in_words(found: dict[str, Any]) -> str:
    """A machine, for a sentence."""
    words = [f"{found['cores']} cores ({found['architecture']})"]
    words += [found[key] for key in ("kernel", "libc") if found[key]]
    return ", ".join([*words, f"Python {found['python']}", f"cgroup {found['cgroup']}"])

"""What the doctor knows of a site. Sizes are in bytes, durations in seconds."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...memory.ceiling import RESERVE_SHARE
from ...settings import DEFAULT_LIMIT, threshold_bytes
from ...workers.fitting import fitting

RUN, GUNICORN, OTHER = "lowmem-wsgi run", "gunicorn", "another server"


# Where a failure is that came while several pages were asked at once.
AT_ONCE = "at once"


@dataclass(frozen=True)
class Served:
    """How the site is served: the server's settings in force."""

    by: str = RUN
    source: str = "assumed"  # the file or option that names the start command
    workers: int | None = None  # None: as many as fit
    set_by_platform: str | None = None  # the platform that set this number by itself
    from_cores: bool = False  # the number is computed from the machine's cores
    threads: int = 3
    preload: bool = True
    max_requests: int = 0
    graceful_timeout: int = 25
    cmd_args: str = ""  # GUNICORN_CMD_ARGS


@dataclass(frozen=True)
class Python:
    version: tuple[int, int, int] = (3, 13, 0)
    gil: bool = True
    glibc: bool = True
    flags: tuple[str, ...] = ()  # the variables in force among PYTHONOPTIMIZE and the like
    modules: int = 0  # loaded from a file of Python
    uncompiled: int = 0  # of these, compiled anew at each start


@dataclass(frozen=True)
class Route:
    """A request that the doctor has made, and what came of it."""

    path: str
    status: int
    peak: int  # growth of the worker while the request ran
    requests: int = 1
    growth: int = 0  # kept after each request, on average
    steady: bool = False  # it was kept in the first half of the requests and in the second
    error: str = ""  # that the app raised at the last request
    templates: int = 0  # compiled templates that Jinja has kept meanwhile


@dataclass(frozen=True)
class Templates:
    """Jinja's cache of compiled templates. `bound`: None without one."""

    kept: int = 0
    bound: int | None = 400


@dataclass(frozen=True)
class Secret:
    """The app's own secret, and LowMemory's."""

    app: bool = True
    length: int = 64
    changes: bool = False
    setting: bool = True  # LOWMEM_SECRET_KEY


@dataclass(frozen=True)
class Worker:
    """A worker after the requests: what it has of its own, and in all."""

    own: int = 0
    anonymous: int = 0
    rss: int = 0
    free: int = 0  # given back by malloc_trim after the requests


@dataclass(frozen=True)
class Failure:
    """The app did not load, or a worker died. `kind`: raised, exited, killed, hung or memory."""

    kind: str
    at: str  # "config", "load", "worker", the path of a request, or AT_ONCE
    text: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figures:
    app: str | None = "app:app"
    limit: int = DEFAULT_LIMIT
    platform: str | None = None
    grace: float | None = None  # between the platform's SIGTERM and its SIGKILL
    variables: Mapping[str, str] = field(default_factory=dict)  # of the environment in force
    served: Served = Served()
    wrapped: bool = True  # in LowMemory, by the config or by the app
    python: Python = Python()
    problems: tuple[str, ...] = ()  # wrong settings
    warn_at: int | float = 0.78125
    ceiling_wanted: bool = True
    ceiling_works: bool = True
    sessions: bool = True  # session_cookies is set
    token: bool = True
    preset: str = "balanced"
    late: bool = False  # LOWMEM_LAZY_HEAVY
    heavy: tuple[str, ...] = ()  # LOWMEM_HEAVY_MODULES
    max_in_flight: int | None = None
    base: int = 0  # the master's RSS before the app is loaded
    loaded: int = 0  # and after
    anonymous: int = 0  # of that, what is no file's
    seconds: float = 0.0
    imports: Mapping[str, int] = field(default_factory=dict)  # package -> its own cost
    of_app: tuple[str, ...] = ()  # of these, the app's own modules
    loading: str = ""  # the package that was loading when the app died
    worker: Worker | None = None
    routes: tuple[Route, ...] = ()
    templates: Templates | None = None
    secret: Secret | None = None
    swap: int = 0
    failure: Failure | None = None
    real: bool = True  # measured in a memory cgroup of this limit
    pages: tuple[str, ...] = ()  # all pages that the app has, by GET and without arguments

    @property
    def warn(self) -> int:
        return threshold_bytes(self.warn_at, self.limit)

    @property
    def fit(self) -> int:
        """How many workers fit, by memory. On few cores, `run` starts fewer."""
        return fitting(self.warn, self.loaded, sys.maxsize)

    @property
    def workers(self) -> int:
        return self.served.workers or self.fit

    @property
    def each(self) -> int:
        """What one more worker takes."""
        if self.worker is None:
            return max(0, self.loaded - self.base)
        return self.worker.own if self.served.preload else self.worker.anonymous

    def used(self, workers: int) -> int:
        """What so many workers and their master use, after a few requests.

        Without the pages of files: the kernel drops these before it kills.
        """
        return (self.anonymous if self.served.preload else self.base) + workers * self.each

    def room(self, workers: int) -> int:
        """What the largest request may take that still fits, beside so many workers.

        With LowMemory each worker has its share of what is free up to the ceiling.
        """
        top = self.limit * (1 - RESERVE_SHARE) if self.wrapped else self.limit
        left = max(0, int(top) - self.used(workers))
        return left // workers if self.wrapped else left

    @property
    def peak(self) -> Route | None:
        """The request that took most."""
        return max(self.routes, key=lambda route: route.peak, default=None)

"""What is wrong with a site, from its figures. No I/O: figures in, findings out.

One function a finding, in FINDINGS, worst first. A function returns None for a healthy site.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

from ...admin.in_force import of_python
from ...settings import KB, MB, SECRET_LENGTH, format_size
from .figures import AT_ONCE, GUNICORN, OTHER, RUN, Failure, Figures, Route

DIE, ADVICE = "would die", "advice"

# An import is worth a word from this share of the limit on; one of LOWMEM_HEAVY_MODULES, which can
# be late without a risk, from half of it on.
COSTLY = 1 / 20
# A request is large from this share of the limit on.
LARGE = 1 / 20
# What a route must keep after each request, in bytes, to be called a leak. A healthy page of Flask
# with a template from a string was seen to keep 2 KB in its first 40 requests.
LEAK = 8 * KB
# Jinja's own bound is 400 templates.
TEMPLATES = 1000
# A restart costs at least a second of one worker: after fewer requests it is felt.
FEW_REQUESTS = 500
# So many modules are compiled in a tenth of a second.
MODULES = 30
MAKE_SECRET = "python -c 'import secrets; print(secrets.token_hex())'"


class Finding(NamedTuple):
    """`name`: also the heading in docs/doctor.md. `remedy`: one line that mends it."""

    level: str
    name: str
    figure: str
    remedy: str


def findings(figures: Figures) -> list[Finding]:
    """Return what is wrong, worst first. With wrong settings or config, nothing else is known."""
    checks = FINDINGS
    if figures.problems:
        checks = (wrong_settings,)
    elif figures.failure is not None and figures.failure.at == "config":
        checks = (does_not_load,)
    found = [finding for check in checks for finding in [check(figures)] if finding is not None]
    return sorted(found, key=lambda finding: finding.level != DIE)


def _start(figures: Figures) -> str:
    return f"start with `lowmem-wsgi run {figures.app or 'app:app'}`"


def short(size: float) -> str:
    return f"{size / MB:.0f} MB" if size >= 10 * MB else format_size(size)


# --- What keeps the site from starting


def wrong_settings(figures: Figures) -> Finding | None:
    if not figures.problems:
        return None
    first, more = figures.problems[0], len(figures.problems) - 1
    others = f" (and {more} more)" if more else ""
    return Finding(DIE, "wrong settings", first + others, "set each variable to what is expected")


def does_not_load(figures: Figures) -> Finding | None:
    failure = figures.failure
    if failure is None or failure.at.startswith("/") or failure.at == AT_ONCE:
        return None
    if failure.at == "config":
        text = failure.text if failure.kind == "raised" else "".join(failure.lines[-1:])
        return Finding(
            DIE,
            "does not load",
            f"Gunicorn's config: {text or failure.text or 'it was not read in time'}",
            "mend Gunicorn's options or its config",
        )
    if failure.kind in ("killed", "memory"):
        return None
    if failure.kind == "hung":
        return Finding(
            DIE,
            "does not load",
            f"the app was not loaded within {figures.seconds:g} s",
            "make at first use what connects or computes at import; or give more --seconds",
        )
    if failure.kind == "exited":
        remedy = "do not exit at import"
    elif failure.kind == "crashed":
        remedy = "a compiled package crashed: update it, or leave it out"
    elif failure.lines:
        remedy = "mend the line that the traceback ends with"
    elif "(" in (figures.app or ""):
        remedy = f"call the factory as it is defined, in place of {figures.app}"
    else:
        remedy = f"mend what {figures.app} names"
    return Finding(DIE, "does not load", failure.text, remedy)


def born_too_large(figures: Figures) -> Finding | None:
    failure = figures.failure
    largest = _largest_imports(figures)
    remedy = (
        f"load late or leave out the largest ({largest})"
        if largest
        else "load at first use what the app loads at import"
    ) + ", or take a larger plan (--limit)"
    if failure is not None and failure.kind in ("killed", "memory"):
        if failure.at.startswith("/") or failure.at == AT_ONCE:
            return None
        needs = f"{short(figures.loaded)} once loaded" if figures.loaded else "more than that"
        while_ = f"; it was loading {figures.loading}" if figures.loading else ""
        return Finding(
            DIE,
            "born too large",
            f"the app needs {needs}, the limit is {short(figures.limit)}{while_}",
            remedy,
        )
    used = figures.used(1)
    if not figures.worker or used <= figures.warn:
        return None
    return Finding(
        DIE if used > figures.limit else ADVICE,
        "born too large",
        f"one worker and its master use {short(used)} from the start; LowMemory starts to free at "
        f"{short(figures.warn)}, the limit is {short(figures.limit)}",
        remedy,
    )


def _largest_imports(figures: Figures) -> str:
    largest = sorted(figures.imports.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {short(size)}" for name, size in largest if size >= 2 * MB)


# --- Too many workers


def too_many_workers(figures: Figures) -> Finding | None:
    served, asked = figures.served, figures.served.workers
    if asked is None or served.by == OTHER or not (figures.loaded or served.from_cores):
        return None
    # A server without preloading loads the app anew in each worker.
    fit = figures.fit
    largest = figures.peak
    needs = figures.used(asked) + (largest.peak if largest else 0)
    level = DIE if needs > figures.limit else ADVICE
    if served.set_by_platform is not None and asked > fit:
        return Finding(
            level,
            "workers set by the platform",
            f"{served.set_by_platform} sets WEB_CONCURRENCY={asked} by itself; {fit} fit in "
            f"{short(figures.limit)}",
            f"{_start(figures)}, which takes as many as fit; or set WEB_CONCURRENCY={fit}",
        )
    if served.from_cores:
        return Finding(
            level,
            "workers from the cores",
            f"{asked} workers, computed from the machine's cores, of which a container has a share"
            + (f"; {fit} fit in {short(figures.limit)}" if figures.loaded else ""),
            f"leave `workers` out of the config and {_start(figures)}",
        )
    if asked <= fit:
        return None
    return Finding(
        level,
        "too many workers",
        f"{asked} workers ({served.source}); {fit} fit in {short(figures.limit)}: after a few "
        f"requests {asked} use {short(figures.used(asked))}, and each grows",
        f"{fit} worker{'s' * (fit > 1)} (--workers {fit}); or leave the number out and "
        f"{_start(figures)}",
    )


# --- What requests do


def large_request(figures: Figures) -> Finding | None:
    route = figures.peak
    room = figures.room(figures.workers)
    failure = figures.failure
    if failure is not None:
        return _too_large(failure, figures) if failure.kind in ("killed", "memory") else None
    if route is None or not figures.worker or route.peak < LARGE * figures.limit:
        return None
    at_once = max(1, min(figures.served.threads, figures.max_in_flight or sys.maxsize))
    if route.status >= 500 and route.peak > room / 2:
        figure = f"GET {route.path} was answered {route.status} after {short(route.peak)}"
        return Finding(
            ADVICE, "large request", f"{figure}; {short(room)} fit", _smaller(figures, route)
        )
    if at_once * route.peak <= room:
        return None
    alone = route.peak > room
    return Finding(
        DIE if not figures.wrapped else ADVICE,
        "large request",
        f"GET {route.path} takes {short(route.peak)}"
        + ("" if alone else f", and {at_once} can run at once in each worker")
        + f"; {short(room)} fit",
        _smaller(figures, route),
    )


def _too_large(failure: Failure, figures: Figures) -> Finding | None:
    """Return the finding of a worker that was killed, or had no memory left."""
    why = f"({failure.text or 'no memory is left'})"
    if failure.at == AT_ONCE:  # which page it was is not known
        figure = f"the pages, asked {figures.served.threads} at once, ended the worker {why}"
        return Finding(ADVICE, "large request", figure, _smaller(figures))
    if not failure.at.startswith("/"):
        return None
    free = short(max(0, figures.limit - figures.loaded))
    figure = f"GET {failure.at} ended the worker {why}, with {free} free"
    return Finding(DIE, "large request", figure, _smaller(figures))


def page_ends_the_worker(figures: Figures) -> Finding | None:
    failure = figures.failure
    if failure is None or failure.kind not in ("exited", "crashed", "raised"):
        return None
    which = _page(failure, figures)
    if not which:
        return None
    figure = f"{which} ended the worker ({failure.text})"
    return Finding(_gravity(failure), "page ends the worker", figure, f"mend {which}")


def page_does_not_end(figures: Figures) -> Finding | None:
    failure = figures.failure
    if failure is None or failure.kind != "hung":
        return None
    which = _page(failure, figures)
    if not which:
        return None
    figure = f"{which} did not end"
    return Finding(_gravity(failure), "page does not end", figure, f"mend {which}")


def _gravity(failure: Failure) -> str:
    """Return what the end of a worker means: asked for one after the other, its pages were well."""
    return ADVICE if failure.at == AT_ONCE else DIE


def _page(failure: Failure, figures: Figures) -> str:
    """Return which page failed; "" if it was none."""
    if failure.at == AT_ONCE:
        return f"one of the pages (asked {figures.served.threads} at once)"
    return f"GET {failure.at}" if failure.at.startswith("/") else ""


def _smaller(figures: Figures, route: Route | None = None) -> str:
    pieces = "read and send in pieces, or run it in a child process, one at a time (@offload)"
    alone = " WEB_CONCURRENCY=1" if figures.workers > 1 else ""
    if route is not None and figures.wrapped and route.peak <= figures.room(1):
        pieces += f"; or one at a time: LOWMEM_MAX_IN_FLIGHT=1{alone}"
    return pieces + ("" if figures.wrapped else f"; and {_start(figures)}")


def no_page_answers(figures: Figures) -> Finding | None:
    routes = figures.routes
    if not routes or any(0 < route.status < 500 for route in routes):
        return None
    first = routes[0]
    why = f": {first.error}" if first.error else ""
    if not first.status:
        return Finding(
            ADVICE,
            "no page answers",
            f"GET {first.path} {first.error}",
            "give the doctor a page that ends, by --request",
        )
    return Finding(
        ADVICE,
        "no page answers",
        f"GET {first.path} was answered {first.status}{why}",
        "give the doctor what the app needs (a database, variables), or a page by --request",
    )


def template_cache(figures: Figures) -> Finding | None:
    found = figures.templates
    if found is None or (found.bound is not None and found.bound <= TEMPLATES):
        return None
    bound = "without a bound" if found.bound is None else f"up to {found.bound}"
    filled = max((route.growth for route in figures.routes if route.templates), default=0)
    grows = f", {short(filled)} more with each request" if filled >= LEAK else ""
    return Finding(
        ADVICE,
        "template cache",
        f"Jinja keeps each compiled template, {bound}: {found.kept} so far{grows}",
        'bound the cache: app.jinja_options = {"cache_size": 100} before the first template',
    )


def leak(figures: Figures) -> Finding | None:
    leaks = [route for route in figures.routes if _leaks(route)]
    if not leaks or not figures.worker:
        return None
    worst = max(leaks, key=lambda route: route.growth)
    room = max(0, figures.limit - figures.used(figures.workers))
    return Finding(
        ADVICE,
        "leak",
        f"GET {worst.path} keeps {short(worst.growth)} after each request: the memory is full "
        f"after {room // worst.growth:,} requests",
        f"bound what GET {worst.path} keeps: a list or dict of the module, a cache without maxsize",
    )


def _leaks(route: Route) -> bool:
    # A cache of templates that is being filled is no leak: it has a bound, or `template_cache`
    # names it.
    return route.steady and route.growth >= LEAK and route.templates < route.requests / 4


# --- What each worker has from the start


def heavy_import(figures: Figures) -> Finding | None:
    if not figures.worker:
        return None
    named = heavy_packages(figures)
    if not named:
        return None
    cost = sum(figures.imports[name] for name in named)
    late = ",".join(dict.fromkeys((*figures.heavy, *named)))
    more = "" if set(named) <= set(figures.heavy) else f" LOWMEM_HEAVY_MODULES={late}"
    return Finding(
        ADVICE,
        "heavy import",
        f"{', '.join(named)}: {short(cost)} at the start, before any page needs it",
        f"LOWMEM_LAZY_HEAVY=on{more}"
        + ("" if figures.served.by == RUN else f", and {_start(figures)}")
        + "; or import it in the function that uses it",
    )


def heavy_packages(figures: Figures) -> list[str]:
    """Return the packages that cost much at the start and could be imported late."""
    costs = {name: cost for name, cost in figures.imports.items() if name not in figures.of_app}
    heavy = [name for name in figures.heavy if name in costs]
    if sum(costs[name] for name in heavy) < figures.limit * COSTLY / 2:
        heavy = []
    return [*heavy, *(n for n in costs if n not in heavy and costs[n] >= figures.limit * COSTLY)]


def arenas(figures: Figures) -> Finding | None:
    threads = figures.served.threads
    if not figures.python.glibc or threads < 2 or figures.variables.get("MALLOC_ARENA_MAX"):
        return None
    free = figures.worker.free if figures.worker else 0
    kept = f"; {short(free)} of free memory was kept after the requests" if free > MB else ""
    return Finding(
        ADVICE,
        "arenas",
        f"The C library makes a separate heap for each of {threads} threads and keeps freed memory "
        f"in it (MALLOC_ARENA_MAX is not set){kept}",
        f"{_start(figures)}, which sets MALLOC_ARENA_MAX=1",
    )


def python_flags(figures: Figures) -> Finding | None:
    python = figures.python
    if not python.flags or python.uncompiled < MODULES:
        return None
    return Finding(
        ADVICE,
        "python flags",
        f"{', '.join(python.flags)}: {python.uncompiled} of {python.modules} modules are compiled "
        f"anew at each start, which took {figures.seconds:.1f} s",
        f"unset {' and '.join(flag.partition('=')[0] for flag in python.flags)}",
    )


# --- Gunicorn


def no_preload(figures: Figures) -> Finding | None:
    served = figures.served
    if served.by == OTHER or served.preload or (served.workers or 1) < 2:
        return None
    each = max(0, figures.loaded - figures.base)
    cost = f" {short(each)}" if each else ""
    return Finding(
        ADVICE,
        "no preload",
        f"each of {served.workers} workers loads the app anew:{cost} that they could share",
        f"--preload; or {_start(figures)}",
    )


def few_requests(figures: Figures) -> Finding | None:
    most = figures.served.max_requests
    if not 0 < most < FEW_REQUESTS or figures.preset == "ultra":
        return None
    run = f"; and {_start(figures)}" if figures.served.by == GUNICORN else ""
    where = "GUNICORN_CMD_ARGS" if "max-requests" in figures.served.cmd_args else "max_requests"
    return Finding(
        ADVICE,
        "few requests",
        f"each worker ends after {most} requests ({where})",
        f"leave max_requests and MAX_REQUESTS out: LowMemory replaces a worker that has grown{run}",
    )


def long_graceful_timeout(figures: Figures) -> Finding | None:
    grace, asked = figures.grace, figures.served.graceful_timeout
    if grace is None or asked < grace or figures.served.by == OTHER:
        return None
    return Finding(
        ADVICE,
        "graceful timeout",
        f"a worker may take {asked} s to finish (graceful_timeout), and {figures.platform} kills "
        f"after {grace:g} s",
        f"--graceful-timeout {max(1, int(grace) - 2)}" + _LONGER.get(figures.platform or "", ""),
    )


_LONGER = {
    "fly": '; or kill_timeout = "30s" in fly.toml',
    "docker": "; or `docker stop --time 30`",
    "k8s": "; or a longer terminationGracePeriodSeconds",
}


# --- What protects the site


def no_ceiling(figures: Figures) -> Finding | None:
    if not figures.wrapped:
        return Finding(
            ADVICE,
            "no ceiling",
            "the site runs without LowMemory: one request that needs too much memory ends every "
            "request",
            _start(figures),
        )
    if not figures.ceiling_wanted:
        return Finding(
            ADVICE,
            "no ceiling",
            "LOWMEM_CEILING is off: a request that needs too much memory ends the worker",
            "unset LOWMEM_CEILING",
        )
    if not figures.ceiling_works:
        return Finding(
            ADVICE,
            "no ceiling",
            "this system does not enforce RLIMIT_DATA: LowMemory can set no ceiling",
            "run the site on Linux 4.7 or later, without a sandbox such as gVisor",
        )
    return None


def _set(name: str) -> str:
    # A platform's form does not run $(...): pasted there, its text would be the secret.
    return f"run `{MAKE_SECRET}` and set {name} to what it prints, in the platform's variables"


def secret_key(figures: Figures) -> Finding | None:
    secret = figures.secret
    if secret is None:
        return None
    if secret.app and secret.changes:
        return Finding(
            ADVICE,
            "secret key",
            "the app makes another SECRET_KEY at each start: each deploy logs everybody out",
            f"{_set('SECRET_KEY')}, and read it from there",
        )
    if secret.app and secret.length < SECRET_LENGTH:
        return Finding(
            ADVICE,
            "secret key",
            f"the app's SECRET_KEY has {secret.length} characters: it can be guessed",
            f"{_set('SECRET_KEY')}, and read it from there",
        )
    if secret.app or secret.setting or not (figures.wrapped and figures.sessions):
        return None
    return Finding(
        ADVICE,
        "secret key",
        "no SECRET_KEY and no LOWMEM_SECRET_KEY: the key that signs sessions is lost with each "
        "deploy",
        _set("LOWMEM_SECRET_KEY"),
    )


def no_token(figures: Figures) -> Finding | None:
    if not figures.wrapped or figures.token:
        return None
    return Finding(
        ADVICE,
        "no token",
        "LOWMEM_ADMIN_TOKEN is not set: the status says little, and nobody can ask for a cleanup",
        _set("LOWMEM_ADMIN_TOKEN"),
    )


# --- The interpreter and the system


def python_release(figures: Figures) -> Finding | None:
    warning = of_python(figures.python.version, figures.python.gil)
    if warning is None:
        return None
    sentence, _, advice = warning.partition(". Use ")
    return Finding(ADVICE, "python release", sentence, f"use {advice.rstrip('.')}")


def free_threaded(figures: Figures) -> Finding | None:
    if figures.python.gil:
        return None
    return Finding(
        ADVICE,
        "free-threaded python",
        "this Python has no GIL: its objects are larger, and PYTHONMALLOC=malloc is not possible",
        "use the ordinary build of Python",
    )


def musl(figures: Figures) -> Finding | None:
    if figures.python.glibc or sys.platform != "linux":
        return None
    return Finding(
        ADVICE,
        "musl",
        "the C library is not glibc (Alpine?): freed memory cannot be given back by malloc_trim",
        "use an image with glibc, such as python:3.13-slim",
    )


def swap(figures: Figures) -> Finding | None:
    if not figures.swap:
        return None
    return Finding(
        ADVICE,
        "swap",
        f"the container may swap {short(figures.swap)}: short of memory, the site becomes slow "
        "instead of failing in one request",
        "run the container without swap (docker run --memory-swap as large as --memory)",
    )


FINDINGS: tuple[Callable[[Figures], Finding | None], ...] = (
    wrong_settings,
    does_not_load,
    born_too_large,
    too_many_workers,
    large_request,
    page_ends_the_worker,
    page_does_not_end,
    no_page_answers,
    leak,
    template_cache,
    heavy_import,
    arenas,
    python_flags,
    no_preload,
    few_requests,
    long_graceful_timeout,
    no_ceiling,
    secret_key,
    no_token,
    python_release,
    free_threaded,
    musl,
    swap,
)
# The headings of docs/doctor.md.
NAMES = (
    *("wrong settings", "does not load", "born too large", "too many workers"),
    *("workers set by the platform", "workers from the cores", "large request"),
    *("page ends the worker", "page does not end", "no page answers", "leak"),
    *("template cache", "heavy import", "arenas", "python flags", "no preload", "few requests"),
    *("graceful timeout", "no ceiling", "secret key", "no token", "python release"),
    *("free-threaded python", "musl", "swap"),
)


def anchor(name: str) -> str:
    """Return where docs/doctor.md explains a finding."""
    return f"docs/doctor.md#{name.replace(' ', '-')}"

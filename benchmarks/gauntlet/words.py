"""The fixed words of the page: its frame, and what is known of wrong answers and of differences."""

from __future__ import annotations

TEMPLATE = """\
# The 512 MB gauntlet

<!-- Made by `make gauntlet` from a run. Do not edit. -->

The same site and the same clients, in the same container of {limit} MB without swap, on {count}
ways to serve a Python web app. Measured on {date}: {machine}. A {plan} run of {rounds}; CPU
{shares}.

{short}{tables}

## How to read the tables

* A contender's place is 1, and one more for each other contender that is better. Of two, the one
  with fewer failed answers is better; where these cannot be told apart, fewer OOM kills decide,
  then seconds unavailable, wrong answers and p99.
* Two figures are told apart where all measurements of one are better than all of the other, by
  {least} % at least. Counts, outages and p99.9 must differ by {rough} % of the larger. Counts
  must also differ by more than chance makes likely: two standard deviations of Poisson rates.
* **Bold**: the best of the column, and each that cannot be told apart from the best.
* *Failed*: no whole answer, or an error. *Wrong*: an answer that is not right, such as an upload
  over the cap that was taken, or a session that came back. Wrong answers are about the rules of
  the site, and not about memory. The tables by phase have the sums over all rounds, the first
  table medians.
* *Runaways refused*: the kinds of which all requests were answered 500 or 503 within {patience:g}
  s (below half a CPU {slow:g} s), with nobody killed and the site answering afterwards. "Failed"
  does not count the runaways themselves.
* *Deaths*: workers that did not end in order, by the server's log or by the kernel's count of OOM
  kills, and ends of the whole server. The platform starts a server that ended anew,
  {restart_delay:g} s later, and a server that gives no good answer for {unhealthy:g} s (below
  half a CPU later in proportion).
* *Unavailable*: the time from a neighbour's request that failed, or took over {late:g} s, to the
  next good answer of any neighbour, all outages together. *Slowest beside*: the slowest good
  answer to a neighbour.
* Memory is of the whole container: its usage without the file cache that the kernel drops first.
  *Initial*: after the first answer. *After spikes*: a second after. *Final*: at the very end. The
  charts show the memory of each contender's first round.
* p50 to CPU are of the steady phase. CPU is of all processes in the container, by its cgroup. Too
  few answers have no p99 (under 100) or p99.9 (under 1,000).

## Why answers were wrong

{reasons}

## The noise

{noise}

{again}## What lowmem-wsgi promises

{promises}

{cost}## The phases

The client is never in the measured container, and no client tries again. Whoever refuses at once is
asked again sooner than whoever lets a client wait, and so may fail more often: "unavailable" counts
both alike. Who has not answered all
of a phase after {phase_seconds:g} s is asked no more of it (on a slow CPU, later in proportion).

| phase | what is asked |
|---|---|
{phases}

## The contenders

Each has one worker of three threads, where it has workers and threads (`WEB_CONCURRENCY=1`);
uWSGI with `--cheaper` may have a second worker, and Gunicorn's sync worker has one thread. The
site refuses uploads over 512 KB, and ends a session {lifetime} s after its last use (on a slow
CPU four times that): by Flask's own settings (`GAUNTLET_RULES=flask`), or by LowMemory where the
table says `LOWMEM_SESSION_LIFETIME`.

| contender | version | command | environment | source |
|---|---|---|---|---|
{contenders}

{missing}## The settings of this run

{settings}

Versions: {versions}.

## Run it yourself

```sh
make gauntlet QUICK=1   # 12 minutes; without QUICK=1 some hours
```

Linux, two free cores, as a user who may make cgroups; uWSGI and mod_wsgi need a compiler
([benchmarks](../../benchmarks/README.md#the-gauntlet)). All that was recorded:
[{name}.json]({name}.json).
"""

# By what came instead (a regular expression): what is known of that.
REASONS = {
    r"chunked upload of (2048|20480) KB: 200": (
        "*A chunked upload over the cap, answered 200*: Werkzeug cuts a chunked body off at"
        " `MAX_CONTENT_LENGTH`, and the app takes the part for the whole."
    ),
    r"chunked upload of (20|400) KB: 200": (
        "*A chunked upload below the cap, answered 200 with another length*: uWSGI gives no chunked"
        " body to a WSGI app ([servers](../servers.md))."
    ),
    r"upload of \d+ KB: (Connection|BrokenPipe)": (
        "*An upload, connection reset*: the server closed the connection while the client was"
        " sending, so the client does not get to read an answer."
    ),
    r"logout race: 200": (
        "*A logout race*: with a lifetime from the last use, Flask sends the session cookie with"
        " each answer. A slow answer brings back the session that was ended meanwhile."
    ),
    r"neighbour: ConnectionRefused": (
        "*Connection refused*: nobody listens, as the server's main process has ended."
    ),
    r"neighbour: RemoteDisconnected": (
        "*Remote disconnected*: the worker that had the request was killed, or ended before it"
        " answered."
    ),
    r"neighbour: 503": (
        "*503*: the server or LowMemory refuses, while memory is short or a worker is missing."
    ),
}

# Why lowmem-wsgi would be behind whoever it is, by the figure's key.
BEHIND = dict.fromkeys(
    ("p50", "cpu", "rate"),
    "LowMemory does work of its own for each request: its rules, three passes of the garbage"
    " collector over what is not frozen, and the growth of the route.",
) | dict.fromkeys(
    ("initial", "idle", "final"),
    "Under lowmem-wsgi's config the master has loaded the app, and each page that a worker writes"
    " to (a reference count is enough) is there twice; LowMemory's own modules come on top.",
)

CHARTS = {
    "memory": "Memory over time",
    "failures": "Failed and wrong answers by phase",
    "latency": "p50, p99 and p99.9",
}

"""The page, its charts and the JSON of a run. Pure: what was recorded in, texts of files out.

Each sentence about who is better is made from the figures.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from . import charts, cost
from .contenders import CONTENDERS, HIGHLIGHTED, OURS, PLAIN
from .course import side_by_side
from .figures import (
    BY_KEY,
    LEAST,
    METRICS,
    ROUGH,
    Metric,
    Row,
    Table,
    agreement,
    leaders,
    order,
    promises,
    spread,
    standing,
    summarise,
)
from .machine import in_words
from .phases import CLIENTS, DAMAGE, LATE, NEIGHBOURS, PAUSE

Document = dict[str, Any]
PHASES = ("steady", *(phase.name for phase in DAMAGE))

TEMPLATE = """\
# The 512 MB gauntlet

<!-- Made by `make gauntlet` from a run. Do not edit. -->

The same site and the same clients, in the same container of {limit} MB without swap, on {count}
ways to serve a Python web app. Measured on {date}: {machine}. A {plan} run of {rounds}; CPU
{shares}.

{tables}

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


def written(
    run: Document, costs: Document | None = None, again: Document | None = None
) -> dict[str, str]:
    """The files, by name.

    `costs`: of a run of cost.py, for the page. `again`: another run on the same machine, for the
    page to say how far the two agree.
    """
    name = f"{run['date']}-{run['plan']['name']}"
    files = {f"{name}.json": json.dumps(run, indent=1) + "\n"}
    for share in run["plan"]["shares"]:
        for dress in charts.DRESSES:
            for chart, text in drawn(run, share, dress).items():
                files[f"{_stem(name, share, chart)}-{dress}.svg"] = text
    files["README.md"] = page(run, name, costs, again)
    return files


def _stem(name: str, share: float, chart: str) -> str:
    return f"{name}-{chart}" if share == 1 else f"{name}-{chart}-{share:g}-cpu"


def drawn(run: Document, share: float, dress: str) -> dict[str, str]:
    """The three charts of a share of the CPU, by name."""
    table = summarise(run["records"], share)
    first = {r["contender"]: r for r in reversed(_of(run, share)) if not r["missing"]}
    records = {name: first[name] for name in table}
    ours = {name for name, row in CONTENDERS.items() if row.group == OURS}
    colours = charts.DRESSES[dress]
    kills = {
        name: {phase: found.get("kills", 0) for phase, found in record["phases"].items()}
        for name, record in records.items()
    }
    lost = {name: {phase: _lost(run, share, name, phase) for phase in PHASES} for name in records}
    traces = {name: record["trace"] for name, record in records.items()}
    return {
        "memory": charts.memory(traces, kills, ours, run["limit MB"], colours),
        "failures": charts.failures(lost, ours, colours),
        "latency": charts.latency(table, ours, colours),
    }


def page(
    run: Document, name: str, costs: Document | None = None, again: Document | None = None
) -> str:
    plan = run["plan"]
    rounds = f"{plan['rounds']} round" + ("s" if plan["rounds"] > 1 else "")
    return TEMPLATE.format(
        name=name,
        limit=run["limit MB"],
        count=len(run["contenders"]),
        date=run["date"],
        machine=in_words(run["machine"]),
        plan=plan["name"],
        rounds=rounds,
        shares=", ".join(f"{share:g}" for share in plan["shares"]),
        tables="\n\n".join("\n".join(_tables(run, share, name)) for share in plan["shares"]),
        least=round(100 * LEAST),
        rough=round(100 * ROUGH),
        patience=plan["patience"],
        slow=4 * plan["patience"],
        late=LATE,
        restart_delay=plan["restart_delay"],
        unhealthy=plan["unhealthy"],
        lifetime=plan["lifetime"],
        phase_seconds=plan["phase_seconds"],
        reasons="\n".join(_reasons(run)),
        noise="\n".join(_noise(run)),
        again="".join(f"{line}\n" for line in _again(run, again)) if again else "",
        promises="\n".join(_promises(run)),
        cost="".join(f"{line}\n" for line in _cost(costs)) if costs else "",
        phases="\n".join(_phases(plan)),
        contenders="\n".join(_contenders(run)),
        missing="".join(_missing(run)),
        settings=", ".join(f"{key} {_plain(value)}" for key, value in plan.items()) + ".",
        versions=", ".join(f"{k} {v or '(not installed)'}" for k, v in run["versions"].items()),
    )


def _of(run: Document, share: float) -> list[dict[str, Any]]:
    return [record for record in run["records"] if record["share"] == share]


def _lost(run: Document, share: float, name: str, phase: str) -> tuple[int, int]:
    """Of all rounds: how many answers failed or were wrong, of how many."""
    found = [
        record["phases"][phase]
        for record in _of(run, share)
        if record["contender"] == name and not record["missing"]
    ]
    return sum(one["failed"] + one["wrong"] for one in found), sum(one["asked"] for one in found)


def _picture(stem: str, words: str) -> str:
    dark, light = (f"{stem}-{dress}.svg" for dress in ("dark", "light"))
    return (
        f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'  <img src="{light}" alt="{words}">\n</picture>'
    )


def _tables(run: Document, share: float, stem: str) -> Iterator[str]:
    table = summarise(run["records"], share)
    yield f"## {_of_a_cpu(share)}"
    yield ""
    for chart, words in CHARTS.items():
        yield _picture(_stem(stem, share, chart), words)
        yield ""
    yield from sentences(table)
    yield ""
    order = order_of(table)
    best = {metric.key: leaders(table, metric) for metric in METRICS}
    heads = [f"{m.title}, {m.unit}" if m.unit else m.title for m in METRICS]
    yield "| | contender | " + " | ".join(heads) + " |"
    yield "|---|---|" + "---:|" * len(METRICS)
    for name, row in table.items():
        cells = (cell(row, metric, name in best[metric.key]) for metric in METRICS)
        yield f"| {order[name]} | {_bold(name)} | " + " | ".join(cells) + " |"
    yield ""
    yield "Failed and wrong answers by phase:"
    yield ""
    yield "| contender | " + " | ".join(PHASES) + " | what came instead |"
    yield "|---|" + "---:|" * len(PHASES) + "---|"
    for name in table:
        counts = (
            f"{lost} of {asked}" if (lost := found[0]) and (asked := found[1]) else "0"
            for found in (_lost(run, share, name, phase) for phase in PHASES)
        )
        yield f"| {_bold(name)} | " + " | ".join(counts) + f" | {_what(run, share, name)} |"


def _of_a_cpu(share: float) -> str:
    return "A whole CPU" if share == 1 else f"{share:g} of a CPU"


def order_of(table: Table) -> dict[str, str]:
    """The place of each in the table: "2=" where several share it."""
    places = standing(table)
    shared = Counter(places.values())
    return {name: f"{place}{'=' if shared[place] > 1 else ''}" for name, place in places.items()}


def cell(row: Row, metric: Metric, best: bool) -> str:
    found = row[metric.key]
    if math.isnan(found.value):
        return "–"
    text = f"{found.value:.{metric.digits}f}"
    return f"**{text}**" if best else text


def sentences(table: Table) -> Iterator[str]:
    """Who is best at what, by name where it is few; and where another is better than the two ways
    of lowmem-wsgi that carry the promises, why."""
    for metric in METRICS:
        best = leaders(table, metric)
        if not best:
            continue
        if len(best) == len(table):
            yield f"* {metric.title}: no difference beyond the noise."
            continue
        value = table[best[0]][metric.key].value
        ties = [n for n in best if table[n][metric.key].value == value]
        text = f"* {metric.title}: the best is {_figure(value, metric)}, by {_names(ties)}."
        if alike := [name for name in best if name not in ties]:
            text += f" Not told apart from that: {_names(alike)}."
        mine = [name for name in HIGHLIGHTED if name in table]
        if mine and not set(best) & set(mine):
            values = ", ".join(
                f"{name} {_figure(table[name][metric.key].value, metric)}" for name in mine
            )
            known = CONTENDERS[best[0]].wins.get(metric.key) or BEHIND.get(metric.key)
            why = f"Likely: {known}" if known else "The reason was not looked into."
            text += f" Behind: {values}. {why}"
        yield text


def _figure(value: float, metric: Metric) -> str:
    unit = metric.unit if metric.unit == "/s" else f" {metric.unit}"
    return f"{value:.{metric.digits}f}{unit}".strip()


def _names(names: Sequence[str]) -> str:
    first, more = "; ".join(names[:3]), len(names) - 3
    return "; ".join(names) if more <= 1 else f"{first}; and {more} more"


def _bold(name: str) -> str:
    return f"**{name}**" if CONTENDERS[name].group == OURS else name


def _what(run: Document, share: float, name: str) -> str:
    """The three most frequent of what came instead of a good answer."""
    counts: dict[str, int] = {}
    for record in _of(run, share):
        if record["contender"] == name and not record["missing"]:
            for found in record["phases"].values():
                for what, number in found["what"].items():
                    counts[what] = counts.get(what, 0) + number
    most = sorted(counts.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{number} {what}" for what, number in most) or "–"


def _reasons(run: Document) -> Iterator[str]:
    """What is known of the wrong answers that there were."""
    came = {
        what for r in run["records"] for found in r["phases"].values() for what in found["what"]
    }
    found = [
        reason for pattern, reason in REASONS.items() if any(re.match(pattern, w) for w in came)
    ]
    yield from (f"* {reason}" for reason in found)
    if not found:
        yield "No answer was wrong for a reason that is known."


def _noise(run: Document) -> Iterator[str]:
    table = summarise(run["records"], run["plan"]["shares"][0])
    yield (
        "Contenders take turns, in a new order each time. How far a contender's own measurements"
        f" lie apart at {_of_a_cpu(run['plan']['shares'][0]).lower()}, as a share of the figure"
        " (the median of all contenders):"
    )
    yield ""
    known = [(metric, spread(table, metric)) for metric in METRICS]
    yield ", ".join(f"{m.title} {100 * s:.0f} %" for m, s in known if not math.isnan(s)) + "."
    once = [metric.title for metric, found in known if math.isnan(found)]
    if once:
        yield ""
        yield f"Measured once a contender, or 0 each time, so without a spread: {', '.join(once)}."


def _again(run: Document, again: Document) -> Iterator[str]:
    """How far another run on the same machine agrees."""
    yield "## Two runs"
    yield ""
    yield (
        "The same plan was run twice on this machine, with the contenders in other orders. A ratio"
        " is a contender's figure over the median of all contenders' figures in the same run."
    )
    yield ""
    shares = [share for share in run["plan"]["shares"] if share in again["plan"]["shares"]]
    for share in shares:
        one, other = (summarise(found["records"], share) for found in (run, again))
        pairs = order(one, other)
        turned = "; ".join(f"{a} before {b}" for a, b in pairs.turned)
        yield (
            f"{_of_a_cpu(share)}: {pairs.same} pairs of contenders are told apart in both runs and"
            f" stand in the same order, {len(pairs.turned)} in the other order"
            f"{f' (in this run {turned})' if turned else ''}; {pairs.unsure} are told apart in one"
            " run at most."
        )
        yield ""
        yield "| ratio | its usual change | its largest | whose |"
        yield "|---|---:|---:|---|"
        for key, change in agreement(one, other, [m.key for m in METRICS if m.unit]).items():
            usual, most = (f"{100 * part:.0f} %" for part in (change.usual, change.most))
            yield f"| {BY_KEY[key].title} | {usual} | {most} | {change.name} |"
        yield ""


def _promises(run: Document) -> Iterator[str]:
    yield "| CPU | promise | figure | at most | |"
    yield "|---|---|---:|---:|---|"
    for share in run["plan"]["shares"]:
        for found in promises(summarise(run["records"], share), HIGHLIGHTED, PLAIN):
            verdict = "kept" if found.kept else "**broken**"
            yield f"| {share:g} | {found.text} | {found.figure:.3f} | {found.bound:g} | {verdict} |"


def _cost(costs: Document) -> Iterator[str]:
    """The chart and the figures of what a request costs as the work grows."""
    figures = cost.figures_of(costs)
    yield "## Cost as the work grows"
    yield ""
    yield (
        f"CPU time a request, in ms. Measured on {costs['date']}: {in_words(costs['machine'])};"
        f" {costs['rounds']} times {costs['seconds']:g} s each. The source document beside: its"
        " three passes after each request, and its threshold. Heap: lists that the collector"
        " visits."
    )
    yield ""
    yield _picture(f"{costs['date']}-cost", "CPU time a request")
    yield ""
    for side in cost.COLOURS:
        most = max(cost.flatness(figures, side).values(), default=0.0)
        yield (
            f"* {side}: from the smallest heap to the largest, the cost changes by"
            f" {100 * most:.0f} % at most."
        )
    yield ""
    yield "| | " + " | ".join(cost.COLOURS) + " |"
    yield "|---|" + "---:|" * len(cost.COLOURS)
    for words, values in cost.rows(figures):
        yield f"| {words} | " + " | ".join(f"{ms:.2f}" for ms in values) + " |"
    yield ""


def _phases(plan: dict[str, Any]) -> Iterator[str]:
    yield "| start | The server is started; the time is until the first good answer. |"
    yield f"| idle | {plan['idle']:g} s without a request. |"
    yield (
        f"| steady | {CLIENTS} clients without a pause, a connection each request:"
        f" {plan['slices']} times {plan['slice_seconds']:g} s, in turn with the other contenders."
        " A page of ten clients from a database, by Flask and SQLAlchemy, in an app that has"
        " pandas loaded. |"
    )
    for phase in DAMAGE:
        yield f"| {phase.name} | {' '.join((inspect.getdoc(phase.run) or '').split())} |"
    yield f"| idle again | {plan['final_idle']:g} s without a request. |"
    yield (
        f"| beside uploads to recovery | {NEIGHBOURS} neighbours ask for the page, each"
        f" {1000 * PAUSE:.0f} ms after its last answer (on a slow CPU, later in proportion). |"
    )
    for share in plan["shares"]:
        if (count := side_by_side(share)) > 1:
            yield (
                f"| uploads to recovery at {share:g} of a CPU | {count} contenders at a time, each"
                " in its own container. |"
            )


def _contenders(run: Document) -> Iterator[str]:
    for name, row in run["contenders"].items():
        environment = " ".join(f"`{key}={value}`" for key, value in row["environment"].items())
        command = row["command"].replace("|", "\\|")
        source = f"[{row['group']}]({row['advice']})"
        yield f"| {name} | {row['version']} | `{command}` | {environment} | {source} |"


def _missing(run: Document) -> Iterator[str]:
    reasons = dict.fromkeys(
        f"* {record['contender']}: {record['missing']}\n"
        for record in run["records"]
        if record["missing"]
    )
    if reasons:
        yield "Not run here:\n\n"
        yield from reasons
        yield "\n"


def _plain(value: Any) -> str:
    return " and ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else f"{value}"

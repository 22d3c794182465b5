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
from .words import BEHIND, CHARTS, REASONS, TEMPLATE

Document = dict[str, Any]
PHASES = ("steady", *(phase.name for phase in DAMAGE))


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
        short="".join(f"{line}\n" for line in _in_short(run)),
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


SHORT = ("failed", "kills", "idle", "p99")


def _in_short(run: Document) -> Iterator[str]:
    """One table of all shares, in the order of the first; nothing where there is but one share."""
    shares = run["plan"]["shares"]
    if len(shares) < 2:
        return
    tables = [summarise(run["records"], share) for share in shares]
    metrics = [BY_KEY[key] for key in SHORT]
    yield "## In short"
    yield ""
    yield f"Each cell has the figures at {' · '.join(f'{share:g}' for share in shares)} of a CPU."
    yield ""
    heads = [f"{m.title}, {m.unit}" if m.unit else m.title for m in metrics]
    yield "| contender | " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * len(metrics)
    for name in tables[0]:
        rows = [table.get(name) for table in tables]
        cells = (" · ".join(_number(row, metric) for row in rows) for metric in metrics)
        yield f"| {_bold(name)} | " + " | ".join(cells) + " |"
    yield ""


def _number(row: Row | None, metric: Metric) -> str:
    return "–" if row is None else cell(row, metric, best=False)


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
            why = f"Likely reason: {known}" if known else "The reason was not looked into."
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

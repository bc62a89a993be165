"""The results as a document: tables in Markdown, and two charts."""

from . import elsewhere
from .cases import CASES, EVERYBODY, FLOOR, FLOORS, HAPROXY, REFERENCES
from .growth import FLOODED, IN_A_CLUSTER, PAIRS, SET_UPS
from .plot import Bar, bars
from .runs import disturbed, middle, ratios, values

HEAD = """\
# What relaying costs

Made by `tests/bench/table`, which measures all of this anew: the servers of a row in turn,
{rounds} times, each started for its run. Values are medians, with the least and the most in
brackets; ratios are medians of the ratios of each round.

{processor}, {cores} cores, {memory_gib} GiB, {system}; {versions}. {date}. Generator and servers share
the machine: costs (CPU time) can be compared, speeds depend on what the generator needs, too. Others
were busy during {disturbed} of {runs} runs.

HAProxy relays TLS to TLS (`mode tcp`, `nbthread 2`), to a server in the generator; the nodes relay
between two clients. In all cases a tunnel is two TLS 1.3 connections with a P-256 certificate, and
no session is ever resumed. "Floor" is the least that a relay made of tokio and rustls can cost: it
copies bytes, and has no WebSocket, no pairing, no bounds. Two nodes are bridged over mutual TLS and
have a Redis; their figures are sums of both, unless it says "of a node". "Two floors" are one behind
the other, with TLS between them: the least for two nodes, without gRPC. Every message is checked byte
by byte.
"""


def number(value):
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(found, short=number):
    if not found:
        return "failed"
    return f"{short(middle(found))} ({short(min(found))}–{short(max(found))})"


def row(cells):
    return "| " + " | ".join(cells) + " |"


def table(heads, rows):
    return "\n".join([row(heads), row(["---"] * len(heads)), *map(row, rows)]) + "\n"


class Judgement:
    """Whether the targets are met."""

    def __init__(self, results):
        self.results = results
        self.missed = []
        self.met = 0

    def of(self, case, figure, contender):
        """What is compared with the target: ratios, or the values themselves."""
        of_case = self.results[case.name]
        if contender.name not in of_case:
            return None
        if figure.is_ratio:
            return ratios(figure, of_case[contender.name], of_case[HAPROXY.name])
        return values(figure, of_case[contender.name])

    def cell(self, case, figure, contender):
        found = self.of(case, figure, contender)
        if found is None:
            return "–"
        if not found:
            return "failed"
        target = figure.target(contender)
        if target is None or contender in REFERENCES:
            return number(middle(found))
        # As it is printed: what looks like the target is the target.
        good = round(middle(found), 2) <= target
        self.met += good
        if not good:
            value = f"{number(middle(found))} > {target}"
            self.missed.append(f"{figure.title}, {contender.title}: {value}")
        return f"{number(middle(found))} {'✓' if good else '✗'}"


def judged(judgement, cases, is_ratio):
    """A table of targets: of the figures that are compared with HAProxy, or of the others."""
    ours = [contender for contender in EVERYBODY if contender not in REFERENCES]
    others = (FLOOR, FLOORS) if is_ratio else (HAPROXY, FLOOR)
    names = [contender.title for contender in ours]
    heads = ["", *[other.title for other in others]]
    heads += [*names[:2], "target", *names[2:], "target"]
    rows = []
    for case in cases:
        for figure in case.figures:
            if figure.one is None or figure.is_ratio != is_ratio:
                continue
            cells = [judgement.cell(case, figure, contender) for contender in (*others, *ours)]
            count = len(others) + 2
            unit = "" if is_ratio else f", {figure.unit}"
            one, two = f"≤ {figure.one}", f"≤ {figure.two}"
            rows.append([figure.title + unit, *cells[:count], one, *cells[count:], two])
    return table(heads, rows) if rows else ""


def measured(results, cases):
    """All values."""
    rows = []
    for case in cases:
        for figure in case.figures:
            cells = [
                spread(values(figure, results[case.name][contender.name]))
                if contender.name in results[case.name] else "–"
                for contender in EVERYBODY
            ]
            rows.append([f"{figure.title}, {figure.unit}", *cells])
    return table(["", *[contender.title for contender in EVERYBODY]], rows)


def cited(cases):
    rows = []
    for case in cases:
        for figure in case.figures:
            key = f"{case.name}/{figure.name}"
            found = [known.get(key) for known in elsewhere.ORIGINALS.values()]
            if any(found):
                rows.append([f"{figure.title}, {figure.unit}", *map(number, found)])
    return table(["", *elsewhere.ORIGINALS], rows) if rows else ""


# What a tunnel may always have under way over a long link: two thirds of MAX_WINDOW of the nodes.
WINDOW_MIB = 2

GROWTH_HEADS = {
    "cpu_s_per_gib": "CPU-s per GiB",
    "cpu_ms_per_tunnel": "CPU-ms per set-up",
    "kib_per_endpoint": "KiB per endpoint",
    "redis_per_tunnel": "Redis commands per tunnel",
    "idle_percent": "idle CPU, % of a core",
}


def growth(rows, what):
    """A table of what should be flat."""
    names = [name for name in GROWTH_HEADS if name in rows[0]]
    cells = []
    for found in rows:
        change = {name: f" ({value:+.0%})" for name, value in found["change"].items()}
        line = [number(found[name]) + change.get(name, "") for name in names]
        cells.append([str(found["place"]), *line])
    return table([what, *(GROWTH_HEADS[name] for name in names)], cells)


def links(rows):
    cells = []
    for found in rows:
        speed, trip = found["mib_per_s"], found["found_ms"]
        line = [f"{found['round_trip_ms']} ms", f"{trip:.1f} ms", number(speed)]
        if not found["round_trip_ms"]:
            cells.append([*line, "–", "–"])
            continue
        most = WINDOW_MIB / trip * 1000
        cells.append([*line, number(most), f"{speed / most:.0%}"])
    heads = ["round trip", "as it was", "MiB/s", f"{WINDOW_MIB} MiB / round trip", "of it"]
    return table(heads, cells)


def further(extras, machine):
    """Sections on growth, links and neighbours."""
    texts = []
    if rows := extras.get("growth-node"):
        text = FILLS.format(files=machine["files"], pairs=PAIRS)
        texts += ["## A node that fills\n", text, growth(rows, "tunnels standing")]
    if rows := extras.get("growth-bridged"):
        most = max(row["place"] for row in rows)
        texts += ["## Two nodes that fill\n", BRIDGED.format(most=most), growth(rows, "tunnels standing")]
    if rows := extras.get("growth-cluster"):
        text = GROWS.format(standing=IN_A_CLUSTER, flooded=FLOODED, set_ups=SET_UPS)
        texts += ["## A cluster that grows\n", text, growth(rows, "nodes")]
    if rows := extras.get("links"):
        texts += ["## Long links between nodes\n", LINKS.format(window=WINDOW_MIB), links(rows)]
    if rows := extras.get("neighbours"):
        found = rows[0]
        good = "✓" if found["percent"] >= 90 else "✗"
        texts += ["## Beside stalled tunnels\n", NEIGHBOURS.format(good=good, **found)]
    return texts


FILLS = """\
What a GiB (16 KiB messages through 8 tunnels), a set-up and an idle endpoint cost while so many
tunnels stand idle on the node, and how far that is from the first row: the node of that row and the
other one are measured in turn, {pairs} times in each round, and this is the median. What the standing
tunnels cost by themselves (pings) is in a column of its own, and not in the others. A process may open
{files} files on this machine; a tunnel takes two. Other processes than the one that measures hold those
that stand. With 100, the memory has a part of what a node takes only once.
"""
BRIDGED = """\
The same between two nodes, where a tunnel takes one file of each node, so that {most} tunnels stand on
either. Sums of both nodes; Redis commands include those by which nodes keep their leases.
"""
GROWS = """\
The same in a cluster, with the ends of each tunnel on neighbouring nodes, {standing} tunnels standing,
and sums over all nodes. Each node has the same to do, however many there are: {flooded} tunnels are
flooded and {set_ups} per second set up for each, as a set-up costs less the more of them a node has to do
at the same time. With one node tunnels are local; the others are compared with two. They share the
cores of one machine: this shows that nobody pays for the others, not how fast a cluster is that has
machines of its own. Redis commands include those by which nodes keep their leases.
"""
LINKS = """\
One bridged tunnel, 16 KiB messages, with a relay between the nodes that holds every byte back for
half of the round trip. It stands for the delay of a link, not for its loss or its limits. What can
be under way is bounded by the window of a tunnel on the bridge, which grows with the round trip: over
long links, {window} MiB can be under way at any time, and half as much again now and then.
"""
NEIGHBOURS = """\
A tunnel between two nodes keeps {percent} % of its speed while {stalled} others on the same pair of
nodes are flooded and not read ({beside_mib_per_s:.0f} of {alone_mib_per_s:.0f} MiB/s; at least 90 %: {good}).
"""


def charts(results):
    """By file name."""
    made = {}
    for case_name, figure_name, file, title, subtitle, longest in CHARTS:
        case = next(case for case in CASES if case.name == case_name)
        figure = next(figure for figure in case.figures if figure.name == figure_name)
        rows = chart_rows(case, figure, results.get(case_name, {}))
        if rows:
            made[file] = bars(title, subtitle, figure.unit, rows, longest)
    return made


def chart_rows(case, figure, results):
    rows = []
    for contender in EVERYBODY:
        found = values(figure, results.get(contender.name, []))
        if found:
            kind = "peer" if contender in REFERENCES else "ours"
            rows.append(Bar(contender.title, middle(found), kind))
    key = f"{case.name}/{figure.name}"
    for name, known in elsewhere.ORIGINALS.items():
        if rows and key in known:
            rows.append(Bar(name.split(" (")[0] + " *", known[key], "elsewhere"))
    return rows


CITED = f"* {elsewhere.CITED}"
CHARTS = (
    ("cpu-16KiB-8", "cpu", "cpu.svg", "CPU time to relay one GiB",
     f"16 KiB messages, 8 tunnels, TLS on both sides; less is better. {CITED}", 10),
    ("idle", "idle", "memory.svg", "Memory of an idle endpoint",
     f"TLS, 1000 tunnels, sum of all nodes; less is better. {CITED}", None),
)


def written(outcome, directory):
    """Writes the document and its charts; says whether all targets are met."""
    results, extras = outcome["results"], outcome["extras"]
    cases = [case for case in CASES if case.name in results]
    judgement = Judgement(results)
    pictures = charts(results)
    machine = outcome["machine"]
    facts = machine | {
        "versions": ", ".join(machine["versions"]),
        "rounds": outcome["rounds"],
        "disturbed": disturbed(results)[0],
        "runs": disturbed(results)[1],
    }
    texts = [HEAD.format(**facts)]
    texts += [f"![{name}]({name})\n" for name in pictures]
    for is_ratio, title in ((True, "Ratios to HAProxy"), (False, "Bounds of memory and of idleness")):
        if text := judged(judgement, cases, is_ratio):
            texts += [f"## {title}\n", text]
    if cases:
        texts += ["## All values\n", measured(results, cases)]
    texts += further(extras, machine)
    if known := cited(cases):
        where = f"Not measured in this run: {elsewhere.CITED}.\n"
        texts += ["## The original servers, as cited\n", where, known]
    if outcome["failures"]:
        texts += ["## What failed\n", "".join(f"- {line}\n" for line in outcome["failures"])]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "README.md").write_text("\n".join(texts))
    for name, picture in pictures.items():
        (directory / name).write_text(picture)
    return judgement

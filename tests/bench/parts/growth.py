"""What must stay the same while a node, or a cluster, grows; and tunnels over long links."""

import functools
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .runs import bench, middle, say
from .servers import SPARE, Failure, files

STANDING = (100, 1000, 5000, 10000, 20000)
# Nodes of a cluster, and tunnels that stand in it meanwhile.
NODES = (1, 2, 3, 4)
IN_A_CLUSTER = 1000
# What each of them has to do: tunnels that are flooded, and tunnels that are set up per second.
FLOODED = 4
SET_UPS = 100
# Round trips between nodes, in milliseconds.
ROUND_TRIPS = (0, 20, 80)
LIMIT = 600
# With which the bench begins when tunnels are idle.
FIRST = 20
# How long they stand at most, before memory is looked at, and how long what they cost is watched: in
# seconds.
HELD, REST, WATCHED = 600, 3, 6
# Samples of the same two servers, short ones: what disturbs a run disturbs all of it.
PAIRS = 6
# What is divided by the number of tunnels, or of bytes, and so should not grow with them.
EACH = ("cpu_s_per_gib", "cpu_ms_per_tunnel", "kib_per_endpoint", "redis_per_tunnel")


def unbounded():
    """Settings for as many connections as a process can have here."""
    return {
        "LIMITS__CONNECTIONS": str(files() - SPARE),
        "LIMITS__NETWORK_SHARE": "1",
        "LIMITS__RESERVE": "0",
        "LIMITS__UNAUTHENTICATED": "20000",
    }


def commands(redis):
    """How many commands a Redis was given so far, without those that ask for this."""
    host, port = redis.split(":")
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(b"INFO commandstats\r\nQUIT\r\n")
        text = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    calls = re.findall(rb"cmdstat_(\S+?):calls=(\d+)", text)
    return sum(int(count) for name, count in calls if name not in (b"info", b"quit"))


@dataclass(frozen=True)
class Step:
    """A row of a table: what is started, and how many tunnels stand meanwhile. In step, there is the
    same to do for each node; otherwise as much as can be done."""

    place: int
    start: Callable
    standing: int
    in_step: bool = False


class Crowded:
    """A server beside a crowd: tunnels that stand on it. Several processes hold them, as one may not
    open so many files."""

    def __init__(self, laboratory, step):
        self.laboratory, self.step = laboratory, step
        self.server, self.row, self.idle = step.start(), {}, 0.0
        self.pids = list(self.server.pids)

    def fill(self):
        # Whatever is made on first use.
        self._hold(1 + FIRST)
        before, open_before = self._resident_kib(), self._open_files()
        most = (files() - SPARE) // 2
        for first in range(0, self.step.standing, most):
            self._hold(min(most, self.step.standing - first))
        endpoints = self._open_files() - open_before
        # Until what their set-up took has been given back.
        time.sleep(REST)
        self.row["kib_per_endpoint"] = (self._resident_kib() - before) / endpoints

    def _hold(self, tunnels):
        """Has a process hold tunnels, and waits until they stand."""
        wanted = self._open_files() + 2 * tunnels
        options = ["--tunnels", tunnels - FIRST, "--hold", HELD, *self.server.arguments()]
        self.laboratory.spawn([self.laboratory.bench, "idle", *options], self.server)
        self.laboratory.wait(
            self.server, f"{tunnels} tunnels", lambda: self._open_files() >= wanted
        )

    def _open_files(self):
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids)

    def _resident_kib(self):
        found = (Path(f"/proc/{pid}/status").read_text() for pid in self.pids)
        return sum(int(re.search(r"VmRSS:\s+(\d+)", text)[1]) for text in found)

    def cpu_s(self):
        """CPU time so far."""
        stats = (Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1] for pid in self.pids)
        ticks = sum(int(ticks) for stat in stats for ticks in stat.split()[11:13])
        return ticks / os.sysconf("SC_CLK_TCK")

    def sample(self, quick):
        """What a GiB and a set-up cost, without what the crowd costs by itself meanwhile."""
        flood = ["throughput", "--seconds", "1.5", "--warm-up", "0.5"]
        setup, count = ["setup"], 500 if quick else 1000
        if self.step.in_step:
            nodes = len(self.pids)
            flood += ["--tunnels", str(FLOODED * nodes)]
            setup += ["--rate", str(SET_UPS * nodes), "--concurrency", "64"]
            count = (100 if quick else 250) * nodes
        result = self._bench(flood)
        gib = result["mib_per_s"] * result["seconds"] / 1024
        row = {"cpu_s_per_gib": result["cpu_s_per_gib"] - self.idle * result["seconds"] / gib}
        before = commands(self.server.redis) if self.server.redis else 0
        result = self._bench([*setup, "--count", str(count)])
        idle = self.idle * result["seconds"] / count
        row["cpu_ms_per_tunnel"] = result["cpu_ms_per_tunnel"] - 1000 * idle
        if self.server.redis:
            # Those that warm up are set up in the same way.
            row["redis_per_tunnel"] = (commands(self.server.redis) - before) / (count + 50)
        return self.row | row

    def _bench(self, command):
        return bench(self.laboratory, [*command, *self.server.arguments()], LIMIT)[0]


def pairs(laboratory, one, other, quick):
    """Samples of two servers in turn, so that whatever else the machine does meets both."""
    crowded = []
    try:
        for step in (one, other):
            crowded.append(Crowded(laboratory, step))
            crowded[-1].fill()
        began, before = time.monotonic(), [server.cpu_s() for server in crowded]
        time.sleep(WATCHED)
        for server, cpu_s in zip(crowded, before):
            server.idle = (server.cpu_s() - cpu_s) / (time.monotonic() - began)
            server.row["idle_percent"] = 100 * server.idle
        return [[server.sample(quick) for server in crowded] for _ in range(1 if quick else PAIRS)]
    finally:
        for server in crowded:
            server.server.stop()


def medians(rows):
    return {name: middle([row[name] for row in rows]) for name in rows[0]}


def rows_of(laboratory, what, steps, base, rounds, quick):
    """A row for each step, with how far its figures are from those of the base: the median of all
    pairs that were measured side by side."""
    found, failures = {step.place: [] for step in steps}, []
    changes = {step.place: [] for step in steps}
    for _ in range(rounds):
        for step in steps:
            if step is base and len(steps) > 1:
                continue
            say(f"growth: {base.place} and {step.place} {what}")
            try:
                measured = pairs(laboratory, base, step, quick)
            except Failure as failure:
                failures.append(f"{step.place} {what}: {failure}")
                continue
            for ours, theirs in measured:
                change = {name: theirs[name] / ours[name] - 1 for name in ours if name in EACH}
                say("  " + ", ".join(f"{name} {value:+.1%}" for name, value in change.items()))
                found[base.place].append(ours)
                found[step.place].append(theirs)
                changes[step.place].append(change)
    rows = []
    for place, samples in found.items():
        if samples:
            change = medians(changes[place]) if changes[place] and place != base.place else {}
            rows.append({"place": place, "change": change} | medians(samples))
    return rows, failures


def filled(laboratory, what, start, most, rounds, quick):
    """A process that may open no more files than for some of the tunnels takes as many as it can."""
    counts = sorted({min(count, most) for count in (STANDING[:2] if quick else STANDING)})
    steps = [Step(count, functools.partial(start, **unbounded()), count) for count in counts]
    return rows_of(laboratory, what, steps, steps[0], rounds, quick)


def on_a_node(laboratory, rounds, quick):
    most = (files() - 2 * SPARE) // 2
    return filled(laboratory, "tunnels on a node", laboratory.node, most, rounds, quick)


def on_two_nodes(laboratory, rounds, quick):
    """The same with the ends of each tunnel on different nodes, where it takes one file of each."""
    most = files() - 2 * SPARE
    return filled(laboratory, "tunnels between two nodes", laboratory.nodes, most, rounds, quick)


def in_a_cluster(laboratory, rounds, quick):
    steps = [
        Step(count, functools.partial(laboratory.nodes, count, **unbounded()), IN_A_CLUSTER, True)
        for count in (NODES[:2] if quick else NODES)
    ]
    rows, failures = rows_of(laboratory, "nodes", steps, steps[1], rounds, quick)
    # Of one node, tunnels are local: that is something else.
    return [row | {"change": {}} if row["place"] == 1 else row for row in rows], failures


def over_long_links(laboratory, rounds, quick):
    """One bridged tunnel, by the round trip between its nodes."""
    found, failures = [], []
    for round_trip in ROUND_TRIPS:
        say(f"link: {round_trip} ms")
        try:
            rows = [over_a_link(laboratory, round_trip // 2, quick) for _ in range(rounds)]
        except Failure as failure:
            failures.append(f"a link of {round_trip} ms: {failure}")
            continue
        found.append({"round_trip_ms": round_trip} | medians(rows))
    return found, failures


def over_a_link(laboratory, delay_ms, quick):
    server = laboratory.nodes(delay_ms=delay_ms)
    try:
        seconds = "2" if quick else "5"
        flood = ["throughput", "--tunnels", "1", "--seconds", seconds, "--warm-up", "2"]
        result, summary = bench(laboratory, [*flood, *server.arguments()], LIMIT)
        say(f"  {summary}")
        # What the link really takes: timers are late.
        there_and_back = ["latency", "--seconds", seconds, *server.arguments()]
        trip, _ = bench(laboratory, there_and_back, LIMIT)
    finally:
        server.stop()
    return {"mib_per_s": result["mib_per_s"], "found_ms": trip["p50_ms"]}


def beside_stalled(laboratory, rounds, quick):
    """The speed that a tunnel keeps beside stalled ones on the same bridge."""
    say("neighbours of stalled tunnels")
    server = laboratory.redis()
    try:
        given = ["--redis", f"redis://{server.redis}", "--rounds", "3" if quick else str(max(rounds, 5))]
        result, _ = bench(laboratory, ["neighbours", *given], LIMIT)
        return [result], []
    except Failure as failure:
        return [], [f"neighbours: {failure}"]
    finally:
        server.stop()


PARTS = {
    "growth-node": on_a_node,
    "growth-bridged": on_two_nodes,
    "growth-cluster": in_a_cluster,
    "links": over_long_links,
    "neighbours": beside_stalled,
}

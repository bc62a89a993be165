"""What must stay the same while a node, or a cluster, grows; and tunnels over long links."""

import functools
import os
import re
import socket
import time
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
# Before memory is looked at, in seconds.
REST = 5


def unbounded():
    """Settings for as many connections as a process can have here."""
    return {"LIMITS__CONNECTIONS": str(files() - SPARE), "LIMITS__UNAUTHENTICATED": "20000"}


def commands(redis):
    """How many commands a Redis was given so far, without those that ask for this."""
    host, port = redis.split(":")
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(b"INFO commandstats\r\nQUIT\r\n")
        text = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    calls = re.findall(rb"cmdstat_(\S+?):calls=(\d+)", text)
    return sum(int(count) for name, count in calls if name not in (b"info", b"quit"))


def costs(laboratory, server, in_step, quick):
    """What a GiB and a set-up cost: as many as there can be, or in step with the number of nodes."""
    flood = ["throughput", "--seconds", "1.5" if quick else "4"]
    setup, count = ["setup"], 500 if quick else 2000
    if in_step:
        nodes = len(server.pids)
        flood += ["--tunnels", str(FLOODED * nodes)]
        setup += ["--rate", str(SET_UPS * nodes), "--concurrency", "64"]
        count = (200 if quick else 1000) * nodes
    result, _ = bench(laboratory, [*flood, *server.arguments()], LIMIT)
    row = {"cpu_s_per_gib": result["cpu_s_per_gib"]}
    before = commands(server.redis) if server.redis else 0
    result, _ = bench(laboratory, [*setup, "--count", str(count), *server.arguments()], LIMIT)
    row["cpu_ms_per_tunnel"] = result["cpu_ms_per_tunnel"]
    if server.redis:
        # Those that warm up are set up in the same way.
        row["redis_per_tunnel"] = (commands(server.redis) - before) / (count + 50)
    return row


def beside_a_crowd(laboratory, start, standing, in_step, quick):
    """What things cost while so many tunnels stand, and what those take. They are held by several
    processes, as one may not open so many files."""
    server = start()
    try:
        # Whatever is made on first use, with little that others can use again.
        once = ["setup", "--count", "20", "--concurrency", "1"]
        bench(laboratory, [*once, *server.arguments()], LIMIT)
        before, most = resident_kib(server.pids), (files() - SPARE) // 2
        for held in (min(most, standing - first) for first in range(0, standing, most)):
            options = ["idle", "--tunnels", held, "--hold", LIMIT, *server.arguments()]
            laboratory.spawn([laboratory.bench, *options], server)
        all_there = functools.partial(have_files, server.pids, 2 * standing)
        laboratory.wait(server, f"{standing} tunnels", all_there)
        # Until what their set-up took has been given back.
        time.sleep(REST)
        taken = resident_kib(server.pids) - before
        return costs(laboratory, server, in_step, quick) | {"kib_per_endpoint": taken / standing / 2}
    finally:
        server.stop()


def have_files(pids, count):
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids) > count


def resident_kib(pids):
    sizes = (re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) for pid in pids)
    return sum(int(size[1]) for size in sizes)


def medians(rows):
    return {name: middle([row[name] for row in rows]) for name in rows[0]}


def rows_of(laboratory, what, steps, rounds, quick):
    """A row for each step: its place in the table, what to start, how many tunnels stand, and whether
    there is the same to do for each node. Rounds go through all of them, so that a change of the machine
    meets all."""
    found, failures = {}, []
    for _ in range(rounds):
        for place, start, standing, in_step in steps:
            say(f"growth: {place} {what}")
            try:
                row = beside_a_crowd(laboratory, start, standing, in_step, quick)
                say("  " + ", ".join(f"{name} {value:.3g}" for name, value in row.items()))
                found.setdefault(place, []).append(row)
            except Failure as failure:
                failures.append(f"{place} {what}: {failure}")
    return {place: medians(rows) for place, rows in found.items()}, failures


def standing_tunnels(most, quick):
    """A process that may open no more files than for some of them takes as many as it can."""
    return sorted({min(count, most) for count in (STANDING[:2] if quick else STANDING)})


def filled(laboratory, what, start, most, rounds, quick):
    steps = [(count, start, count, False) for count in standing_tunnels(most, quick)]
    found, failures = rows_of(laboratory, what, steps, rounds, quick)
    return [{"tunnels": count} | row for count, row in found.items()], failures


def on_a_node(laboratory, rounds, quick):
    start, most = functools.partial(laboratory.node, **unbounded()), (files() - 2 * SPARE) // 2
    return filled(laboratory, "tunnels on a node", start, most, rounds, quick)


def on_two_nodes(laboratory, rounds, quick):
    """The same with the ends of each tunnel on different nodes, where it takes one file of each."""
    start, most = functools.partial(laboratory.nodes, **unbounded()), files() - 2 * SPARE
    return filled(laboratory, "tunnels between two nodes", start, most, rounds, quick)


def in_a_cluster(laboratory, rounds, quick):
    steps = [
        (count, functools.partial(laboratory.nodes, count, **unbounded()), IN_A_CLUSTER, True)
        for count in (NODES[:2] if quick else NODES)
    ]
    found, failures = rows_of(laboratory, "nodes", steps, rounds, quick)
    return [{"nodes": count} | row for count, row in found.items()], failures


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

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
NODES = (1, 2, 3, 4)
# Round trips between nodes, in milliseconds.
ROUND_TRIPS = (0, 20, 80)
LIMIT = 600
# Before memory is looked at, in seconds.
REST = 5


def unbounded():
    """Settings for as many connections as a process can have here."""
    return {"LIMITS__CONNECTIONS": str(files() - SPARE), "LIMITS__UNAUTHENTICATED": "20000"}


def standing_tunnels(quick):
    """How many tunnels a node is filled with. A process that may open no more files than for some
    of them takes as many as it can."""
    most = (files() - 2 * SPARE) // 2
    return sorted({min(count, most) for count in (STANDING[:2] if quick else STANDING)})


def commands(redis):
    """How many commands a Redis was given so far, without those that ask for this."""
    host, port = redis.split(":")
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(b"INFO commandstats\r\nQUIT\r\n")
        text = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    calls = re.findall(rb"cmdstat_(\S+?):calls=(\d+)", text)
    return sum(int(count) for name, count in calls if name not in (b"info", b"quit"))


def costs(laboratory, server, beside, quick):
    """What a GiB and a set-up cost while so many tunnels stand."""
    given = server.arguments()
    standing = ["--beside", str(beside)]
    seconds = ["--seconds", "1.5" if quick else "4"]
    count = 500 if quick else 2000
    result, _ = bench(laboratory, ["throughput", *standing, *seconds, *given], LIMIT)
    row = {"cpu_s_per_gib": result["cpu_s_per_gib"]}
    # The tunnels that stand cost some commands, too: they are counted apart.
    before = commands(server.redis) if server.redis else 0
    result, _ = bench(laboratory, ["setup", *standing, "--count", str(count), *given], LIMIT)
    row["cpu_ms_per_tunnel"] = result["cpu_ms_per_tunnel"]
    if server.redis:
        # Tunnels that stand, and those that warm up, were set up in the same way.
        row["redis_per_tunnel"] = (commands(server.redis) - before) / (count + 50 + beside)
    return row


def repeated(laboratory, start, beside, idle, rounds, quick):
    """Medians of several rounds, each with servers of its own: with so many tunnels standing beside
    the work, and so many for the memory that they take."""
    rows = []
    for _ in range(rounds):
        server = start()
        try:
            row = costs(laboratory, server, beside, quick)
        finally:
            server.stop()
        server = start()
        try:
            standing = ["idle", "--tunnels", str(idle), *server.arguments()]
            result, _ = bench(laboratory, standing, LIMIT)
            row["kib_per_endpoint"] = result["kib_per_endpoint"]
        finally:
            server.stop()
        rows.append(row)
    return medians(rows)


def medians(rows):
    return {name: middle([row[name] for row in rows]) for name in rows[0]}


def on_a_node(laboratory, rounds, quick):
    found, failures = [], []
    start = functools.partial(laboratory.node, **unbounded())
    for standing in standing_tunnels(quick):
        say(f"growth: {standing} tunnels on a node")
        try:
            row = repeated(laboratory, start, standing, standing, rounds, quick)
            found.append({"tunnels": standing} | row)
        except Failure as failure:
            failures.append(f"{standing} tunnels on a node: {failure}")
    return found, failures


def on_two_nodes(laboratory, rounds, quick):
    """The same with the ends of each tunnel on different nodes, where it takes one file of each."""
    found, failures = [], []
    most = files() - 2 * SPARE
    for standing in sorted({min(count, most) for count in (STANDING[:2] if quick else STANDING)}):
        say(f"growth: {standing} tunnels between two nodes")
        try:
            rows = [beside_a_crowd(laboratory, standing, quick) for _ in range(rounds)]
        except Failure as failure:
            failures.append(f"{standing} tunnels between two nodes: {failure}")
            continue
        found.append({"tunnels": standing} | medians(rows))
    return found, failures


def beside_a_crowd(laboratory, standing, quick):
    """What things cost while so many tunnels stand, and what those take. They are held by several
    processes, as one may not open so many files."""
    server = laboratory.nodes(**unbounded())
    try:
        nodes = list(server.pids)
        # Whatever is made on first use.
        bench(laboratory, ["setup", "--count", "50", *server.arguments()], LIMIT)
        before, most = resident_kib(nodes), (files() - SPARE) // 2
        for held in (min(most, standing - first) for first in range(0, standing, most)):
            options = ["idle", "--tunnels", held, "--hold", LIMIT, *server.arguments()]
            laboratory.spawn([laboratory.bench, *options], server)
        laboratory.wait(server, f"{standing} tunnels", functools.partial(have_files, nodes, standing))
        # Until what their set-up took has been given back.
        time.sleep(REST)
        taken = resident_kib(nodes) - before
        return costs(laboratory, server, 0, quick) | {"kib_per_endpoint": taken / standing / 2}
    finally:
        server.stop()


def have_files(pids, count):
    return all(len(os.listdir(f"/proc/{pid}/fd")) > count for pid in pids)


def resident_kib(pids):
    sizes = (re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) for pid in pids)
    return sum(int(size[1]) for size in sizes)


def in_a_cluster(laboratory, rounds, quick):
    found, failures = [], []
    for count in NODES[:2] if quick else NODES:
        say(f"growth: {count} nodes")
        start = functools.partial(laboratory.nodes, count, **unbounded())
        try:
            row = repeated(laboratory, start, 100, 1000, rounds, quick)
            found.append({"nodes": count} | row)
        except Failure as failure:
            failures.append(f"{count} nodes: {failure}")
    return found, failures


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

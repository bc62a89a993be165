"""What is measured, of whom, and what would be good.

A case is one command of the bench, from whose result one or more figures are taken. A contender is
a server, and how its messages are sent."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Contender:
    name: str
    title: str
    # A method of the laboratory.
    start: str
    options: tuple = ()


HAPROXY = Contender("haproxy", "HAProxy", "haproxy")
FLOOR = Contender("floor", "floor", "floor")
FLOORS = Contender("floors", "two floors", "floors")
NODE = Contender("node", "one node, binary", "node")
NODE_TEXT = Contender("node-text", "one node, text", "node", ("--text",))
NODES = Contender("nodes", "two nodes, binary", "nodes")
NODES_TEXT = Contender("nodes-text", "two nodes, text", "nodes", ("--text",))

# What nodes are compared with.
REFERENCES = (HAPROXY, FLOOR, FLOORS)
EVERYBODY = (*REFERENCES, NODE, NODE_TEXT, NODES, NODES_TEXT)
# Where there are no messages, or what they are makes no difference. Two floors are left out, as they
# have a connection of their own between them for each tunnel.
BINARY = (HAPROXY, FLOOR, NODE, NODES)


@dataclass(frozen=True)
class Figure:
    """A number of a result. Its targets are ratios to HAProxy, or bounds of the number itself."""

    name: str
    title: str
    unit: str
    # The way to it in the result, such as setup/p50_ms.
    path: str
    one: float = None
    two: float = None
    is_ratio: bool = True
    at_least: bool = False

    def of(self, result):
        value = result
        for step in self.path.split("/"):
            value = value[step]
        return max(value) if isinstance(value, list) else value

    def target(self, contender):
        return self.two if contender.start == "nodes" else self.one


@dataclass(frozen=True)
class Case:
    name: str
    command: tuple
    figures: tuple
    contenders: tuple
    # How long a run may take, in seconds.
    limit: int = 120
    # Runs that take long are fewer.
    most_rounds: int = 99
    # What is shorter with --quick; None leaves the case out.
    quick: tuple = ()


def throughput(size, label, tunnels, one, two, quick=("--seconds", "1.5", "--warm-up", "0.5")):
    where = f"{label} messages, {tunnels} tunnel{'s' if tunnels > 1 else ''}"
    return Case(
        f"cpu-{label.replace(' ', '')}-{tunnels}",
        ("throughput", "--size", str(size), "--tunnels", str(tunnels), "--seconds", "4"),
        (
            Figure("cpu", f"CPU per GiB, {where}", "s", "cpu_s_per_gib", one, two),
            Figure("speed", f"speed, {where}", "MiB/s", "mib_per_s"),
        ),
        EVERYBODY,
        quick=quick,
    )


ROUND_TRIP = Case(
    "round-trip",
    ("latency", "--size", "256", "--seconds", "5"),
    (
        Figure("cpu", "CPU per round trip, 256 B", "µs", "cpu_us_per_round_trip", 0.9, 2.0),
        Figure("p99", "round trip, 256 B, p99", "ms", "p99_ms", 0.9, 1.8),
        Figure("p50", "round trip, 256 B, p50", "ms", "p50_ms"),
    ),
    EVERYBODY,
    quick=("--seconds", "1.5"),
)

SETUP = Case(
    "setup",
    ("setup", "--count", "3000", "--concurrency", "16"),
    (
        Figure("cpu", "CPU per tunnel, set up and closed", "ms", "cpu_ms_per_tunnel", 0.6, 1.2),
        Figure("p50", "set-up, 16 at a time, p50", "ms", "setup/p50_ms", 0.8, 1.3),
        Figure("first", "the same from the first connection", "ms", "setup_from_first/p50_ms"),
    ),
    BINARY,
    quick=("--count", "800"),
)

IDLE = Case(
    "idle",
    ("idle", "--tunnels", "1000", "--message", "65536"),
    (
        Figure("idle", "memory per idle endpoint", "KiB", "kib_per_endpoint", 16, 32, False),
        Figure(
            "used",
            "the same, 10 s after 64 KiB each way",
            "KiB",
            "kib_per_endpoint_after_messages",
            20,
            36,
            False,
        ),
    ),
    BINARY,
    quick=("--tunnels", "500"),
)

MANY = Case(
    "many",
    ("idle", "--tunnels", "5000", "--hold", "40", "--close"),
    (
        Figure("cpu", "CPU of 10,000 idle endpoints", "% of a core", "idle_cpu_percent", 1, 2, False),
        Figure(
            "closed",
            "memory 10 s after they are closed, to that before",
            "×",
            "closed_to_before",
            1.3,
            1.3,
            False,
        ),
        Figure("idle", "memory per endpoint of 10,000", "KiB", "kib_per_endpoint", 16, 32, False),
    ),
    BINARY,
    limit=300,
    most_rounds=3,
    quick=None,
)

STALLED = Case(
    "stalled",
    ("stalled", "--tunnels", "8"),
    (Figure("memory", "memory of 8 stalled tunnels, of a node", "MiB", "mib_more_of_each", 8, 16, False),),
    BINARY,
)

STALLED_BOTH = Case(
    "stalled-both",
    ("stalled", "--tunnels", "8", "--both"),
    (Figure("memory", "the same, stalled both ways", "MiB", "mib_more_of_each", 8, 16, False),),
    BINARY,
)

CASES = (
    throughput(16384, "16 KiB", 8, 0.8, 1.7),
    throughput(65536, "64 KiB", 8, 0.8, 1.7),
    throughput(16384, "16 KiB", 1, 0.85, 1.8),
    throughput(65536, "64 KiB", 1, 0.85, 1.8, quick=None),
    throughput(1024, "1 KiB", 8, 0.65, 1.5),
    throughput(1024, "1 KiB", 1, 0.85, 2.0, quick=None),
    ROUND_TRIP,
    SETUP,
    IDLE,
    STALLED,
    STALLED_BOTH,
    MANY,
)

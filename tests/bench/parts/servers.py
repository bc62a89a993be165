"""What is measured: starts HAProxy, the floor, one node, or several nodes of a cluster, and ends
them. All listen on free ports of loopback, and each has its files in a directory of the run."""

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

START = 60
END = 10
# For 20,000 tunnels, and those that are no connections.
FILES = 45_000
SPARE = 500


class Failure(Exception):
    """Something did not work, and this is what."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def files():
    """How many a process may have open; as many as it can get, up to what is needed here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else max(hard, FILES)
    for most in (wanted, hard):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, FILES), most))
            break
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def accepts(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@dataclass
class Server:
    """Something that runs, as the bench needs to know it."""

    urls: list
    pids: list
    backend: str = ""
    redis: str = ""
    processes: list = field(default_factory=list)
    logs: list = field(default_factory=list)

    def arguments(self):
        """For the bench: what to connect to, and whose CPU time and memory to count."""
        given = ["--ignore-ssl"]
        for url in self.urls:
            given += ["--url", url]
        for pid in self.pids:
            given += ["--pid", str(pid)]
        return given + (["--direct", self.backend] if self.backend else [])

    def stop(self):
        for process in reversed(self.processes):
            process.send_signal(signal.SIGKILL)
        for process in self.processes:
            process.wait(END)


class Laboratory:
    """A directory with certificates and configurations, and the programs to start."""

    def __init__(self, programs, wrapper=(), environment=(), tools=None):
        """Nodes are started by the wrapper, in this environment. What is no node may be in another
        directory than they."""
        self.programs = Path(programs)
        self.tools = Path(tools or programs)
        self.wrapper = list(wrapper)
        self.environment = dict(environment)
        self.directory = Path(tempfile.mkdtemp(prefix="nymea-bench-"))
        self.certs = self.directory / "certs"
        nodes = [f"--node=node{number},127.0.0.1" for number in range(1, 5)]
        made = [self.tools / "nymea-remoteproxy-certs", "--out", self.certs, *nodes]
        subprocess.run([*made, "--server=localhost,127.0.0.1"], check=True, capture_output=True)
        pair = [(self.certs / name).read_text() for name in ("server.pem", "server.key")]
        (self.directory / "both.pem").write_text("".join(pair))

    def close(self):
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def bench(self):
        return self.tools / "nymea-remoteproxy-bench"

    def spawn(self, command, server, **environment):
        """Starts a program with nothing of this shell's settings, and its output in a file."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        log = self.directory / f"{len(list(self.directory.glob('*.log')))}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(part) for part in command],
                env=kept | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        server.processes.append(process)
        server.logs.append(log)
        return process

    def wait(self, server, what, condition):
        """Waits until something is there, or says what the last program wrote instead."""
        end = time.monotonic() + START
        while not (found := condition()):
            if server.processes[-1].poll() is not None or time.monotonic() > end:
                text = server.logs[-1].read_text(errors="replace")[-2000:]
                server.stop()
                raise Failure(f"{what} did not start:\n{text}")
            time.sleep(0.02)
        return found

    def haproxy(self):
        """TLS in, TLS out: two full handshakes for each tunnel, as a node has them."""
        port, backend = free_port(), free_port()
        configuration = self.directory / f"haproxy-{port}.cfg"
        configuration.write_text(HAPROXY.format(
            port=port,
            backend=backend,
            certificate=self.directory / "both.pem",
            # Each takes two files.
            connections=(files() - SPARE) // 2,
        ))
        server = Server([f"tls://127.0.0.1:{port}"], [], f"127.0.0.1:{backend}")
        process = self.spawn(["haproxy", "-db", "-f", configuration], server)
        server.pids.append(process.pid)
        self.wait(server, "HAProxy", lambda: accepts(port))
        return server

    def floor(self):
        """The least that a relay of the same parts costs."""
        return self._floors(1)

    def floors(self):
        """The least that two of them cost, one behind the other."""
        return self._floors(2)

    def _floors(self, count):
        *ports, backend = [free_port() for _ in range(count + 1)]
        server = Server([f"tls://127.0.0.1:{ports[0]}"], [], f"127.0.0.1:{backend}")
        for port, behind in zip(ports, [*ports[1:], backend]):
            addresses = ["--listen", f"127.0.0.1:{port}", "--backend", f"127.0.0.1:{behind}"]
            process = self.spawn([self.bench, "floor", *addresses], server)
            server.pids.append(process.pid)
            self.wait(server, "the floor", lambda port=port: accepts(port))
        return server

    def node(self, **settings):
        """One node, with its defaults and a certificate from a file."""
        server = Server([], [])
        self._node(server, settings)
        return server

    def nodes(self, count=2, delay_ms=0, **settings):
        """Nodes of a cluster with a Redis, bridged with mutual TLS. With a delay, a byte takes so
        long from one node to another."""
        server = self.redis()
        for number in range(1, count + 1):
            self._node(server, settings | self._membership(server, number, delay_ms))
        return server

    def redis(self):
        """A Redis and nothing else."""
        port = free_port()
        server = Server([], [], redis=f"127.0.0.1:{port}")
        options = ["--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.spawn(["redis-server", *options, "--dir", self.directory], server)
        self.wait(server, "Redis", lambda: accepts(port))
        return server

    def _membership(self, server, number, delay_ms):
        bridge = free_port()
        settings = {
            "REDIS__URL": f"redis://{server.redis}",
            "NODE__NAME": f"node{number}",
            "BRIDGE__LISTEN": f"127.0.0.1:{bridge}",
            "BRIDGE__CA": str(self.certs / "ca.pem"),
            "BRIDGE__CERTIFICATE": str(self.certs / f"node{number}.pem"),
            "BRIDGE__KEY": str(self.certs / f"node{number}.key"),
        }
        if delay_ms:
            port = free_port()
            ends = ["--listen", f"127.0.0.1:{port}", "--backend", f"127.0.0.1:{bridge}"]
            self.spawn([self.bench, "delay", *ends, "--one-way", delay_ms], server)
            settings["BRIDGE__ADVERTISE"] = f"127.0.0.1:{port}"
        return settings

    def _node(self, server, settings):
        defaults = {
            "LOG__FORMAT": "human",
            "ADMIN__LISTEN": "127.0.0.1:0",
            "TLS__CERTIFICATE": str(self.certs / "server.pem"),
            "TLS__CERTIFICATE_KEY": str(self.certs / "server.key"),
        }
        environment = {f"REMOTEPROXY__{name}": value for name, value in (defaults | settings).items()}
        command = [*self.wrapper, self.programs / "nymea-remoteproxy", "--port", "0"]
        process = self.spawn(command, server, **self.environment, **environment)
        log = server.logs[-1]
        listening = re.compile(r"listening on (wss://\S+)")
        found = self.wait(server, "the node", lambda: listening.search(log.read_text()))
        server.urls.append(found[1])
        server.pids.append(process.pid)


HAPROXY = """\
global
    nbthread 2
    maxconn {connections}
    tune.ssl.cachesize 0

defaults
    mode tcp
    timeout connect 10s
    timeout client 10m
    timeout server 10m

frontend tls_in
    bind 127.0.0.1:{port} ssl crt {certificate} ssl-min-ver TLSv1.3 no-tls-tickets
    default_backend tls_out

backend tls_out
    server bench 127.0.0.1:{backend} ssl verify none ssl-min-ver TLSv1.3 no-tls-tickets no-ssl-reuse
"""

"""Where it was measured, in words."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

from .servers import files


def described():
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{distribution()}, Linux {platform.release().split('-')[0]}",
        "versions": [line for line in versions() if line],
        "files": files(),
    }


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            guest = " (virtual machine)" if "hypervisor" in Path("/proc/cpuinfo").read_text() else ""
            return name + guest
    return platform.machine()


def distribution():
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.split("=", 1)[1].strip('"')
    return "Linux"


def versions():
    yield first_line(["haproxy", "-v"]).split(" - ")[0]
    yield first_line(["redis-server", "--version"]).split(" sha=")[0]
    yield "nymea-remoteproxy " + revision()


def revision():
    """Of this tree, with a sign if it is not as it was committed."""
    here = Path(__file__).parent
    described = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=10"]
    return first_line([str(part) for part in described]) or "of unknown revision"


def first_line(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except OSError:
        return ""
    return done.stdout.splitlines()[0] if done.stdout else ""

"""What a reader must know to compare these numbers with others; no name of a host."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from .contenders import LIBRARIES, start
from .meters import what_is_counted
from .setting import Condition, far

if TYPE_CHECKING:
    from .measures import Bench


# Distances that are so short that what makes them adds much to them.
MEASURED = (Condition.DELAYED, Condition.FAR, Condition.NEAR, Condition.NEARBY)


def machine(bench: Bench) -> dict[str, str]:
    """Of this one, and of all contenders."""
    server = subprocess.run([bench.kind.binary(), "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "cpu": f"{os.cpu_count()} x {_cpu()}",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "server": server.strip().partition(" sha")[0],
        **{condition.value: far(bench.kind, condition) for condition in MEASURED},
        "system calls": what_is_counted(),
        **versions(bench),
    }


def versions(bench: Bench) -> dict[str, str]:
    """What every library says it is, or why it cannot run."""
    found = {}
    for library in LIBRARIES:
        with start(library, bench.environments, ["redis://127.0.0.1:1"]) as contender:
            contender.greet()
            found[library.name] = contender.version or f"cannot run: {contender.trouble}"
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

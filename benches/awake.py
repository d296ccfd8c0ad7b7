"""Processors that do not go to sleep between a question and its answer.

A virtual processor with nothing to do is taken away by its host, and to get it back may take longer than a lock and its
unlock: then the host is measured, and who is a little quicker may be twice as quick, for the host had not noticed yet.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Runs only when its processor has nothing else to do, and gives it up at once; ends with its parent, however that ends.
_IDLE = """
import os, sys
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
os.sched_setaffinity(0, {int(sys.argv[1])})
parent = int(sys.argv[2])
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Keep all processors busy with nothing, at the lowest priority there is, where the system has that."""
    with contextlib.ExitStack() as stack:
        for processor in sorted(os.sched_getaffinity(0)) if hasattr(os, "SCHED_IDLE") else ():
            command = [sys.executable, "-c", _IDLE, str(processor), str(os.getpid())]
            idler = stack.enter_context(subprocess.Popen(command, stdin=subprocess.DEVNULL))
            stack.callback(idler.kill)
        yield

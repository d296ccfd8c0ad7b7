"""One contender of `versus.py`: locks and unlocks on command, and says how long it took.

The same file runs in redlock-py's environment and in this project's: what `import redlock` finds is what is measured.

    pairs.py URL...     then, a line each on standard input, answered by a line of JSON:
    pairs COUNT         -> [[lock microseconds, lock+unlock microseconds], ...]
    threads COUNT SECS  -> lock+unlock pairs a second, all threads sharing one manager
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time

from redlock import Redlock

TTL = 10_000  # ms


def timed_pair(manager: Redlock, resource: str) -> tuple[float, float]:
    """Lock and unlock once.

    Returns:
        Microseconds until the lock was held, and until it was released.

    Raises:
        RuntimeError: the lock was not granted, so there is nothing to time.
    """
    begin = time.perf_counter_ns()
    lock = manager.lock(resource, TTL)
    held = time.perf_counter_ns()
    if not lock:
        raise RuntimeError(f"{resource}: not granted")
    manager.unlock(lock)
    return (held - begin) / 1000, (time.perf_counter_ns() - begin) / 1000


def throughput(manager: Redlock, resource: str, threads: int, seconds: float) -> float:
    """Pairs a second over all threads, each with a resource of its own."""
    counts = [0] * threads
    start = threading.Barrier(threads + 1)
    end = 0.0

    def work(index: int) -> None:
        start.wait()
        while time.perf_counter() < end:
            timed_pair(manager, f"{resource}:{index}")
            counts[index] += 1

    pool = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for thread in pool:
        thread.start()
    begin = time.perf_counter()
    end = begin + seconds
    start.wait()
    for thread in pool:
        thread.join()
    return sum(counts) / (time.perf_counter() - begin)


def main() -> None:
    """Obey standard input until it ends."""
    # Nobody reads what is logged about the master that is broken on purpose; writing it is not what is timed.
    logging.getLogger("redlock").addHandler(logging.NullHandler())
    manager, resource = Redlock(sys.argv[1:]), f"bench:{os.getpid()}"
    for line in sys.stdin:
        command, *arguments = line.split()
        answer: object
        if command == "pairs":
            answer = [timed_pair(manager, resource) for _ in range(int(arguments[0]))]
        else:
            answer = throughput(manager, resource, int(arguments[0]), float(arguments[1]))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

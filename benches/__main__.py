"""`make bench`: measure everything, print it as it comes, keep it."""

from __future__ import annotations

import argparse
import datetime as dt
import signal
import sys
import time
from pathlib import Path

from support.servers import ServerKind

from .contenders import HERE
from .machine import machine
from .measures import FULL, QUICK, SCENARIOS, Bench
from .records import Results
from .setting import network
from .tables import terminal


def _absolute(path: str) -> Path:
    """Children run elsewhere. Links stay: an environment's interpreter is one, and knows itself by it."""
    return Path(path).absolute()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benches", description="All contenders, side by side.")
    parser.add_argument("--probe", type=_absolute, required=True, help="the compiled examples/raw_probe.rs")
    parser.add_argument("--environments", type=_absolute, default=".venvs", help="of the other libraries")
    parser.add_argument("--server", choices=[kind.label for kind in ServerKind], default=ServerKind.VALKEY91.label)
    parser.add_argument("--only", choices=[scenario.__name__ for scenario in SCENARIOS], help="one scenario")
    parser.add_argument("--quick", action="store_true", help="a look: few turns, N = 3")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the files go")
    return parser.parse_args()


def main() -> None:
    """Measure, print, keep."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = _options()
    kind = next(kind for kind in ServerKind if kind.label == options.server)
    bench = Bench(kind, options.environments, options.probe, QUICK if options.quick else FULL)
    begin = time.perf_counter()
    with network():
        results = Results(machine(bench), [])
        print(*(f"{name}: {text}" for name, text in results.machine.items()), sep="\n")
        for scenario in SCENARIOS:
            for records in scenario(bench) if options.only in {None, scenario.__name__} else ():
                results.records += records
                print(terminal(records), flush=True)
    results.machine["effort"] = f"{'quick' if options.quick else 'full'}, {time.perf_counter() - begin:.0f} s"
    stamp = dt.datetime.now(dt.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    print(f"\n{results.save(options.results, stamp)}")


if __name__ == "__main__":
    main()

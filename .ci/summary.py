#!/usr/bin/env python3
"""Sums up what `.ci/run` ran: `.ci/summary.py RESULTS STATUS`.

RESULTS is the directory that `.ci/pytest` wrote to, and STATUS the exit status of `make test`. Prints the flaky tests,
which failed and then passed alone, and last a closing line like pytest's. Exits with 1 if something failed, or if more
than three tests are flaky.
"""

from __future__ import annotations

import datetime as dt
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

MAX_FLAKY = 3
# From the best to the worst: where a test and its teardown have an outcome each, the worse one counts.
OUTCOMES = ["passed", "skipped", "failed", "error"]
OUTCOME_OF_TAG = {"skipped": "skipped", "failure": "failed", "error": "error"}


def read(path: Path) -> tuple[dict[str, str], float]:
    """The outcome of each test in a JUnit file, and how many seconds they took together."""
    if not path.exists():
        return {}, 0.0
    suite = ET.parse(path).getroot()[0]
    outcomes: dict[str, str] = {}
    for case in suite.iter("testcase"):
        test = f"{case.get('classname')}::{case.get('name')}"
        found = [OUTCOME_OF_TAG[part.tag] for part in case if part.tag in OUTCOME_OF_TAG]
        outcomes[test] = max([outcomes.get(test, "passed"), *found], key=OUTCOMES.index)
    return outcomes, float(suite.get("time", 0))


def main(results: Path, status: int) -> int:
    """Print the summary, and return the exit status."""
    counts: Counter[str] = Counter()
    flaky: list[str] = []
    seconds = 0.0
    for path in sorted(results.glob("*.first.xml")):
        session = path.name.removesuffix(".first.xml")
        first, first_seconds = read(path)
        again, again_seconds = read(results / f"{session}.again.xml")
        passed_alone = [test for test, outcome in again.items() if outcome == "passed"]
        counts.update((first | dict.fromkeys(passed_alone, "passed")).values())
        flaky += [f"{session}: {test}" for test in passed_alone]
        seconds += first_seconds + again_seconds

    if flaky:
        print(f"\nFlaky tests, which failed and then passed alone (more than {MAX_FLAKY} fail the run):")
        print(*(f"  {test}" for test in flaky), sep="\n")
    if len(flaky) > MAX_FLAKY:
        counts["failed"] += len(flaky)
        counts["passed"] -= len(flaky)
    else:
        counts["rerun"] = len(flaky)
    if status and not counts["failed"] + counts["error"]:
        counts["error"] = 1  # formatting, a lint, the documentation, a Rust test or a build failed, and no test
    failed = counts["failed"] + counts["error"] > 0 or not counts["passed"]

    if counts["error"] > 1:
        counts["errors"] = counts.pop("error")  # as pytest writes it
    order = ("failed", "passed", "skipped", "rerun", "error", "errors")
    words = ", ".join(f"{counts[word]} {word}" for word in order if counts[word])
    duration = f"{seconds:.2f}s ({dt.timedelta(seconds=int(seconds))})"
    print(f" {words or 'no tests ran'} in {duration} ".center(100, "="))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))

"""The command ``redlock``: locks for shell scripts.

The key of an acquired lock goes to stdout and everything else to stderr. Exit codes are those of redlock-py's command.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import sys

from redlock import CannotObtainLock, Lock, Redlock, __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

DONE, NOT_DONE, USAGE, OUTAGE = 0, 1, 2, 3
INTERRUPTED = 130  # as shells count a death by SIGINT

DEFAULT_URL = "redis://localhost:6379/0"

EPILOG = """
environment:
    REDLOCK_URLS  the masters' URLs, with whitespace or commas between them, where there is no --redis.
                  Arguments can be read by every user of the machine, the environment only by yours:
                  URLs with passwords belong here. (A comma within a URL is written %2C.)

exit codes:
    0 if the action succeeded
    1 if it did not: others hold the lock, or no master held it with this key
    2 if there was an error with the options
    3 if no majority of the masters answered
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit.

    Args:
        argv: the arguments after the command's name; those of the process by default.

    Raises:
        SystemExit: always, with the exit code.
    """
    # What the library logs is in the messages here; without this, Python would print it to stderr once more.
    logging.getLogger("redlock").addHandler(logging.NullHandler())
    parser = _parser()
    options, others = parser.parse_known_args(argv)
    if others and options.run is not _demo:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    options.others = others
    try:
        code = options.run(options)
    except (Warning, CannotObtainLock, TypeError, ValueError) as error:
        _say(options, f"error: {error}")
        code = USAGE
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="redlock",
        description="Distributed locks over N independent Redis masters.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"redlock-rs {__version__}")
    parser.add_argument(
        "--redis",
        action="append",
        metavar="URL",
        help=f"a master; once for each (default: REDLOCK_URLS, or {DEFAULT_URL})",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="nothing on stderr: only the exit code, and the key of a lock"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_lock(commands.add_parser("lock", help="acquire a lock and print its key", description=LOCK_HELP))
    _add_unlock(commands.add_parser("unlock", help="release a lock"))
    # The demo reads its own arguments, --help among them.
    demo = commands.add_parser("demo", add_help=False, help="five real servers, two of them failing, and no overlap")
    demo.set_defaults(run=_demo)
    return parser


LOCK_HELP = """
    For non-blocking behaviour, set --retry-count=0.
    For infinitely blocking behaviour with retries every second, set --retry-count=-1 and --retry-delay=1000.
"""


def _add_lock(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_lock)
    parser.add_argument(
        "--retry-count", type=int, default=3, metavar="N", help="number of retries, -1 for no end (default: 3)"
    )
    parser.add_argument(
        "--retry-delay",
        type=int,
        default=200,
        metavar="MS",
        help="most milliseconds between retries (default, and for 0: 200)",
    )
    parser.add_argument("name", metavar="NAME", help="the resource")
    parser.add_argument("validity", type=int, metavar="VALIDITY", help="for how many milliseconds it will be locked")


def _add_unlock(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_unlock)
    parser.add_argument("name", metavar="NAME", help="the resource")
    parser.add_argument("key", metavar="KEY", help="what `redlock lock` printed")


def _lock(options: argparse.Namespace) -> int:
    tries = math.inf if options.retry_count < 0 else options.retry_count + 1
    manager = Redlock(_masters(options), retry_count=tries, retry_delay=options.retry_delay / 1000)
    outcome = manager._acquire(options.name, options.validity)  # noqa: SLF001 - `lock` does not tell an outage
    if isinstance(outcome, Lock):
        _say(options, "ok")
        print(outcome.key.decode())  # noqa: T201
        return DONE
    if outcome and not _has_quorum(manager, outcome, "granted", "refused", "not asked"):
        return _outage(options, manager, outcome)
    _say(options, "failed")
    return NOT_DONE


def _unlock(options: argparse.Namespace) -> int:
    manager = Redlock(_masters(options))
    outcome = manager._release(Lock(0, options.name, options.key))  # noqa: SLF001 - `unlock` does not tell
    if not _has_quorum(manager, outcome, "released", "absent"):
        return _outage(options, manager, outcome)
    if "released" not in outcome:
        _say(options, "failed: no master held this lock with this key")
        return NOT_DONE
    _say(options, "ok")
    return DONE


def _demo(options: argparse.Namespace) -> int:
    from redlock import demo  # noqa: PLC0415 - nobody else needs it

    return demo.main(options.others)


def _masters(options: argparse.Namespace) -> list[str]:
    return options.redis or re.findall(r"[^\s,]+", os.environ.get("REDLOCK_URLS", "")) or [DEFAULT_URL]


def _has_quorum(manager: Redlock, outcome: list[str], *answers: str) -> bool:
    return sum(map(outcome.count, answers)) >= manager.quorum


def _outage(options: argparse.Namespace, manager: Redlock, outcome: list[str]) -> int:
    _say(options, "error: no majority of the masters answered")
    for name, said in zip(manager._names(), outcome, strict=True):  # noqa: SLF001 - to show them
        _say(options, f"  {name}: {said}")
    return OUTAGE


def _say(options: argparse.Namespace, text: str) -> None:
    if not options.quiet:
        print(text, file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()

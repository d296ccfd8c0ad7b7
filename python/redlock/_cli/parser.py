"""What the command ``redlock`` takes, and its manual: arguments, help, examples and exit codes."""

from __future__ import annotations

import argparse
import textwrap

from redlock import __version__
from redlock._cli import durations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

DEMO = "demo"
EPILOG = """
environment:
    REDLOCK_URLS  the masters' URLs, with whitespace or commas between them, where there is no --redis and no
                  --urls-file. Arguments can be read by every user of the machine, the environment only by yours:
                  URLs with passwords belong here, or in a file. (A comma within a URL is written %2C.)
    NO_COLOR      if set, no colours; there are none anyway where the output is no terminal

durations:
    500ms, 10s, 2m, 1h

exit codes:
    0 if the action succeeded
    1 if it did not: others hold the lock, or no master held it with this key
    2 if there was an error with the options
    3 if no majority of the masters answered
    `run`, `status` and `doctor` have more: see their --help
"""


class Parser(argparse.ArgumentParser):
    """A parser that can leave what follows ``--`` alone, as ``options.command``: it is another program's."""

    runs_command = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As in the base class.

        Args:
            args: the arguments.
            namespace: where to put what they mean.
        """
        if not self.runs_command or args is None:
            options, others = super().parse_known_args(args, namespace)
            self._refuse(options, others)
            return options, others
        words = list(args)
        end = words.index("--") if "--" in words else len(words)
        options, others = super().parse_known_args(words[:end], namespace)
        self._refuse(options, others)
        options.command = words[end + 1 :]
        if not options.command:
            self.error("expected a command after --")
        return options, others

    def _refuse(self, options: Any, others: Sequence[str]) -> None:
        # Here, not in the parser of all: its usage would not show what the subcommand takes.
        if others and options.function != DEMO:
            self.error(f"unrecognized arguments: {' '.join(others)}")


def build() -> Parser:
    """The parser of all; ``options.function`` is the module and function to call."""
    parser = Parser(
        prog="redlock",
        description="Distributed locks over N independent Redis masters.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"redlock-rs {__version__}")
    parser.set_defaults(more_redis=None, json=False, urls_file=None, quiet=False)
    _add_common(parser, "redis")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (_run, _lock, _unlock, _extend, _status, _watch, _doctor, _bench, _demo, _completion):
        add(commands)
    return parser


def _add_common(parser: argparse.ArgumentParser, redis: str) -> None:
    """What may stand before the subcommand, and after it."""
    default = None if redis == "redis" else argparse.SUPPRESS  # or those before would be forgotten
    parser.add_argument(
        "--redis",
        dest=redis,
        default=default,
        action="append",
        metavar="URL",
        help="a master; once for each (default: REDLOCK_URLS)",
    )
    suppress = argparse.SUPPRESS
    parser.add_argument(
        "--urls-file", default=suppress, metavar="FILE", help="read the masters' URLs from a file; - is standard input"
    )
    parser.add_argument("--json", action="store_true", default=suppress, help="the outcome as JSON")
    parser.add_argument(
        "--quiet",
        action="store_true",
        default=suppress,
        help="no word on a conflict, a wait or a success; outages, losses and errors are said",
    )


def _add(commands: Any, name: str, function: str, short: str, text: str = "") -> argparse.ArgumentParser:
    """A subcommand.

    Args:
        commands: what argparse adds subcommands to.
        name: of the subcommand.
        function: ``module.function`` in this package.
        short: its line in the list of all.
        text: its manual; what follows the first empty line comes after the options.
    """
    before, _, after = textwrap.dedent(text).strip().partition("\n\n")
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=short,
        description=before or f"{short[0].upper()}{short[1:]}.",
        epilog=after or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=function)
    _add_common(parser, "more_redis")
    return parser


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the resource")


# -- one lock ----------------------------------------------------------------------------------------------------------

RUN = """
Run a command while holding a lock; the lock is extended until the command has ended, and then released.

The command has a process group of its own, standard input and output as they are, and gets the signals that come
here. If the lock is lost (too few masters answer, or somebody took it away), the whole group gets SIGTERM a little
before the lock ends, and SIGKILL after --kill-after. The same happens if `redlock run` itself is killed. What the
command leaves behind in the background after its end runs on without the lock.

environment of the command:
    REDLOCK_NAME   the lock
    REDLOCK_KEY    its key, for `redlock extend` and `redlock unlock`
    REDLOCK_TOKEN  its fencing token, with --fencing

exit codes:
    the command's; 128 + n if a signal n ended it; 126 if it cannot be run, 127 if it cannot be found
    75 if others hold the lock (--conflict-exit-code), and the command was not run
     3 if no majority of the masters answered (or has fencing tokens), and the command was not run
    76 if the lock was lost while the command ran
     2 if there was an error with the options

examples:
    redlock run nightly-report -- ./report.sh
    redlock run deploy --wait 10m --max-hold 1h -- ansible-playbook site.yml
    * * * * *  redlock --quiet run poll --ttl 30s -- /usr/local/bin/poll || [ $? = 75 ]       (crontab)
    ENTRYPOINT ["redlock", "run", "leader", "--wait", "forever", "--", "/app"]                (Dockerfile)
"""


def _run(commands: Any) -> None:
    parser = _add(commands, "run", "run.run", "run a command while holding a lock", RUN)
    parser.usage = "redlock run [options] NAME -- COMMAND [ARGUMENT ...]"
    parser.runs_command = True  # type: ignore[attr-defined]
    parser.add_argument(
        "--ttl",
        type=durations.ttl,
        default=10_000,
        help="how long the masters keep the lock if this machine dies (default: 10s)",
    )
    parser.add_argument(
        "-w",
        "--wait",
        type=durations.wait,
        default=argparse.SUPPRESS,
        metavar="TIME",
        help="how long to wait for the lock; 0 tries once, `forever` has no end (default: three quick tries)",
    )
    parser.add_argument(
        "-n",
        dest="wait",
        action="store_const",
        const=0.0,
        default=argparse.SUPPRESS,
        help="do not wait: --wait 0",
    )
    parser.add_argument(
        "--max-hold",
        type=durations.seconds,
        metavar="TIME",
        help="give the lock up, and end the command, after so long (default: never)",
    )
    parser.add_argument(
        "--kill-after",
        type=durations.seconds,
        default=5.0,
        metavar="TIME",
        help="when the lock is lost, how long the command may take to end (default: 5s)",
    )
    parser.add_argument(
        "--conflict-exit-code",
        "-E",
        type=int,
        default=75,
        metavar="N",
        help="the exit code if others hold the lock (default: 75)",
    )
    parser.add_argument("--fencing", action="store_true", help="with a fencing token, in REDLOCK_TOKEN")
    _add_name(parser)


LOCK = """
Acquire a lock and print its key. It ends after VALIDITY, unless it is extended.

For non-blocking behaviour, set --retry-count=0.
For infinitely blocking behaviour with retries every second, set --retry-count=-1 and --retry-delay=1000.

examples:
    key=$(redlock lock nightly-report 60s) && make report; redlock unlock nightly-report "$key"
    redlock --json lock nightly-report 60000
"""


def _lock(commands: Any) -> None:
    parser = _add(commands, "lock", "locks.lock", "acquire a lock and print its key", LOCK)
    parser.add_argument(
        "--retry-count", type=int, default=3, metavar="N", help="number of retries, -1 for no end (default: 3)"
    )
    parser.add_argument(
        "--retry-delay",
        type=durations.bare_milliseconds,
        default=200,
        metavar="MS",
        help="most milliseconds between retries (default, and for 0: 200)",
    )
    _add_name(parser)
    parser.add_argument(
        "validity",
        type=durations.bare_ttl,
        metavar="VALIDITY",
        help="how long it will be locked: a duration, or milliseconds",
    )


def _unlock(commands: Any) -> None:
    parser = _add(commands, "unlock", "locks.unlock", "release a lock")
    _add_name(parser)
    parser.add_argument("key", metavar="KEY", help="what `redlock lock` printed")


def _extend(commands: Any) -> None:
    parser = _add(commands, "extend", "locks.extend", "make a lock last longer, from now")
    _add_name(parser)
    parser.add_argument("key", metavar="KEY", help="what `redlock lock` printed")
    parser.add_argument("ttl", type=durations.bare_ttl, metavar="TTL", help="a duration, or milliseconds")


STATUS = """
Tell who holds a lock, how long still, and what each master has of it.

The holder is a digest of the key, never the key itself: whoever knows that can release the lock. It is what
`Lease.holder` shows in Python.

exit codes:
    0 if a majority of the masters has it for one holder
    1 if not: it is free, or about to be
    2 if there was an error with the options
    3 if no majority of the masters answered
"""


def _status(commands: Any) -> None:
    _add_name(_add(commands, "status", "locks.status", "tell who holds a lock, and how long still", STATUS))


# -- all of them -------------------------------------------------------------------------------------------------------

WATCH = """
Show the masters and the locks they hold, again and again, until Ctrl-C.

Whatever is text with an end to its life is taken for a lock: give a pattern where the masters hold other things, too.
The names are found by SCAN, which goes over all keys of a master. With --json, each look is one line.

exit codes, with --count:
    0 if a majority of the masters answered in the last look
    2 if there was an error with the options
    3 if no majority of the masters answered

examples:
    redlock watch 'lock:*'
    redlock watch --count 1 --json | jq .locks
"""


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 1")
    return int(text)


def _watch(commands: Any) -> None:
    parser = _add(commands, "watch", "watch.watch", "a live table of locks and masters", WATCH)
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="of names, as in KEYS (default: *)")
    parser.add_argument(
        "--interval", type=durations.seconds, default=1.0, metavar="TIME", help="between two looks (default: 1s)"
    )
    parser.add_argument(
        "--count", type=_positive, default=0, metavar="N", help="stop after so many looks (default: never)"
    )
    parser.add_argument("--limit", type=int, default=200, metavar="N", help="show at most so many (default: 200)")


DOCTOR = """
Find what breaks locks in production: ask each master, compare them, and say what to do about what is found.

It reads (INFO, CONFIG GET, TIME, ACL DRYRUN, COMMAND INFO), and takes, extends and releases a lock of its own on
each master, --name, unless --read-only. What it is not allowed to see is a finding of its own, and no failure.

exit codes:
    0 if all is well
    1 if there are warnings, or something could not be checked
    2 if something is wrong, or there was an error with the options

examples:
    redlock doctor redis://a:6379 redis://b:6379 redis://c:6379
    redlock doctor --ttl 2s --ignore persistence --json
"""


def _doctor(commands: Any) -> None:
    parser = _add(commands, "doctor", "doctor.doctor", "find what breaks locks in production", DOCTOR)
    parser.add_argument("urls", nargs="*", metavar="URL", help="a master; otherwise as for the other commands")
    parser.add_argument(
        "--ttl",
        type=durations.ttl,
        default=10_000,
        help="of the locks that are to be taken: what latency and clocks are compared with (default: 10s)",
    )
    parser.add_argument(
        "--name",
        default="redlock-doctor",
        help="what to call the lock that is tried; a random ending is added (default: redlock-doctor)",
    )
    parser.add_argument("--read-only", action="store_true", help="try no lock")
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="CHECK", help="do not report what this check finds"
    )
    parser.add_argument(
        "--samples", type=int, default=50, metavar="N", help="round trips to measure per master (default: 50)"
    )


def _bench(commands: Any) -> None:
    text = """
    Measure how long locking takes at these masters, from here: one lock after another, nobody else wanting it.
    """
    parser = _add(commands, "bench", "bench.bench", "measure how long locking takes", text)
    parser.add_argument(
        "--time", type=durations.seconds, default=3.0, metavar="TIME", help="how long to measure (default: 3s)"
    )
    parser.add_argument("--name", default="redlock-bench", help="the lock; a random ending is added")


def _demo(commands: Any) -> None:
    # The demo reads its own arguments, --help among them.
    demo = commands.add_parser("demo", add_help=False, help="five real servers, two of them failing, and no overlap")
    demo.set_defaults(function=DEMO)


COMPLETION = """
Print a script that completes the arguments of redlock.

examples:
    redlock completion bash > ~/.local/share/bash-completion/completions/redlock
    redlock completion zsh > ~/.zfunc/_redlock
    redlock completion fish > ~/.config/fish/completions/redlock.fish
"""


def _completion(commands: Any) -> None:
    parser = _add(commands, "completion", "completion.completion", "print a completion script for a shell", COMPLETION)
    parser.add_argument("shell", choices=["bash", "zsh", "fish"])


def options_of(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    """What a parser takes, for completion."""
    return [action for action in parser._actions if action.help != argparse.SUPPRESS]  # noqa: SLF001


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The subcommands of a parser, for completion."""
    return dict(_commands_of(parser).choices)


def short_helps(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The line of each subcommand in the list of all."""
    return {action.dest: action.help or "" for action in _commands_of(parser)._get_subactions()}  # noqa: SLF001


def _commands_of(parser: argparse.ArgumentParser) -> Any:
    return next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001

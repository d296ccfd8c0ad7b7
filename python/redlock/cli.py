"""The command ``redlock``: locks for shell scripts.

The key of an acquired lock goes to stdout and everything else to stderr. Exit codes are those of redlock-py's command.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys

from redlock import CannotObtainLock
from redlock._cli import parser as _parser
from redlock._cli.output import INTERRUPTED, NOT_DONE, USAGE, CannotWriteError, Output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import NoReturn

_BROKEN_PIPE = 141  # as shells count a death by SIGPIPE


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit.

    Args:
        argv: the arguments after the command's name; those of the process by default.

    Raises:
        SystemExit: always, with the exit code.
    """
    _open_closed_streams()
    # What the library logs is in the messages here; without this, Python would print it to stderr once more.
    logging.getLogger("redlock").addHandler(logging.NullHandler())
    parser = _parser.build()
    options, others = parser.parse_known_args(argv)
    options.others = others
    try:
        code = _call(options)
    except (Warning, CannotObtainLock, TypeError, ValueError) as error:
        Output(options).error(str(error))
        code = USAGE
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # whoever read has seen enough
        _drop_output()
        code = _BROKEN_PIPE
    except CannotWriteError as error:
        _drop_output()
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - with --json, there is no other place for it
        code = NOT_DONE
    sys.exit(code)


def _open_closed_streams() -> None:
    """Have all three streams: the number of a closed one would be that of the next socket or file.

    A closed standard output still takes nothing: what cannot be printed is a failure, as on a full disk.
    """
    for name, flags, mode in (("stdin", os.O_RDONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_WRONLY, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode, errors="backslashreplace"))


def _drop_output() -> None:
    """Or Python complains when it closes standard output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _call(options: argparse.Namespace) -> int:
    if options.function == _parser.DEMO:
        from redlock import demo  # noqa: PLC0415 - nobody else needs it

        return demo.main(options.others)
    module, name = options.function.split(".")
    # Each needs other things: a lock in a script should not wait for what the doctor imports.
    code: int = getattr(importlib.import_module(f"redlock._cli.{module}"), name)(options)
    return code


if __name__ == "__main__":
    main()

"""``redlock run``: a command under a lease that is kept until the command has ended."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from redlock import CannotObtainLock, FencingUnavailable, LockContended
from redlock._cli import masters
from redlock._cli.output import NO_MAJORITY, OUTAGE, USAGE, Output, votes
from redlock._cli.process import POLL, Command, Signals, Terminal, guarded, send, terminate
from redlock._redlock import now

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from redlock import Lease
    from redlock._cli.process import Guard

LOST = 76
NOT_FOUND, NOT_RUNNABLE = 127, 126  # as shells have it
TRIES = 3  # as `redlock lock`: contenders that collide try again, and a short job is not run by all of them in turn


def run(options: argparse.Namespace) -> int:
    """``redlock run``."""
    out = Output(options, sys.stderr)
    if options.urls_file == masters.STDIN:
        out.error("--urls-file=- and run both want standard input")
        return USAGE
    manager = masters.manager(options)
    # The guard first: it is forked, which is safe as long as there is one thread.
    with guarded(options.kill_after) as guard, Signals() as signals:
        terms = _terms(options, signals.wake)
        try:
            lease = signals.interrupting(lambda: manager.acquire(options.name, options.ttl, **terms))
        except CannotObtainLock as error:
            return _refused(out, options, error)
        try:
            code = _run_under(out, lease, options, signals, guard)
        finally:
            lease.release()
    return _verdict(out, lease, code)


def _refused(out: Output, options: argparse.Namespace, error: CannotObtainLock) -> int:
    facts = {"name": options.name, "masters": votes(error.masters)}
    if isinstance(error, LockContended):
        out.say(f"{options.name}: others hold it")
        out.result({"error": "contended", **facts})
        return int(options.conflict_exit_code)
    unfenced = isinstance(error, FencingUnavailable)
    out.error("no fencing tokens at a majority of the masters" if unfenced else NO_MAJORITY, **facts)
    for master, said in error.masters:
        out.warn(f"  {master}: {said}")
    return OUTAGE


def _terms(options: argparse.Namespace, wake: Callable[[], None]) -> dict[str, Any]:
    terms: dict[str, Any] = {
        "auto_extend": True,
        "max_hold": options.max_hold,
        "on_lost": lambda _: wake(),
        "fencing": options.fencing,
    }
    return {**terms, "timeout": options.wait} if hasattr(options, "wait") else {**terms, "retry_count": TRIES}


def _run_under(out: Output, lease: Lease, options: argparse.Namespace, signals: Signals, guard: Guard) -> int:
    try:
        command = Command(options.command, _environment(lease), Terminal())
    except OSError as error:
        out.error(f"{options.command[0]}: {error.strerror}", name=options.name)
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE
    try:
        return _attend(command, lease, signals, guard, options.kill_after)
    finally:
        if command.exit_code is None:
            command.send(signal.SIGKILL)


def _attend(command: Command, lease: Lease, signals: Signals, guard: Guard, grace: float) -> int:
    """Until the command has ended, by itself or since the lease is lost.

    Returns:
        Its exit code.
    """
    kill_at = None
    while (code := command.exit_code) is None:
        if command.is_stopped and kill_at is None:
            guard.watch(command.group)  # while we are stopped, so is it
            command.pause()
        if kill_at is None and lease.lost.is_set():
            terminate(command.group)
            kill_at = now() + grace
            guard.watch(command.group, kill_at + 1)
        elif kill_at is None:
            guard.watch(command.group, now() + lease.remaining / 1000)
        elif now() >= kill_at:
            command.send(signal.SIGKILL)
        if command.is_stopped:  # not before we have looked at the lease
            command.go_on()
        for number in signals.wait(_pause(lease, kill_at)):
            command.pass_on(number)
        command.reap()
    if kill_at is not None:
        _end_rest(command, signals, kill_at)
    return code


def _pause(lease: Lease, kill_at: float | None) -> float:
    """Seconds until the guard has to hear of us again, or the command has to be killed."""
    if kill_at is not None:
        return max(POLL, kill_at - now())
    return max(lease.remaining / 4000, 0.01)


def _end_rest(command: Command, signals: Signals, kill_at: float) -> None:
    """Wait for those whom the command has left behind, and end them: they must not work without the lease either."""
    while send(command.group, 0) and now() < kill_at:
        signals.wait(POLL)
        command.reap()
    command.send(signal.SIGKILL)


def _environment(lease: Lease) -> dict[str, str]:
    key = lease.key.decode() if isinstance(lease.key, bytes) else str(lease.key)
    environment = {**os.environ, "REDLOCK_NAME": str(lease.resource), "REDLOCK_KEY": key}
    environment.pop("REDLOCK_TOKEN", None)  # of another lock, around this one
    return environment if lease.token is None else {**environment, "REDLOCK_TOKEN": str(lease.token)}


def _verdict(out: Output, lease: Lease, code: int) -> int:
    if lease.released_in_time:
        out.result({"name": lease.resource, "exit_code": code, "lost": None})
        return code
    reason = lease.lost.reason or "expired"
    out.warn(f"error: {lease.resource}: the lock was lost ({reason}); the command ended with {code}")
    out.result({"name": lease.resource, "error": "lost", "reason": reason, "exit_code": code, "lost": reason})
    return LOST

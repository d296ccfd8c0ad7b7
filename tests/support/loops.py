"""Event loops of the kinds that programs use, and tasks cancelled at moments that can be told apart."""

from __future__ import annotations

import asyncio
import importlib.util
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

from redlock._loop import LoopHost

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType

    from typing_extensions import Self

T = TypeVar("T")

KINDS = ["asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]
LONGEST = 60.0  # seconds: what takes longer hangs


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    """A loop of one of `KINDS`."""
    if kind == "asyncio":
        return asyncio.SelectorEventLoop()
    import uvloop  # noqa: PLC0415 - not on every interpreter

    return uvloop.new_event_loop()


def run(main: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop | None = None) -> T:
    """As `asyncio.run`, on a loop of any kind; what only the loop's exception handler was told is an error, too."""
    loop = loop or asyncio.SelectorEventLoop()
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    try:
        result = loop.run_until_complete(asyncio.wait_for(main, LONGEST))
        loop.run_until_complete(_end_tasks())
    finally:
        loop.close()
    assert errors == []
    return result


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


class Turns:
    """Cancels a task when the engine takes a certain turn: only then can a call go on.

    A context manager, to be entered before the first call: a loop keeps calling what it was given then.
    """

    def __init__(self) -> None:
        self._task: asyncio.Future[object] | None = None
        self._wanted = self._taken = 0
        self._after = False
        self._take = LoopHost._turn
        self._patch = mock.patch.object(LoopHost, "_turn", lambda host: self._turn(host))  # noqa: PLW0108 - binds

    def __enter__(self) -> Self:
        self._patch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patch.stop()

    async def cancel_at(self, turn: int, work: Coroutine[Any, Any, object], *, after: bool) -> bool:
        """Run ``work`` to its end, cancelled at its ``turn``-th turn, counted from 1.

        Args:
            turn: which.
            work: what to run.
            after: cancel when the outcomes of that turn are there, and not before it.

        Returns:
            Whether there were so many turns.
        """
        self._wanted, self._taken, self._after = turn, 0, after
        self._task = asyncio.ensure_future(work)
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()
        self._task = None
        return self._taken >= turn

    def _turn(self, host: LoopHost) -> None:
        self._taken += 1
        task = self._task if self._taken == self._wanted else None
        if task and not self._after:
            task.cancel()
        self._take(host)
        if task and self._after:
            task.cancel()

"""A server that says what the test wants: RESP commands in, the answers of a Python function out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

from .loop import Listener

OK = b"+OK\r\n"
NIL = b"$-1\r\n"
PUSH = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$7\r\nforeign\r\n"


class Act(Enum):
    """Something other than bytes."""

    SILENCE = auto()  # no answer, but go on reading
    END = auto()  # of what it says, but go on reading
    CLOSE = auto()
    RESET = auto()


@dataclass(frozen=True)
class Late:
    """``reply`` after ``seconds``; what follows on the connection waits behind it, as behind a slow command."""

    seconds: float
    reply: bytes


Reply: TypeAlias = bytes | Late | Act


@dataclass(frozen=True)
class Command:
    """What a client asked for."""

    connection: int
    words: tuple[bytes, ...]
    at: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """In capitals."""
        return self.words[0].decode().upper()


Script: TypeAlias = Callable[[Command], Reply | list[Reply] | None]


class Scripted:
    """Answers as ``script`` says and, where that says ``None``, as a Redis with an empty database would.

    Args:
        script: from a command to one reply, or several sent one after another. May be replaced at any time.
        greeting: bytes sent to every client that connects, before it has asked anything.

    Attributes:
        commands: all that were received, in order of arrival.
    """

    def __init__(self, script: Script = lambda _: None, greeting: bytes = b"") -> None:
        self.script, self.greeting = script, greeting
        self.host = "127.0.0.1"
        self.commands: list[Command] = []
        self.connections = 0
        self.failures: list[Exception] = []  # of the script; `stop` raises the first
        self._store = _Store()
        self._listener = Listener(self._serve, self.host)
        self.port = self._listener.port

    @property
    def url(self) -> str:
        """For `Redlock`."""
        return f"redis://{self.host}:{self.port}"

    @property
    def open_connections(self) -> int:
        """How many connections no side has closed."""
        return self._listener.open_connections

    @property
    def keys(self) -> dict[bytes, bytes]:
        """What is held now."""
        return self._store.live()

    def named(self, *names: str) -> list[Command]:
        """The commands of these names that were received."""
        return [command for command in self.commands if command.name in names]

    def stop(self) -> None:
        """Close everything."""
        self._listener.stop()
        if self.failures:
            raise self.failures[0]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        writer.write(self.greeting)
        while not writer.is_closing():
            command = Command(number, await _read_command(reader))
            self.commands.append(command)
            for reply in self._answer(command):
                await _send(writer, reply)

    def _answer(self, command: Command) -> list[Reply]:
        try:
            replies = self.script(command)
            if replies is None:
                replies = self._store.answer(command)
        except Exception as error:  # noqa: BLE001 (raised by `stop`, in the test's thread)
            self.failures.append(error)
            replies = Act.CLOSE
        return replies if isinstance(replies, list) else [replies]


async def _read_command(reader: asyncio.StreamReader) -> tuple[bytes, ...]:
    count = int((await reader.readuntil(b"\r\n"))[1:])
    words = []
    for _ in range(count):
        size = int((await reader.readuntil(b"\r\n"))[1:])
        words.append((await reader.readexactly(size + 2))[:-2])
    return tuple(words)


async def _send(writer: asyncio.StreamWriter, reply: Reply) -> None:
    if isinstance(reply, Late):
        await asyncio.sleep(reply.seconds)
        reply = reply.reply
    if isinstance(reply, bytes):
        writer.write(reply)
        await writer.drain()
    elif reply is Act.END:
        writer.write_eof()
    elif reply is Act.CLOSE:
        writer.close()
    elif reply is Act.RESET:
        writer.transport.abort()


class _Store:
    """The few commands a lock needs, as Redis answers them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # tests look while the loop's thread answers
        self._keys: dict[bytes, tuple[bytes, float]] = {}

    def live(self) -> dict[bytes, bytes]:
        with self._lock:
            return {key: value for key, (value, end) in self._keys.items() if end > time.monotonic()}

    def answer(self, command: Command) -> bytes:
        handler = getattr(self, f"_{command.name.lower()}", None)
        if handler is None:
            return b"-ERR unknown command '" + command.words[0] + b"'\r\n"
        reply = handler(command.words[1:])
        assert isinstance(reply, bytes)
        return reply

    def _set(self, words: tuple[bytes, ...]) -> bytes:
        key, value, *options = words
        names = [option.upper() for option in options]
        if b"NX" in names and key in self.live():
            return NIL
        end = time.monotonic() + int(options[names.index(b"PX") + 1]) / 1000 if b"PX" in names else float("inf")
        with self._lock:
            self._keys[key] = (value, end)
        return OK

    def _get(self, words: tuple[bytes, ...]) -> bytes:
        value = self.live().get(words[0])
        return NIL if value is None else b"$%d\r\n%s\r\n" % (len(value), value)

    def _del(self, words: tuple[bytes, ...]) -> bytes:
        with self._lock:
            return b":%d\r\n" % (self._keys.pop(words[0], None) is not None)

    def _eval(self, words: tuple[bytes, ...]) -> bytes:
        _script, count, *arguments = words
        if count == b"0":
            return b":1\r\n"
        key, value, *_ = arguments
        return self._del((key,)) if self.live().get(key) == value else b":0\r\n"

    _evalsha = _eval

    def _hello(self, words: tuple[bytes, ...]) -> bytes:
        version = words[0] if words else b"2"
        head = b"%1\r\n" if version == b"3" else b"*2\r\n"
        return head + b"$5\r\nproto\r\n:" + version + b"\r\n"

    def _info(self, _words: tuple[bytes, ...]) -> bytes:
        text = b"run_id:%040x\r\n" % id(self)
        return b"$%d\r\n%s\r\n" % (len(text), text)

    def _ok(self, _words: tuple[bytes, ...]) -> bytes:
        return OK

    _auth = _client = _select = _ok

    def _ping(self, _words: tuple[bytes, ...]) -> bytes:
        return b"+PONG\r\n"

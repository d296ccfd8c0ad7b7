"""Credential providers of redis-py: asked whenever a connection is made. Whatever they do, no other master waits."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import subprocess
import sys
import threading

import pytest
import redis
import redis.asyncio

from redlock import AsyncRedlock, Lock, Redlock
from support.locks import TTL, held, nothing_left, warm
from support.loops import run as run_in_loop
from support.servers import wait_until

USER = "worker"


class Tokens(redis.CredentialProvider):
    """Says what the servers want now, and counts how often it was asked."""

    def __init__(self, *credentials):
        self.credentials = credentials
        self.asked = 0

    def get_credentials(self):
        self.asked += 1
        return self.credentials


class Odd(redis.CredentialProvider):
    """Does not say."""

    def __init__(self, answer):
        self.answer = answer

    def get_credentials(self):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def grant(server, token):
    """Let the user log in with this, and with nothing else."""
    server.admin.execute_command("ACL", "SETUSER", USER, "on", "resetpass", f">{token}", "~*", "+@all", "&*")


def cut_off(server):
    """End all connections, as servers do when a token has expired."""
    server.admin.client_kill_filter(_type="normal", skipme=True)


def run_bare(program, *arguments):
    """What a program of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def three(masters):
    """Three servers with a user of a token, and the provider that has it."""
    servers = masters(3)
    for server in servers:
        grant(server, "first")
    yield servers, Tokens(USER, "first")
    for server in servers:
        server.admin.execute_command("ACL", "DELUSER", USER)


def items(servers, provider):
    return [{"host": server.host, "port": server.port, "credential_provider": provider} for server in servers]


@pytest.mark.every_kind
def test_a_provider_is_asked_at_each_connection(three, caplog):
    servers, tokens = three
    dlm = Redlock(items(servers, tokens), 3, 0.02)
    assert dlm._backend().engine is not None
    warm(dlm, servers)
    asked = tokens.asked
    assert asked >= 3
    dlm.unlock(dlm.lock("r", TTL))
    assert tokens.asked == asked  # its connections are still there
    for server in servers:
        grant(server, "second")
        cut_off(server)
    tokens.credentials = (USER, "second")
    assert dlm.lock("r", TTL)
    assert tokens.asked > asked
    assert caplog.text == ""


def test_a_password_alone_is_the_default_users(spawn):
    server = spawn(password="secret")
    dlm = Redlock(items([server], Tokens(b"secret")))
    assert dlm.lock("r", TTL)


def test_an_asyncio_manager_asks_it_too(three):
    servers, tokens = three

    async def main():
        adlm = AsyncRedlock(items(servers, tokens), 3, 0.02)
        lock = await adlm.lock("r", TTL)
        assert lock
        await adlm.unlock(lock)
        await asyncio.to_thread(wait_until, lambda: tokens.asked == 3)  # one may still be connecting
        client = redis.asyncio.Redis(host=servers[0].host, port=servers[0].port, credential_provider=tokens)
        assert await AsyncRedlock([client]).lock("r", TTL)

    run_in_loop(main())
    assert tokens.asked >= 4


@pytest.mark.parametrize(
    "answer, text",
    [
        (ValueError("canary"), "the credential provider raised ValueError"),
        (SystemExit("canary"), "the credential provider raised SystemExit"),
        ((), "the credential provider raised ValueError"),
        (None, "the credential provider raised TypeError"),
        ((USER, ["canary"]), "the credential provider raised NotNativeError"),
        ((USER, "canary"), "refused the login"),
    ],
)
def test_a_provider_that_fails_is_that_masters_error_without_its_text(three, masters, caplog, answer, text):
    servers, tokens = three
    dlm = Redlock(
        [*items(servers[:1], Odd(answer)), *items(servers[1:], tokens)],
        3,
        0.02,
    )
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            lock = dlm.lock("r", TTL)
            assert lock
            # The others are a quorum: this one is not waited for.
            wait_until(lambda: dlm.stats().masters[0].failure)
            dlm.unlock(lock)
    failure = dlm.stats().masters[0].failure
    assert text in failure
    assert text in caplog.text
    assert "canary" not in caplog.text + failure
    assert [each.failure for each in dlm.stats().masters[1:]] == [None, None]


def test_a_provider_that_hangs_holds_up_its_master_alone(three):
    servers, tokens = three
    over = threading.Event()

    class Hanging(redis.CredentialProvider):
        def get_credentials(self):
            over.wait()
            return tokens.get_credentials()

    dlm = Redlock([*items(servers[:1], Hanging()), *items(servers[1:], tokens)], 3, 0.02)
    lock = dlm.lock("r", TTL)
    assert lock
    assert held(servers[:1]) == [None]
    over.set()
    dlm.unlock(lock)
    wait_until(lambda: _takes_part(dlm, servers[0]), what="the master whose provider has answered")
    nothing_left(servers)


def _takes_part(dlm, server):
    lock = dlm.lock("r", TTL)
    has_it = lock and server.get("r") == lock.key
    dlm.unlock(lock or Lock(0, "r", b"none"))
    return has_it


def test_a_loop_goes_on_while_a_provider_is_asked(three):
    servers, tokens = three
    turned = threading.Event()

    class Slow(redis.CredentialProvider):
        def get_credentials(self):
            assert turned.wait(30)
            return tokens.get_credentials()

    async def main():
        adlm = AsyncRedlock(items(servers, Slow()), 1000, 0.02)
        task = asyncio.ensure_future(adlm.lock("r", TTL))
        await asyncio.sleep(0.01)
        turned.set()
        assert await task

    run_in_loop(main())


def test_what_a_signal_handler_raises_meanwhile_reaches_the_caller(masters):
    (server,) = masters(1)
    program = """
import os, redis, signal, sys, time
from redlock import Redlock
class Slow(redis.CredentialProvider):
    def get_credentials(self):
        os.kill(os.getpid(), signal.SIGALRM)
        time.sleep(0.3)
        return ("default", "")
class Alarm(Exception): pass
def ring(*_): raise Alarm
signal.signal(signal.SIGALRM, ring)
try:
    Redlock([{"port": int(sys.argv[1]), "credential_provider": Slow()}], 1000).lock("r", 20_000)
except Alarm:
    print("raised")
"""
    assert run_bare(program, str(server.port)) == "raised"
    nothing_left([server])


@pytest.mark.once
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_greenlets_go_on_while_a_provider_is_asked(three, library):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"no {library} on {sys.version_info}")
    servers, _ = three
    patch = {
        "gevent": "from gevent import monkey, spawn; monkey.patch_all()",
        "eventlet": "import warnings; warnings.simplefilter('ignore')\nimport eventlet; eventlet.monkey_patch()\n"
        "from eventlet import spawn",
    }[library]
    program = f"""
{patch}
import redis, sys, time
from redlock import Redlock
count = 0
class Slow(redis.CredentialProvider):
    def get_credentials(self):
        before = count
        time.sleep(0.1)
        assert count > before
        return ("{USER}", "first")
def tick():
    global count
    while True:
        count += 1
        time.sleep(0.001)
spawn(tick)
items = [{{"host": "127.0.0.1", "port": int(port), "credential_provider": Slow()}} for port in sys.argv[1:]]
dlm = Redlock(items, 100, 0.02)
print(bool(dlm.lock("r", 20_000)), dlm.stats().masters[0].failure)
"""
    done = run_bare(program, *(str(server.port) for server in servers))
    assert done == "True None"


@pytest.mark.once
def test_a_process_ends_while_a_provider_is_asked(masters):
    (server,) = masters(1)
    program = """
import redis, sys, threading
from redlock import Redlock
class Hanging(redis.CredentialProvider):
    def get_credentials(self):
        threading.Event().wait()
print(Redlock([{"port": int(sys.argv[1]), "credential_provider": Hanging()}], 1).lock("r", 20_000))
"""
    assert run_bare(program, str(server.port)) == "False"

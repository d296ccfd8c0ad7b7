"""No password in a log line, a repr, an exception, a traceback or a pickle, whatever goes wrong."""

from __future__ import annotations

import gc
import logging
import pickle
import subprocess
import sys
import traceback

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from redlock import Lock, Redlock, _connections
from support.locks import TTL

CANARY = "canary-5f3a"


@pytest.fixture
def said(caplog):
    """All that was logged, at every level and by everyone, with tracebacks."""
    caplog.set_level(logging.DEBUG)
    formatter = logging.Formatter("%(name)s %(message)s")
    return lambda: "\n".join(formatter.format(record) for record in caplog.records)


def items_for(server, password):
    """One master in every form a connection list takes it; the last two have their own methods called."""
    url = f"redis://:{password}@{server.host}:{server.port}"
    place = {"host": server.host, "port": server.port, "password": password}
    own = {"encoding": "latin-1", "retry": Retry(NoBackoff(), 0)}
    return [
        url,
        url.encode(),
        f"redis://default:{password}@{server.host}:{server.port}",
        f"redis://{server.host}:{server.port}?password={password}",
        f"unix://:{password}@{server.socket_path}",
        place,
        redis.Redis(**place),
        {**place, **own},
        redis.Redis(**place, **own),
    ]


FORMS = range(9)


def shown(dlm):
    """All the texts of a manager, and of what of it is not redis-py's, that a log or a debugger would show."""
    masters = dlm._masters
    parts = [dlm, masters, masters.engine, *masters.names, *map(_connections.endpoint, dlm.servers)]
    return "\n".join(f"{part!r} {part!s}" for part in parts)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("state", ["right", "wrong", "down"])
def test_no_password_while_locking(spawn, said, capsys, form, state):
    server = spawn(password=CANARY if state == "right" else "another")
    dlm = Redlock([items_for(server, CANARY)[form]], 1)
    if state == "down":
        server.kill()
    lock = dlm.lock("r", TTL)
    dlm.unlock(lock or Lock(0, "r", b"key"))
    assert bool(lock) is (state == "right")
    assert ("gives no vote" in said()) is (state != "right")
    everything = said() + shown(dlm) + repr(pickle.dumps(lock)) + "".join(capsys.readouterr())
    assert CANARY not in everything
    for client in dlm.servers:
        client.close()


BAD = [
    f"redis://:{CANARY}@h:port",
    f"redis://:{CANARY}/x@h",
    f"redis://:x/{CANARY}@h",
    f"redis://:{CANARY}#@h",
    f"redis://u:p:{CANARY}@h:p",
    f"redis://:{CANARY}@[::1",
    f"redis://:%63anary-5f3a:{CANARY}@h:x",
    f"http://:{CANARY}@h",
    f"redis://:{CANARY}@h?cat=hog",
    f"redis://:{CANARY}@h?db=-1",
    f"redis://:{CANARY}@h?socket_timeout=soon",
    f"redis://h:port?password={CANARY}",
    f"redis://:{CANARY}@h:port".encode(),
    b"\xff" + CANARY.encode(),
    {"host": "h", "password": CANARY, "cat": "hog"},
    {"host": "h", "password": CANARY, "port": CANARY},
    {"host": "h", "password": CANARY, "db": -1},
    {"host": "h", "password": CANARY, "socket_timeout": "soon"},
    {"host": "h", "password": CANARY, "ssl": True, "ssl_cert_reqs": "perhaps"},
    redis.Redis(host="h", port=CANARY, password=CANARY),
    redis.Redis(host="h", db=-1, password=CANARY),
]


@pytest.mark.parametrize("item", BAD, ids=range(len(BAD)))
def test_no_password_in_what_a_bad_item_raises(item):
    with pytest.raises(Warning) as caught:
        Redlock([item])
    error = caught.value
    texts = [repr(error), str(error), repr(pickle.dumps(error)), "".join(traceback.format_exception(error))]
    while error := error.__context__ or error.__cause__:
        texts += [repr(error), *traceback.format_exception(error)]
    # The traceback's lines of source are this test's own.
    assert CANARY not in "\n".join(texts)


@pytest.mark.parametrize("twice", [True, False])
def test_no_password_where_masters_are_compared(said, twice):
    items = [f"redis://:{CANARY}@h/{db}" for db in ((0, 0) if twice else (0, 1))]
    if twice:
        with pytest.raises(Warning, match="listed twice: h:6379/0") as caught:
            Redlock(items)
        assert CANARY not in str(caught.value)
    else:
        Redlock(items)
        assert "several databases" in said()
    assert CANARY not in said()


@pytest.mark.parametrize("where", ["argument", "environment"])
def test_no_password_from_the_command(spawn, where):
    server = spawn(password="another")
    url = f"redis://:{CANARY}@{server.host}:{server.port}"
    before = ["--redis", url] if where == "argument" else []
    for words in (["lock", "r", "1000", "--retry-count=0"], ["unlock", "r", "key"]):
        done = subprocess.run(
            [sys.executable, "-m", "redlock", *before, *words],
            env={"REDLOCK_URLS": url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 3
        assert "no majority of the masters answered" in done.stderr
        assert CANARY not in done.stdout + done.stderr


def test_no_password_when_a_manager_is_collected(said, capsys):
    dlm = Redlock([f"redis://:{CANARY}@localhost:1"], 1)
    dlm.lock("r", TTL)
    del dlm
    gc.collect()
    assert CANARY not in said() + "".join(capsys.readouterr())

"""The recipes of docs/fencing.md, as they stand there: a holder that comes late is turned away."""

from __future__ import annotations

import pickle
import re
import threading
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from redlock.fencing import FencedResource, StaleToken
from support.postgres import Postgres

DOCUMENT = (Path(__file__).parents[1] / "docs" / "fencing.md").read_text()
EARLIER, LATER = 1_789_000_000_000_001, 1_789_000_000_000_002


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


RECIPES: dict[str, Any] = {}
for _block in blocks("python"):
    if "def " in _block:
        exec(compile(_block, "docs/fencing.md", "exec"), RECIPES)


def check(write, read):
    """What every resource must do, whatever it is made of."""
    write("first", EARLIER)
    write("again", EARLIER)  # a holder may write more than once
    write("taken over", LATER)
    with pytest.raises(LookupError, match="later holder"):
        write("late", EARLIER)
    assert read() == "taken over"
    write("still the holder", LATER)
    assert read() == "still the holder"


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgres():
    server = Postgres()
    yield server
    server.stop()


@pytest.fixture
def connect(postgres):
    (table,) = blocks("sql")
    with postgres.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS documents")
        connection.execute(table)
        connection.execute("INSERT INTO documents VALUES ('report', '')")
    connections = []

    def made():
        connections.append(postgres.connect())
        connections[-1].autocommit = True
        return connections[-1]

    yield made
    for connection in connections:
        connection.close()


def body(connection):
    return connection.execute("SELECT body FROM documents").fetchone()[0]


def test_postgres_turns_a_late_holder_away(connect):
    connection = connect()
    check(lambda text, token: RECIPES["write_to_postgres"](connection, "report", text, token), lambda: body(connection))


def test_postgres_decides_between_two_that_write_at_once(connect):
    """The earlier holder's write waits for the later one's transaction, and then finds its token."""
    later, refused = connect(), threading.Event()

    def write_late():
        with pytest.raises(LookupError):
            RECIPES["write_to_postgres"](connect(), "report", "late", EARLIER)
        refused.set()

    thread = threading.Thread(target=write_late)
    with later.transaction():
        RECIPES["write_to_postgres"](later, "report", "taken over", LATER)
        thread.start()
        assert not refused.wait(0.2)
    thread.join()
    assert refused.is_set()
    assert body(later) == "taken over"


# -- S3 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def s3():
    with mock_aws():
        client = boto3.client("s3", "us-east-1", aws_access_key_id="made", aws_secret_access_key="up")
        client.create_bucket(Bucket="bucket")
        yield client


def stored(s3):
    return s3.get_object(Bucket="bucket", Key="report")["Body"].read().decode()


def write_to_s3(s3, text, token):
    RECIPES["write_to_s3"](s3, "bucket", "report", text, token)


def test_an_object_store_turns_a_late_holder_away(s3):
    check(lambda text, token: write_to_s3(s3, text, token), lambda: stored(s3))


@pytest.mark.parametrize("before", [None, EARLIER])
def test_an_object_store_decides_between_two_that_write_at_once(s3, monkeypatch, before):
    """The later holder writes between the look and the write of the earlier one."""
    if before:
        write_to_s3(s3, "first", before)
    put, calls = s3.put_object, []

    def overtaken(**terms):
        calls.append(terms)
        if len(calls) == 1:
            put(Bucket="bucket", Key="report", Body="taken over", Metadata={"fence": str(LATER)})
        return put(**terms)

    monkeypatch.setattr(s3, "put_object", overtaken)
    with pytest.raises(LookupError):
        write_to_s3(s3, "late", EARLIER)
    assert stored(s3) == "taken over"


def test_an_object_store_may_lose_the_object_meanwhile(s3, monkeypatch):
    write_to_s3(s3, "first", EARLIER)
    put, calls = s3.put_object, []

    def deleted(**terms):
        calls.append(terms)
        if len(calls) == 1:
            s3.delete_object(Bucket="bucket", Key="report")
        return put(**terms)

    monkeypatch.setattr(s3, "put_object", deleted)
    write_to_s3(s3, "again", EARLIER)
    assert stored(s3) == "again"


# -- Redis -------------------------------------------------------------------------------------------------------------


@pytest.mark.every_kind
def test_redis_turns_a_late_holder_away(masters):
    server = masters(1)[0]
    check(
        lambda text, token: RECIPES["write_to_redis"](server.admin, "report", text, token),
        lambda: server.get("report").decode(),
    )
    assert server.get("report:fence") == b"%d" % LATER


@pytest.mark.every_kind
def test_redis_compares_tokens_of_any_length(masters):
    server = masters(1)[0]
    RECIPES["write_to_redis"](server.admin, "report", "taken over", 10**17 + 1)
    for token in (9, 10**16, 10**17):
        with pytest.raises(LookupError):
            RECIPES["write_to_redis"](server.admin, "report", "late", token)


# -- in memory ---------------------------------------------------------------------------------------------------------


def test_a_fenced_resource_turns_a_late_holder_away():
    resource = FencedResource("")
    assert resource.greatest == 0
    resource.write("first", EARLIER)
    resource.write("taken over", LATER)
    with pytest.raises(StaleToken) as caught:
        resource.write("late", EARLIER)
    assert (caught.value.token, caught.value.greatest) == (EARLIER, LATER)
    assert str(caught.value) == f"token {EARLIER} is stale: {LATER} was seen before"
    resource.write("still the holder", LATER)
    assert (resource.value, resource.greatest) == ("still the holder", LATER)


def test_a_stale_token_survives_a_pickle():
    again = pickle.loads(pickle.dumps(StaleToken(1, 2)))
    assert (again.token, again.greatest) == (1, 2)

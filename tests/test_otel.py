"""What OpenTelemetry is told."""

from __future__ import annotations

import contextlib
import gc
import weakref

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from redlock import LockContended, QuorumUnavailable, otel
from support import loops
from support.locks import TTL, amanager, manager, nothing_left, warm


class Collected:
    """Spans and metrics of one manager."""

    def __init__(self, dlm):
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        otel.instrument(dlm, tracers, MeterProvider([self.reader], shutdown_on_exit=False))

    def spans(self):
        return self.exporter.get_finished_spans()

    def metrics(self):
        data = self.reader.get_metrics_data()
        scopes = [scope for resource in (data.resource_metrics if data else []) for scope in resource.scope_metrics]
        return {
            (metric.name, *point.attributes.values()): point.value
            for scope in scopes
            for metric in scope.metrics
            for point in metric.data.data_points
        }


@pytest.fixture
def servers(masters):
    return masters(3)


@pytest.fixture
def dlm(servers):
    made = manager(servers)
    warm(made, servers)
    return made


def test_a_span_tells_how_an_acquire_ended(servers, dlm):
    collected = Collected(dlm)
    with dlm.acquire("r", TTL):
        (span,) = collected.spans()
        assert span.name == "redlock.acquire"
        asked = {"redlock.resource": "r", "redlock.ttl_ms": TTL, "redlock.attempts": 1}
        assert span.attributes == {**asked, "redlock.outcome": "acquired"}
        assert span.status.is_ok or span.status.is_unset
        with pytest.raises(LockContended):
            dlm.acquire("r", TTL, timeout=0)
    for server in servers[1:]:
        server.kill()
    with pytest.raises(QuorumUnavailable):
        dlm.acquire("r", TTL, timeout=0)
    _, contended, unavailable = collected.spans()
    assert contended.attributes["redlock.outcome"] == "contended"
    assert not contended.status.is_ok
    assert unavailable.attributes["redlock.outcome"] == "unavailable"
    votes = [event for event in unavailable.events if event.name == "redlock.vote"]
    assert [event.attributes["redlock.master"] for event in votes] == [f"127.0.0.1:{s.port}/0" for s in servers[1:]]


def test_a_span_tells_how_often_the_masters_were_asked(servers, dlm):
    collected = Collected(dlm)
    with dlm.acquire("r", TTL), pytest.raises(LockContended):
        dlm.acquire("r", TTL, retry_count=3, retry_delay=0)
    refused, _ = sorted(collected.spans(), key=lambda span: span.attributes["redlock.outcome"], reverse=True)
    assert refused.attributes["redlock.attempts"] == 3


def test_a_gauge_shows_what_is_held(dlm):
    collected = Collected(dlm)
    before = collected.metrics()
    assert before["redlock.held",] == 0
    with dlm.acquire("r", TTL), dlm.acquire("s", TTL):
        assert dlm.lock("r", TTL) is False
        assert collected.metrics()["redlock.held",] == 2
    after = collected.metrics()
    assert after["redlock.held",] == after["redlock.lost",] == 0
    assert after["redlock.calls", "acquired"] - before["redlock.calls", "acquired"] == 2
    assert after["redlock.calls", "contended"] - before["redlock.calls", "contended"] == 1


def test_nobody_is_kept_alive_to_be_watched(servers):
    dlm = manager(servers)
    collected = Collected(dlm)
    alive = weakref.ref(dlm)
    del dlm
    gc.collect()
    assert alive() is None
    assert collected.metrics() == {}


def test_an_asyncio_manager_is_watched_as_well(servers):
    adlm = amanager(servers)
    collected = Collected(adlm)

    async def main():
        async with adlm.acquire("r", TTL):
            with pytest.raises(LockContended):
                await adlm.acquire("r", TTL, timeout=0)
            assert collected.metrics()["redlock.held",] == 1

    loops.run(main())
    outcomes = [(s.attributes["redlock.outcome"], s.attributes["redlock.attempts"]) for s in collected.spans()]
    assert outcomes == [("acquired", 1), ("contended", 1)]


# -- a processor that raises -------------------------------------------------------------------------------------------


class Raising(SpanProcessor):
    """As a slow exporter that is interrupted by Ctrl-C."""

    def __init__(self, moment):
        setattr(self, moment, self.fail)

    def fail(self, *_, **__):
        raise KeyboardInterrupt


def raise_in(moment, dlm):
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(Raising(moment))
    otel.instrument(dlm, tracers, MeterProvider(shutdown_on_exit=False))


@pytest.mark.parametrize("moment", ["on_start", "on_end"])
@pytest.mark.parametrize("auto_extend", [False, True])
def test_an_exception_of_a_processor_leaves_nothing_held(servers, dlm, moment, auto_extend):
    raise_in(moment, dlm)
    with pytest.raises(KeyboardInterrupt):
        dlm.acquire("r", TTL, auto_extend=auto_extend)
    nothing_left(servers)
    assert dlm.stats().held == 0


@pytest.mark.parametrize("moment", ["on_start", "on_end"])
@pytest.mark.parametrize("auto_extend", [False, True])
def test_an_exception_of_a_processor_leaves_nothing_held_by_a_task(servers, moment, auto_extend):
    adlm = amanager(servers)
    raise_in(moment, adlm)

    async def main():
        with pytest.raises(KeyboardInterrupt):
            await adlm.acquire("r", TTL, auto_extend=auto_extend)
        assert adlm.stats().held == 0

    loops.run(main())
    nothing_left(servers)


@pytest.mark.parametrize("make", [manager, amanager])
def test_what_watches_a_call_may_raise_when_it_is_told_how_often_the_masters_were_asked(servers, make):
    """An instrumentation of another's, in the place of this one."""

    @contextlib.contextmanager
    def acquiring(*_):
        yield lambda attempts: pytest.fail(f"{attempts} attempts")

    dlm = make(servers)
    dlm._watch = acquiring

    async def main():
        await dlm.acquire("r", TTL)

    with pytest.raises(pytest.fail.Exception, match="1 attempts"):
        loops.run(main()) if make is amanager else dlm.acquire("r", TTL)
    nothing_left(servers)

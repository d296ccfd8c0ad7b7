"""Traces and metrics by the OpenTelemetry API; needs ``redlock-rs[otel]``.

>>> from redlock import Redlock, otel
>>> manager = Redlock(["redis://a:6379", "redis://b:6379", "redis://c:6379"])
>>> otel.instrument(manager)

Traces: a span ``redlock.acquire`` for each call of ``acquire``, with the attributes ``redlock.resource``,
``redlock.ttl_ms``, ``redlock.attempts`` (how often the masters were asked) and ``redlock.outcome`` (``"acquired"``, or
the reason of :class:`~redlock.CannotObtainLock`), and an event ``redlock.vote`` for each master that was not well.

Metrics: ``redlock.held``, the leases held now; ``redlock.calls`` by ``redlock.outcome``, and ``redlock.lost``, so far.
"""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace
from opentelemetry.metrics import Observation

from redlock import __version__
from redlock._lock import CannotObtainLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from opentelemetry.metrics import CallbackOptions, MeterProvider
    from opentelemetry.trace import Span, TracerProvider

    from redlock._manager import Redlock
    from redlock._stats import Stats
    from redlock.aio import AsyncRedlock


def instrument(
    manager: Redlock | AsyncRedlock,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Report what ``manager`` does from now on.

    Args:
        manager: the one to watch; it is not kept alive by this.
        tracer_provider: where spans go; ``None``: to the global one.
        meter_provider: where metrics go; ``None``: to the global one.
    """
    manager._watch = _watch(trace.get_tracer("redlock", __version__, tracer_provider))  # noqa: SLF001 - its other half
    meter = metrics.get_meter("redlock", __version__, meter_provider)
    meter.create_observable_gauge("redlock.held", [_observed(manager, _held)], description="Leases held now.")
    meter.create_observable_counter("redlock.calls", [_observed(manager, _calls)], description="Calls for a lock.")
    meter.create_observable_counter(
        "redlock.lost", [_observed(manager, _lost)], description="Leases that ended before their release."
    )


def _watch(tracer: trace.Tracer) -> Callable[[Any, int], Any]:
    @contextmanager
    def acquiring(resource: Any, ttl: int) -> Iterator[Callable[[int], None]]:
        attributes: dict[str, str | int] = {"redlock.resource": str(resource), "redlock.ttl_ms": ttl}
        with tracer.start_as_current_span("redlock.acquire", kind=trace.SpanKind.CLIENT, attributes=attributes) as span:
            try:
                yield lambda attempts: span.set_attribute("redlock.attempts", attempts)
            except CannotObtainLock as error:
                _describe(span, error)
                raise
            span.set_attribute("redlock.outcome", "acquired")

    return acquiring


def _describe(span: Span, error: CannotObtainLock) -> None:
    span.set_attribute("redlock.outcome", str(error.reason))
    for name, vote in error.failed:
        span.add_event("redlock.vote", {"redlock.master": name, "redlock.vote": vote})


def _observed(
    manager: Redlock | AsyncRedlock, read: Callable[[Stats], Iterable[Observation]]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    """Read the counts of a manager for as long as there is one."""
    alive = weakref.ref(manager)

    def observe(_: CallbackOptions) -> Iterable[Observation]:
        watched = alive()
        return read(watched.stats()) if watched else ()

    return observe


def _held(stats: Stats) -> Iterable[Observation]:
    return [Observation(stats.held)]


def _lost(stats: Stats) -> Iterable[Observation]:
    return [Observation(stats.lost)]


def _calls(stats: Stats) -> Iterable[Observation]:
    outcomes = {"acquired": stats.acquired, "contended": stats.contended, "unavailable": stats.unavailable}
    return [Observation(count, {"redlock.outcome": outcome}) for outcome, count in outcomes.items()]

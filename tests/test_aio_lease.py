"""Leases of asyncio: held for a block that is cancelled when they are lost. H22, H24 are numbers of hazards."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import sys
import time
import tracemalloc

import pytest

from redlock import (
    AsyncLease,
    AsyncRedlock,
    CannotObtainLock,
    Lock,
    LockContended,
    LockLost,
    QuorumUnavailable,
)
from redlock._redlock import now
from support.locks import PROMPT, TTL, amanager, awarm, held, manager, nothing_left
from support.loops import KINDS, Turns, new_loop, run
from support.programs import Program
from support.servers import wait_until

SHORT = 300  # ms: a lease that expires within a test

counts_cancellations = pytest.mark.skipif(sys.version_info < (3, 11), reason="tasks do not count cancellations")


@pytest.fixture(params=KINDS)
def loop(request):
    """An event loop that is not running; `run` closes it."""
    made = new_loop(request.param)
    yield made
    made.close()


@pytest.fixture
def servers(masters):
    return masters(3)


@pytest.fixture
def adlm(servers):
    return amanager(servers)


def _in_time(call):
    return asyncio.wait_for(call, TTL)


def occupy(servers, name="r", value="another", ttl=TTL):
    for server in servers:
        server.admin.set(name, value, px=ttl)


def flush(servers):
    for server in servers:
        server.admin.flushall()


async def refusal(adlm, name="r", **terms):
    with pytest.raises(CannotObtainLock) as caught:
        await adlm.acquire(name, TTL, **terms)
    return caught.value


# -- holding and releasing ---------------------------------------------------------------------------------------------


@pytest.mark.every_kind
def test_a_block_holds_the_lease_and_releases_it_at_its_end(servers, adlm, loop):
    async def main():
        await awarm(adlm, servers)
        async with adlm.acquire("r", ttl=TTL) as lease:
            assert isinstance(lease, AsyncLease)
            assert held(servers).count(lease.key) >= 2
            assert lease.resource == "r"
            assert 0 < lease.remaining <= lease.validity < TTL
            assert [vote for _, vote in lease.masters].count("granted") >= 2
            assert (lease.released_in_time, lease.lost.is_set()) == (None, False)
            lease.ensure(1000)
        assert held(servers) == [None] * 3
        assert (lease.released_in_time, lease.lost.is_set(), lease.remaining) == (True, False, 0)
        with pytest.raises(LockLost) as caught:
            lease.ensure()
        assert caught.value.reason == "released"

    run(main(), loop)


def test_a_lease_works_without_a_block_and_with_a_later_one(servers, adlm, loop):
    async def main():
        lease = await adlm.acquire("r", TTL)
        assert await adlm.lock("r", TTL) is False
        await lease.release()
        await lease.release()
        assert held(servers) == [None] * 3
        async with await adlm.acquire("r", TTL) as lease:
            assert await adlm.locked("r")
        assert lease.released_in_time
        lease = await adlm.acquire("r", TTL)
        await adlm.unlock(lease)
        assert lease.released_in_time

    run(main(), loop)
    nothing_left(servers)


def test_what_the_body_raises_is_not_masked(servers, adlm, loop):
    async def main():
        with pytest.raises(ZeroDivisionError):
            async with adlm.acquire("r", TTL):
                1 / 0  # noqa: B018
        with pytest.raises(ZeroDivisionError):
            async with adlm.acquire("r", TTL) as lease:
                occupy(servers)
                with pytest.raises(LockLost):
                    await lease.extend()
                1 / 0  # noqa: B018
        flush(servers)

    run(main(), loop)
    nothing_left(servers)


def test_waiting_and_not_getting_it(servers, adlm, loop):
    async def main():
        lock = await adlm.lock("r", TTL)
        error = await refusal(adlm, timeout=0)
        assert (type(error), error.reason, error.resource) == (LockContended, "contended", "r")
        assert [vote for _, vote in error.masters].count("refused") >= 2
        error = await refusal(adlm, timeout=0.1)
        assert (type(error), error.reason) == (LockContended, "timeout")
        waiter = asyncio.ensure_future(adlm.acquire("r", TTL).__aenter__())
        await asyncio.sleep(0.05)
        await adlm.unlock(lock)
        await (await waiter).release()
        for server in servers[1:]:
            server.kill()
        error = await refusal(adlm, timeout=0.2)
        assert (type(error), error.reason) == (QuorumUnavailable, "unavailable")

    run(main(), loop)


@pytest.mark.parametrize(
    "terms, error",
    [
        ({"ttl": 2}, ValueError),
        ({"ttl": "1000"}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"retry_count": 0}, ValueError),
        ({"resource": []}, ValueError),
        ({"resource": ["a", b"a"]}, ValueError),
        ({"resource": None}, TypeError),
        ({"max_hold": 1}, ValueError),
        ({"on_lost": print}, ValueError),
        ({"auto_extend": True, "on_lost": 5}, TypeError),
    ],
)
def test_nonsense_is_refused(terms, error):
    adlm = AsyncRedlock(["redis://127.0.0.1:1"])

    async def main():
        with pytest.raises(error):
            await adlm.acquire(**{"resource": "r", "ttl": TTL, **terms})

    run(main())


def test_a_call_that_is_never_awaited_is_warned_of():
    adlm = AsyncRedlock(["redis://127.0.0.1:1"])
    with pytest.warns(RuntimeWarning, match="never awaited"):
        forget(adlm.acquire("r", TTL))


@pytest.mark.parametrize(
    "begin",
    [asyncio.ensure_future, lambda call: asyncio.get_running_loop().create_task(call), asyncio.gather, _in_time],
)
def test_an_acquire_is_a_coroutine_and_so_can_be_a_task(adlm, servers, loop, begin):
    async def main():
        found = await begin(adlm.acquire("r", TTL))
        lease = found[0] if isinstance(found, list) else found
        assert isinstance(lease, AsyncLease)
        await lease.release()

    run(main(), loop)
    nothing_left(servers)


def test_a_task_of_an_acquire_that_is_cancelled_leaves_nothing(adlm, servers, loop):
    async def main():
        held_by_us = await adlm.acquire("r", TTL)
        task = asyncio.get_running_loop().create_task(adlm.acquire("r", TTL))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await held_by_us.release()
        await (await asyncio.wait_for(adlm.acquire("r", TTL), TTL)).release()

    run(main(), loop)
    nothing_left(servers)


def test_an_acquire_that_is_closed_is_not_warned_of(adlm, recwarn):
    call = adlm.acquire("r", TTL)
    call.close()
    del call
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


def forget(acquisition):
    del acquisition
    gc.collect()


def test_several_are_held_together_with_one_key(servers, adlm, loop):
    async def main():
        async with adlm.acquire(["b", "a"], TTL) as lease:
            assert lease.resource == ["b", "a"]
            assert held(servers, "a").count(lease.key) >= 2
            assert held(servers, "b").count(lease.key) >= 2
            error = await refusal(adlm, ("c", "a"), timeout=0)
            assert error.resource == ("c", "a")
            assert held(servers, "c") == [None] * 3
            await lease.extend()

    run(main(), loop)
    nothing_left(servers)


def test_callers_in_opposite_orders_do_not_block_each_other_for_ever(servers, adlm, loop):
    async def work(names):
        for _ in range(10):
            async with adlm.acquire(names, TTL, retry_delay=0.002):
                await asyncio.sleep(0)

    async def main():
        await asyncio.gather(work(["a", "b"]), work(["b", "a"]), work(["b", "c", "a"]))

    run(main(), loop)
    nothing_left(servers)


# -- extending ---------------------------------------------------------------------------------------------------------


def test_extending_sets_the_ttl_anew(servers, adlm, loop):
    async def main():
        async with adlm.acquire("r", 1000) as lease:
            await lease.extend(TTL)
            assert lease.remaining > 10_000
            assert sorted(server.admin.pttl("r") for server in servers)[1] > 10_000
            await lease.extend(500)
            assert lease.remaining <= 500
            for ttl, error in [(2, ValueError), (-1, ValueError), ("9", TypeError)]:
                with pytest.raises(error):
                    await lease.extend(ttl)

    run(main(), loop)


def test_extending_tells_what_has_become_of_it(servers, adlm, loop):
    async def main():
        for harm, reason in [(flush, "expired"), (occupy, "taken over")]:
            lease = await adlm.acquire("r", TTL)
            harm(servers)
            with pytest.raises(LockLost) as caught:
                await lease.extend()
            assert (caught.value.reason, lease.lost.reason, lease.remaining) == (reason, reason, 0)
            await lease.release()
            assert lease.released_in_time is False
        assert held(servers) == [b"another"] * 3
        flush(servers)
        lease = await adlm.acquire("r", TTL)
        for server in servers[1:]:
            server.kill()
        with pytest.raises(LockLost) as caught:
            await lease.extend()
        assert caught.value.reason == "unavailable"
        assert lease.remaining > 10_000

    run(main(), loop)


def test_a_shorter_extension_that_fails_or_is_cancelled_may_have_taken_effect(servers, adlm, loop):
    async def main():
        lease = await adlm.acquire("r", TTL)
        another = await adlm.acquire("another", TTL)
        for server in servers[1:]:
            server.freeze()
        with pytest.raises(LockLost):
            await lease.extend(3000)
        assert lease.remaining < 3000
        task = asyncio.ensure_future(another.extend(3000))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert another.remaining < 3000

    run(main(), loop)


def test_plain_locks_and_leases_are_extended_by_any_manager(servers, adlm, loop):
    dlm = manager(servers)

    async def main():
        lock = await adlm.lock("r", 1000)
        assert dlm.extend(lock, TTL).validity > 10_000
        longer = await adlm.extend(lock, TTL)
        assert isinstance(longer, Lock)
        assert (longer.key, longer.validity > 10_000) == (lock.key, True)
        await adlm.unlock(lock)
        assert await adlm.extend(lock, TTL) is False
        lease = await adlm.acquire("r", 1000)
        assert (await adlm.extend(lease, TTL)).validity > 10_000
        await lease.release()
        assert await adlm.extend(lease, TTL) is False

    run(main(), loop)
    nothing_left(servers)


def test_looking_at_a_lease_shows_its_holder_and_its_time(servers, adlm, loop):
    async def main():
        assert await adlm.locked("r") is False
        await awarm(adlm, servers)
        async with adlm.acquire("r", TTL) as lease:
            assert await adlm.locked("r") is True
            await asyncio.sleep(0.05)
            seen = await adlm.inspect("r")
            assert [each.holder for each in seen] == [lease.holder] * 3
            assert all(0 < each.ttl_ms <= TTL for each in seen)
        servers[0].kill()
        servers[1].kill()
        with pytest.raises(QuorumUnavailable):
            await adlm.locked("r")

    run(main(), loop)


# -- losing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", [flush, occupy, None], ids=["forgotten", "taken over", "outlived"])
def test_a_loss_cancels_the_body_and_is_raised_at_its_end(servers, adlm, loop, harm):
    """In time: while the lease can still be relied on, or just when that ends."""
    told = []

    async def main():
        with pytest.raises(LockLost) as caught:
            async with adlm.acquire("r", SHORT, auto_extend=harm is not None) as lease:
                if harm:
                    harm(servers)
                try:
                    await asyncio.sleep(60)
                finally:
                    told.append(now())
        assert caught.value.resource == "r"
        assert caught.value.reason == ("taken over" if harm is occupy else "expired")
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        assert lease.lost.is_set()
        assert lease.released_in_time is False
        assert told[0] < lease._state.expires_at + 0.2
        flush(servers)
        await asyncio.sleep(0.01)  # nothing is left of the cancellation
        return "and on"

    assert run(main(), loop) == "and on"


def test_masters_that_hang_are_told_of_before_the_validity_ends(servers, adlm, loop):
    async def main():
        await awarm(adlm, servers)
        with pytest.raises(LockLost) as caught:
            async with adlm.acquire("r", 900, auto_extend=True) as lease:
                await asyncio.sleep(0.05)
                for server in servers:
                    server.freeze()
                try:
                    await asyncio.sleep(60)
                finally:
                    assert now() < lease._state.expires_at
        assert caught.value.reason == "unavailable"
        for server in servers:
            server.thaw()

    run(main(), loop)


def test_h24_a_loop_that_was_blocked_for_too_long_is_told_the_truth(servers, adlm, loop):
    """H24: nothing could be told in time, so it is told at the end; the body is not cancelled that has ended."""

    async def main():
        with pytest.raises(LockLost) as caught:
            async with adlm.acquire("r", SHORT) as lease:
                time.sleep(SHORT * 3 / 1000)  # noqa: ASYNC251 - that is the hazard
                assert lease.lost.is_set()
                with pytest.raises(LockLost):
                    lease.ensure()
        assert caught.value.reason == "expired"
        await asyncio.sleep(0.01)

    run(main(), loop)


@counts_cancellations
def test_a_cancellation_that_comes_as_well_is_not_swallowed(servers, adlm, loop):
    async def main():
        async def hold():
            async with adlm.acquire("r", SHORT) as lease:
                try:
                    await asyncio.sleep(60)
                finally:
                    assert lease.lost.is_set()
                    asyncio.get_running_loop().call_soon(task.cancel)
                    await asyncio.sleep(60)

        task = asyncio.ensure_future(hold())
        await asyncio.wait([task])
        assert task.cancelled()

    run(main(), loop)
    nothing_left(servers)


@counts_cancellations
def test_the_count_of_cancellations_is_as_before(servers, adlm, loop):
    async def main():
        for ending in ("cancelled", "swallowed", "error"):
            with pytest.raises(ZeroDivisionError if ending == "error" else LockLost):
                async with adlm.acquire("r", 100):
                    try:
                        await asyncio.sleep(60)
                    except asyncio.CancelledError:
                        if ending == "error":
                            1 / 0  # noqa: B018
                        if ending == "cancelled":
                            raise
            assert asyncio.current_task().cancelling() == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), adlm.acquire("r", TTL):
                await asyncio.sleep(60)

    run(main(), loop)
    nothing_left(servers)


def test_a_body_that_finds_out_itself_is_not_cancelled_as_well(servers, adlm, loop):
    async def main():
        with pytest.raises(LockLost) as caught:
            async with adlm.acquire("r", TTL) as lease:
                occupy(servers)
                try:
                    await lease.extend()
                except LockLost:
                    await asyncio.sleep(0.02)
                    raise
        assert caught.value.reason == "taken over"
        flush(servers)

    run(main(), loop)


def test_a_body_whose_extension_was_cancelled_before_it_found_the_loss_is_cancelled(servers, through, loop):
    proxies = [through(server) for server in servers]
    adlm = amanager(proxies)

    async def main():
        await awarm(adlm, servers)
        with pytest.raises(LockLost) as caught:
            async with adlm.acquire("r", TTL) as lease:
                occupy(servers)
                for proxy in proxies:
                    proxy.delay = 0.2
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(lease.extend(), 0.05)
                await asyncio.sleep(PROMPT)
                pytest.fail("it was not cancelled")
        assert caught.value.reason == "taken over"
        flush(servers)

    run(main(), loop)


@pytest.mark.parametrize("is_told_first", [False, True])
def test_so_is_one_that_is_told_while_its_extension_is_cancelled(servers, through, loop, is_told_first):
    """The task has not gone on between the two."""
    proxies = [through(server) for server in servers]
    adlm = amanager(proxies)

    async def main():
        def strike():
            for step in (lose, task.cancel) if is_told_first else (task.cancel, lose):
                step()

        def lose():
            lease._state.lose("taken over")
            lease._tell_loss()

        task = asyncio.current_task()
        await awarm(adlm, servers)
        with pytest.raises(LockLost) as caught:
            async with adlm.acquire("r", TTL) as lease:
                for proxy in proxies:
                    proxy.delay = 0.2
                asyncio.get_running_loop().call_later(0.05, strike)
                with pytest.raises(asyncio.CancelledError):
                    await lease.extend()
                if hasattr(task, "uncancel"):
                    task.uncancel()  # as a timeout does that is over
                await asyncio.sleep(PROMPT)
                pytest.fail("it was not cancelled")
        assert caught.value.reason == "taken over"

    run(main(), loop)


@pytest.mark.parametrize("auto_extend", [False, True])
@pytest.mark.parametrize("waits", [False, True])
def test_a_body_of_a_lease_that_is_lost_already_is_cancelled_at_once(servers, adlm, loop, auto_extend, waits):
    async def main():
        lease = await adlm.acquire("r", TTL, auto_extend=auto_extend)
        occupy(servers)
        with pytest.raises(LockLost):
            await lease.extend()
        with pytest.raises(LockLost) as caught:
            async with lease:
                if waits:
                    await asyncio.sleep(PROMPT)
                    pytest.fail("it was not cancelled")
        assert caught.value.reason == "taken over"
        await asyncio.sleep(0.01)  # nothing is left of the cancellation
        flush(servers)

    run(main(), loop)


def test_the_event_is_set_by_the_clock_and_by_nothing_else(servers, adlm, loop):
    async def main():
        lease = await adlm.acquire("r", SHORT)
        assert await asyncio.wait_for(lease.lost.wait(), 5) is True
        assert (lease.lost.reason, lease.remaining) == ("expired", 0)
        lease = await adlm.acquire("r", SHORT)
        waiting = asyncio.ensure_future(lease.lost.wait())
        await lease.extend(TTL)
        await asyncio.sleep(SHORT * 1.5 / 1000)
        assert not waiting.done()
        await lease.release()
        assert await asyncio.wait_for(waiting, 5) is False

    run(main(), loop)


def test_a_wait_for_the_event_that_is_cancelled_when_it_ends_is_cancelled(servers, adlm, loop):
    """Python 3.10's and 3.11's `asyncio.wait_for` would return what was waited for."""

    async def main():
        lease = await adlm.acquire("r", TTL)
        waiting = asyncio.ensure_future(lease.lost.wait())
        await asyncio.sleep(0.01)
        await lease.release()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()

    run(main(), loop)


# -- keeping -----------------------------------------------------------------------------------------------------------


def test_a_slow_holder_keeps_its_lease(servers, adlm, loop):
    async def main():
        async with adlm.acquire("r", SHORT, auto_extend=True) as lease:
            for _ in range(12):
                await asyncio.sleep(SHORT / 3000)
                lease.ensure()
                assert await adlm.lock("r", TTL) is False
        assert lease.released_in_time

    run(main(), loop)
    nothing_left(servers)


def test_so_does_one_without_a_block(servers, adlm, loop):
    async def main():
        lease = await adlm.acquire("r", SHORT, auto_extend=True)
        await asyncio.sleep(SHORT * 3 / 1000)
        lease.ensure()
        await lease.release()
        assert len(asyncio.all_tasks()) <= 2  # this one, and the one that waits for it

    run(main(), loop)
    nothing_left(servers)


def test_hundreds_of_leases_are_kept_on_a_few_connections(servers, adlm, loop):
    async def main():
        leases = await asyncio.gather(*(adlm_acquire(adlm, f"r{number}") for number in range(300)))
        await asyncio.sleep(2.5)
        for lease in leases:
            lease.ensure()
        # The loop's own, the one that renewals go over, and one for what was dropped.
        assert max(len(server.connections()) for server in servers) <= 3
        await asyncio.gather(*(lease.release() for lease in leases))

    run(main(), loop)
    nothing_left(servers)


async def adlm_acquire(adlm, name):
    return await adlm.acquire(name, 2000, auto_extend=True)


def test_thousands_of_them_are_small(servers, adlm):
    async def main():
        first = await adlm.acquire("first", TTL, auto_extend=True)  # what comes with it is no part of the others
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            leases = [await adlm.acquire(f"r{number}", TTL, auto_extend=True) for number in range(1000)]
            gc.collect()  # or what the calls left in cycles counts too
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        for lease in [first, *leases]:
            await lease.release()
        assert (after - before) / len(leases) < 1800, "bytes of Python's"

    run(main())
    nothing_left(servers)


def test_an_outage_shorter_than_the_ttl_does_no_harm(servers, adlm, loop):
    async def main():
        await awarm(adlm, servers)
        async with adlm.acquire("r", 2000, auto_extend=True) as lease:
            for server in servers[1:]:
                server.freeze()
            await asyncio.sleep(1)
            for server in servers[1:]:
                server.thaw()
            await asyncio.sleep(2)
            lease.ensure()

    run(main(), loop)
    nothing_left(servers)


def test_the_holder_may_extend_it_as_well(servers, adlm, loop):
    async def main():
        async with adlm.acquire("r", TTL, auto_extend=True) as lease:
            await lease.extend(SHORT)  # from now on, that is what is kept
            await asyncio.sleep(SHORT * 3 / 1000)
            lease.ensure()
            assert lease.remaining <= SHORT

    run(main(), loop)
    nothing_left(servers)


def test_after_max_hold_it_lapses(servers, adlm, loop):
    async def main():
        start = now()
        with pytest.raises(LockLost) as caught:
            async with adlm.acquire("r", SHORT, auto_extend=True, max_hold=0.5):
                await asyncio.sleep(60)
        assert caught.value.reason == "expired"
        assert 0.4 < now() - start < 5

    run(main(), loop)
    nothing_left(servers)


def test_on_lost_may_be_a_function_or_async_or_wrong(servers, adlm, loop, caplog):
    told = []

    async def later(lease):
        await asyncio.sleep(0.01)
        told.append(lease)

    async def main():
        leases = []
        for on_lost in (told.append, later, lambda _: 1 / 0):
            lease = await adlm.acquire(f"r{len(leases)}", SHORT, auto_extend=True, on_lost=on_lost)
            leases.append(lease)
        released = await adlm.acquire("r", SHORT, auto_extend=True, on_lost=told.append)
        await released.release()
        flush(servers)
        await asyncio.sleep(1)
        assert set(told) == set(leases[:2])
        assert all(lease.lost.is_set() for lease in leases)

    run(main(), loop)
    assert "ZeroDivisionError" in caplog.text


def test_h22_no_extension_outlives_its_release(servers, adlm, loop):
    """H22: released at any moment of an extension, also where a master has lost the key and is given it again."""

    async def main():
        await awarm(adlm, servers)
        for turn in range(200):
            lease = await adlm.acquire("r", TTL)
            if turn % 2:
                servers[turn % 3].admin.delete("r")
            extending = asyncio.ensure_future(lease.extend())
            for _ in range(turn // 8):
                await asyncio.sleep(0)
            if turn % 5 == 0:
                extending.cancel()
            await lease.release()
            await asyncio.gather(extending, return_exceptions=True)
            assert held(servers) == [None] * 3

    run(main(), loop)
    nothing_left(servers)


def test_a_release_waits_for_an_extension_under_way(servers, through, loop):
    proxies = [through(server) for server in servers]
    adlm = amanager(proxies)

    async def main():
        await awarm(adlm, servers)
        async with adlm.acquire("r", TTL) as lease:
            await asyncio.sleep(0.05)
            for proxy in proxies:
                proxy.delay = 0.1
            servers[0].admin.delete("r")
            extending = asyncio.ensure_future(lease.extend())
            await asyncio.sleep(0.02)
            extending.cancel()
            await asyncio.sleep(0)
            extending.cancel()
        assert held(servers) == [None] * 3
        await asyncio.sleep(0.3)

    run(main(), loop)
    nothing_left(servers)


# -- cancellation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", ["new", "connected"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_h11_cancelled_at_every_suspension_point_nothing_is_left(masters, loop, scene, after):
    """H11: while it is acquired, extended, held and released."""
    servers = masters(3)

    async def hold(adlm):
        async with adlm.acquire(["r", "s"], TTL) as lease:
            await lease.extend()
            await asyncio.sleep(0)

    async def free(servers):
        for _ in range(40):  # a master that a decided round had not waited for takes a moment longer
            if held(servers) + held(servers, "s") == [None] * 6:
                return
            await asyncio.sleep(0.005)
        raise AssertionError

    async def main(turns):
        for turn in itertools.count(1):
            adlm = amanager(servers)
            if scene == "connected":
                await awarm(adlm, servers)
            reached = await turns.cancel_at(turn, hold(adlm), after=after)
            await free(servers)
            if not reached:
                return turn - 1
        return None

    with Turns() as turns:
        assert run(main(turns), loop) >= 6
    nothing_left(servers)


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_a_synchronized_function_holds_a_lease_while_it_runs(servers, adlm, loop):
    @adlm.synchronized(lambda number, **_: f"job:{number}", TTL, timeout=0)
    async def job(number, *, wait=0.0):
        """Does it."""
        assert await adlm.locked(f"job:{number}")
        await asyncio.sleep(wait)
        return number

    async def main():
        assert (job.__name__, job.__doc__) == ("job", "Does it.")
        assert await asyncio.gather(job(1), job(2)) == [1, 2]
        running = asyncio.ensure_future(job(3, wait=0.1))
        await asyncio.sleep(0.05)
        with pytest.raises(LockContended):
            await job(3)
        assert await running == 3

    run(main(), loop)
    nothing_left(servers)
    with pytest.raises(TypeError, match=r"Redlock\.synchronized"):
        adlm.synchronized("r", TTL)(lambda: None)


def test_a_synchronized_function_may_be_decorated_or_an_object(servers, adlm, loop):
    async def job():
        return await adlm.locked("r")

    class Job:
        async def __call__(self):
            return await job()

    decorated = functools.wraps(job)(lambda: job())  # noqa: PLW0108 - no async function itself

    async def main():
        for each in (decorated, Job(), functools.partial(job)):
            assert await adlm.synchronized("r", TTL)(each)()

    run(main(), loop)
    nothing_left(servers)


def test_what_happens_is_counted(servers, adlm, loop):
    async def main():
        lock = await adlm.lock("r", TTL)
        await adlm.lock("r", TTL)
        await refusal(adlm, timeout=0)
        await adlm.unlock(lock)
        async with adlm.acquire("r", TTL) as lease:
            assert adlm.stats().held == 1
            await lease.extend()
        lease = await adlm.acquire("r", SHORT, auto_extend=True)
        flush(servers)
        await lease.lost.wait()
        await lease.release()

    run(main(), loop)
    stats = adlm.stats()
    assert (stats.acquired, stats.contended, stats.unavailable) == (3, 2, 0)
    assert (stats.extended, stats.lost, stats.released, stats.held) == (1, 1, 2, 0)
    assert (stats.wait.count, len(stats.masters)) == (2, 3)


def test_no_text_shows_the_key(servers, adlm, loop, caplog):
    caplog.set_level("DEBUG")

    async def main():
        lease = await adlm.acquire("r", TTL)
        occupy(servers)
        with pytest.raises(LockLost) as caught:
            await lease.extend()
        await lease.release()
        seen = await adlm.inspect("r")
        return lease, f"{lease!r} {lease.lost!r} {caught.value!r} {seen!r} {adlm.stats()!r}"

    lease, shown = run(main(), loop)
    assert lease.key.decode() not in shown + caplog.text


def test_a_child_does_not_hold_what_its_parent_holds(masters):
    servers = masters(3)
    source = """
    import asyncio
    from redlock import AsyncRedlock, LockLost
    adlm = AsyncRedlock(sys.argv[1:])

    async def main():
        async with adlm.acquire("r", 20000, auto_extend=True) as lease:
            pid = os.fork()
            if pid == 0:
                code = 0 if lease.lost.reason == "forked" and lease.remaining == 0 else 1
                try:
                    lease.ensure()
                    code = 2
                except LockLost:
                    pass
                sys.exit(code)  # leaves the block, and so releases what is not its own
            say(os.waitpid(pid, 0)[1])
            lease.ensure()
            say(await adlm.locked("r"))

    asyncio.run(main())
    """
    with Program(source, *(server.url for server in servers)) as program:
        code, out, _ = program.finish()  # Python itself warns of such forks from 3.12 on
    assert (code, out.split()) == (0, ["0", "True"])
    nothing_left(servers)
    wait_until(lambda: not any(server.connections() for server in servers))


# -- cancelled twice, and dropped --------------------------------------------------------------------------------------


def run_and_close(main):
    """Like a program that does not care for tasks it knows nothing of."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main)
    loop.close()
    gc.collect()  # the tasks


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of tasks that have lost their loop
@pytest.mark.parametrize("ends", [asyncio.run, run_and_close], ids=["tasks are cancelled", "tasks are abandoned"])
@pytest.mark.parametrize("by_hand", [True, False], ids=["extended by hand", "kept"])
def test_two_cancellations_during_an_extension_leave_nothing(servers, through, by_hand, ends):
    proxies = [through(server) for server in servers]

    async def hold(adlm, entered):
        async with adlm.acquire("r", TTL if by_hand else 3000, auto_extend=not by_hand) as lease:
            entered.set()
            for proxy in proxies:
                proxy.delay = 0.15
            if by_hand:
                await lease.extend()
            await asyncio.sleep(60)

    async def main():
        adlm = amanager(proxies)
        await awarm(adlm, servers)
        entered = asyncio.Event()
        task = asyncio.create_task(hold(adlm, entered))
        await entered.wait()
        await asyncio.sleep(0.1 if by_hand else 1.1)  # it is extended now
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.02)
        assert task.cancelled()

    ends(main())
    nothing_left(servers, 1.0)


def test_one_that_is_dropped_lapses(servers):
    async def main():
        adlm = amanager(servers)
        await awarm(adlm, servers)
        lease = await adlm.acquire("r", 600, auto_extend=True)
        await asyncio.sleep(0.5)
        assert (adlm.stats().held, lease.lost.is_set()) == (1, False)
        leases = [lease]
        del lease
        with pytest.warns(ResourceWarning, match="a lease on 'r' was dropped"):
            leases.clear()
        assert adlm.stats().held == 0
        await asyncio.sleep(1.2)
        assert held(servers) == [None] * 3

    asyncio.run(main())

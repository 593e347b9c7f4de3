"""A thread that waits for one result wakes when there is news of it, whatever that is."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest
from distributed import Client

from oxidask._waiting import LOOK_SECONDS, Awaited, WaitingThreads

_GATE = threading.Event()


def hold(x: int) -> int:
    _GATE.wait(10)
    if x < 0:
        raise ValueError("below zero")
    return x


def until(condition: Any, seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def closed_gate() -> None:
    _GATE.clear()


def waits_for(client: Any, key: str) -> bool:
    return key in client._oxidask_connection.threads._waiters


def test_many_threads_wait_for_few_results(client: Any) -> None:
    futures = [client.submit(hold, number) for number in range(4)]
    with ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(futures[number % 4].result) for number in range(16)]
        until(lambda: all(waits_for(client, future.key) for future in futures))
        _GATE.set()
        assert [one.result(timeout=10) for one in waiting] == [0, 1, 2, 3] * 4
    assert not client._oxidask_connection.threads._waiters


@pytest.mark.parametrize("what", ["fails", "is cancelled", "is large"])
def test_whatever_becomes_of_it_is_heard_at_once(client: Any, what: str) -> None:
    future = client.submit(bytes, client.submit(hold, 5_000)) if what == "is large" else client.submit(hold, -1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(future.result)
        until(lambda: waits_for(client, future.key))
        began = time.monotonic()
        if what == "is cancelled":
            future.cancel()
        _GATE.set()
        if what == "is large":
            assert waiting.result(timeout=10) == bytes(5_000)
        else:
            with pytest.raises(CancelledError if what == "is cancelled" else ValueError):
                waiting.result(timeout=10)
        assert time.monotonic() - began < LOOK_SECONDS * 0.9


def test_a_timeout_is_kept(client: Any) -> None:
    future = client.submit(hold, 1)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.1)
    _GATE.set()
    assert future.result() == 1


def test_a_client_that_closes_lets_go_of_its_threads(scheduler: Any) -> None:
    client = Client(scheduler.address)
    future = client.submit(hold, 1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(future.result)
        until(lambda: waits_for(client, future.key))
        client.close()
        with pytest.raises(BaseException):  # noqa: B017 (what distributed raises differs with the moment)
            waiting.result(timeout=10)
    _GATE.set()


def test_a_result_that_was_handed_over_is_known_everywhere(client: Any) -> None:
    called: list[Any] = []
    for number in range(50):
        future = client.submit(abs, -number, pure=False)
        future.add_done_callback(lambda future: called.append(future.status))
        assert future.result() == number
        assert future.done() and future.status == "finished"
        assert future.result() == number
        assert client.gather(future) == number
        assert client.submit(abs, future, pure=False).result() == number
    until(lambda: called == ["finished"] * 50)


def test_who_waits_on_the_event_loop_hears_of_it_too(client: Any) -> None:
    future = client.submit(hold, 1)

    async def state_later() -> str:
        await future._state.wait()
        return str(future.status)

    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(client.sync, state_later)
        waiting = pool.submit(future.result)
        until(lambda: waits_for(client, future.key))
        _GATE.set()
        assert waiting.result(timeout=10) == 1
        assert beside.result(timeout=10) == "finished"


def test_a_result_that_goes_again_is_not_there_any_more() -> None:
    event = Awaited()
    event.hand_over()
    assert event.is_set()
    event.clear()
    assert not event.is_set()
    event.set()
    assert event.is_set()


def test_the_event_loop_hears_of_what_was_handed_over() -> None:
    told: list[bool] = []
    threads = WaitingThreads(lambda: told.append(True))
    assert not threads.hand_over("k", (1, b"x"))
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(threads.wait, "k", lambda: False) for _ in range(2)]
        until(lambda: len(threads._waiters.get("k", ())) == 2)
        assert threads.hand_over("k", (1, b"x"))
        assert [one.result(timeout=10) for one in waiting] == [(1, b"x")] * 2
    assert told == [True, True]
    assert not threads._waiters


def test_news_that_came_before_is_not_waited_for() -> None:
    threads = WaitingThreads(lambda: None)
    began = time.monotonic()
    threads.wait("k", lambda: True)
    assert time.monotonic() - began < LOOK_SECONDS / 2
    assert not threads._waiters

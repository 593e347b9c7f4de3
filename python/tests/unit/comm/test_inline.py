"""Small results that come with the news are given out as long as they are those of the news."""

from __future__ import annotations

import pickle
import time
from typing import Any

import numpy as np
from distributed import Client

from oxidask import _payload
from oxidask._inline import InlineValues


def increment(x: int) -> int:
    return x + 1


def payload(value: Any) -> tuple[int, bytes]:
    kind, buffers = _payload.encode(value)
    return kind, b"".join(bytes(memoryview(part).cast("B")) for part in buffers)


def connection_of(client: Any) -> Any:
    return client._oxidask_connection


def settled(client: Any) -> None:
    """All events that were told before have been taken."""
    [session] = connection_of(client).session.scheduler.sessions
    assert client.submit(increment, 0, pure=False).result(timeout=10) == 1
    assert session.scheduler.said.empty()


def test_a_value_is_given_out_for_its_task_only() -> None:
    values = InlineValues()
    values.keep("a", (1, 2), (5, b"first"))
    assert values.find("a", (1, 2)) == (5, b"first") == values.find("a", (1, 2))
    assert values.find("a", (1, 3)) is None
    assert values.find("b", (1, 2)) is None
    values.keep("a", (1, 3), (1, b"second"))
    assert values.find("a", (1, 2)) is None
    assert values.find("a", (1, 3)) == (1, b"second")
    values.forget(["a", "unknown"])
    assert values.find("a", (1, 3)) is None


def test_so_many_are_kept_and_the_oldest_go_first() -> None:
    values = InlineValues(bytes_max=100_000)
    task = (1, 1)
    for number in range(1_000):
        values.keep(str(number), task, (1, bytes(100)))
        values.keep(str(number), task, (1, bytes(100)))
    kept = [number for number in range(1_000) if values.find(str(number), task)]
    assert 150 < len(kept) <= 100_000 // 300
    assert kept == list(range(1_000 - len(kept), 1_000))
    values.forget(map(str, kept))
    assert values._bytes == 0
    assert not values._new


def test_small_results_are_not_fetched(client: Any, scheduler: Any) -> None:
    assert client.submit(increment, 1).result(timeout=10) == 2
    futures = client.map(increment, range(500))
    assert client.gather(futures) == list(range(1, 501))
    assert client.gather({"a": futures[:3]}) == {"a": [1, 2, 3]}
    assert not scheduler.fetched
    large = client.submit(bytes, 5_000)
    assert client.gather([*futures[:2], large]) == [1, 2, bytes(5_000)]
    assert len(scheduler.fetched) == 1


def test_whoever_comes_later_fetches(client: Any, scheduler: Any) -> None:
    first = client.submit(increment, 1, key="k")
    assert first.result(timeout=10) == 2
    with Client(scheduler.address) as other:
        assert other.submit(increment, 1, key="k").result(timeout=10) == 2
    assert len(scheduler.fetched) == 1


def test_a_result_that_is_made_again_is_not_answered_from_the_old_value(client: Any, scheduler: Any) -> None:
    future = client.submit(increment, 1, key="k")
    assert future.result(timeout=10) == 2
    [session] = scheduler.sessions
    number = scheduler.tasks["k"].number
    kind, data = payload("again")
    # Its worker died, and the same task was run again.
    scheduler.tell(session, ("ready", "k", 1, number, len(data), kind, data))
    settled(client)
    assert future.result(timeout=10) == "again"
    scheduler.tasks["k"].payload = payload("elsewhere")
    scheduler.tell(session, ("ready", "k", 1, number, 9))
    settled(client)
    assert not scheduler.fetched
    assert future.result(timeout=10) == "elsewhere"
    assert scheduler.fetched == [number]


def test_values_go_with_their_futures(client: Any, scheduler: Any) -> None:
    futures = client.map(increment, range(20))
    client.gather(futures)
    inline = connection_of(client).inline
    assert len(inline._new) == 20
    del futures
    # The client lets go of them in a turn of its own.
    deadline = time.monotonic() + 10
    while inline._new and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (inline._new, inline._old, inline._bytes) == ({}, {}, 0)


def test_small_arrays_can_be_written_to_and_share_nothing(client: Any, scheduler: Any) -> None:
    future = client.submit(np.arange, 10)
    first, second = future.result(timeout=10), future.result(timeout=10)
    first[0] = 99
    assert second.tolist() == list(range(10)) == future.result().tolist()
    assert not scheduler.fetched
    assert pickle.loads(pickle.dumps(first))[0] == 99

"""Graphs go at once when nothing is before them, and never overtake anything."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from oxidask._errors import OxidaskError


def increment(x: int) -> int:
    return x + 1


@contextmanager
def held_up(client: Any) -> Iterator[None]:
    """The client's event loop does nothing meanwhile."""
    go_on, is_held = threading.Event(), threading.Event()

    def hold() -> None:
        is_held.set()
        go_on.wait(10)

    client.loop.add_callback(hold)
    assert is_held.wait(10)
    try:
        yield
    finally:
        go_on.set()


def keys_sent(scheduler: Any) -> list[str]:
    return [key for columns in scheduler.submissions for key in columns["keys"]]


def test_a_graph_goes_in_the_thread_that_submits_it(client: Any, scheduler: Any) -> None:
    first = client.submit(increment, 0, pure=False)
    assert first.result(timeout=10) == 1
    with held_up(client):
        future = client.submit(increment, 1, key="now")
        assert keys_sent(scheduler)[-1] == "now"
    assert future.result(timeout=10) == 2


def test_a_graph_waits_for_what_was_sent_before(client: Any, scheduler: Any) -> None:
    first = client.submit(increment, 0, pure=False)
    assert first.result(timeout=10) == 1
    with held_up(client):
        client._send_to_scheduler({"op": "heartbeat-client"})
        future = client.submit(increment, 1, key="later")
        assert "later" not in keys_sent(scheduler)
    assert future.result(timeout=10) == 2
    with held_up(client):
        client.submit(increment, 2, key="again at once")
        assert keys_sent(scheduler)[-1] == "again at once"


def test_a_key_that_is_released_and_submitted_anew_is_there(client: Any, scheduler: Any) -> None:
    for number in range(50):
        future = client.submit(increment, 7, key="k")
        assert future.result(timeout=10) == 8
        del future
        if number % 2:
            # So that it was released before.
            client.sync(_nothing)


async def _nothing() -> None:
    pass


def test_what_cannot_be_sent_at_once_fails_its_keys(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client.submit(increment, 0, pure=False).result(timeout=10)
    connection = client._oxidask_connection

    class Full:
        def submit(self, *_: Any) -> None:
            raise OxidaskError("OX105", "too large", "send less")

        def __getattr__(self, name: str) -> Any:
            return getattr(session, name)

    session = connection.session
    monkeypatch.setattr(connection, "session", Full())
    future = client.submit(increment, 1, pure=False)
    with pytest.raises(OxidaskError, match="too large"):
        future.result(timeout=10)

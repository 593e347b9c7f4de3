"""Messages of a client's stream: at once, together, and the plain way where that does not go."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from oxidask._client import _Sender


class FakeComm:
    def __init__(self) -> None:
        self.taken: list[list[Any]] = []
        self.is_closed = False

    def take(self, messages: list[Any]) -> None:
        self.taken.append(messages)

    def closed(self) -> bool:
        return self.is_closed


def made() -> tuple[Any, FakeComm, list[Any], _Sender]:
    comm = FakeComm()
    sender = SimpleNamespace(comm=comm, buffer=[])
    plainly: list[Any] = []
    return sender, comm, plainly, _Sender(sender, comm, lambda _, *messages: plainly.extend(messages))


def test_messages_of_one_turn_go_together_and_in_order() -> None:
    async def run() -> None:
        _, comm, plainly, send = made()
        send(1, 2)
        send(3)
        assert comm.taken == []
        await asyncio.sleep(0)
        send(4)
        await asyncio.sleep(0)
        assert comm.taken == [[1, 2, 3], [4]]
        assert plainly == []

    asyncio.run(run())


def test_what_cannot_go_at_once_goes_the_plain_way() -> None:
    async def run() -> None:
        sender, comm, plainly, send = made()
        sender.buffer = ["earlier"]
        send(1)
        sender.buffer = []
        comm.is_closed = True
        send(2)
        comm.is_closed, sender.comm = False, FakeComm()
        send(3)
        await asyncio.sleep(0)
        assert plainly == [1, 2, 3]
        assert comm.taken == []

    asyncio.run(run())

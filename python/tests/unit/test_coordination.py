"""The translation between messages of `distributed` and the questions of the scheduler."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dask.typing import no_default
from distributed.protocol.serialize import Serialize, Serialized, ToPickle, serialize

from oxidask._operations import coordination, stream_handler
from oxidask._operations.coordination import HANDLERS, STREAM_OPERATIONS

QUESTIONS = Path(__file__).parents[3] / "runtime/futures/tests/coordination/questions.jsonl"

Reply = tuple[dict[str, Any], list[bytes]]


class Connection:
    """Gives prepared answers, and remembers what was asked."""

    def __init__(self, *replies: Reply | dict[str, Any]) -> None:
        self.replies = [reply if isinstance(reply, tuple) else (reply, []) for reply in replies]
        self.asked: list[dict[str, Any]] = []
        self.values: list[list[bytes]] = []
        self.wants: list[str] = []

    def want(self, wires: list[str]) -> None:
        self.wants += wires

    async def ask(self, op: str, fields: dict[str, Any], values: Any = ()) -> Reply:
        await asyncio.sleep(0)
        self.asked.append(json.loads(json.dumps({"op": op, **fields})))
        self.values.append(list(values))
        return self.replies.pop(0)


class Store(Connection):
    """Keeps published data and metadata as the scheduler does."""

    def __init__(self) -> None:
        super().__init__()
        self.datasets: dict[str, bytes] = {}
        self.metadata: dict[str, Any] = {}

    async def ask(self, op: str, fields: dict[str, Any], values: Any = ()) -> Reply:
        fields = json.loads(json.dumps(fields))
        self.asked.append({"op": op, **fields})
        return getattr(self, op)(**fields, values=list(values))

    def publish_put(self, names: list[str], keys: list[Any], is_override: bool, values: list[bytes]) -> Reply:
        if not is_override and (taken := [name for name in names if name in self.datasets]):
            return {"answer": "refused", "reason": "exists", "message": f"Dataset {taken[0]} already exists"}, []
        self.datasets.update(zip(names, values, strict=True))
        return DONE, []

    def publish_get(self, names: list[str], values: list[bytes]) -> Reply:
        # Two names at a time, as if values were large.
        found = [self.datasets.get(name) for name in names[:2]]
        answer = {"answer": "datasets", "are_found": [value is not None for value in found]}
        return {**answer, "is_all": len(names) <= 2}, [value for value in found if value is not None]

    def publish_delete(self, names: list[str], values: list[bytes]) -> Reply:
        for name in names:
            self.datasets.pop(name, None)
        return DONE, []

    def publish_list(self, values: list[bytes]) -> Reply:
        return {"answer": "names", "names": sorted(self.datasets)}, []

    def metadata_set(self, path: list[str], node: dict[str, Any], values: list[bytes]) -> Reply:
        def stored(node: dict[str, Any]) -> Any:
            return values[node["leaf"]] if "leaf" in node else {key: stored(below) for key, below in node["tree"].items()}

        level = self.metadata
        for key in path[:-1]:
            if not isinstance(level.get(key), dict):
                level[key] = {}
            level = level[key]
        level[path[-1]] = stored(node)
        return DONE, []

    def metadata_get(self, path: list[str], values: list[bytes]) -> Reply:
        found: list[bytes] = []

        def node(stored: Any) -> dict[str, Any]:
            if isinstance(stored, dict):
                return {"tree": {key: node(below) for key, below in stored.items()}}
            found.append(stored)
            return {"leaf": len(found) - 1}

        level: Any = self.metadata
        for index, key in enumerate(path):
            if key not in level:
                return {"answer": "metadata", "node": None, "rest": []}, []
            level = level[key]
            if not isinstance(level, dict):
                return {"answer": "metadata", "node": node(level), "rest": path[index + 1 :]}, found
        return {"answer": "metadata", "node": node(level), "rest": []}, found


DONE = {"answer": "done"}
AGAIN = {"answer": "again"}
TIMED_OUT = {"answer": "timed_out"}


def truth(truth: bool) -> dict[str, Any]:
    return {"answer": "truth", "truth": truth}


def refused(reason: str, message: str = "text") -> dict[str, Any]:
    return {"answer": "refused", "reason": reason, "message": message}


def items(*values: Any, keys: list[str | None] | None = None, is_all: bool = True) -> Reply:
    answer = {"answer": "items", "keys": keys or [None] * len(values), "is_all": is_all}
    return answer, [pickle.dumps(value) for value in values]


def call(connection: Any, op: str, **fields: Any) -> Any:
    async def answer() -> Any:
        # As the message arrives: the stock classes add these.
        return await HANDLERS[op](connection, {"op": op, "reply": True, **fields})

    return asyncio.run(answer())


CALLS: list[tuple[str, dict[str, Any], Any]] = [
    ("semaphore_register", {"name": "s", "max_leases": 2, "lease_timeout": 30.0}, DONE),
    ("semaphore_acquire", {"name": "s", "lease_id": "1", "timeout": None}, truth(True)),
    ("semaphore_release", {"name": "s", "lease_id": "1"}, truth(True)),
    ("semaphore_refresh_leases", {"name": "s", "lease_ids": ["1"]}, {"answer": "refreshed", "unknown": []}),
    ("semaphore_value", {"name": "s"}, {"answer": "count", "count": 1}),
    ("semaphore_close", {"name": "s"}, DONE),
    ("event_wait", {"name": "e", "timeout": 0.5}, truth(True)),
    ("event_set", {"name": "e"}, DONE),
    ("event_clear", {"name": "e"}, DONE),
    ("event_is_set", {"name": "e"}, truth(True)),
    ("queue_create", {"name": "q", "maxsize": 0}, DONE),
    ("queue_release", {"name": "q"}, DONE),
    ("queue_put", {"name": "q", "data": 1, "timeout": None}, DONE),
    ("queue_get", {"name": "q", "timeout": None, "batch": False}, items(1)),
    ("queue_qsize", {"name": "q"}, {"answer": "count", "count": 1}),
    ("queue-future-release", {"name": "q", "key": "k"}, DONE),
    ("variable_set", {"name": "v", "key": "k", "timeout": "30 s"}, DONE),
    ("variable_get", {"name": "v", "timeout": None, "client": "c"}, items(1)),
    ("variable-future-received-confirm", {"name": "v", "key": "k", "token": ""}, DONE),
    ("variable_delete", {"name": "v"}, DONE),
    ("multi_lock_acquire", {"locks": ["x", "y"], "id": "1", "timeout": None, "num_locks": 2}, truth(True)),
    ("multi_lock_release", {"id": "1"}, DONE),
    ("publish_put", {"names": ["p"], "keys": [["k"]], "data": [Serialize(1)], "override": False}, DONE),
    ("publish_get", {"names": ["p"]}, {"answer": "datasets", "are_found": [False], "is_all": True}),
    ("publish_delete", {"names": ["p"]}, DONE),
    ("publish_list", {}, {"answer": "names", "names": []}),
    ("set_metadata", {"keys": ("m",), "value": {"a": 1}}, DONE),
    ("get_metadata", {"keys": ("m",), "default": None}, {"answer": "metadata", "node": None, "rest": []}),
    ("log_event", {"topic": "t", "msg": 1}, DONE),
    ("events", {"topic": "t"}, {"answer": "events", "topics": []}),
    ("subscribe-topic", {"topic": "t", "client": "c"}, DONE),
    ("unsubscribe-topic", {"topic": "t", "client": "c"}, DONE),
]


def test_every_message_becomes_the_question_that_the_scheduler_reads() -> None:
    sent = []
    for op, message, reply in CALLS:
        connection = Connection(reply)
        call(connection, op, **message)
        assert not connection.replies
        sent += connection.asked
    wanted = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    # Waits with an end have lost a millisecond or so by the time they ask.
    for question in sent:
        if question.get("timeout_ms") is not None:
            assert 400 < question["timeout_ms"] <= 500
            question["timeout_ms"] = 500
    assert sent == wanted


def test_every_operation_has_a_handler_and_a_test() -> None:
    called = {op for op, _, _ in CALLS}
    assert called | {"publish_flush_batched_send", "log-event"} == set(HANDLERS)
    assert set(HANDLERS) >= STREAM_OPERATIONS
    assert all(stream_handler(op) is HANDLERS[op] for op in STREAM_OPERATIONS)


@pytest.mark.parametrize(
    ("op", "message", "reply", "kind"),
    [
        ("semaphore_acquire", {"name": "s", "lease_id": "1"}, refused("unknown"), RuntimeError),
        ("semaphore_register", {"name": "s", "max_leases": 1, "lease_timeout": None}, refused("inconsistent"), ValueError),
        ("queue_put", {"name": "q", "data": 1}, refused("unknown"), KeyError),
        ("queue_put", {"name": "q", "data": 1, "timeout": 1}, TIMED_OUT, TimeoutError),
        ("queue_get", {"name": "q"}, refused("unknown"), KeyError),
        ("queue_get", {"name": "q", "timeout": 1}, TIMED_OUT, TimeoutError),
        ("queue_qsize", {"name": "q"}, refused("unknown"), KeyError),
        ("variable_get", {"name": "v", "timeout": 1}, TIMED_OUT, TimeoutError),
        ("multi_lock_acquire", {"locks": [], "id": "1"}, refused("invalid"), ValueError),
        ("multi_lock_release", {"id": "1"}, refused("unknown"), KeyError),
        ("publish_put", {"names": [], "keys": [], "data": []}, refused("exists"), KeyError),
    ],
)
def test_a_refusal_is_the_exception_of_distributed(op: str, message: Any, reply: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        call(Connection(reply), op, **message)
    assert caught.type is kind


def test_a_wait_asks_again_until_its_time_is_over() -> None:
    connection = Connection(AGAIN, AGAIN, truth(True))
    assert call(connection, "event_wait", name="e", timeout=None) is True
    assert [question["timeout_ms"] for question in connection.asked] == [None] * 3
    connection = Connection(AGAIN, truth(False))
    assert call(connection, "semaphore_acquire", name="s", lease_id="1", timeout="2s") is False
    first, second = (question["timeout_ms"] for question in connection.asked)
    assert 1900 < second <= first <= 2000
    for timeout in (0, -1, -0.5, "0s"):
        connection = Connection(truth(False))
        call(connection, "event_wait", name="e", timeout=timeout)
        assert connection.asked[0]["timeout_ms"] == 0


def test_a_lease_without_time_out_is_sent_as_none() -> None:
    connection = Connection(DONE)
    call(connection, "semaphore_register", name="s", max_leases=1, lease_timeout=None)
    assert connection.asked[0]["lease_timeout_ms"] is None


def test_a_lost_lease_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    reply = {"answer": "refreshed", "unknown": ["1"]}
    call(Connection(reply), "semaphore_refresh_leases", name="my-lock", lease_ids=["1", "2"])
    assert [record.levelno for record in caplog.records] == [logging.CRITICAL]
    assert "my-lock" in caplog.text
    call(Connection(truth(False)), "semaphore_release", name="my-lock", lease_id="1")
    assert caplog.records[-1].levelno == logging.WARNING


@pytest.mark.parametrize("name", ["plain", "", "\0zero", ("a", 1), ("a", ("b", 2.5)), 7, None, b"bytes", True])
def test_names_come_back_as_they_were(name: Any) -> None:
    text = coordination._text(name)
    json.loads(json.dumps(text))
    assert coordination._name(text) == name
    assert type(coordination._name(text)) is type(name)


def test_different_names_stay_different() -> None:
    names = ["1", 1, "('a', 1)", ("a", 1), "\0001", "None", None]
    assert len({coordination._text(name) for name in names}) == len(names)
    assert coordination._text(["a", 1]) == coordination._text(("a", 1))


def test_values_travel_as_plain_objects() -> None:
    header, frames = serialize([1, {"a": 2}])
    for data in ([1, {"a": 2}], Serialize([1, {"a": 2}]), ToPickle([1, {"a": 2}]), Serialized(header, frames)):
        connection = Connection(DONE)
        call(connection, "queue_put", name="q", data=data)
        (value,) = connection.values[0]
        assert pickle.loads(value) == [1, {"a": 2}]
    connection = Connection(DONE)
    call(connection, "variable_set", name="v", data=lambda x: x + 1)
    assert pickle.loads(connection.values[0][0])(1) == 2


@pytest.mark.parametrize(("key", "wire"), [("k", "k"), (("x", 0), "('x', 0)")])
def test_futures_travel_by_key(key: Any, wire: str) -> None:
    connection = Connection(DONE, items(key, keys=[wire]), items(key, keys=[wire]))
    call(connection, "queue_put", name="q", key=key)
    assert connection.asked[0]["key"] == wire
    assert pickle.loads(connection.values[0][0]) == key
    record = call(connection, "queue_get", name="q")
    assert (record["type"], record["value"], record["state"]) == ("Future", key, "processing")
    assert call(connection, "variable_get", name="v")["token"] == ""


@pytest.mark.parametrize("op", ["queue-future-release", "variable-future-received-confirm"])
def test_a_client_wants_a_future_at_once_that_it_was_handed(op: str) -> None:
    connection = Connection(DONE)
    telling = HANDLERS[op](connection, {"name": "n", "key": ("x", 0), "token": ""})
    assert connection.wants == ["('x', 0)"]
    asyncio.run(telling)  # type: ignore[arg-type]
    assert connection.asked[0]["key"] == "('x', 0)"


def test_a_future_is_put_once_its_graph_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection(DONE, DONE)
    connection.wanted = set()  # type: ignore[attr-defined]

    async def put() -> None:
        task = asyncio.ensure_future(HANDLERS["queue_put"](connection, {"name": "q", "key": "k"}))
        await asyncio.sleep(0.05)
        assert not connection.asked
        connection.wanted.add("k")  # type: ignore[attr-defined]
        await task

    asyncio.run(put())
    monkeypatch.setattr(coordination, "KNOWN_SECONDS", 0.01)
    call(connection, "variable_set", name="v", key="lost")
    assert [question["key"] for question in connection.asked] == ["k", "lost"]


def test_a_batch_is_asked_for_until_it_is_whole() -> None:
    connection = Connection(items(1, 2, is_all=False), items(3))
    records = call(connection, "queue_get", name="q", batch=True)
    assert [record["value"] for record in records] == [1, 2, 3]
    assert [question["batch"] for question in connection.asked] == ["all", "all"]
    connection = Connection(items(1, 2, is_all=False), AGAIN, items(3, 4, 5))
    records = call(connection, "queue_get", name="q", batch=5)
    assert [record["value"] for record in records] == [1, 2, 3, 4, 5]
    assert [question["batch"] for question in connection.asked] == [5, 3, 3]
    with pytest.raises(NotImplementedError):
        call(Connection(), "queue_get", name="q", batch=5, timeout=1)


def flushed(store: Store, op: str, **message: Any) -> Any:
    async def both() -> Any:
        rpc = asyncio.ensure_future(HANDLERS[op](store, {**message, "uid": "u"}))
        await asyncio.sleep(0.01)
        assert not rpc.done(), "it has to wait for the stream"
        await HANDLERS["publish_flush_batched_send"](store, {"uid": "u", "client": "c"})
        return await rpc

    return asyncio.run(both())


def test_published_data_come_back_by_their_names() -> None:
    store = Store()
    data = [Serialize({"rate": 0.5}), Serialize([1, 2]), Serialize(None)]
    message = {"names": ["b", ("a", 1), "none"], "keys": [[], ["k", ("x", 0)], []], "data": data}
    flushed(store, "publish_put", **message, override=False)
    assert store.asked[-1]["keys"] == [[], ["k", "('x', 0)"], []]
    assert call(store, "publish_list") == [("a", 1), "b", "none"]
    found = call(store, "publish_get", names=["b", "missing", ("a", 1), "none"])
    assert found == [
        {"data": {"rate": 0.5}, "keys": ()},
        None,
        {"data": [1, 2], "keys": ("k", ("x", 0))},
        {"data": None, "keys": ()},
    ]
    with pytest.raises(KeyError, match="already exists"):
        call(store, "publish_put", names=["b"], keys=[[]], data=[1], override=False)
    call(store, "publish_put", names=["b"], keys=[[]], data=[3], override=True)
    assert call(store, "publish_get", names=["b"]) == [{"data": 3, "keys": ()}]
    flushed(store, "publish_delete", names=["b", "missing"])
    assert call(store, "publish_list") == [("a", 1), "none"]


def test_a_flush_may_come_first_and_is_not_kept() -> None:
    async def flow() -> None:
        store = Store()
        for number in range(coordination.FLUSHES_MAX + 10):
            await HANDLERS["publish_flush_batched_send"](store, {"uid": number})
        assert len(coordination._flushes[store]) == coordination.FLUSHES_MAX
        await HANDLERS["publish_delete"](store, {"names": [], "uid": number})
        assert number not in coordination._flushes[store]

    asyncio.run(flow())


def metadata(*steps: tuple[Any, Any]) -> Callable[..., Any]:
    store = Store()
    for keys, value in steps:
        call(store, "set_metadata", keys=keys, value=value)
    return lambda *keys, default=no_default: call(store, "get_metadata", keys=keys, default=default)


def test_metadata_are_nested_as_in_dask() -> None:
    get = metadata((("x",), 1), (["x", "y"], 123), (["x", "w", "z"], 456))
    assert get("x") == {"y": 123, "w": {"z": 456}}
    assert get("x", "w") == {"z": 456}
    assert get("x", "w", default=None) == {"z": 456}
    with pytest.raises(KeyError):
        get("x", "v")
    assert get("x", "v", default=None) is None
    assert get("x", "v", default="none") == "none"


def test_metadata_may_be_any_python() -> None:
    nested = {"a": {1: "one", (2, "b"): [1, {"c": {3}}]}, None: {}}
    get = metadata((("x",), nested), (("x", "a", "more"), "later"))
    assert get("x") == {"a": {1: "one", (2, "b"): [1, {"c": {3}}], "more": "later"}, None: {}}
    assert get("x", "a", (2, "b"), 1, "c") == {3}
    odd = {frozenset([1]): 2}
    get = metadata((("odd",), odd))
    assert get("odd") == odd
    assert get("odd", frozenset([1])) == 2
    deep: dict[str, Any] = {}
    for level in range(100):
        deep = {str(level): deep}
    assert metadata((("deep",), deep))("deep") == deep
    wide = {number: number for number in range(coordination.METADATA_VALUES_MAX + 1)}
    assert metadata((("wide",), wide))("wide", 77) == 77


def test_topics_have_events_with_their_time() -> None:
    connection = Connection(DONE, DONE)
    call(connection, "log_event", topic=["a", "b"], msg={"n": 1})
    call(connection, "log-event", topic="a", msg={"n": 1})
    assert [question["topics"] for question in connection.asked] == [["a", "b"], ["a"]]
    assert coordination.topic_value(connection.values[0][0]) == {"n": 1}
    topics = [{"topic": "a", "times_micros": [1_500_000, 2_500_000]}, {"topic": "b", "times_micros": [3_000_000]}]
    values = [pickle.dumps(number) for number in range(3)]
    reply = {"answer": "events", "topics": topics}, values
    assert call(Connection(reply), "events") == {"a": ((1.5, 0), (2.5, 1)), "b": ((3.0, 2),)}
    reply = {"answer": "events", "topics": topics[:1]}, values[:2]
    assert call(Connection(reply), "events", topic="a") == ((1.5, 0), (2.5, 1))
    assert call(Connection({"answer": "events", "topics": []}), "events", topic="none") == ()

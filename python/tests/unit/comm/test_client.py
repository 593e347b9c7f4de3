"""Stock clients on the transport: what they see is what stock Dask shows them."""

from __future__ import annotations

import asyncio
import operator
import pickle
import threading
import time
from concurrent.futures import CancelledError
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from dask import delayed
from distributed import Client, WorkerPlugin, as_completed, fire_and_forget, performance_report, wait
from distributed.comm import connect

from oxidask import _commands, _graph
from oxidask._errors import NotThereError, OxidaskError


def increment(x: int) -> int:
    return x + 1


def until(condition: Any, seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_futures(client: Any) -> None:
    future = client.submit(increment, 1)
    assert future.result(timeout=10) == 2
    squares = client.map(lambda x: x * x, range(200))
    assert client.gather(squares) == [x * x for x in range(200)]
    nested = client.submit(lambda d: sum(d["a"]) + d["b"], {"a": squares[2:4], "b": future})
    assert nested.result(timeout=10) == 15
    assert client.submit(sum, squares, pure=False).result() == sum(x * x for x in range(200))
    assert client.submit(increment, 8, key=("tuple", 1)).result() == 9
    assert client.submit(operator.add, 8, b"".__len__(), key=7).result() == 8
    assert sorted(f.result() for f in as_completed(client.map(increment, range(5)))) == [1, 2, 3, 4, 5]
    assert len(wait(squares).done) == 200


def test_a_round_trip_does_not_wait_for_the_next_batch(client: Any) -> None:
    client.submit(increment, 0).result()
    times = []
    for number in range(40):
        start = time.perf_counter()
        client.submit(increment, number, pure=False).result()
        times.append(time.perf_counter() - start)
    assert sorted(times)[8] < 0.009, "a client of Dask waits 10 ms before it sends"


def test_collections(client: Any) -> None:
    x = da.arange(100, chunks=10)
    assert int((x + x[::-1]).sum().compute()) == 9900
    frame = dd.from_pandas(pd.DataFrame({"k": [1, 2] * 50, "v": range(100)}), npartitions=5)
    assert frame.groupby("k").v.sum().compute().to_dict() == {1: 2450, 2: 2500}
    assert db.range(20, npartitions=4).map(increment).sum().compute() == 210
    assert delayed(sum)([delayed(increment)(i) for i in range(10)]).compute() == 55
    kept = client.persist(x + 1)
    assert int(kept.sum().compute()) == 5050
    kept_frame = frame[frame.v > 10].persist()
    assert len(kept_frame) == 89 and len(kept_frame.persist()) == 89
    graph = {"a": 1, "b": "a", "c": (operator.add, "b", 2), "d": "c"}
    assert client.get(graph, ["a", "b", "c", "d"]) == [1, 1, 3, 3]


def test_results_go_when_nobody_wants_them(client: Any, scheduler: Any) -> None:
    futures = client.map(increment, range(50))
    wait(futures)
    assert len(scheduler.tasks) == 50
    del futures
    until(lambda: not scheduler.tasks)


def test_cut_graphs_leave_nothing_behind(client: Any, scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_graph, "SUBMISSION_TASKS_MAX", 7)
    graph: dict[Any, Any] = {("p", i): (operator.mul, i, i) for i in range(30)}
    graph["sum"] = (sum, [("p", i) for i in range(30)])
    assert client.get(graph, "sum") == sum(i * i for i in range(30))
    assert len(scheduler.submissions) >= 4
    until(lambda: not scheduler.tasks)


def test_errors(client: Any) -> None:
    class Own(ValueError):
        def __init__(self, value: int, limit: int) -> None:
            super().__init__(value, limit)
            self.value = value

    def check(value: int) -> int:
        if value > 5:
            raise Own(value, 5)
        return value

    bad = client.submit(check, 9)
    with pytest.raises(ValueError, match="9") as raised:
        bad.result(timeout=10)
    assert raised.value.value == 9 and bad.status == "error"  # type: ignore[attr-defined]
    assert bad.traceback() is not None
    with pytest.raises(ValueError, match="9"):
        client.submit(increment, bad).result(timeout=10)
    assert client.gather(client.map(check, [1, 9, 3]), errors="skip") == [1, 3]
    assert client.submit(increment, 1).result() == 2


def test_what_cannot_be_sent_fails_in_the_caller(client: Any) -> None:
    with pytest.raises(TypeError, match="Could not serialize object of type LLGExpr") as raised:
        client.submit(increment, threading.Lock())
    assert "lock" in str(raised.value.__cause__)
    with pytest.raises(TypeError, match="Could not serialize object of type"):
        client.compute([delayed(increment)(threading.Lock()), delayed(increment)(1)])
    with pytest.raises(NotThereError, match="actors"):
        client.submit(increment, 1, actor=True)
    assert client.submit(increment, 1).result() == 2


def test_arguments_are_those_of_the_moment_of_the_call(client: Any) -> None:
    gate, values = threading.Event(), [1, 2]
    client.submit(time.sleep, 0.05)
    future = client.submit(sum, values, pure=False)
    values.append(100)
    gate.set()
    assert future.result() == 3


def test_retries_and_a_later_retry(client: Any) -> None:
    attempts: dict[str, int] = {}
    _ATTEMPTS["it"] = attempts
    assert client.submit(fail_first, "a", 2, retries=3).result() == 3
    short = client.submit(fail_first, "b", 2, retries=1)
    assert isinstance(short.exception(), OSError)
    short.retry()
    assert short.result(timeout=10) == 3
    short.retry()
    assert short.result(timeout=10) == 3, "what has not failed is not tried again"


_ATTEMPTS: dict[str, dict[str, int]] = {}


def fail_first(name: str, failures: int) -> int:
    attempts = _ATTEMPTS["it"]
    attempts[name] = attempts.get(name, 0) + 1
    if attempts[name] <= failures:
        raise OSError(name)
    return attempts[name]


_GATE = threading.Event()


def hold(number: int) -> int:
    _GATE.wait(20)
    return number


def test_cancelling_and_the_same_key_anew(client: Any) -> None:
    _GATE.clear()
    held = [client.submit(hold, number) for number in range(2)]
    waiting = client.submit(increment, 1, key="again")
    dependent = client.submit(increment, waiting)
    waiting.cancel(reason="tidy", msg="not needed")
    assert waiting.cancelled()
    with pytest.raises(CancelledError):
        dependent.result(timeout=10)
    anew = client.submit(increment, 41, key="again")
    _GATE.set()
    assert anew.result(timeout=10) == 42
    assert client.gather(held) == [0, 1]


def test_scatter(client: Any, scheduler: Any) -> None:
    array = np.arange(1000)
    [shared] = client.scatter([array], broadcast=True)
    assert len(client.who_has([shared])[shared.key]) == 2
    assert client.submit(lambda a: int(a.sum()), shared).result() == 499500
    named = client.scatter({"a": 1, "b": [2]}, hash=False)
    assert named["b"].result() == [2] and named["a"].type is int
    assert client.scatter("text").key == client.scatter("text").key
    assert client.gather(client.map(increment, client.scatter([1, 2, 3]))) == [2, 3, 4]
    workers = list(client.scheduler_info(n_workers=-1)["workers"])
    there = client.scatter(array, workers=[workers[1]], hash=False)
    assert client.who_has([there])[there.key] == [workers[1]]


def test_large_arguments_and_data(client: Any, scheduler: Any) -> None:
    array = np.ones(2 * 1024 * 1024)
    assert client.submit(lambda a, b: int(a.sum()) + b, array, 1).result() == array.size + 1
    assert client.get({"data": array, "sum": (np.sum, "data")}, "sum") == array.size
    assert max(len(one) for columns in scheduler.submissions for one in columns["arguments"]) < 10_000
    until(lambda: not scheduler.tasks)


def test_restrictions_name_workers(client: Any, scheduler: Any) -> None:
    addresses = sorted(client.nthreads())
    client.submit(increment, 1, workers=[addresses[1]]).result(timeout=10)
    assert scheduler.submissions[-1]["requirements"] == [(1, {}, ["w1"])]
    with dask.annotate(workers=["127.0.0.1"], resources={"none": 1}):
        parked = client.compute(delayed(abs)(-1))
    client.submit(increment, 2).result(timeout=10)
    [requirement] = [found for columns in scheduler.submissions[-2:] for found in columns["requirements"] or []]
    assert requirement == (1, {"none": 1}, ["w0", "w1"])
    assert parked.status == "pending"
    parked.cancel()


def test_fire_and_forget_runs_without_its_future(client: Any, scheduler: Any) -> None:
    _GATE.clear()
    held = [client.submit(hold, 10 + number) for number in range(2)]
    future = client.submit(increment, 5, key="forgotten")
    fire_and_forget(future)
    del future
    client.submit(increment, 6, key="other", priority=-1)
    _GATE.set()
    client.gather(held)
    until(lambda: "forgotten" in scheduler.runs)
    del held
    until(lambda: not scheduler.tasks)


def test_questions_about_the_cluster(client: Any) -> None:
    info = client.scheduler_info(n_workers=-1)
    assert len(info["workers"]) == 2 and info["services"] == {"dashboard": 8787}
    assert client.scheduler_info()["total_threads"] == 2
    assert sorted(client.ncores()) == sorted(info["workers"]) == sorted(client.processing())
    future = client.submit(increment, 1, key=("k", 1))
    future.result()
    assert client.nbytes(keys=[("k", 1)], summary=False)[("k", 1)] > 0
    assert ("k", 1) in sum(map(list, client.has_what().values()), [])
    assert client.who_has([future])[("k", 1)]
    assert sorted(client.get_versions()) == ["client", "scheduler", "workers"]
    assert len(client.get_worker_logs()) == 2
    client.wait_for_workers(2, timeout=5)
    client.rebalance()
    assert "Client" in repr(client) and client._repr_html_()


def test_run_and_plugins_are_commands(client: Any, scheduler: Any) -> None:
    assert set(client.run(lambda a, b=0: a + b, 2, b=3).values()) == {5}
    [one] = client.run(pow, 2, 5, workers=[sorted(client.nthreads())[0]]).values()
    assert one == 32
    with pytest.raises(ZeroDivisionError):
        client.run(lambda: 1 / 0)
    quiet = client.run(lambda: 1 / 0, on_error="return")
    assert {type(error) for error in quiet.values()} == {ZeroDivisionError}

    class Plugin(WorkerPlugin):
        name = "mine"

    client.register_plugin(Plugin())
    client.unregister_worker_plugin("mine")
    assert [command["op"] for command in scheduler.commands[-2:]] == ["plugin_add", "plugin_remove"]
    assert pickle.loads(scheduler.commands[-1:][0].get("plugin") or pickle.dumps(None)) is None


def test_files_are_uploaded_by_a_command(client: Any, scheduler: Any, tmp_path: Any) -> None:
    (tmp_path / "mod.py").write_text("X = 1\n")
    client.upload_file(str(tmp_path / "mod.py"))
    command = scheduler.commands[-1]
    assert (command["op"], command["name"], command["data"], command["is_loaded"]) == (
        "upload_file",
        "mod.py",
        b"X = 1\n",
        True,
    )
    with pytest.raises(ValueError, match="more than a message"):
        asyncio.run(_too_large(client))


async def _too_large(client: Any) -> None:
    from oxidask._operations.processes import command

    await command(None, bytes(_commands.CONTENT_BYTES_MAX + 1), None, False)


def test_what_ran_in_a_scheduler_runs_in_the_client(client: Any, tmp_path: Any) -> None:
    ident = client.run_on_scheduler(lambda dask_scheduler: (threading.get_ident(), dask_scheduler.address))
    assert ident[1].startswith("oxidask://")
    with pytest.raises(ZeroDivisionError):
        client.run_on_scheduler(lambda: 1 / 0)
    page = tmp_path / "report.html"
    with performance_report(str(page)):
        client.submit(increment, 1).result()
    assert "<table>" in page.read_text()


@pytest.mark.parametrize("call", ["call_stack", "profile", "story"])
def test_what_is_not_there_says_so(client: Any, call: str) -> None:
    with pytest.raises(NotThereError):
        getattr(client, call)()


def test_an_unknown_operation_is_answered(client: Any) -> None:
    with pytest.raises(NotThereError, match="no_such_operation"):
        client.sync(client.scheduler.no_such_operation)


def test_p2p_becomes_tasks_with_one_notice(client: Any) -> None:
    frame = dd.from_pandas(pd.DataFrame({"k": [1, 2] * 20, "v": range(40)}), npartitions=4)
    assert len(frame.shuffle("k", shuffle_method="p2p").compute()) == 40
    assert len(frame.merge(frame, on="k", shuffle_method="p2p").compute()) == 800
    assert int(da.ones((8, 8), chunks=(8, 1)).rechunk((1, 8), method="p2p").sum().compute()) == 64


def test_restart_drops_all(client: Any, scheduler: Any) -> None:
    future = client.submit(increment, 1)
    future.result()
    client.restart()
    until(lambda: future.cancelled())
    assert [command["op"] for command in scheduler.commands][-1] == "replace_processes"
    assert client.submit(increment, 1).result(timeout=10) == 2


def test_two_clients_of_one_process(client: Any, scheduler: Any) -> None:
    with Client(scheduler.address, set_as_default=False) as other:
        assert _owners(client, other) == [client.id, other.id]
        mine, theirs = client.submit(increment, 1, key="same"), other.submit(increment, 1, key="same")
        assert mine.result() == theirs.result() == 2
        assert len(scheduler.sessions) == 2
        assert other.scheduler_info()["total_threads"] == 2
        own = other.submit(increment, 5)
        assert own.result() == 6 and other.gather([own]) == [6]
    assert client.gather([mine]) == [2], "the key stays while one client wants it"
    until(lambda: len(scheduler.sessions) == 1)


def test_a_closed_client_leaves_nothing(scheduler: Any) -> None:
    client = Client(scheduler.address)
    future = client.submit(increment, 1)
    assert future.result() == 2
    client.close()
    until(lambda: not scheduler.sessions and not scheduler.tasks)


def test_asynchronous_clients(scheduler: Any) -> None:
    async def main() -> None:
        async with Client(scheduler.address, asynchronous=True) as client:
            futures = client.map(increment, range(10))
            assert await client.gather(futures) == list(range(1, 11))
            x = da.arange(10, chunks=5).sum()
            assert int(await client.compute(x)) == 45

    asyncio.run(main())


def test_events_of_the_session(client: Any, scheduler: Any) -> None:
    _GATE.clear()
    held = client.submit(hold, 99)
    [session] = scheduler.sessions
    scheduler.tell(session, ("nonsense", 1), ("reconnecting", "gone"), ("notice", "be aware"))
    scheduler.tell(session, ("lost", held.key))
    with pytest.raises(CancelledError):
        held.result(timeout=10)
    _GATE.set()
    failed = client.submit(hold, 98)
    scheduler.tell(session, ("failed", failed.key, "OX349", "signal 9", "hint", [], None))
    until(lambda: failed.done())
    assert client.submit(increment, 1).result() == 2, "bad events do not stop the rest"


def test_a_scheduler_that_refuses(scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import fake_oxidask

    class Refused(fake_oxidask.Session):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.scheduler.sessions.discard(self)
            args[4]([("refused", "OX401", "the certificate is of another cluster", "use the right one")])

    import oxidask._oxidask as module

    monkeypatch.setattr(module, "Session", Refused)
    with pytest.raises(OSError, match="another cluster"):
        Client(scheduler.address, timeout=3)


def test_an_unreachable_scheduler_is_tried_again(scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import fake_oxidask
    import oxidask._oxidask as module

    tries = []

    class Late(fake_oxidask.Session):
        def __init__(self, *args: Any) -> None:
            tries.append(1)
            if len(tries) < 3:
                self.close = lambda: None  # type: ignore[method-assign]
                args[4]([("closed", "nobody listens")])
            else:
                super().__init__(*args)

    monkeypatch.setattr(module, "Session", Late)
    with Client(scheduler.address, timeout=10) as client:
        assert client.submit(increment, 1).result() == 2


def test_why_a_scheduler_is_not_reached_is_said(scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import fake_oxidask
    import oxidask._oxidask as module

    import oxidask._comm as comm

    closed = []

    class Away(fake_oxidask.Session):
        def __init__(self, *args: Any) -> None:
            args[4]([("reconnecting", "nobody listens at fake")])

        def close(self) -> None:
            closed.append(1)

    monkeypatch.setattr(module, "Session", Away)
    monkeypatch.setattr(comm, "UNUSED_SECONDS", 0.0)

    async def main() -> None:
        with pytest.raises(OSError, match="Timed out") as raised:
            await connect(scheduler.address, timeout=0.3)
        assert "nobody listens" in str(raised.value.__cause__) or isinstance(raised.value.__cause__, TimeoutError)
        await asyncio.sleep(0.05)
        assert closed, "nothing goes on in the background"

    asyncio.run(main())


def test_worker_status_is_a_stream(client: Any, scheduler: Any) -> None:
    async def follow() -> Any:
        comm = await connect(scheduler.address)
        await comm.write({"op": "subscribe_worker_status"})
        first = await comm.read()
        await comm.close()
        return first

    assert len(client.sync(follow)["workers"]) == 2


def test_questions_without_a_client(scheduler: Any) -> None:
    from distributed.core import rpc

    async def main() -> None:
        async with rpc(scheduler.address) as remote:
            assert (await remote.identity())["n_workers"] == 2
            async with Client(scheduler.address, asynchronous=True) as client:
                assert await client.submit(increment, 1) == 2
                assert (await remote.identity())["n_workers"] == 2
            assert len(await remote.ncores()) == 2, "it outlives the client"
        assert not scheduler.sessions

    asyncio.run(main())


def test_errors_of_questions_reach_the_caller(client: Any) -> None:
    with pytest.raises(OxidaskError, match="OX999"):
        client.sync(client.scheduler.adaptive_target)


def _owners(*clients: Any) -> list[str]:
    """Whose connections answer the questions of clients."""
    from oxidask._operations import cluster

    found: list[str] = []

    async def processing(connection: Any, message: Any) -> Any:
        found.append(connection.client)
        return {}

    from oxidask import _operations

    handlers = _operations._all_handlers()
    handlers["processing"] = processing
    try:
        for client in clients:
            client.processing()
    finally:
        handlers["processing"] = cluster.processing
    return found


def test_other_versions_of_workers_are_said_once(scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from oxidask import _optimise
    from oxidask._operations import cluster

    async def old(_: Any) -> Any:
        return {"oxidask://w:1": {"python": "3.9.0", "dask": dask.__version__}}

    monkeypatch.setattr(cluster, "versions_of_workers", old)
    monkeypatch.setattr(cluster, "_checked", set())
    with Client(scheduler.address):
        until(lambda: any("3.9.0" in text and "oxidask://w:1" in text for text in _optimise._noticed))


def test_events_of_topics_reach_their_handlers(client: Any, scheduler: Any) -> None:
    heard: list[Any] = []
    client._event_handlers["news"] = heard.append
    [session] = scheduler.sessions
    scheduler.tell(session, ("topic", "news", 12.5, pickle.dumps({"a": 1})))
    until(lambda: heard == [(12.5, {"a": 1})])


def test_a_connection_that_ends_for_good_is_made_anew(client: Any, scheduler: Any) -> None:
    future = client.submit(increment, 1)
    assert future.result() == 2
    [session] = scheduler.sessions
    scheduler.tell(session, ("closed", "away for too long"))
    until(lambda: future.cancelled() and client.status == "running" and len(scheduler.sessions) == 2)
    assert client.submit(increment, 5, pure=False).result(timeout=10) == 6


def fail(text: str) -> None:
    raise ValueError(text)


def test_gather_hears_of_a_failure_before_the_rest_is_done(client: Any) -> None:
    _GATE.clear()
    held = client.submit(hold, 7, pure=False)
    start = time.monotonic()
    with pytest.raises(ValueError, match="early"):
        client.gather([held, client.submit(fail, "early", pure=False)])
    assert time.monotonic() - start < 10
    with pytest.raises(TimeoutError):
        held.result(timeout=0.1)
    cancelled = client.submit(hold, 8, pure=False)
    cancelled.cancel()
    with pytest.raises(CancelledError):
        client.gather([cancelled])
    _GATE.set()
    assert client.gather([held, held, client.submit(increment, 1)]) == [7, 7, 2]
    assert client.gather({"a": [held], "b": (held,)}) == {"a": [7], "b": (7,)}


def test_a_future_that_is_cancelled_while_gathered(client: Any) -> None:
    _GATE.clear()
    held = [client.submit(hold, 20 + number, pure=False) for number in range(3)]
    threading.Timer(0.2, lambda: client.cancel(held[2:])).start()
    with pytest.raises(CancelledError):
        client.gather(held)
    _GATE.set()

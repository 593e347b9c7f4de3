"""A stand-in for the Rust half: a scheduler in this process that runs tasks in threads.

Reads the same columns as the real one. `install()` puts it in place of `oxidask._oxidask`; every
`host:port` is then a cluster of its own. Tasks share the process, so what differs between processes
cannot be tested with it.
"""

from __future__ import annotations

import contextlib
import heapq
import importlib
import itertools
import json
import pickle
import queue
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

WORKERS = ("w0", "w1")
#: Results up to this size come with the news that they are there.
SMALL_BYTES_MAX = 1024


class Credentials:
    """Nothing to know."""

    @staticmethod
    def from_dir(path: str) -> Credentials:
        return Credentials()

    @staticmethod
    def from_pem(ca: bytes, certificate: bytes, key: bytes) -> Credentials:
        return Credentials()


def order(input_counts: list[int], inputs: list[int]) -> list[int]:
    """Tasks as they come: inputs are given first."""
    return list(range(len(input_counts)))


class Task:
    def __init__(self, key: str) -> None:
        self.key = key
        self.state = "waiting"
        self.body: bytes | None = None
        self.arguments = b""
        self.inputs: list[Task] = []
        self.dependents: set[Task] = set()
        self.wants: set[Session] = set()
        self.priority = 0
        self.retries = 0
        self.requirement: tuple[int, dict[str, int], list[str]] | None = None
        self.payload: tuple[int, bytes] | None = None
        self.failure: tuple[str, str, str, list[str], bytes | None] | None = None
        self.number = 0
        self.workers: list[str] = []

    @property
    def is_needed(self) -> bool:
        return bool(self.wants) or any(one.state in ("waiting", "ready", "running") for one in self.dependents)


class Scheduler:
    """All clusters that the tests know, by address."""

    all: dict[str, Scheduler] = {}

    def __init__(self, address: str) -> None:
        self.address = address
        self.lock = threading.RLock()
        self.wake = threading.Condition(self.lock)
        self.tasks: dict[str, Task] = {}
        self.by_number: dict[int, Task] = {}
        self.numbers = itertools.count(1)
        self.ready: list[tuple[int, int, Task]] = []
        self.sessions: set[Session] = set()
        self.runs: list[str] = []
        self.submissions: list[dict[str, Any]] = []
        self.said: queue.SimpleQueue[tuple[Session, list[tuple[Any, ...]]]] = queue.SimpleQueue()
        self.commands: list[dict[str, Any]] = []
        #: Tasks whose results were fetched.
        self.fetched: list[int] = []
        threading.Thread(target=self._speak, daemon=True).start()
        for name in WORKERS:
            threading.Thread(target=self._work, args=(name,), daemon=True).start()

    @classmethod
    def of(cls, address: str) -> Scheduler:
        return cls.all.setdefault(address, cls(address))

    def _speak(self) -> None:
        while True:
            session, events = self.said.get()
            session.on_events(events)

    def tell(self, session: Session, *events: tuple[Any, ...]) -> None:
        self.said.put((session, list(events)))

    def tell_state(self, task: Task, session: Session, *, is_news: bool = False) -> None:
        if task.state == "done":
            kind, data = task.payload if task.payload else (0, b"")
            value = (kind, data) if is_news and 0 < len(data) <= SMALL_BYTES_MAX else ()
            self.tell(session, ("ready", task.key, 1, task.number, len(data), *value))
        elif task.state == "failed" and task.failure is not None:
            code, message, hint, causes, attachment = task.failure
            self.tell(session, ("failed", task.key, code, message, hint, causes, attachment))

    # ---- tasks ----

    def add(self, session: Session, columns: dict[str, Any]) -> None:
        with self.lock:
            self.submissions.append(columns)
            base = len(columns["external"])
            places: list[Task] = [self.tasks.get(key) or Task(key) for key in columns["external"]]
            fresh = []
            counts, inputs = columns["input_counts"], iter(columns["inputs"])
            for position, key in enumerate(columns["keys"]):
                mine = [places[next(inputs)] for _ in range(counts[position])]
                known = self.tasks.get(key)
                if known is not None and known.is_needed and known.state != "cancelled":
                    places.append(known)
                    continue
                task = self.tasks[key] = Task(key)
                task.number = next(self.numbers)
                self.by_number[task.number] = task
                task.body, task.arguments, task.inputs = columns["body"], columns["arguments"][position], mine
                task.priority = (columns["priority"] or {position: 0})[position] if columns["priority"] else 0
                task.retries = columns["retries"][position] if columns["retries"] else 0
                if columns["requirement"] and (place := columns["requirement"][position]):
                    task.requirement = columns["requirements"][place - 1]
                for one in mine:
                    one.dependents.add(task)
                places.append(task)
                fresh.append(task)
            for place in columns["wanted"]:
                task = places[base + place]
                task.wants.add(session)
                self.tell_state(task, session)
            for task in fresh:
                self._consider(task)
            self.wake.notify_all()

    def _consider(self, task: Task) -> None:
        bad = [one for one in task.inputs if one.state in ("failed", "cancelled")]
        if bad and task.state == "waiting":
            if bad[0].state == "cancelled":
                self.cancel_task(task, "dependency", "")
            else:
                self._fail(task, bad[0].failure)
        elif task.state == "waiting" and all(one.state == "done" for one in task.inputs):
            task.state = "ready"
            heapq.heappush(self.ready, (-task.priority, task.number, task))

    def _fits(self, task: Task, worker: str) -> bool:
        if task.requirement is None:
            return True
        _, resources, workers = task.requirement
        return not resources and (not workers or worker in workers)

    def _work(self, worker: str) -> None:
        from oxidask._intern import Table

        while True:
            with self.lock:
                task = None
                while task is None:
                    skipped = []
                    while self.ready:
                        item = heapq.heappop(self.ready)
                        if item[2].state != "ready":
                            continue
                        if self._fits(item[2], worker):
                            task = item[2]
                            break
                        skipped.append(item)
                    for item in skipped:
                        heapq.heappush(self.ready, item)
                    if task is None:
                        self.wake.wait()
                if not task.is_needed:
                    self.drop(task)
                    continue
                task.state = "running"
                self.runs.append(task.key)
            self._run(task, worker, Table)

    def _run(self, task: Task, worker: str, table_type: Any) -> None:
        from distributed.core import error_message
        from oxidask._payload import decode, encode

        try:
            assert task.body is not None
            head, length = task.body[:2]
            assert head == 0 and task.body[2 : 2 + length] == b"python"
            values = [decode(one.payload[0], memoryview(bytearray(one.payload[1]))) for one in task.inputs]
            call = table_type(task.body[2 + length :]).load(task.arguments, values)
            kind, buffers = encode(call())
            payload = kind, b"".join(bytes(memoryview(part).cast("B")) for part in buffers)
        except BaseException as error:
            said = error_message(error)
            attachment = pickle.dumps(
                {
                    "exception": said["exception"].data,
                    "traceback": said["traceback"].data,
                    "text": said["exception_text"],
                    "traceback_text": said["traceback_text"],
                }
            )
            with self.lock:
                if task.state == "running":
                    if task.retries > 0:
                        task.retries -= 1
                        task.state = "waiting"
                        self._consider(task)
                    else:
                        self._fail(task, ("OX310", repr(error), "", [], attachment))
                self.wake.notify_all()
            return
        with self.lock:
            if task.state == "running":
                task.payload, task.state = payload, "done"
                task.workers = [worker]
                for session in task.wants:
                    self.tell_state(task, session, is_news=True)
                for one in list(task.dependents):
                    self._consider(one)
                self._tidy(task)
                for one in task.inputs:
                    self._tidy(one)
            self.wake.notify_all()

    def _fail(self, task: Task, failure: Any) -> None:
        task.state, task.failure = "failed", failure
        for session in task.wants:
            self.tell_state(task, session)
        for one in list(task.dependents):
            self._consider(one)

    def _tidy(self, task: Task) -> None:
        if task.state == "done" and not task.is_needed:
            self.drop(task)

    def drop(self, task: Task) -> None:
        if self.tasks.get(task.key) is task:
            del self.tasks[task.key]
        task.state = "dropped" if task.state != "done" else task.state
        self.by_number.pop(task.number, None)

    def cancel_task(self, task: Task, reason: str, message: str) -> None:
        if task.state == "cancelled":
            return
        task.state = "cancelled"
        for session in task.wants:
            self.tell(session, ("cancelled", task.key, reason, message))
        task.wants.clear()
        self.drop(task)
        task.state = "cancelled"
        for one in list(task.dependents):
            if one.state in ("waiting", "ready"):
                self.cancel_task(one, reason, message)

    # ---- questions ----

    def answer(self, session: Session, question: dict[str, Any], values: list[bytes]) -> tuple[Any, list[bytes]]:
        op = question["op"]
        addresses = {name: f"oxidask://127.0.0.1:{9000 + number}" for number, name in enumerate(WORKERS)}
        if op == "identity":
            workers = [
                {
                    "name": name, "address": address, "host": "127.0.0.1", "group": "", "status": "running",
                    "nthreads": 1, "memory_limit": 2**30, "resources": {}, "last_seen": time.time(), "node": "",
                    "process_id": 1, "metrics": {"executing": 0, "ready": 0, "memory": 1, "managed_bytes": 0,
                                                 "spilled_bytes": 0, "idle_ms": 0},
                }
                for name, address in addresses.items()
            ]  # fmt: skip
            return {
                "id": "fake", "started": 1.0, "dashboard_port": 8787, "total_threads": 2,
                "total_memory": 2**31, "workers": workers,
            }, []  # fmt: skip
        if op in ("ncores", "ncores_running"):
            return {"ncores": {address: 1 for address in addresses.values()}}, []
        with self.lock:
            wanted = question.get("keys")
            known = {key: task for key, task in self.tasks.items() if wanted is None or key in wanted}
            done = {key: task for key, task in known.items() if task.state == "done"}
            if op == "who_has":
                return {"who_has": {key: [addresses[name] for name in task.workers] for key, task in done.items()}}, []
            if op == "nbytes":
                return {"nbytes": {key: len(task.payload[1]) for key, task in done.items()}}, []
            if op == "has_what":
                held = {
                    address: [key for key, task in done.items() if name in task.workers]
                    for name, address in addresses.items()
                }
                return {"has_what": held}, []
            if op == "processing":
                return {"processing": {address: [] for address in addresses.values()}}, []
            if op == "task_status":
                return {
                    "status": {key: {"done": "memory"}.get(task.state, task.state) for key, task in known.items()}
                }, []
        if op == "worker_logs":
            return {"logs": {address: [["INFO", "line"]] for address in addresses.values()}}, []
        if op == "groups":
            return {"groups": [{"name": "inc", "total": 1, "done": 1, "running": 0, "failed": 0, "bytes": 8}]}, []
        if op == "versions":
            return {"scheduler": {"oxidask": "0", "protocol": 1}, "clients": {}}, []
        if op == "restart":
            with self.lock:
                for task in list(self.tasks.values()):
                    task.state = "dropped"
                self.tasks.clear()
                for one in self.sessions:
                    self.tell(one, ("restarted",))
            return {}, []
        if op.startswith("topic_"):
            return {"answer": "done"}, []
        if op == "run":
            return self._command(values[0], question.get("workers"), addresses)
        raise LookupError(op)

    def _command(self, content: bytes, workers: Any, addresses: dict[str, str]) -> tuple[Any, list[bytes]]:
        from oxidask import _commands

        command = pickle.loads(content) if content else {"op": "replace_processes"}
        self.commands.append(command)
        results, found = [], []
        for name, address in addresses.items():
            if workers is not None and name not in workers:
                continue
            try:
                if command["op"] == "run":
                    kwargs = pickle.loads(command["kwargs"]) if command["kwargs"] else {}
                    args = pickle.loads(command["args"]) if command["args"] else ()
                    value = pickle.loads(command["function"])(*args, **kwargs)
                else:
                    value = None
                found.append(_commands.result(value))
            except Exception as error:
                found.append(_commands.failure(error))
            results.append({"address": address, "name": name, "value": len(found) - 1, "fault": None})
        return {"results": results}, found


class Session:
    """What clients see."""

    def __init__(
        self,
        address: str,
        credentials: Any,
        client: str,
        versions: dict[str, str],
        on_events: Any,
        reconnect_seconds: float,
    ) -> None:
        self.scheduler = Scheduler.of(address)
        self.client, self.versions, self.on_events = client, versions, on_events
        self.scheduler.sessions.add(self)
        self.scheduler.tell(self, ("connected",))

    def submit(
        self, keys: Any, body: Any, arguments: Any, groups: Any, group: Any, input_counts: Any, inputs: Any,
        external: Any, wanted: Any, priority: Any = None, retries: Any = None, requirement: Any = None,
        requirements: Any = None,
    ) -> None:  # fmt: skip
        columns = {name: value for name, value in locals().items() if name != "self"}
        assert len(keys) == len(arguments) == len(group) == len(input_counts)
        assert sum(input_counts) == len(inputs)
        assert all(0 <= place < len(groups) for place in group)
        self.scheduler.add(self, columns)

    def want(self, keys: list[str]) -> None:
        with self.scheduler.lock:
            for key in keys:
                task = self.scheduler.tasks.get(key)
                if task is None:
                    self.scheduler.tell(self, ("lost", key))
                else:
                    task.wants.add(self)
                    self.scheduler.tell_state(task, self)

    def release(self, keys: list[str]) -> None:
        with self.scheduler.lock:
            for key in keys:
                task = self.scheduler.tasks.get(key)
                if task is not None:
                    task.wants.discard(self)
                    if task.state in ("failed", "done", "waiting", "ready") and not task.is_needed:
                        self.scheduler.drop(task)

    def cancel(self, keys: list[str], is_forced: bool, reason: str, message: str) -> None:
        with self.scheduler.lock:
            for key in keys:
                task = self.scheduler.tasks.get(key)
                if task is not None:
                    self.scheduler.cancel_task(task, reason, message)

    def retry(self, keys: list[str]) -> None:
        with self.scheduler.lock:
            for key in keys:
                task = self.scheduler.tasks.get(key)
                if task is not None and task.state == "failed":
                    task.state = "waiting"
                    self.scheduler._consider(task)
            self.scheduler.wake.notify_all()

    def ask(self, content: bytes, values: list[bytes], callback: Any) -> None:
        def answer() -> None:
            try:
                found, more = self.scheduler.answer(self, json.loads(content), values)
            except LookupError as error:
                callback(("OX999", f"no such question: {error}", "ask another one"), b"", [])
            else:
                callback(None, json.dumps(found).encode(), more)

        threading.Thread(target=answer, daemon=True).start()

    def fetch(self, tasks: list[tuple[int, int]], callback: Any) -> None:
        found = []
        with self.scheduler.lock:
            for _, number in tasks:
                self.scheduler.fetched.append(number)
                task = self.scheduler.by_number.get(number)
                found.append(task.payload if task is not None else None)

        def answer() -> None:
            for index, payload in enumerate(found):
                if payload is None:
                    callback(index, None, ("OX105", "no such result", ""))
                else:
                    callback(index, payload[0], memoryview(bytearray(payload[1])))

        threading.Thread(target=answer, daemon=True).start()

    def put(self, key: str, kind: int, buffers: list[Any], workers: list[str], is_shared: bool, callback: Any) -> None:
        payload = kind, b"".join(bytes(memoryview(part).cast("B")) for part in buffers)
        with self.scheduler.lock:
            task = self.scheduler.tasks[key] = Task(key)
            task.number = next(self.scheduler.numbers)
            self.scheduler.by_number[task.number] = task
            task.payload, task.state = payload, "done"
            task.workers = list(WORKERS) if is_shared else list(workers[:1] or WORKERS[:1])
            task.wants.add(self)
            self.scheduler.tell_state(task, self)
        threading.Thread(target=callback, args=(None,), daemon=True).start()

    def close(self) -> None:
        self.scheduler.sessions.discard(self)
        with self.scheduler.lock:
            for task in list(self.scheduler.tasks.values()):
                if self in task.wants:
                    task.wants.discard(self)
                    if not task.is_needed and task.state != "running":
                        self.scheduler.drop(task)


def install() -> None:
    """Take the place of the Rust half for the rest of the process."""
    _kept.append(installed())
    _kept[-1].__enter__()


#: Contexts that nobody leaves.
_kept: list[Any] = []


def provide_module() -> Any:
    """The module of the Rust half; an empty one if it is not built."""
    try:
        return importlib.import_module("oxidask._oxidask")
    except ImportError:
        module: Any = types.ModuleType("oxidask._oxidask")
        module.__version__ = "0"
        module.Credentials, module.Session, module.order = Credentials, Session, order
        sys.modules["oxidask._oxidask"] = module
        return module


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Take the place of the Rust half, and let `distributed` know the scheme."""
    module = provide_module()
    from distributed.comm.registry import backends

    from oxidask import _client
    from oxidask._comm import Backend

    before = {name: getattr(module, name, None) for name in ("Session", "Credentials", "order")}
    found, backend = _client.credentials, backends.get("oxidask")
    module.Session, module.Credentials, module.order = Session, Credentials, order
    _client.credentials = lambda *_: Credentials()
    backends["oxidask"] = Backend()
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
        _client.credentials = found
        if backend is None:
            backends.pop("oxidask", None)
        else:
            backends["oxidask"] = backend

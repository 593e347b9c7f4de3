"""Tables of callables and arguments of tasks: what is written is what is read."""

from __future__ import annotations

import operator
import pickle
import sys
import threading
import types
from typing import Any

import cloudpickle
import numpy as np
import pytest
from dask._task_spec import Alias, DataNode, Dict, List, Task, TaskRef

from oxidask import _commands
from oxidask._intern import CannotPickle, Table, TableWriter, forget_callables, input_marker
from oxidask._record import RecordWriter


def increment(x: int) -> int:
    return x + 1


def run(writer: TableWriter, arguments: bytes, inputs: Any = ()) -> Any:
    return Table(writer.content()).load(arguments, inputs)()


def test_a_callable_is_in_the_table_once() -> None:
    writer = TableWriter()
    made = [lambda x: x * 3 for _ in range(2)]
    arguments = [writer.call(function, (number,), {}) for number in range(50) for function in made]
    table = Table(writer.content())
    assert len(table._entries) == 1, "equal code is one entry, whatever object it is"
    assert [table.load(one, ())() for one in arguments[::2]] == [number * 3 for number in range(50)]
    assert max(map(len, arguments)) < 32


def test_inputs_are_put_in_where_they_are_named() -> None:
    writer = TableWriter()
    array = np.arange(4)
    arguments = writer.call(dict, ([input_marker(1), {"deep": input_marker(0)}],), {})
    assert len(arguments) < 80
    with pytest.raises(Exception, match="dictionary update sequence|length"):
        run(writer, arguments, [1, 2])
    arguments = writer.call(lambda *args, **kwargs: (args, kwargs), (input_marker(0),), {"b": [input_marker(1)]})
    args, kwargs = run(writer, arguments, [array, "two"])
    assert args[0] is array and kwargs == {"b": ["two"]}


@pytest.mark.parametrize(
    "value",
    [
        1,
        "ä",
        None,
        2.5,
        b"x",
        (1, [2, {"a": {3}}]),
        np.arange(3),
        2**200,
        slice(1, None),
        Ellipsis,
        np.float32,
        increment,
    ],
)
def test_arguments_come_back_as_they_were(value: Any) -> None:
    writer = TableWriter()
    back = run(writer, writer.call(lambda x, **_: x, (value,), {"same": value}))
    assert type(back) is type(value)
    assert np.array_equal(back, value) if isinstance(value, np.ndarray) else back == value


def test_classes_of_main_travel_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("__main__")
    exec("class Own:\n    def __init__(self, x): self.x = x\n    def get(self): return self.x\n", module.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", module)
    writer = TableWriter()
    arguments = writer.call(operator.methodcaller("get"), (module.Own(7),), {})
    content = writer.content()
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    forget_callables()
    assert Table(content).load(arguments, ())() == 7


def test_modules_registered_by_value_travel_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_here")
    exec("def double(x): return x * 2\n", module.__dict__)
    module.double.__module__ = "only_here"
    monkeypatch.setitem(sys.modules, "only_here", module)
    cloudpickle.register_pickle_by_value(module)
    try:
        writer = TableWriter()
        arguments, content = writer.call(module.double, (4,), {}), writer.content()
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    monkeypatch.delitem(sys.modules, "only_here")
    forget_callables()
    assert Table(content).load(arguments, ())() == 8


def test_what_cannot_be_pickled_says_why() -> None:
    writer = TableWriter()
    with pytest.raises(CannotPickle) as raised:
        writer.call(increment, (threading.Lock(),), {})
    assert "lock" in str(raised.value.__cause__)
    assert run(writer, writer.call(increment, (1,), {})) == 2, "the writer goes on"


def test_other_forms_are_refused() -> None:
    with pytest.raises(ValueError, match="different versions"):
        Table(b"\x07" + pickle.dumps([]))
    with pytest.raises(ValueError, match="different versions"):
        Table(TableWriter().content()).load(b"\x07", ())


def record(node: Any, values: dict[Any, Any], constants: dict[Any, Any] | None = None) -> tuple[Any, list[Any]]:
    writer = RecordWriter(TableWriter(), lambda key: key, constants or {})
    arguments, inputs = writer.write(node)
    return Table(writer.table.content()).load(arguments, [values[key] for key in inputs])(), inputs


def test_a_plain_task_has_its_inputs_in_place() -> None:
    value, inputs = record(Task("k", operator.sub, TaskRef(("a", 0)), TaskRef("b")), {("a", 0): 7, "b": 2})
    assert value == 5 and inputs == [("a", 0), "b"]


def test_nested_nodes_become_containers_and_steps() -> None:
    node = Task(
        "k",
        lambda a, b: (a, b),
        List(TaskRef("x"), Task(None, operator.neg, TaskRef("x")), Dict({"y": TaskRef("y")})),
        b=Task(None, sum, List(TaskRef("x"), 10)),
    )
    value, inputs = record(node, {"x": 3, "y": 4})
    assert value == ([3, -3, {"y": 4}], 13) and inputs == ["x", "y"]


def test_fused_tasks_run_their_parts_once_and_in_order() -> None:
    ran: list[str] = []

    def step(name: str, *values: int) -> int:
        ran.append(name)
        return sum(values)

    parts = [
        Task("a", step, "a", TaskRef("in")),
        Task("b", step, "b", Alias("a"), 1),
        Task("c", step, "c", Alias("a"), Alias("b")),
    ]
    fused = Task.fuse(parts[2], parts[0], parts[1], key="out")
    writer = RecordWriter(TableWriter(), lambda key: key, {})
    arguments, inputs = writer.write(fused)
    table = Table(writer.table.content())
    call = table.load(arguments, [5])
    assert inputs == ["in"] and call() == 11
    outer = Task.fuse(fused, Task("in", operator.add, TaskRef("far"), 0), key="all")
    value, inputs = record(outer, {"far": 5})
    assert value == 11 and inputs == ["far"]


def test_fused_tasks_of_any_depth() -> None:
    parts = [Task(0, increment, TaskRef("start"))] + [Task(n, increment, TaskRef(n - 1)) for n in range(1, 3000)]
    value, inputs = record(Task.fuse(*parts), {"start": 0})
    assert value == 3000 and inputs == ["start"]


def test_data_aliases_and_constants() -> None:
    assert record(DataNode("k", [1, 2]), {}) == ([1, 2], [])
    assert record(Alias("k", "other"), {"other": 9}) == (9, ["other"])
    assert record(Task("k", operator.add, TaskRef("c"), TaskRef("x")), {"x": 1}, {"c": 41}) == (42, ["x"])


def test_large_values_go_by_themselves() -> None:
    large = np.ones(2 * 1024 * 1024)
    writer = RecordWriter(TableWriter(), lambda key: key, {})
    arguments, inputs = writer.write(Task("k", lambda a, b: a.sum() + b, large, TaskRef("b")))
    assert len(arguments) < 1000 and len(writer.values) == 1
    values = {**writer.values, "b": 1}
    assert Table(writer.table.content()).load(arguments, [values[key] for key in inputs])() == large.size + 1


def test_results_of_commands_come_back() -> None:
    assert _commands.read_result(_commands.result({"a": 1})) == {"status": "OK", "result": {"a": 1}}
    try:
        raise KeyError("gone")
    except KeyError as error:
        said = _commands.read_result(_commands.failure(error))
    assert said["status"] == "error" and isinstance(said["exception"], KeyError) and said["traceback"] is not None

"""Graphs as submissions: culling, aliases, cutting, annotations."""

from __future__ import annotations

import operator
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import pandas as pd
import pytest
from dask import delayed
from dask._task_spec import Alias, Task, TaskRef, convert_legacy_graph
from distributed.client import _MapExpr

from oxidask import _graph
from oxidask._annotations import Annotations, remember_frames
from oxidask._graph import Prepared, prepare, prepare_graph
from oxidask._keys import KeyNames, wire_key


@pytest.fixture(autouse=True)
def _order(scheduler: Any) -> None:
    """The stand-in gives the order."""


def prepared_graph(graph: dict[Any, Any], *keys: Any, **everywhere: Any) -> Prepared:
    return prepare_graph(convert_legacy_graph(graph), set(keys), Annotations(everywhere), KeyNames())


def tasks(prepared: Prepared) -> dict[str, list[str]]:
    """Each task with its inputs, over all submissions."""
    found = {}
    for submission in prepared.submissions:
        names = submission.external + submission.keys
        places = iter(submission.inputs)
        for position, (key, count) in enumerate(zip(submission.keys, submission.input_counts, strict=True)):
            mine = [next(places) for _ in range(count)]
            assert all(place < len(submission.external) + position for place in mine), "inputs come first"
            found[key] = [names[place] for place in mine]
    return found


def test_only_what_is_needed_is_sent() -> None:
    graph = {"a": (operator.neg, 1), "b": (operator.neg, "a"), "unused": (operator.neg, "a"), ("t", 0): (abs, "b")}
    prepared = prepared_graph(graph, ("t", 0))
    assert tasks(prepared) == {"a": [], "b": ["a"], "('t', 0)": ["b"]}
    assert prepared.wanted == ["('t', 0)"] and prepared.names == {"('t', 0)": ("t", 0)}
    [submission] = prepared.submissions
    assert [submission.keys[place] for place in submission.wanted] == ["('t', 0)"]
    assert submission.body[:8] == b"\0\x06python" and submission.groups == ["a", "b", "t"]


def test_aliases_are_no_tasks() -> None:
    graph = {
        "data": Task("data", list, (1, 2)),
        "middle": Alias("middle", "data"),
        "sum": Task("sum", sum, TaskRef("middle")),
        "wanted": Alias("wanted", "sum"),
    }
    prepared = prepare_graph(graph, {"wanted"}, Annotations(), KeyNames())
    assert tasks(prepared) == {"data": [], "wanted": ["data"]}


def test_an_alias_of_what_is_wanted_or_elsewhere_stands_beside_it() -> None:
    graph = {"sum": Task("sum", sum, (1, 2)), "one": Alias("one", "sum"), "far": Alias("far", "elsewhere")}
    prepared = prepare_graph(graph, {"sum", "one", "far"}, Annotations(), KeyNames())
    assert tasks(prepared) == {"sum": [], "one": ["sum"], "far": ["elsewhere"]}


def test_two_aliases_of_one_task_run_it_once() -> None:
    graph = {"t": Task("t", sum, (1, 2)), "one": Alias("one", "t"), "two": Alias("two", "t")}
    found = tasks(prepare_graph(graph, {"one", "two"}, Annotations(), KeyNames()))
    assert sorted(map(len, found.values())) == [0, 1] and set(found) == {"one", "two"}


def test_a_key_that_stands_for_itself_is_only_wanted() -> None:
    prepared = prepare_graph({"k": Alias("k")}, {"k"}, Annotations(), KeyNames())
    assert prepared.submissions == [] and prepared.wanted == ["k"]


def test_small_data_is_put_into_tasks() -> None:
    assert tasks(prepared_graph({"x": 1, "y": (operator.add, "x", 2)}, "y")) == {"y": []}
    assert tasks(prepared_graph({"x": 1, "y": (operator.add, "x", 2)}, "x", "y")) == {"x": [], "y": ["x"]}


def test_large_graphs_are_cut_and_keep_what_later_parts_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_graph, "SUBMISSION_TASKS_MAX", 10)
    graph: dict[Any, Any] = {("p", i): (operator.mul, i, i) for i in range(25)}
    graph["sum"] = (sum, [("p", i) for i in range(25)])
    prepared = prepared_graph(graph, "sum")
    assert [len(submission.keys) for submission in prepared.submissions] == [10, 10, 6]
    assert sorted(tasks(prepared)["sum"]) == sorted(f"('p', {i})" for i in range(25))
    assert len(prepared.bridges) == 20 and "sum" not in prepared.bridges
    for submission in prepared.submissions[:-1]:
        assert len(submission.wanted) == 10, "what is needed later must not go before"


def test_submissions_are_cut_by_size() -> None:
    graph = {f"k{i}": (len, bytes(400_000)) for i in range(40)}
    prepared = prepared_graph(graph, *graph)
    sizes = [submission.nbytes for submission in prepared.submissions]
    assert len(sizes) >= 4 and max(sizes) < 2 * _graph.SUBMISSION_AIM_BYTES


def test_a_large_function_travels_once() -> None:
    large = bytes(6 * 1024 * 1024)
    expr = _MapExpr(lambda x: x + large[0], [range(100)], key="add", pure=False, annotations={}, kwargs={})
    [submission] = prepare(expr, list(expr.keys), {}, KeyNames()).submissions
    assert len(submission.keys) == 100 and len(large) < len(submission.body) < 2 * len(large)


def test_a_map_of_plain_values_needs_no_nodes() -> None:
    expr = _MapExpr(operator.neg, [range(1000)], key="neg", pure=True, annotations={}, kwargs={})
    keys = list(expr.keys)
    [submission] = prepare(expr, keys, {}, KeyNames()).submissions
    assert submission.keys == keys and submission.groups == ["neg"] and submission.wishes is None
    assert sum(map(len, submission.arguments)) < 25_000 and len(submission.wanted) == 1000


def test_annotations_of_a_call() -> None:
    call = {"workers": [("host", 80), 5], "resources": {"GPU": 0.5}, "priority": 3, "retries": 2}
    [submission] = prepared_graph({"a": (abs, -1)}, "a", **call).submissions
    assert submission.wishes is not None
    [wishes] = submission.wishes
    assert wishes.workers == ("5", "host:80") and wishes.resources == (("GPU", 1),)
    assert (wishes.priority, wishes.retries) == (3, 2)
    [submission] = prepared_graph({"a": (abs, -1)}, "a", workers=["x"], allow_other_workers=True).submissions
    assert submission.wishes is None or not submission.wishes[0].is_restricted


def _of(collection: Any) -> dict[str, Any]:
    """What holds for the tasks of a collection, by key."""
    from dask.base import collections_to_expr
    from dask.core import flatten

    expr = collections_to_expr([collection]).optimize()
    prepared = prepare(expr, set(flatten(expr.__dask_keys__())), {}, KeyNames())
    return {
        key: wishes
        for submission in prepared.submissions
        for key, wishes in zip(submission.keys, submission.wishes or [], strict=True)
    }


def test_annotations_of_arrays_survive_fusing() -> None:
    with dask.annotate(resources={"GPU": 1}, retries=2):
        x = da.ones((8, 8), chunks=4).map_blocks(lambda block: block * 2)
    found = _of((x + 1).sum())
    assert sum(wishes.resources == (("GPU", 1),) for wishes in found.values()) == 4
    assert max(wishes.retries for wishes in found.values()) == 2


def test_annotations_of_frames_survive() -> None:
    remember_frames()
    frame = dd.from_pandas(pd.DataFrame({"a": range(20)}), npartitions=4)
    with dask.annotate(resources={"GPU": 2}):
        marked = frame.map_partitions(lambda part: part + 1)
    found = _of(marked.a.sum())
    assert sum(wishes.resources == (("GPU", 2),) for wishes in found.values()) == 4


def test_annotations_of_delayed() -> None:
    with dask.annotate(priority=lambda key: 7, workers=["w1"]):
        one = delayed(abs)(-1)
    found = _of(one + 1)
    assert sorted((wishes.priority, wishes.workers) for wishes in found.values()) == [(0, ()), (7, ("w1",))]


def test_frames_are_fused_and_shared_parts_stay_shared() -> None:
    from dask.base import collections_to_expr
    from dask.core import flatten

    frame = dd.from_pandas(pd.DataFrame({"a": range(40), "b": [1, 2] * 20}), npartitions=8)
    plain = (frame[frame.a > 3].a + 1).sum()

    def count(*collections: Any) -> int:
        expr = collections_to_expr(collections).optimize()
        return len(tasks(prepare(expr, set(flatten(expr.__dask_keys__())), {}, KeyNames())))

    assert count(plain) <= 8 + 9
    both = frame.map_partitions(lambda part: part + 1)
    assert count(both.a.sum(), both.b.sum()) <= 4 * 8 + 2


def test_p2p_graphs_are_refused_with_what_to_do() -> None:
    class P2PBarrierTask(Task):
        pass

    with pytest.raises(NotImplementedError, match="tasks"):
        prepared_graph({"b": P2PBarrierTask("b", abs, 1)}, "b")


def test_an_unneeded_node_is_not_even_pickled() -> None:
    import threading

    assert tasks(prepared_graph({"a": (abs, 1), "lock": (id, threading.Lock())}, "a")) == {"a": []}


def test_keys_go_there_and_back() -> None:
    names = KeyNames()
    for key in ["x", ("x", 1), ("a", ("b", 2.5)), 5, 2.5, "('x', 1)x", "ä", ("é", -1)]:
        assert names.from_wire(names.to_wire(key)) == key
    assert KeyNames().from_wire("('x', 1)") == ("x", 1), "keys of other clients are read"
    assert KeyNames().from_wire("(odd, 1)") == "(odd, 1)"
    assert wire_key(("x", 1)) == "('x', 1)"
    names.forget(["5"])
    assert names.from_wire("5") == "5"
    assert names.to_wire("") == "''" and names.from_wire("''") == ""


def test_long_keys_are_cut_and_stay_apart() -> None:
    names = KeyNames()
    keys = ["ä" * 600 + end for end in "ab"] + [("x" * 2000, 1)]
    wires = names.all_to_wire(keys)
    assert len(set(wires)) == 3 and max(len(wire.encode()) for wire in wires) <= 1024
    assert [names.from_wire(wire) for wire in wires] == keys


def test_functions_that_capture_too_much_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_graph, "BODY_BYTES_MAX", 1000)
    captured = b"x" * 2000
    with pytest.raises(ValueError, match="capture"):
        prepared_graph({"a": (lambda: captured,)}, "a")

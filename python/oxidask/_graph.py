"""From a collection or call of Dask to submissions.

Owns materialising, culling, resolving aliases, ordering and cutting of graphs, in the thread of the
user: what they pass is pickled when they pass it, and what cannot be pickled fails there. The result,
`Prepared`, has the columns of one or more submissions. Never sends anything, never changes a graph's
results: keys that were asked for keep their names.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dask._task_spec import Alias, DataNode, GraphNode, TaskRef, convert_legacy_graph, parse_input
from dask.utils import key_split

from oxidask import _annotations
from oxidask._annotations import NO_WISHES, Annotations, Wishes
from oxidask._intern import ATOMS, TableWriter
from oxidask._keys import KeyNames, wire_key
from oxidask._optimise import materialised, optimised
from oxidask._record import ARGUMENTS_LARGE_BYTES, RecordWriter

#: A submission is cut when its arguments have so many bytes; a message has at most 64 MiB.
SUBMISSION_AIM_BYTES = 4 * 1024 * 1024
#: A submission is cut when its functions have so many bytes: the next one has those of its tasks again.
SUBMISSION_BODY_BYTES = 24 * 1024 * 1024
#: A submission is cut when it has so many tasks.
SUBMISSION_TASKS_MAX = 50_000
#: Data in a graph above this size is sent like scattered data.
DATA_LARGE_BYTES = 8 * 1024 * 1024
#: Texts up to this length are repeated in the tasks that need them.
CONSTANT_BYTES_MAX = 256
#: The functions of a submission have at most so many bytes.
BODY_BYTES_MAX = 50 * 1024 * 1024
#: Names of groups have at most so many characters.
GROUP_CHARACTERS_MAX = 200
#: What a task takes besides its key and arguments.
_TASK_BYTES = 24
_BODY_HEAD = b"\0\x06python"


@dataclass
class Submission:
    """Columns of tasks, see `_oxidask.Session.submit`. Inputs of a task come before it."""

    keys: list[str] = field(default_factory=list)
    body: bytes = b""
    arguments: list[bytes] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    group: list[int] = field(default_factory=list)
    input_counts: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    external: list[str] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    wishes: list[Wishes] | None = None

    @property
    def nbytes(self) -> int:
        """About the size of the message."""
        return len(self.body) + sum(map(len, self.arguments)) + sum(map(len, self.keys)) + _TASK_BYTES * len(self.keys)


@dataclass
class Prepared:
    """A graph as it is sent."""

    submissions: list[Submission]
    #: Keys that the user asked for, as on the wire.
    wanted: list[str]
    #: Keys that are not texts, by how they are sent.
    names: dict[str, Any]
    #: Values that go by themselves, before the submissions.
    values: dict[str, Any] = field(default_factory=dict)
    #: Keys that are wanted only until all is sent.
    bridges: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """About the size of all messages."""
        return sum(submission.nbytes for submission in self.submissions)


class _Cutter:
    """Puts tasks into submissions, in order."""

    def __init__(self, names: KeyNames, wanted: set[Any], is_uniform: bool) -> None:
        self.table = TableWriter()
        self.done: list[Submission] = []
        self.bridges: set[str] = set()
        self._names = names
        self._wanted = wanted
        self._is_uniform = is_uniform
        self._current = Submission(wishes=None if is_uniform else [])
        self._bytes = 0
        self._places: dict[Any, tuple[int, int]] = {}
        self._external: dict[Any, int] = {}
        self._groups: dict[str, int] = {}
        self._links: list[list[Any]] = []

    @property
    def is_full(self) -> bool:
        """Whether the next task belongs into another submission."""
        tasks = len(self._current.keys)
        return tasks > 0 and (
            tasks >= SUBMISSION_TASKS_MAX
            or self._bytes >= SUBMISSION_AIM_BYTES
            or self.table.content_bytes >= SUBMISSION_BODY_BYTES
        )

    def add(self, key: Any, group: str, arguments: bytes, inputs: list[Any], wishes: Wishes) -> None:
        """Append a task; its arguments refer to the present table."""
        current = self._current
        position = len(current.keys)
        wire = self._names.to_wire(key) if key in self._wanted else wire_key(key)
        current.keys.append(wire)
        current.arguments.append(arguments)
        place = self._groups.setdefault(group, len(self._groups))
        if place == len(current.groups):
            current.groups.append(group.encode(errors="backslashreplace").decode())
        current.group.append(place)
        current.input_counts.append(len(inputs))
        self._links.append(inputs)
        for needed in inputs:
            found = self._places.get(needed)
            if found is None or found[0] != len(self.done):
                self._external.setdefault(needed, len(self._external))
                if found is not None:
                    self._bridge(needed, found)
        if current.wishes is not None:
            current.wishes.append(wishes)
        if key in self._wanted:
            current.wanted.append(position)
        self._places[key] = (len(self.done), position)
        self._bytes += len(arguments) + len(wire) + _TASK_BYTES

    def _bridge(self, key: Any, found: tuple[int, int]) -> None:
        """A key of an earlier submission stays wanted until this one is sent."""
        wire = wire_key(key)
        if key not in self._wanted and wire not in self.bridges:
            self.bridges.add(wire)
            self.done[found[0]].wanted.append(found[1])

    def cut(self) -> None:
        """End the present submission."""
        current, number = self._current, len(self.done)
        if not current.keys:
            return
        current.external = [wire_key(key) for key in self._external]
        shift = len(current.external)
        for inputs in self._links:
            for needed in inputs:
                found = self._places.get(needed)
                is_here = found is not None and found[0] == number
                current.inputs.append(shift + found[1] if is_here else self._external[needed])  # type: ignore[index]
        current.body = _BODY_HEAD + self.table.content()
        if len(current.body) > BODY_BYTES_MAX:
            raise ValueError(
                f"the functions of these tasks have {len(current.body):,} bytes, more than fit a message "
                f"({BODY_BYTES_MAX:,}): do not let them capture large values, pass those as arguments"
            )
        self.done.append(current)
        self.table = TableWriter()
        self._current = Submission(wishes=None if self._is_uniform else [])
        self._bytes, self._external, self._groups, self._links = 0, {}, {}, []


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
    """Making a graph makes nothing but live objects: looking for garbage meanwhile takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def prepare(expr: Any, keys: Iterable[Any], everywhere: dict[str, Any], names: KeyNames) -> Prepared:
    """The submissions of an expression; `everywhere` are the annotations of all of its tasks."""
    from distributed.client import _MapExpr

    wanted = set(keys)
    with _without_collecting():
        if type(expr) is _MapExpr:
            annotations = Annotations(everywhere=everywhere)
            if annotations.is_uniform:
                prepared = _prepare_map(expr, wanted, annotations.of_all(), names)
                if prepared is not None:
                    return prepared
        by_layer = _annotations.of_expression(expr)
        expr, called = optimised(expr)
        graph, by_key = materialised(expr)
        graph = convert_legacy_graph(graph)
        graph.update({key: Alias(key, new) for key, new in called.items() if key in wanted and key not in graph})
        return prepare_graph(graph, wanted, Annotations(everywhere, by_key, by_layer), names)


def _prepare_map(expr: Any, wanted: set[Any], wishes: Wishes, names: KeyNames) -> Prepared | None:
    """A map over values, without a node per task; nothing if there are futures among them."""
    rows = list(zip(*expr.iterables, strict=False))
    kwargs = expr.kwargs
    if any(not _is_small(value) for value in kwargs.values()):
        return None
    are_atoms = not kwargs and all(type(value) in ATOMS for row in rows for value in row)
    if not are_atoms and not all(type(value) in ATOMS or parse_input(value) is value for row in rows for value in row):
        return None
    cutter = _Cutter(names, wanted, wishes is NO_WISHES)
    function, place, group, key_before = expr.func, cutter.table.place(expr.func), "", None
    for key, row in zip(expr.keys, rows, strict=False):
        if cutter.is_full:
            cutter.cut()
            place = cutter.table.place(function)
        if key_before is None or not _is_like(key, key_before):
            group = key_split(key)[:GROUP_CHARACTERS_MAX]
        key_before = key
        table = cutter.table
        arguments = table.plain_call(place, row) if are_atoms else table.call(function, row, kwargs)
        if len(arguments) > ARGUMENTS_LARGE_BYTES:
            return None
        cutter.add(key, group, arguments, [], wishes)
    cutter.cut()
    return Prepared(cutter.done, names.all_to_wire(wanted), _odd_names(wanted))


def _odd_names(keys: Iterable[Any]) -> dict[str, Any]:
    """Keys that are not texts, by how they are sent."""
    return {wire: key for key in keys if (wire := wire_key(key)) is not key}


def _is_like(key: Any, before: Any) -> bool:
    """Whether two keys of a map differ in their token only."""
    return type(key) is str and type(before) is str and len(key) == len(before) and key[:-33] == before[:-33]


def prepare_graph(graph: dict[Any, Any], wanted: set[Any], annotations: Annotations, names: KeyNames) -> Prepared:
    """The submissions of a low-level graph."""
    _refuse_what_is_not_there(graph)
    resolve = _resolver(graph, wanted)
    constants = {
        key: node.value
        for key, node in graph.items()
        if type(node) is DataNode and key not in wanted and _is_small(node.value)
    }
    order = _in_order(graph, wanted, resolve, constants)
    uniform = annotations.of_all() if annotations.is_uniform else None
    cutter = _Cutter(names, wanted, uniform is NO_WISHES)
    values: dict[str, Any] = {}
    writer = RecordWriter(cutter.table, resolve, constants)
    writer.values = values
    for key in order:
        node = graph[key]
        if cutter.is_full:
            cutter.cut()
            writer.table = cutter.table
        if type(node) is DataNode and _is_large(node.value):
            values[names.to_wire(key) if key in wanted else wire_key(key)] = node.value
            continue
        arguments, inputs = writer.write(node)
        wishes = uniform if uniform is not None else annotations.of(key, node)
        cutter.add(key, key_split(key)[:GROUP_CHARACTERS_MAX], arguments, inputs, wishes)
    cutter.cut()
    return Prepared(cutter.done, names.all_to_wire(wanted), _odd_names(wanted), values, list(cutter.bridges))


def _is_small(value: Any) -> bool:
    """Whether a value is put into the tasks that need it, rather than being a task."""
    return type(value) in ATOMS and (type(value) not in (bytes, str) or len(value) <= CONSTANT_BYTES_MAX)


def _is_large(value: Any) -> bool:
    if type(value) in ATOMS and type(value) not in (bytes, str):
        return False
    from dask.sizeof import sizeof

    return int(sizeof(value)) > DATA_LARGE_BYTES


def _refuse_what_is_not_there(graph: dict[Any, Any]) -> None:
    """Say at once what would fail on a worker much later."""
    for node in graph.values():
        if type(node).__name__ == "P2PBarrierTask":
            raise NotImplementedError(
                "this graph shuffles or rechunks by 'p2p', which oxidask does not have yet: make the collection "
                "with dask.config.set({'dataframe.shuffle.method': 'tasks', 'array.rechunk.method': 'tasks'})"
            )


def _resolver(graph: dict[Any, Any], wanted: set[Any]) -> Callable[[Any], Any]:
    """The key that a key stands for. Aliases go; a wanted alias takes the place of its target."""
    moved: dict[Any, Any] = {}

    def target(key: Any) -> Any:
        seen = []
        while True:
            if key in moved:
                key = moved[key]
            else:
                node = graph.get(key)
                if type(node) is Alias and node.target != key and key not in wanted:
                    seen.append(key)
                    key = node.target
                elif isinstance(node, TaskRef) and node.key != key and key not in wanted:
                    seen.append(key)
                    key = node.key
                else:
                    break
            if len(seen) > len(graph):
                raise ValueError(f"the graph has a cycle of aliases at {key!r}")
        for alias in seen:
            moved[alias] = key
        return key

    for key in wanted:
        node = graph.get(key)
        if type(node) is not Alias:
            continue
        if node.target == key:
            # It stands for itself: a result that is there already.
            del graph[key]
            continue
        end = target(node.target)
        if end in graph and end not in wanted and type(graph[end]) is not Alias:
            # The task is renamed: the alias needs no task of its own, and no copy.
            graph[key] = graph.pop(end)
            moved[end] = key
    return target


def _in_order(
    graph: dict[Any, Any], wanted: set[Any], resolve: Callable[[Any], Any], constants: dict[Any, Any]
) -> list[Any]:
    """The keys that are needed, inputs first, in an order that keeps few results at a time."""
    needs: dict[Any, list[Any]] = {}
    order: list[Any] = []
    stack = [(key, False) for key in wanted if key in graph]
    while stack:
        key, is_left = stack.pop()
        if is_left:
            order.append(key)
            continue
        if key in needs:
            continue
        node = graph[key]
        if not isinstance(node, GraphNode):
            node = graph[key] = Alias(key, node.key) if isinstance(node, TaskRef) else DataNode(key, node)
        found = {resolve(need) for need in node.dependencies}
        needs[key] = here = [need for need in found if need in graph and need not in constants]
        stack.append((key, True))
        stack.extend((need, False) for need in here if need not in needs)
    if len(order) < 3:
        return order
    from oxidask._oxidask import order as positions_of

    places = {key: place for place, key in enumerate(order)}
    counts, inputs = [], []
    for key in order:
        here = needs[key]
        counts.append(len(here))
        inputs.extend(places[need] for need in here)
    positions = positions_of(counts, inputs)
    ordered: list[Any] = [None] * len(order)
    for position, key in zip(positions, order, strict=True):
        ordered[position] = key
    return ordered

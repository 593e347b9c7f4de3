"""Nodes of Dask graphs as the arguments of tasks.

Owns how a node is taken apart: an ordinary task becomes one call whose inputs are put in as its
arguments are read; a fused task, or one with tasks in its arguments, becomes steps in order. Aliases
vanish on the way. Values too large for a message are handed back, to be sent by themselves. Never
decides which nodes there are (`_graph`), never pickles by itself (`_intern`).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from dask._task_spec import Alias, DataNode, Dict, GraphNode, List, Set, Task, TaskRef, Tuple, _execute_subgraph

from oxidask._intern import ATOMS, Marker, TableWriter, build, identity, input_marker, run_node, step_marker

#: Arguments of one task above this many bytes are searched for values to send by themselves.
ARGUMENTS_LARGE_BYTES = 8 * 1024 * 1024
#: Values of at least this size are then sent by themselves.
VALUE_LARGE_BYTES = 1024 * 1024
#: Arguments of one task must fit a message.
ARGUMENTS_BYTES_MAX = 48 * 1024 * 1024

_CONTAINERS = {List: list, Tuple: tuple, Set: set, Dict: dict}
_Steps = list[tuple[Any, tuple[Any, ...], dict[str, Any]]]


class RecordWriter:
    """Writes the arguments of tasks, with callables in one table."""

    def __init__(self, table: TableWriter, resolve: Callable[[Any], Any], constants: dict[Any, Any]) -> None:
        self.table = table
        #: Values to send by themselves, by the key under which tasks read them.
        self.values: dict[str, Any] = {}
        self._resolve = resolve
        self._constants = constants
        self._inputs: dict[Any, int] = {}
        self._markers: list[Marker] = []
        self._steps: _Steps = []

    def write(self, node: GraphNode) -> tuple[bytes, list[Any]]:
        """The arguments of a node, and the keys of its inputs in their order."""
        self._inputs, self._steps = {}, []
        result = self._argument(node, None)
        steps = self._steps
        if not steps or not _is_step(result) or result.link[0] != len(steps) - 1:
            steps.append((identity, (result,), {}))
        arguments = self._dump(steps)
        if len(arguments) > ARGUMENTS_LARGE_BYTES:
            arguments = self._dump([self._without_large_values(step) for step in steps])
            if len(arguments) > ARGUMENTS_BYTES_MAX:
                raise ValueError(
                    f"the arguments of task {node.key!r} have {len(arguments):,} bytes, more than fit a message "
                    f"({ARGUMENTS_BYTES_MAX:,}): send large values by client.scatter and pass the future"
                )
        return arguments, list(self._inputs)

    def _dump(self, steps: _Steps) -> bytes:
        if len(steps) == 1:
            return self.table.call(*steps[0])
        return self.table.steps(_with_ends(steps))

    def _without_large_values(self, step: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> tuple[Any, ...]:
        function, args, kwargs = step
        return (
            function,
            tuple(self._smaller(value) for value in args),
            {name: self._smaller(value) for name, value in kwargs.items()},
        )

    def _smaller(self, value: Any) -> Any:
        from dask.sizeof import sizeof

        if type(value) is Marker or sizeof(value) < VALUE_LARGE_BYTES or _has_markers(value):
            return value
        key = f"large-argument-{uuid.uuid4().hex}"
        self.values[key] = value
        return self._input(key)

    def _input(self, key: Any) -> Marker:
        position = self._inputs.setdefault(key, len(self._inputs))
        while position >= len(self._markers):
            self._markers.append(input_marker(len(self._markers)))
        return self._markers[position]

    def _reference(self, key: Any, known: dict[Any, Any] | None) -> Any:
        if known is not None and key in known:
            return known[key]
        key = self._resolve(key)
        return self._constants[key] if key in self._constants else self._input(key)

    def _argument(self, value: Any, known: dict[Any, Any] | None) -> Any:
        """The value with markers in place of references; tasks in it become steps."""
        kind = type(value)
        if kind in ATOMS:
            return value
        if kind is Task:
            return self._task(value, known)
        if kind is Alias:
            return self._reference(value.target, known)
        if kind is DataNode:
            return value.value
        if kind in _CONTAINERS:
            return self._container(_CONTAINERS[kind], value.args, known)
        if isinstance(value, TaskRef):
            return self._reference(value.key, known)
        if isinstance(value, GraphNode):
            keys = tuple(value.dependencies)
            return self._step(run_node, (value, keys, *(self._reference(key, known) for key in keys)), {})
        return value

    def _step(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Marker:
        self._steps.append((function, args, kwargs))
        return step_marker(len(self._steps) - 1)

    def _container(self, kind: type, parts: tuple[Any, ...], known: dict[Any, Any] | None) -> Any:
        values = tuple(self._argument(part, known) for part in parts)
        if any(_is_step(value) for value in values):
            return self._step(build, (kind, *values), {})
        return build(kind, *values)

    def _task(self, task: Task, known: dict[Any, Any] | None) -> Any:
        if task.func is _execute_subgraph and len(task.args) >= 3 and not task.kwargs:
            return self._fused(task, known)
        args = tuple(self._argument(value, known) for value in task.args)
        kwargs = {name: self._argument(value, known) for name, value in task.kwargs.items()} if task.kwargs else {}
        return self._step(task.func, args, kwargs)

    def _fused(self, task: Task, outer: dict[Any, Any] | None) -> Any:
        nodes, last, names = task.args[:3]
        known = {name: self._argument(value, outer) for name, value in zip(names, task.args[3:], strict=True)}
        for key in _in_order(nodes, last, known):
            node = nodes[key]
            known[key] = self._argument(node, known)
        return known[last]


def _is_step(value: Any) -> bool:
    return type(value) is Marker and type(value.link) is tuple


def _has_markers(value: Any) -> bool:
    """Whether a container that was built here has markers in it."""
    if type(value) is Marker:
        return True
    if type(value) is dict:
        return any(_has_markers(part) for part in value.values())
    return type(value) in (list, tuple, set) and any(_has_markers(part) for part in value)


def _in_order(nodes: dict[Any, Any], last: Any, known: dict[Any, Any]) -> list[Any]:
    """The nodes that the last one needs, inputs first."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack = [(last, False)]
    while stack:
        key, is_left = stack.pop()
        if is_left:
            order.append(key)
        elif key not in seen and key not in known and key in nodes:
            seen.add(key)
            stack.append((key, True))
            node = nodes[key]
            if isinstance(node, GraphNode):
                stack.extend((need, False) for need in node.dependencies)
    return order


def _with_ends(steps: _Steps) -> list[tuple[Any, tuple[Any, ...], dict[str, Any], tuple[int, ...]]]:
    """The steps, each with those whose results nobody needs after it."""
    last_use: dict[int, int] = {}
    for position, (_, args, kwargs) in enumerate(steps):
        for value in (*args, *kwargs.values()):
            if _is_step(value):
                last_use[value.link[0]] = position
    freed: dict[int, list[int]] = {}
    for step, position in last_use.items():
        freed.setdefault(position, []).append(step)
    return [(*step, tuple(freed.get(position, ()))) for position, step in enumerate(steps)]

"""What users said about their tasks: workers, resources, priority, retries.

Owns reading annotations of calls, collections and layers, and keeping those that Dask itself drops:
fusing array layers forgets them, so they are found again by the names of the layers that a task was
made of; data frames forget them when they are made, so `remember_frames` notes them. Never talks to
the scheduler: which worker a host or an address means is found out later.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

from dask._task_spec import Task, _execute_subgraph

from oxidask._when_loaded import when_loaded

PRIORITY_MAX = 2**31 - 1
_KINDS = ("workers", "allow_other_workers", "resources", "priority", "retries")


@dataclass(frozen=True)
class Wishes:
    """What holds for one task."""

    workers: tuple[str, ...] = ()
    resources: tuple[tuple[str, int], ...] = ()
    priority: int = 0
    retries: int = 0

    @property
    def is_restricted(self) -> bool:
        """Whether not every worker will do."""
        return bool(self.workers or self.resources)


NO_WISHES = Wishes()


@dataclass
class Annotations:
    """Annotations of a graph: for all tasks, for single keys, and for layers by name."""

    everywhere: dict[str, Any] = field(default_factory=dict)
    by_key: dict[str, dict[Any, Any]] = field(default_factory=dict)
    by_layer: dict[str, dict[str, Any]] = field(default_factory=dict)
    _cache: dict[Any, Wishes] = field(default_factory=dict)

    @property
    def is_uniform(self) -> bool:
        """Whether the same holds for all tasks."""
        callables = any(callable(value) for value in self.everywhere.values())
        return not (self.by_key or self.by_layer or callables)

    def of_all(self) -> Wishes:
        """What holds for each task, if it is the same for all."""
        return _wishes(self.everywhere)

    def of(self, key: Any, node: Any) -> Wishes:
        """What holds for a task; parts that were fused into it count."""
        found = dict(self.everywhere)
        for kind, values in self.by_key.items():
            if key in values:
                found[kind] = values[key]
        if self.by_layer:
            for name in _layer_names(key, node):
                for kind, value in self.by_layer.get(name, {}).items():
                    found[kind] = _merged(kind, found.get(kind), value(key) if callable(value) else value)
        for kind, value in found.items():
            if callable(value):
                found[kind] = value(key)
        return _wishes(found)


def _layer_names(key: Any, node: Any) -> Iterator[str]:
    """The names of the layers that a task comes from."""
    yield key[0] if type(key) is tuple and key else key
    if type(node) is Task and node.func is _execute_subgraph and node.args and isinstance(node.args[0], dict):
        for inner, part in node.args[0].items():
            yield from _layer_names(inner, part)


def _merged(kind: str, before: Any, value: Any) -> Any:
    """One value of two that hold for the same task."""
    if before is None:
        return value
    if kind == "resources":
        return {name: max(before.get(name, 0), value.get(name, 0)) for name in {**before, **value}}
    if kind in ("priority", "retries"):
        return max(before, value)
    return value


def _wishes(found: dict[str, Any]) -> Wishes:
    if not found:
        return NO_WISHES
    workers = found.get("workers") or ()
    if isinstance(workers, (str, Number)):
        workers = (workers,)
    if found.get("allow_other_workers"):
        workers = ()
    resources = found.get("resources") or {}
    priority = found.get("priority") or 0
    return Wishes(
        workers=tuple(sorted({_worker_text(worker) for worker in workers})),
        resources=tuple(sorted((str(name), max(math.ceil(amount), 0)) for name, amount in resources.items())),
        priority=int(max(-PRIORITY_MAX, min(PRIORITY_MAX, round(priority)))),
        retries=int(max(0, found.get("retries") or 0)),
    )


def _worker_text(worker: Any) -> str:
    if isinstance(worker, (tuple, list)):
        return ":".join(str(part) for part in worker)
    return str(worker)


def of_expression(expr: Any) -> dict[str, dict[str, Any]]:
    """Annotations of the layers of an expression by layer name, also of layers that will be fused."""
    from dask._expr import Expr, HLGExpr

    found: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    stack = [expr]
    while stack:
        part = stack.pop()
        if id(part) in seen or not isinstance(part, Expr):
            continue
        seen.add(id(part))
        if isinstance(part, HLGExpr):
            _note_layers(part, found)
        elif (noted := _NOTED.get(part._name)) is not None:
            found[part._name] = noted
        stack.extend(operand for operand in part.operands if isinstance(operand, Expr))
    return found


def _note_layers(part: Any, found: dict[str, dict[str, Any]]) -> None:
    from dask.highlevelgraph import MaterializedLayer

    hlg = part.hlg
    layers = getattr(hlg, "layers", None) or {}
    noted = {name: layer.annotations for name, layer in layers.items() if getattr(layer, "annotations", None)}
    if not noted:
        return
    for name, said in noted.items():
        found[str(name)] = {kind: value for kind, value in said.items() if kind in _KINDS}
    if all(isinstance(layer, MaterializedLayer) for layer in layers.values()):
        return
    # Blockwise layers that become one carry the annotations of all of them under the last one's name.
    from dask.blockwise import optimize_blockwise
    from dask.core import flatten

    try:
        fused = optimize_blockwise(hlg, keys=list(flatten(part.__dask_keys__())))
    except Exception:  # graphs of other libraries need not be blockwise
        return
    for name, layer in fused.layers.items():
        if layer.annotations:
            found[str(name)] = {kind: value for kind, value in layer.annotations.items() if kind in _KINDS}


#: Annotations of expressions of data frames by the name of the expression.
_NOTED: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


class _Noted(dict):  # type: ignore[type-arg]
    """A dictionary that can be referred to weakly."""


def remember_frames() -> None:
    """Note annotations when data frames are made; Dask has no place for them. Done once."""
    when_loaded("dask.dataframe.dask_expr._collection", _remember_frames)


def _remember_frames() -> None:
    from dask.dataframe.dask_expr import _collection

    base = _collection.FrameBase
    if getattr(base.__init__, "_oxidask", False):
        return
    plain = base.__init__

    @functools.wraps(plain)
    def noted(self: Any, expr: Any, *args: Any, **kwargs: Any) -> None:
        from dask import get_annotations

        kept = {kind: value for kind, value in get_annotations().items() if kind in _KINDS}
        if kept:
            import warnings

            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Dask annotations")
                plain(self, expr, *args, **kwargs)
            # The expression keeps the note alive; names of expressions are unique by content.
            note = _Noted(kept)
            expr.__dict__["_oxidask_annotations"] = note
            _NOTED[expr._name] = note
        else:
            plain(self, expr, *args, **kwargs)

    noted._oxidask = True  # type: ignore[attr-defined]
    base.__init__ = noted

"""What is done to collections before their graph is made.

Owns fusing of data frames, which Dask's own `compute` leaves out, and turning shuffles and rechunks
that ask for `p2p` into tasks, and materialising. Whatever fails in fusing leaves the expression as it is.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import dask
from dask.core import flatten

logger = logging.getLogger("oxidask")

#: What is set when a client is made: shuffles and rechunks by tasks.
CONFIG = {"dataframe.shuffle.method": "tasks", "array.rechunk.method": "tasks"}

_noticed: set[str] = set()


def notice_once(text: str) -> None:
    """Tell the user something once per process."""
    if text not in _noticed:
        _noticed.add(text)
        warnings.warn(text, UserWarning, stacklevel=2)


def set_config() -> None:
    """Shuffle and rechunk by tasks; say so if something else was asked for."""
    for name, method in CONFIG.items():
        if dask.config.get(name, None) == "p2p":
            notice_once(f"{name} is 'p2p', which oxidask does not have yet: it uses tasks instead")
        if dask.config.get(name, None) in (None, "p2p", "disk"):
            dask.config.set({name: method})


def optimised(expr: Any) -> tuple[Any, dict[Any, Any]]:
    """The expression with blocks of data frames fused, and what keys that were asked for are called in it."""
    if "dask.dataframe.dask_expr._expr" not in sys.modules:
        return expr, {}  # It has no data frames, and loading what makes them takes more than a second.
    try:
        from dask._expr import _ExprSequence
        from dask.dataframe.dask_expr._expr import Expr as FrameExpr
        from dask.dataframe.dask_expr._expr import optimize_blockwise_fusion
    except ImportError:
        return expr, {}
    is_sequence = isinstance(expr, _ExprSequence)
    if not (isinstance(expr, FrameExpr) or is_sequence and any(isinstance(op, FrameExpr) for op in expr.operands)):
        return expr, {}
    if dask.config.get("optimization.fuse.active", None) is False:
        return expr, {}
    try:
        # The root is fused as a whole, so that what two collections share is still made once.
        fused = optimize_blockwise_fusion(expr)
        before, after = list(flatten(expr.__dask_keys__())), list(flatten(fused.__dask_keys__()))
        if len(before) == len(after):
            # An expression is called by what it is made of, so what stands on fused blocks has another name.
            return fused, {key: new for key, new in zip(before, after, strict=True) if key != new}
    except Exception:  # an unfused graph gives the same results
        logger.debug("fusing failed", exc_info=True)
    return expr, {}


def materialised(expr: Any) -> tuple[dict[Any, Any], dict[str, dict[Any, Any]]]:
    """The graph of an expression, which may hold more than is needed, and its annotations by kind and key."""
    from dask._expr import HLGExpr, _HLGExprSequence

    parts = list(expr.operands) if type(expr) is _HLGExprSequence else [expr]
    if all(type(part) is HLGExpr and _only_culls(part.low_level_optimizer) for part in parts):
        # Delayed calls: each is a layer, and all that optimising does is to look at each for what is not needed.
        graph: dict[Any, Any] = {}
        by_key: dict[str, dict[Any, Any]] = {}
        for part in parts:
            for layer in part.hlg.layers.values():
                graph.update(getattr(layer, "mapping", layer))
                for kind, value in (layer.annotations or {}).items():
                    found = by_key.setdefault(kind, {})
                    found.update({key: value(key) if callable(value) else value for key in layer})
        return graph, by_key
    graph = expr.__dask_graph__()
    return graph, {kind: values for kind, values in expr.__dask_annotations__().items() if values}


def _only_culls(optimizer: Any) -> bool:
    """Whether an optimizer is that of `dask.delayed`."""
    return getattr(optimizer, "__module__", "") == "dask.delayed" and getattr(optimizer, "__name__", "") == "optimize"

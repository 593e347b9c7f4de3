"""Shuffles and rechunks by tasks where `p2p` was asked for.

Owns the three places of Dask where `p2p` is chosen: while the current client is one of oxidask,
tasks are chosen instead, and the user is told once. Other clients of the same process are not
affected. `p2p` needs plugins in scheduler and workers that only Dask's own have.
"""

from __future__ import annotations

import functools
from typing import Any

from oxidask._optimise import notice_once
from oxidask._when_loaded import when_loaded

NOTICE = "'p2p' was asked for, which oxidask does not have yet: it uses tasks instead"


def _is_ours() -> bool:
    from distributed.client import _get_global_client

    client = _get_global_client()
    return client is not None and bool(getattr(client, "_oxidask_is_set_up", False))


def use_tasks() -> None:
    """Set it up; done once per process."""
    # A release that does it otherwise: such graphs are refused when they are submitted.
    when_loaded("dask.dataframe.dask_expr._merge", _for_merges)
    when_loaded("dask.dataframe.dask_expr._shuffle", _for_shuffles)
    when_loaded("distributed.shuffle", _for_arrays)


def _for_merges() -> None:
    from dask.dataframe.dask_expr._merge import Merge

    _lowered_by_tasks(Merge, "shuffle_method")


def _for_shuffles() -> None:
    from dask.dataframe.dask_expr._shuffle import Shuffle

    _lowered_by_tasks(Shuffle, "method")


def _lowered_by_tasks(kind: Any, parameter: str) -> None:
    plain = kind._lower
    if getattr(plain, "_oxidask", False):
        return

    @functools.wraps(plain)
    def lower(self: Any) -> Any:
        if parameter in self._parameters and self.operand(parameter) == "p2p" and _is_ours():
            notice_once(NOTICE)
            return plain(self.substitute_parameters({parameter: "tasks"}))
        return plain(self)

    lower._oxidask = True  # type: ignore[attr-defined]
    kind._lower = lower


def _for_arrays() -> None:
    import distributed.shuffle as shuffle

    plain = shuffle.rechunk_p2p
    if getattr(plain, "_oxidask", False):
        return

    @functools.wraps(plain)
    def rechunk(x: Any, chunks: Any, **kwargs: Any) -> Any:
        if not _is_ours():
            return plain(x, chunks, **kwargs)
        from dask.array.rechunk import rechunk as by_tasks

        notice_once(NOTICE)
        return by_tasks(x, chunks, method="tasks", **kwargs)

    rechunk._oxidask = True  # type: ignore[attr-defined]
    shuffle.rechunk_p2p = rechunk

"""Progress bars of `distributed`.

Owns the answers to `feed` as far as progress bars ask: they send functions for a scheduler in Python,
which there is none; what they want to know the client knows by itself. Any other `feed` is refused.
Counts the futures that were given, not the tasks behind them. Changes nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import pickle
import time
from collections import Counter
from typing import Any

from dask.utils import parse_timedelta

from oxidask._errors import NotThereError
from oxidask._operations import NO_ANSWER

_BARS = "distributed.diagnostics.progressbar"
#: Looking takes at most this share of the time.
_LOOK_SHARE_MAX = 0.05
_INTERVAL_SECONDS_MIN = 0.02


async def feed(message: dict[str, Any], comm: Any) -> Any:
    """The conversation becomes a stream of how far the futures are."""
    setup = pickle.loads(message["setup"]) if message.get("setup") else None
    if getattr(setup, "__module__", None) != _BARS:
        raise NotThereError(
            "'feed' is not there: the scheduler has no Python", "use client.log_event and client.get_events"
        )
    asked = inspect.getclosurevars(setup).nonlocals
    interval = max(parse_timedelta(message.get("interval") or "100ms", "s"), _INTERVAL_SECONDS_MIN)
    while not comm.closed():
        started = time.monotonic()
        told = progress(asked["keys"], asked.get("group_by"), "group_by" in asked)
        comm.push([told])
        if told["status"] != "pending":
            break
        await asyncio.sleep(max(interval, (time.monotonic() - started) / _LOOK_SHARE_MAX))
    return NO_ANSWER


def progress(keys: Any, group_by: Any, has_groups: bool) -> dict[str, Any]:
    """How far these keys are, in the form of the functions that progress bars send."""
    futures = _futures(keys)
    states = {key: futures[key].status if key in futures else "finished" for key in keys}
    failed = next((key for key, state in states.items() if state in {"error", "cancelled", "lost"}), None)
    open_keys = [key for key, state in states.items() if state == "pending"]
    status = "error" if failed is not None else "pending" if open_keys else "finished"
    told: dict[str, Any]
    if has_groups:
        group = group_by if callable(group_by) else str
        total, remaining = Counter(map(group, keys)), Counter(map(group, open_keys))
        told = {"all": dict(total), "remaining": {name: remaining[name] for name in total}, "status": status}
    else:
        told = {"all": len(states), "remaining": len(open_keys), "status": status}
    if failed is not None:
        error = getattr(futures[failed], "exception", None) or RuntimeError(f"{failed!r} was {states[failed]}")
        told.update(exception=error, traceback=None, key=failed)
    return told


def _futures(keys: Any) -> Any:
    """The states of futures, of the client of this process that knows most of these."""
    from distributed import Client

    known = [client.futures for client in list(Client._instances)]
    return max(known, key=lambda futures: sum(key in futures for key in keys), default={})

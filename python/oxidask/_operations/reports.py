"""What Dask does with Python in its scheduler, done in the client instead.

Owns `run_on_scheduler` (XGBoost starts its tracker that way) and performance reports. The scheduler
has no Python, so functions run in a thread of this process: what they start lives as long as the
client, and is reached at the client's host. They get a small stand-in for the scheduler.
"""

from __future__ import annotations

import asyncio
import html
import inspect
import pickle
import time
from types import SimpleNamespace
from typing import Any

from distributed.core import error_message


async def run_function(connection: Any, message: dict[str, Any]) -> dict[str, Any]:
    """Run a function in this process, in place of the scheduler's."""
    function = pickle.loads(message["function"])
    args = pickle.loads(message["args"]) if message.get("args") else ()
    kwargs = pickle.loads(message["kwargs"]) if message.get("kwargs") else {}
    if "dask_scheduler" in _parameters(function):
        await connection.workers.refresh()
        kwargs["dask_scheduler"] = _stand_in(connection)
    try:
        if inspect.iscoroutinefunction(function):
            work = function(*args, **kwargs)
        else:
            work = asyncio.to_thread(function, *args, **kwargs)
        if not message.get("wait", True):
            task = asyncio.ensure_future(work)
            connection.tasks.add(task)
            task.add_done_callback(connection.tasks.discard)
            return {"status": "OK", "result": None}
        return {"status": "OK", "result": await work}
    except Exception as error:  # it is the user's
        said = error_message(error)
        return {
            **said,
            "exception": said["exception"].data,
            "traceback": said["traceback"].data if said["traceback"] is not None else None,
        }


def _parameters(function: Any) -> Any:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ()


def _stand_in(connection: Any) -> Any:
    """What functions may ask of `dask_scheduler`."""
    told = connection.workers.as_dask(-1)
    return SimpleNamespace(
        address=told["address"],
        id=told["id"],
        workers={
            address: SimpleNamespace(address=address, **_plain(info)) for address, info in told["workers"].items()
        },
        monitor=SimpleNamespace(count=0),
        plugins={},
        total_nthreads=told["total_threads"],
    )


def _plain(info: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in info.items() if name != "address"}


async def get_task_stream(_: Any, message: dict[str, Any]) -> list[Any]:
    """Single tasks are not kept; the dashboard has them by group."""
    return []


async def performance_report(connection: Any, message: dict[str, Any]) -> str:
    """A page about the work of this time: groups of tasks and workers."""
    groups, _ = await connection.ask("groups")
    told = await connection.workers.refresh()
    seconds = time.time() - message.get("start", time.time())
    columns = ("name", "total", "done", "running", "failed", "bytes")
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(group.get(name, '')))}</td>" for name in columns) + "</tr>"
        for group in groups["groups"]
    )
    workers = "".join(
        f"<tr><td>{html.escape(worker['name'])}</td><td>{html.escape(worker['address'])}</td>"
        f"<td>{worker['nthreads']}</td><td>{worker['memory_limit']:,}</td></tr>"
        for worker in told.get("workers", ())
    )
    head = "".join(f"<th>{name}</th>" for name in columns)
    return (
        "<!DOCTYPE html><html><head><meta charset='utf-8'><title>Performance report</title>"
        "<style>body{font-family:sans-serif;margin:2em}table{border-collapse:collapse}"
        "td,th{border:1px solid #ccc;padding:.3em .6em;text-align:left}</style></head><body>"
        f"<h1>Performance report</h1><p>Duration: {seconds:.2f} s. Workers: {len(told.get('workers', ()))}. "
        f"Slots: {told.get('total_threads', 0)}.</p>"
        f"<h2>Tasks by group</h2><table><tr>{head}</tr>{rows}</table>"
        "<h2>Workers</h2><table><tr><th>name</th><th>address</th><th>slots</th><th>memory</th></tr>"
        f"{workers}</table><h2>Code</h2><pre>{html.escape(str(message.get('code') or ''))}</pre></body></html>"
    )


HANDLERS = {
    "run_function": run_function,
    "get_task_stream": get_task_stream,
    "performance_report": performance_report,
}

"""The operations that a client asks a scheduler for.

Owns which function answers which `op`. A handler is `async def handler(connection, message)`; what
it returns is the answer, what it raises becomes an error at the caller. Operations that are not
there, and those that Dask has and oxidask has not, are refused here with a clear text.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from oxidask._errors import NotThereError

Handler = Callable[[Any, dict[str, Any]], Awaitable[Any]]

#: What a handler returns that answers in its own way.
NO_ANSWER = object()

_NOT_THERE = {
    "register_nanny_plugin": ("plugins for nannies are not there: workers have none", "use a WorkerPlugin"),
    "unregister_nanny_plugin": ("plugins for nannies are not there: workers have none", "use a WorkerPlugin"),
    "unregister_scheduler_plugin": ("plugins for the scheduler are not there: it has no Python", ""),
    "actor_execute": ("actors are not there on oxidask", "keep state in a worker plugin or a variable"),
    "actor_attribute": ("actors are not there on oxidask", "keep state in a worker plugin or a variable"),
    "restart_workers": (
        "single workers cannot be restarted",
        "retire them: a cluster with adaptive scaling starts new ones",
    ),
    "profile": ("profiles of workers are not there yet", "see the dashboard or `oxidask top`"),
    "call_stack": ("call stacks of tasks are not there yet", ""),
    "get_story": ("the story of a key is not there", "see `oxidask explain`"),
    "dump_cluster_state_to_url": ("dumps of the cluster's state are not there", ""),
    "get_cluster_state": ("dumps of the cluster's state are not there", "see `oxidask status` and `oxidask explain`"),
    "get_task_stream_index": ("streams of single tasks are not there", "see the dashboard or performance_report"),
    "memory_sampler_start": ("samples of the memory are not there", "see the dashboard or the scheduler's metrics"),
    "amm_handler": ("there is no active memory manager to switch", "results go as soon as nobody wants them"),
    "benchmark_hardware": ("benchmarks of the hardware are not there", ""),
    "start_task_metadata": ("metadata of tasks is not there", ""),
    "stop_task_metadata": ("metadata of tasks is not there", ""),
    "get_runspec": ("the call of a failed task cannot be fetched: the scheduler has no Python", ""),
    "get_error_cause": ("the cause of an error cannot be fetched: the scheduler has no Python", ""),
}

_handlers: dict[str, Handler] | None = None


def _all_handlers() -> dict[str, Handler]:
    global _handlers
    if _handlers is None:
        from oxidask._operations import cluster, coordination, data, processes, reports

        _handlers = {}
        for module in (coordination, cluster, data, processes, reports):
            _handlers.update(module.HANDLERS)
    return _handlers


async def answer(connection: Any, message: dict[str, Any], comm: Any) -> Any:
    """The answer to a message."""
    op = message.get("op")
    if op == "subscribe_worker_status":
        from oxidask._operations import cluster

        return await cluster.subscribe_worker_status(connection, message, comm)
    if op == "feed":
        from oxidask._operations import progress

        return await progress.feed(message, comm)
    handler = _all_handlers().get(op)  # type: ignore[arg-type]
    if handler is not None:
        return await handler(connection, message)
    if op in _NOT_THERE:
        raise NotThereError(*_NOT_THERE[op])
    raise NotThereError(f"the operation {op!r} is not there on oxidask")


def stream_handler(op: Any) -> Handler | None:
    """The handler of a message of the client's stream that nobody waits for."""
    from oxidask._operations import coordination

    return coordination.HANDLERS.get(op) if op in coordination.STREAM_OPERATIONS else None


def topic_value(content: bytes) -> Any:
    """What was said about a topic."""
    from oxidask._operations import coordination

    return coordination.topic_value(content)


async def versions_warning(connection: Any) -> str | None:
    """What to warn a client about when it connects."""
    from oxidask._operations import cluster

    return await cluster.versions_warning(connection)

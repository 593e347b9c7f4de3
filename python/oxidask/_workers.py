"""What the cluster's workers are called.

Owns the identity of the cluster as it was last told, and names for what users call workers: an
address, a name, a host. Asks the scheduler when something is new. Never decides where a task runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oxidask._connection import Connection


class Workers:
    """The workers of a cluster, as last told."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.identity: dict[str, Any] = {}
        self._names: dict[str, list[str]] = {}

    def know(self, texts: Iterable[str]) -> bool:
        """Whether all of these are known."""
        return all(text in self._names for text in texts)

    async def refresh(self) -> dict[str, Any]:
        """Ask who is there."""
        self.identity, _ = await self._connection.ask("identity")
        names: dict[str, list[str]] = {}
        for worker in self.identity.get("workers", ()):
            for text in {worker["address"], worker["address"].split("://")[-1], worker["name"], worker["host"]}:
                names.setdefault(text, []).append(worker["name"])
        self._names = names
        return self.identity

    def names_of(self, texts: Iterable[str]) -> list[str]:
        """Names of workers; what nobody is called by stays, so that the task waits for such a worker."""
        found: dict[str, None] = {}
        for text in texts:
            for name in self._names.get(text) or self._names.get(text.split("://")[-1]) or [text]:
                found[name] = None
        return list(found)

    async def known_names(self, texts: Iterable[Any] | None) -> list[str]:
        """`names_of` with the latest of what is known; nothing means all workers."""
        if texts is None:
            return []
        texts = [":".join(map(str, text)) if isinstance(text, (tuple, list)) else str(text) for text in texts]
        if not self.know(texts):
            await self.refresh()
        return self.names_of(texts)

    def as_dask(self, limit: int) -> dict[str, Any]:
        """The identity in the form of `distributed`; `limit` workers, or all if it is negative."""
        told = self.identity
        host, port = _host_and_port(self._connection.address)
        workers = told.get("workers", [])
        shown = workers if limit < 0 else workers[:limit]
        services = {"dashboard": told["dashboard_port"]} if told.get("dashboard_port") else {}
        return {
            "type": "Scheduler",
            "id": f"Scheduler-{told.get('id', '')}",
            "address": f"oxidask://{host}:{port}",
            "services": services,
            "started": told.get("started", 0.0),
            "n_workers": len(workers),
            "total_threads": told.get("total_threads", 0),
            "total_memory": told.get("total_memory", 0),
            "workers": {worker["address"]: _worker_as_dask(worker) for worker in shown},
        }


def _host_and_port(address: str) -> tuple[str, str]:
    host, _, port = address.split("://")[-1].rpartition(":")
    return host, port


def _worker_as_dask(worker: dict[str, Any]) -> dict[str, Any]:
    metrics = worker.get("metrics") or {}
    status = {"suspect": "paused"}.get(worker["status"], worker["status"])
    return {
        "type": "Worker",
        "id": worker["name"],
        "name": worker["name"],
        "host": worker["host"],
        "group": worker.get("group", ""),
        "node": worker.get("node", ""),
        "nthreads": worker["nthreads"],
        "memory_limit": worker["memory_limit"],
        "resources": worker.get("resources") or {},
        "last_seen": worker.get("last_seen", time.time()),
        "local_directory": "",
        "services": {},
        "nanny": None,
        "status": status,
        "metrics": {
            "task_counts": {"executing": metrics.get("executing", 0), "ready": metrics.get("ready", 0)},
            "executing": metrics.get("executing", 0),
            "ready": metrics.get("ready", 0),
            "memory": metrics.get("memory", 0),
            "managed_bytes": metrics.get("managed_bytes", 0),
            "spilled_bytes": {"memory": metrics.get("spilled_bytes", 0), "disk": metrics.get("spilled_bytes", 0)},
            "cpu": 0.0,
            "in_flight": 0,
            "in_memory": 0,
            "bandwidth": {"total": 0, "workers": {}, "types": {}},
            "host_net_io": {"read_bps": 0, "write_bps": 0},
            "event_loop_interval": 0.0,
            "time": worker.get("last_seen", 0.0),
        },
    }

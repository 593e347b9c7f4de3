"""Operations about the cluster: who is there, what is where, coming and going of workers.

Owns turning questions of `distributed` into those of the scheduler, and the answers back. Nothing is
kept here. Whatever the runtime does by itself (balancing) is answered as done.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from dask.utils import key_split, parse_timedelta
from distributed.versions import get_versions

from oxidask import _commands
from oxidask._optimise import notice_once
from oxidask._versions import mismatch, own_versions

logger = logging.getLogger("oxidask")

#: How often workers are looked at for those who listen to their coming and going.
STATUS_SECONDS = 1.0
#: How long workers may take to tell their versions; they may have to start Python first.
VERSIONS_SECONDS = 60.0
RESTART_SECONDS_DEFAULT = 120.0

_checked: set[str] = set()


async def identity(connection: Any, message: dict[str, Any]) -> dict[str, Any]:
    """Who is there; `n_workers` of them, all if it is negative."""
    await connection.workers.refresh()
    return connection.workers.as_dask(message.get("n_workers", -1))


def _wires(connection: Any, message: dict[str, Any]) -> list[str] | None:
    keys = message.get("keys")
    return None if keys is None else connection.names.all_to_wire(keys)


async def _worker_names(connection: Any, message: dict[str, Any]) -> list[str] | None:
    workers = message.get("workers")
    if workers is None or workers is True:
        return None
    if isinstance(workers, str):
        workers = [workers]
    return await connection.workers.known_names(workers)


async def _by_key(connection: Any, op: str, field: str, wires: list[str] | None) -> dict[Any, Any]:
    answer, _ = await connection.ask(op, {"keys": wires})
    return {connection.names.from_wire(wire): value for wire, value in answer[field].items()}


async def who_has(connection: Any, message: dict[str, Any]) -> dict[Any, list[str]]:
    """Where results are."""
    found = await _by_key(connection, "who_has", "who_has", _wires(connection, message))
    if message.get("keys") is not None:
        return {key: found.get(key, []) for key in message["keys"]}
    return found


async def nbytes(connection: Any, message: dict[str, Any]) -> dict[Any, int]:
    """Sizes of results, of each or by group."""
    found = await _by_key(connection, "nbytes", "nbytes", _wires(connection, message))
    if not message.get("summary"):
        return found
    sums: dict[Any, int] = {}
    for key, size in found.items():
        sums[key_split(key)] = sums.get(key_split(key), 0) + size
    return sums


async def get_task_status(connection: Any, message: dict[str, Any]) -> dict[Any, str | None]:
    """How far keys are."""
    return await _by_key(connection, "task_status", "status", _wires(connection, message))


async def _by_worker(connection: Any, op: str, field: str, message: dict[str, Any]) -> dict[str, Any]:
    workers = await _worker_names(connection, message)
    answer, _ = await connection.ask(op, {"workers": workers})
    return answer[field]


async def has_what(connection: Any, message: dict[str, Any]) -> dict[str, list[Any]]:
    """What workers hold."""
    found = await _by_worker(connection, "has_what", "has_what", message)
    return {address: [connection.names.from_wire(wire) for wire in wires] for address, wires in found.items()}


async def processing(connection: Any, message: dict[str, Any]) -> dict[str, list[Any]]:
    """What workers are to do."""
    found = await _by_worker(connection, "processing", "processing", message)
    return {address: [connection.names.from_wire(wire) for wire in wires] for address, wires in found.items()}


async def ncores(connection: Any, message: dict[str, Any]) -> dict[str, int]:
    """Slots of workers."""
    return await _by_worker(connection, "ncores", "ncores", message)


async def ncores_running(connection: Any, message: dict[str, Any]) -> dict[str, int]:
    """Slots of workers that take work."""
    return await _by_worker(connection, "ncores_running", "ncores", message)


async def worker_logs(connection: Any, message: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Log lines of workers."""
    workers = await _worker_names(connection, message)
    answer, _ = await connection.ask("worker_logs", {"n": message.get("n"), "workers": workers})
    return {address: [(level, text) for level, text in lines] for address, lines in answer["logs"].items()}


async def logs(connection: Any, message: dict[str, Any]) -> list[tuple[str, str]]:
    """Log lines of the scheduler."""
    answer, _ = await connection.ask("scheduler_logs", {"n": message.get("n")})
    return [(level, text) for level, text in answer["logs"]]


async def retire_workers(connection: Any, message: dict[str, Any]) -> dict[str, Any]:
    """Workers hand over what they hold and go."""
    workers = message.get("workers") or message.get("names")
    names = await connection.workers.known_names(workers) if workers else None
    if names is None and message.get("n") is not None:
        answer, _ = await connection.ask("workers_to_close", {"count": message["n"]})
        names = answer["workers"]
    if names is not None and not names:
        return {}
    before = connection.workers.as_dask(-1)["workers"]
    ends = bool(message.get("close_workers", True) or message.get("remove", True))
    answer, _ = await connection.ask("retire_workers", {"workers": names, "is_waited": True, "ends": ends})
    for worker, reason in answer.get("refused", {}).items():
        logger.warning("worker %s is not retired: %s", worker, reason)
    return {address: before.get(address, {"name": name}) for address, name in answer["retired"].items()}


async def adaptive_target(connection: Any, message: dict[str, Any]) -> int:
    """How many workers the work is enough for."""
    seconds = parse_timedelta(message.get("target_duration") or "5s")
    answer, _ = await connection.ask("adaptive_target", {"target_seconds": float(seconds)})
    return int(answer["target"])


async def workers_to_close(connection: Any, message: dict[str, Any]) -> list[str]:
    """Workers that could go."""
    answer, _ = await connection.ask("workers_to_close", {"count": message.get("n"), "target": message.get("target")})
    names = {worker["address"]: worker["name"] for worker in connection.workers.identity.get("workers", ())}
    if message.get("attribute") == "name":
        return [names.get(address, address) for address in answer["workers"]]
    return list(answer["workers"])


async def restart(connection: Any, message: dict[str, Any]) -> None:
    """All keys are dropped, and tasks run in new processes from then on."""
    seconds = message.get("timeout") or RESTART_SECONDS_DEFAULT
    fields = {"executor": "python", "workers": None, "is_standing": False, "timeout_seconds": seconds}

    async def both() -> None:
        await connection.ask("restart")
        await connection.ask("run", fields, [_commands.REPLACE_PROCESSES])

    await asyncio.wait_for(both(), seconds)


async def rebalance(_: Any, message: dict[str, Any]) -> dict[str, Any]:
    """The runtime spreads results by itself."""
    return {"status": "OK"}


async def replicate(_: Any, message: dict[str, Any]) -> None:
    """The runtime copies results to where they are used."""
    notice_once("client.replicate has no effect on oxidask: results are copied to the workers that use them")


async def terminate(_: Any, message: dict[str, Any]) -> None:
    """A client does not end a cluster that others may use."""
    notice_once(
        "client.shutdown() leaves a cluster of oxidask running: close the cluster object, or use `oxidask down`"
    )


async def versions(connection: Any, message: dict[str, Any]) -> dict[str, Any]:
    """Versions of the scheduler; what it does with Python is done here, so the packages are those of this process."""
    answer, _ = await connection.ask("versions")
    told = {name: str(value) for name, value in answer.get("scheduler", {}).items()}
    packages = get_versions(packages=message.get("packages"))["packages"]
    return {"host": {"python": None}, "packages": {**packages, **told}}


async def subscribe_worker_status(connection: Any, message: dict[str, Any], comm: Any) -> Any:
    """The conversation becomes a stream of coming and going."""
    await connection.workers.refresh()
    first = connection.workers.as_dask(-1)
    task = asyncio.ensure_future(_follow_workers(connection, comm, set(first["workers"])))
    comm.on_end.append(task.cancel)
    return first


async def _follow_workers(connection: Any, comm: Any, known: set[str]) -> None:
    while not connection.is_closed and not comm.closed():
        await asyncio.sleep(STATUS_SECONDS)
        try:
            await connection.workers.refresh()
        except Exception:  # the scheduler may be away for a while
            continue
        workers = connection.workers.as_dask(-1)["workers"]
        hidden = ("metrics", "last_seen")
        news: list[Any] = [["remove", address] for address in known - set(workers)]
        for address in set(workers) - known:
            told = {name: value for name, value in workers[address].items() if name not in hidden}
            news.append(["add", {"workers": {address: told}}])
        known = set(workers)
        if news:
            comm.push([news])


async def versions_warning(connection: Any) -> str | None:
    """Look at the versions of workers in the background; it must hold no client up."""
    if "-worker-" in connection.client or connection.address in _checked:
        return None
    _checked.add(connection.address)
    task = asyncio.ensure_future(_check_versions(connection))
    connection.tasks.add(task)
    task.add_done_callback(connection.tasks.discard)
    return None


async def _check_versions(connection: Any) -> None:
    try:
        theirs = await asyncio.wait_for(versions_of_workers(connection), VERSIONS_SECONDS)
    except Exception:  # no worker may be there yet; tasks will say what is wrong
        logger.debug("the versions of workers are not known", exc_info=True)
        return
    if (text := mismatch(own_versions(), theirs)) is not None:
        notice_once(text)


async def versions_of_workers(connection: Any, function: Any = own_versions, **kwargs: Any) -> dict[str, Any]:
    """Versions of each worker's Python by address, as this function tells them there."""
    import pickle

    command = _commands.run(pickle.dumps(function), pickle.dumps(()), pickle.dumps(kwargs), True)
    fields = {"executor": "python", "workers": None, "is_standing": False, "timeout_seconds": VERSIONS_SECONDS}
    answer, values = await connection.ask("run", fields, [command])
    found = {}
    for result in answer["results"]:
        if result.get("value") is not None:
            said = _commands.read_result(values[result["value"]])
            if said["status"] == "OK":
                found[result["address"]] = said["result"]
    return found


HANDLERS = {
    "identity": identity,
    "who_has": who_has,
    "has_what": has_what,
    "nbytes": nbytes,
    "ncores": ncores,
    "ncores_running": ncores_running,
    "processing": processing,
    "get_task_status": get_task_status,
    "worker_logs": worker_logs,
    "logs": logs,
    "retire_workers": retire_workers,
    "adaptive_target": adaptive_target,
    "workers_to_close": workers_to_close,
    "restart": restart,
    "rebalance": rebalance,
    "replicate": replicate,
    "terminate": terminate,
    "versions": versions,
}

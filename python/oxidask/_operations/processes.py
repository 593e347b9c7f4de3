"""Operations in the Python processes of workers: running functions, plugins, uploaded files.

Owns turning them into commands (`_commands`) and results into the forms that `Client` expects. Never
runs a user's function here.
"""

from __future__ import annotations

import pickle
from typing import Any

from distributed.core import error_message
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.versions import get_versions

from oxidask import _commands
from oxidask._errors import NotThereError, task_failure
from oxidask._intern import PROTOCOL
from oxidask._operations import cluster

ON_ALL = None


class InstallOnWorker(WorkerPlugin):
    """Installs packages in the processes of workers."""

    def __init__(self, name: str, install: Any) -> None:
        self.name = name
        self.install = install

    def setup(self, worker: Any) -> None:
        """Install them."""
        self.install()


async def command(
    connection: Any, content: bytes, workers: list[str] | None, is_standing: bool
) -> dict[str, dict[str, Any]]:
    """Carry a command out on workers; what each says, by address."""
    if len(content) > _commands.CONTENT_BYTES_MAX:
        raise ValueError(
            f"{len(content):,} bytes are more than a message to workers holds ({_commands.CONTENT_BYTES_MAX:,})"
        )
    fields = {"executor": "python", "workers": workers, "is_standing": is_standing, "timeout_seconds": None}
    answer, values = await connection.ask("run", fields, [content])
    found: dict[str, dict[str, Any]] = {}
    for result in answer["results"]:
        if result.get("value") is not None:
            found[result["address"]] = _commands.read_result(values[result["value"]])
            continue
        fault = result["fault"]
        attachment = values[fault["attachment"]] if fault.get("attachment") is not None else None
        exception, traceback = task_failure(
            fault["code"], fault["message"], fault.get("hint", ""), fault.get("causes", []), attachment
        )
        found[result["address"]] = {"status": "error", "exception": exception, "traceback": traceback}
    return found


async def broadcast(connection: Any, message: dict[str, Any]) -> dict[str, Any]:
    """Do something on workers; the answer of each by address."""
    inner, on_error = message["msg"], message.get("on_error", "raise")
    if message.get("nanny"):
        raise NotThereError("nannies are not there on oxidask", "leave nanny=True out")
    workers = message.get("workers")
    names = None if workers is None or workers is True else await connection.workers.known_names(workers)
    answers = await _broadcast(connection, inner, names)
    found: dict[str, Any] = {}
    for address, answer in answers.items():
        is_error = isinstance(answer, dict) and answer.get("status") == "error"
        if is_error and inner["op"] != "run":
            error = answer["exception"]
            if on_error == "raise":
                raise error
            if on_error == "ignore":
                continue
            answer = pickle.dumps(error, PROTOCOL) if on_error == "return_pickle" else error
        found[address] = answer
    return found


async def _broadcast(connection: Any, inner: dict[str, Any], names: list[str] | None) -> dict[str, Any]:
    op = inner["op"]
    if op == "run":
        function = inner["function"]
        content = _commands.run(function, inner.get("args"), inner.get("kwargs"), bool(inner.get("wait", True)))
        return await command(connection, content, names, False)
    if op == "versions":
        return await cluster.versions_of_workers(connection, get_versions, packages=inner.get("packages"))
    if op == "get_logs":
        return await cluster.worker_logs(connection, {"n": inner.get("n"), "workers": names})
    if op == "upload_file":
        content = _commands.upload_file(inner["filename"], inner["data"], bool(inner.get("load", True)))
        return await command(connection, content, names, True)
    if op == "plugin-add":
        return await _add_plugin(connection, inner["plugin"], inner.get("name"), names)
    if op == "plugin-remove":
        return await command(connection, _commands.plugin_remove(inner["name"]), names, True)
    raise NotThereError(f"the operation {op!r} of workers is not there on oxidask")


async def _add_plugin(connection: Any, pickled: bytes, name: str | None, names: list[str] | None) -> dict[str, Any]:
    plugin = pickle.loads(pickled)
    if type(plugin).__name__ == "UploadFile" and type(plugin).__module__.startswith("distributed."):
        content = _commands.upload_file(plugin.filename, plugin.data, plugin.load)
    else:
        name = name or getattr(plugin, "name", None) or f"{type(plugin).__name__}-{id(plugin):x}"
        content = _commands.plugin_add(str(name), pickled)
    answers = await command(connection, content, names, True)
    return {
        address: {"status": "OK"} if answer["status"] == "OK" else _as_pickles(answer)
        for address, answer in answers.items()
    }


def _as_pickles(answer: dict[str, Any]) -> dict[str, Any]:
    """An error in the form in which `Client` reads it from a message."""
    error = answer["exception"]
    if isinstance(error, BaseException):
        said = error_message(error.with_traceback(answer.get("traceback")))
        answer = {**answer, **said, "exception": said["exception"].data, "traceback": answer.get("traceback")}
    return answer


async def register_worker_plugin(connection: Any, message: dict[str, Any]) -> dict[str, Any]:
    """A plugin for all processes, also those that start later."""
    return await _add_plugin(connection, message["plugin"], message.get("name"), ON_ALL)


async def unregister_worker_plugin(connection: Any, message: dict[str, Any]) -> dict[str, Any]:
    """A plugin goes."""
    answers = await command(connection, _commands.plugin_remove(message["name"]), ON_ALL, True)
    return {
        address: {"status": "OK"} if answer["status"] == "OK" else _as_pickles(answer)
        for address, answer in answers.items()
    }


async def register_scheduler_plugin(connection: Any, message: dict[str, Any]) -> None:
    """The scheduler has no Python; what those of Dask do for workers is done there."""
    plugin = pickle.loads(message["plugin"])
    kind = type(plugin).__name__
    if kind == "SchedulerUploadFile":
        return
    install = getattr(plugin, "_install_fn", None) or getattr(plugin, "install_fn", None)
    if install is not None:
        name = message.get("name") or kind
        content = _commands.plugin_add(name, pickle.dumps(InstallOnWorker(name, install), PROTOCOL))
        await command(connection, content, ON_ALL, True)
        return
    raise NotThereError(
        f"the scheduler plugin {kind} cannot be used: the scheduler has no Python",
        "most of what such plugins do can be done by a WorkerPlugin or in the client",
    )


HANDLERS = {
    "broadcast": broadcast,
    "register_worker_plugin": register_worker_plugin,
    "unregister_worker_plugin": unregister_worker_plugin,
    "register_scheduler_plugin": register_scheduler_plugin,
}

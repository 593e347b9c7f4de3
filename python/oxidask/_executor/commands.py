"""Commands of clients, in a process that runs tasks.

Owns what `client.run`, plugins and uploaded files do here, on a thread of its own: a task may run
meanwhile. What the bytes of commands mean is said in `oxidask._commands`.

Invariants: commands take effect in the order in which they come; every command is answered.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import sys
import threading
import zipfile
from typing import Any

from oxidask import _commands
from oxidask._executor import frames, shared_memory
from oxidask._executor.frames import Channel
from oxidask._executor.worker_context import WorkerContext, serve_here
from oxidask._intern import forget_callables

#: Folder for code within the worker's folder.
_CODE = "code"


class Commands:
    """The thread that carries out commands."""

    def __init__(self, channel: Channel, context: WorkerContext, writer: shared_memory.Writer) -> None:
        self._channel = channel
        self._context = context
        self._writer = writer

    def serve(self) -> None:
        """Until the worker goes."""
        serve_here(self._context)
        while (frame := self._channel.read()) is not None:
            kind, body = frame
            if kind != frames.COMMAND:
                continue
            request, file, length = frames.COMMAND_HEAD.unpack_from(body)
            content = body[frames.COMMAND_HEAD.size :][:length]
            if file != frames.INLINE:
                content = shared_memory.map_file(self._channel.take_files(1)[0], is_writable=False)[:length]
            is_well, answer = self._answer(content)
            try:
                self._write(request, is_well, answer)
            except OSError:
                return

    def _answer(self, content: memoryview) -> tuple[bool, bytes]:
        try:
            command = pickle.loads(content)
            return True, _commands.result(self._carry_out(command))
        except BaseException as error:
            return False, _failure(error)

    def _write(self, request: int, is_well: bool, answer: bytes) -> None:
        is_large = len(answer) > frames.INLINE_BYTES_MAX
        head = frames.ANSWER_HEAD.pack(request, is_well, is_large, len(answer))
        if not is_large:
            self._channel.write(frames.ANSWER, head, answer)
            return
        file = self._writer.write([answer])
        try:
            self._channel.write(frames.ANSWER, head, file=file)
        finally:
            os.close(file)

    def _carry_out(self, command: dict[str, Any]) -> Any:
        operation = command["op"]
        if operation == "run":
            return self._run(command)
        if operation == "upload_file":
            return self._upload_file(command["name"], command["data"], command["is_loaded"])
        if operation == "plugin_add":
            return self._add_plugin(command["name"], pickle.loads(command["plugin"]))
        if operation == "plugin_remove":
            return self._remove_plugin(command["name"])
        raise ValueError(f"this worker does not know the command {operation!r}; is it older than the client?")

    def _run(self, command: dict[str, Any]) -> Any:
        function = pickle.loads(command["function"])
        args = pickle.loads(command["args"]) if command["args"] else ()
        kwargs = pickle.loads(command["kwargs"]) if command["kwargs"] else {}
        if _takes(function, "dask_worker"):
            kwargs["dask_worker"] = self._context
        value = function(*args, **kwargs)
        if not inspect.isawaitable(value):
            return value
        if command["is_waited"]:
            return self._context.wait(value)
        threading.Thread(target=self._context.wait, args=(value,), name="oxidask-command", daemon=True).start()
        return None

    def _upload_file(self, name: str, data: bytes, is_loaded: bool) -> int:
        folder = os.path.join(self._context.local_directory, _CODE)
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, os.path.basename(name))
        _replace(path, data)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        if is_loaded:
            _load(path)
        forget_callables()
        return len(data)

    def _add_plugin(self, name: str, plugin: Any) -> None:
        self._remove_plugin(name)
        self._context.plugins[name] = plugin
        if hasattr(plugin, "setup"):
            self._wait(plugin.setup(worker=self._context))

    def _remove_plugin(self, name: str) -> None:
        plugin = self._context.plugins.pop(name, None)
        if plugin is not None and hasattr(plugin, "teardown"):
            self._wait(plugin.teardown(worker=self._context))

    def _wait(self, value: Any) -> None:
        if inspect.isawaitable(value):
            self._context.wait(value)


def _failure(error: BaseException) -> bytes:
    try:
        return _commands.failure(error)
    except BaseException as problem:
        text = f"{type(error).__qualname__} ({type(problem).__qualname__} while it was sent)"
        return _commands.failure(RuntimeError(text))


def _takes(function: Any, name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _replace(path: str, data: bytes) -> None:
    """Other processes of the worker write the same file: each sees a whole one."""
    part = f"{path}.{os.getpid()}"
    with open(part, "wb") as file:
        file.write(data)
    os.replace(part, path)


def _load(path: str) -> None:
    """Loads what was uploaded, anew if it is there already."""
    name, ending = os.path.splitext(os.path.basename(path))
    importlib.invalidate_caches()
    if ending == ".py":
        _load_module(name)
    elif ending in (".zip", ".egg", ".whl"):
        if path not in sys.path:
            sys.path.insert(0, path)
        with zipfile.ZipFile(path) as archive:
            names = {entry.split("/")[0].removesuffix(".py") for entry in archive.namelist()}
        for module in sorted(names):
            if module.isidentifier() and module in sys.modules:
                _load_module(module)


def _load_module(name: str) -> None:
    if name in sys.modules:
        importlib.reload(sys.modules[name])
    else:
        importlib.import_module(name)

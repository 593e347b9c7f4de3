"""Commands to the Python processes of workers: their bytes, and the bytes of their results.

A command is a pickled dictionary (plain pickle, readable without the user's modules); the user's own
objects in it are byte strings, pickled by cloudpickle where need be. `op` says what to do:

| op | fields | what it gives |
|---|---|---|
| `run` | `function`, `args`, `kwargs`: pickles; `is_waited` | the function's value |
| `upload_file` | `name`: file name; `data`; `is_loaded` | its size |
| `plugin_add` | `name`; `plugin`: pickle | None |
| `plugin_remove` | `name` | None |

A command without any bytes (`REPLACE_PROCESSES`) is for the worker itself, and gives no bytes: tasks run in
new processes from then on, and those that are there end with the tasks that they have.

`run` is done in one process of each worker; a parameter `dask_worker` is given the worker, a coroutine
is awaited. The others are for every process, standing. A file is written to the worker's folder for
code, which is on `sys.path`; a module that is loaded already is loaded again, and callables of tables
are forgotten (`_intern.forget_callables`). A plugin takes the place of one of its name, which is torn
down first; then `setup(worker=…)` is called, or `teardown(worker=…)` when it goes.

A result is a pickled dictionary: `{"status": "OK", "result": pickle}` or, if the user's code raised,
`distributed`'s `error_message` with pickles in `exception` and `traceback`. Both sides use this
module. Never sends anything.
"""

from __future__ import annotations

import pickle
from typing import Any

from oxidask._errors import harmless
from oxidask._intern import PROTOCOL, dump_slowly

#: A file or plugin of a command has at most so many bytes; the message around it has a limit, too.
CONTENT_BYTES_MAX = 60 * 1024 * 1024


#: Tasks run in new processes from then on.
REPLACE_PROCESSES = b""


def run(function: bytes, args: bytes | None, kwargs: bytes | None, is_waited: bool) -> bytes:
    """Run a function in one process of each worker."""
    return pickle.dumps(
        {"op": "run", "function": function, "args": args, "kwargs": kwargs, "is_waited": is_waited}, PROTOCOL
    )


def upload_file(name: str, data: bytes, is_loaded: bool) -> bytes:
    """Put a file beside the code of tasks."""
    return pickle.dumps({"op": "upload_file", "name": name, "data": data, "is_loaded": is_loaded}, PROTOCOL)


def plugin_add(name: str, plugin: bytes) -> bytes:
    """Set up a plugin, in place of one of the same name."""
    return pickle.dumps({"op": "plugin_add", "name": name, "plugin": plugin}, PROTOCOL)


def plugin_remove(name: str) -> bytes:
    """Tear down a plugin."""
    return pickle.dumps({"op": "plugin_remove", "name": name}, PROTOCOL)


def result(value: Any) -> bytes:
    """What a process answers when all went well."""
    try:
        data = pickle.dumps(value, PROTOCOL)
        if b"__main__" in data:
            data = dump_slowly(value, None)
    except Exception:  # anything may go wrong there; cloudpickle says it better
        data = dump_slowly(value, None)
    return pickle.dumps({"status": "OK", "result": data}, PROTOCOL)


def failure(error: BaseException) -> bytes:
    """What a process answers when the user's code raised."""
    from distributed.core import error_message
    from distributed.protocol.serialize import Serialize

    # `exception` and `traceback` are pickles in a wrapper for messages.
    message = {
        name: value.data if isinstance(value, Serialize) else value for name, value in error_message(error).items()
    }
    return pickle.dumps(message, PROTOCOL)


def read_result(data: bytes | memoryview) -> dict[str, Any]:
    """The result as `distributed` puts it into messages: values and exceptions are unpickled."""
    message: dict[str, Any] = pickle.loads(data)
    if message["status"] == "OK":
        return {"status": "OK", "result": pickle.loads(message["result"])}
    for name in ("exception", "traceback"):
        if isinstance(message.get(name), bytes):
            message[name] = _load_or_text(message[name], message)
    message["exception"] = harmless(message.get("exception"))
    return message


def _load_or_text(data: bytes, message: dict[str, Any]) -> Any:
    try:
        return pickle.loads(data)
    except Exception:  # the class may not be importable here
        return Exception(message.get("exception_text") or message.get("text") or "the exception cannot be unpickled")

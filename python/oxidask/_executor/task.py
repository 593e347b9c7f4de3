"""One run of a task: from its frame to its result.

Owns the reading of arguments and inputs, the call, and the encoding of what comes out: a value or an
exception. Whatever a task raises becomes an outcome; nothing gets past here but the end of the process.

Invariants: a run has exactly one outcome; inputs are let go before the result is encoded.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from oxidask import _payload
from oxidask._executor import frames, shared_memory
from oxidask._executor.frames import Channel

#: Inputs that tasks may change: each gets a copy of what it writes to.
COPY_INPUTS_VARIABLE = "OXIDASK_COPY_INPUTS"

#: Bytes of the exception that travel.
ATTACHMENT_BYTES_MAX = 256 << 10

#: Bytes of a message that travel.
MESSAGE_BYTES_MAX = 8 << 10

#: A longer traceback travels as text: pickling one takes as many calls.
TRACEBACK_FRAMES_MAX = 200
_CAUSES_MAX = 100

TASK_FAILED = 208
NOT_ENCODED = 351


@dataclass(slots=True)
class Task:
    """What a frame says."""

    run: int
    graph: int
    attempt: int
    table: int
    key: str
    arguments: memoryview
    #: Kind and bytes.
    inputs: list[tuple[int, Any]]


class Failure(Exception):
    """A run that failed, as the worker hears it."""

    def __init__(self, code: int, message: str, hint: str, attachment: bytes) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.attachment = attachment


def copies_inputs() -> bool:
    """Whether tasks may change their inputs."""
    value = os.environ.get(COPY_INPUTS_VARIABLE, "")
    if value:
        return value.lower() not in ("0", "false", "no")
    dask = sys.modules.get("dask")
    return bool(dask.config.get("oxidask.executor.copy-inputs", False)) if dask is not None else False


def read(body: memoryview, channel: Channel, *, is_writable: bool) -> Task:
    """Reads a frame of a task and takes the files that came with it."""
    head = frames.TASK_HEAD.unpack_from(body)
    run, graph, attempt, table, file_count, key_bytes, file, offset, length, count = head
    at = frames.TASK_HEAD.size
    key = str(body[at : at + key_bytes], "utf-8", "replace")
    at += key_bytes
    views = [shared_memory.map_file(number, is_writable=is_writable) for number in channel.take_files(file_count)]
    if file == frames.INLINE:
        arguments = body[at : at + length]
        at += length
    else:
        arguments = views[file][offset : offset + length]
    inputs = []
    for _ in range(count):
        kind, file, offset, length = frames.INPUT.unpack_from(body, at)
        at += frames.INPUT.size
        if file == frames.INLINE:
            # A copy of its own: it begins where the machine likes numbers to begin.
            part = body[at : at + length]
            data: Any = bytearray(part) if is_writable else bytes(part)
            at += length
        else:
            data = views[file][offset : offset + length]
        inputs.append((kind, data))
    return Task(run, graph, attempt, table, key, arguments, inputs)


def call(task: Task, table: Any) -> Any:
    """Reads the inputs and the arguments, and does what they say."""
    inputs = [_payload.decode(kind, data) for kind, data in task.inputs]
    task.inputs = []
    step = table.load(task.arguments, inputs)
    # What a task makes of a frame is copied when it is written to as long as this is here.
    twins = [value._oxidask_twin for value in inputs if "_oxidask_twin" in getattr(value, "__dict__", ())]
    del inputs
    try:
        return step()
    finally:
        twins.clear()


def encode(value: Any) -> tuple[int, list[Any]]:
    """The result's payload."""
    try:
        return _payload.encode(value)
    except Exception as error:
        raise not_encoded(value, error) from error


def not_encoded(value: Any, error: BaseException) -> Failure:
    """A result that cannot be sent."""
    kind = type(value)
    message = f"the result of type {kind.__module__}.{kind.__qualname__} cannot be sent: {_text(error)}"
    hint = "return data, not something that is bound to its process, such as an open file, a lock or a generator"
    attachment = _attachment(TypeError(message), None)
    return Failure(NOT_ENCODED, cut(message), hint, attachment)


def failed(error: BaseException) -> Failure:
    """What a task raised."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    text = _text(error)
    message = f"{name}: {text}" if text else name
    hint = "the traceback is in the client's exception; `retries` tries a task again"
    return Failure(TASK_FAILED, cut(message), hint, _attachment(error, error.__traceback__))


def cut(text: str) -> str:
    """A text of bounded length, as it can be sent."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= MESSAGE_BYTES_MAX:
        return encoded.decode()
    return encoded[:MESSAGE_BYTES_MAX].decode("utf-8", "ignore") + "…"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(an exception that cannot be printed)"


def _attachment(error: BaseException, trace: Any) -> bytes:
    """The exception as clients take it: in the form that `distributed` sends."""
    trace = _own_part(trace)
    trace_text = cut("".join(_formatted(trace)))
    parts = {
        "exception": _pickled_exception(error),
        "traceback": _pickled_traceback(trace, trace_text),
        "text": cut(_represented(error)),
        "traceback_text": trace_text,
    }
    attachment = pickle.dumps(parts, protocol=5)
    if len(attachment) <= ATTACHMENT_BYTES_MAX:
        return attachment
    parts["traceback"] = pickle.dumps(trace_text, protocol=5)
    attachment = pickle.dumps(parts, protocol=5)
    if len(attachment) <= ATTACHMENT_BYTES_MAX:
        return attachment
    parts["exception"] = pickle.dumps(Exception(cut(_represented(error))), protocol=5)
    return pickle.dumps(parts, protocol=5)


def _own_part(trace: Any) -> Any:
    """The traceback without the frames of this package at its start."""
    own = os.path.dirname(os.path.dirname(__file__))
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(own):
        trace = trace.tb_next
    return trace


def _formatted(trace: Any) -> Sequence[str]:
    try:
        return traceback.format_tb(trace)
    except Exception:
        return ["(a traceback that cannot be printed)"]


def _represented(error: BaseException) -> str:
    try:
        return repr(error)
    except Exception:
        return type(error).__qualname__


def _pickled_exception(error: BaseException) -> bytes:
    """The exception with its causes and tracebacks; its text if that does not come back."""
    try:
        from tblib import pickling_support

        causes = _causes(error)
        if any(_depth(one.__traceback__) > TRACEBACK_FRAMES_MAX for one in causes):
            for one in causes:
                one.__traceback__ = None
        pickling_support.install(*causes)
        return _checked(error)
    except BaseException:
        return pickle.dumps(Exception(cut(_represented(error))), protocol=5)


def _pickled_traceback(trace: Any, text: str) -> bytes:
    try:
        from tblib import pickling_support

        if _depth(trace) > TRACEBACK_FRAMES_MAX:
            return pickle.dumps(text, protocol=5)
        pickling_support.install()
        return _checked(trace)
    except BaseException:
        return pickle.dumps(text, protocol=5)


def _checked(value: Any) -> bytes:
    """The value's pickle, by reference or by value as `distributed` decides, if it comes back."""
    import cloudpickle

    try:
        dumped = pickle.dumps(value, protocol=5)
        if b"__main__" in dumped:
            dumped = cloudpickle.dumps(value, protocol=5)
    except Exception:
        dumped = cloudpickle.dumps(value, protocol=5)
    pickle.loads(dumped)
    return dumped


def _causes(error: BaseException) -> list[BaseException]:
    """The exception and those that led to it."""
    found = [error]
    while error.__cause__ is not None and len(found) < _CAUSES_MAX:
        error = error.__cause__
        found.append(error)
    return found


def _depth(trace: Any) -> int:
    depth = 0
    while trace is not None and depth <= TRACEBACK_FRAMES_MAX:
        depth += 1
        trace = trace.tb_next
    return depth

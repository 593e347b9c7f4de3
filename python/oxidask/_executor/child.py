"""The process that runs tasks.

Owns the loop: one thread takes tasks out of the line and runs them one after the other, another carries
out commands beside it. Both end, and the process with them, when the worker closes its end.

Invariants: every task that was read is answered, in order; nothing is written while a lock of a user's
code is held.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import random
import socket
import sys
import threading
from types import CoroutineType
from typing import Any

from oxidask import _payload
from oxidask._executor import frames, shared_memory, task
from oxidask._executor.frames import Channel, Line
from oxidask._executor.output import Output
from oxidask._executor.task import Failure
from oxidask._executor.worker_context import TaskThread, WorkerContext
from oxidask._intern import Table

#: Where a child's frames end up when a user's code closes the files of others.
_FIRST_FILE = 100


def main(line: int, tasks: int, control: int, mark: int) -> None:
    """Runs tasks until the worker goes."""
    tasks_channel, control_channel = Channel(_socket(tasks)), Channel(_socket(control))
    faulthandler.enable(file=2, all_threads=False)
    _seed()
    sys.argv = ["oxidask-task"]
    child = Child(Line(_socket(line)), tasks_channel, mmap.mmap(mark, frames.RUN.size))
    os.close(mark)
    from oxidask._executor.commands import Commands

    commands = Commands(control_channel, child.context, child.writer)
    threading.Thread(target=commands.serve, name="oxidask-commands", daemon=True).start()
    text = json.dumps({"pid": os.getpid()})
    tasks_channel.write(frames.READY, text.encode())
    child.serve()
    os._exit(0)


def _socket(file: int) -> socket.socket:
    """Out of the way of tasks that count on small numbers of files."""
    import fcntl

    try:
        moved = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _FIRST_FILE)
    except OSError:
        return socket.socket(fileno=file)
    os.close(file)
    return socket.socket(fileno=moved)


def _seed() -> None:
    """Children of one process would all draw the same numbers."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(int.from_bytes(os.urandom(4), "little"))


class Child:
    """The loop of tasks."""

    def __init__(self, line: Line, channel: Channel, mark: mmap.mmap) -> None:
        self._line = line
        #: Where answers go, and what is too large for the line comes from.
        self._channel = channel
        #: Says which run this process is at, also when it has died.
        self._mark = mark
        self._tables: dict[int, Table | Exception] = {}
        self._is_writable = task.copies_inputs()
        self._process = os.getpid()
        self._output = Output(channel)
        self.writer = shared_memory.Writer(self._notice)
        self.context = WorkerContext()
        self._thread = TaskThread(self.context, channel)

    def serve(self) -> None:
        """Until the worker goes."""
        while True:
            try:
                frame = self._line.read()
                while frame is not None and frame[0] in (frames.STREAM, frames.FILES):
                    frame = self._channel.read()
            except KeyboardInterrupt:
                continue  # From a task that raised a signal late.
            except ConnectionError:
                return
            if frame is None:
                return
            kind, body = frame
            try:
                if kind == frames.TASK:
                    self._run(body)
                elif kind == frames.TABLE:
                    self._take_table(body)
                elif kind == frames.DROP_TABLE:
                    self._tables.pop(int.from_bytes(body[:4], "little"), None)
            except (BrokenPipeError, ConnectionError):
                return

    def _take_table(self, body: memoryview) -> None:
        number, file, offset, length = frames.TABLE_HEAD.unpack_from(body)
        if file == frames.INLINE:
            content = body[frames.TABLE_HEAD.size :][:length]
        else:
            views = [shared_memory.map_file(one, is_writable=False) for one in self._channel.take_files(1)]
            content = views[file][offset : offset + length]
        try:
            self._tables[number] = Table(content)
        except Exception as error:
            self._tables[number] = error

    def _run(self, body: memoryview) -> None:
        run = int.from_bytes(body[:8], "little")
        frames.RUN.pack_into(self._mark, 0, run)
        self._output.begin(run)
        failure: Failure | None = None
        file: int | None = None
        parts: list[Any] = []
        try:
            value = self._call(task.read(body, self._channel, is_writable=self._is_writable))
            kind, buffers = task.encode(value)
            del value
            size = _payload.size(buffers)
            if size > frames.INLINE_BYTES_MAX:
                file = self.writer.write(buffers)
            else:
                parts = buffers
        except Failure as error:
            failure = error
        except BaseException as error:
            failure = task.failed(error)
            error.__traceback__ = None
        self._output.end()
        if failure is not None:
            self._write_failure(run, failure)
            return
        head = frames.DONE_HEAD.pack(run, kind, file is not None, size)
        try:
            self._channel.write(frames.DONE, head, *parts, file=file)
        finally:
            if file is not None:
                os.close(file)

    def _call(self, one: task.Task) -> Any:
        table = self._tables.get(one.table)
        if table is None:
            raise RuntimeError("the functions of the task never came")
        if isinstance(table, Exception):
            raise table
        self._thread.begin(one)
        try:
            value = task.call(one, table)
            return self.context.wait(value) if type(value) is CoroutineType else value
        finally:
            if os.getpid() != self._process:
                os._exit(0)  # The task has forked, and this is not the process that was asked.
            self._thread.end()

    def _write_failure(self, run: int, failure: Failure) -> None:
        message, hint = failure.message.encode(), failure.hint.encode()
        head = frames.FAILED_HEAD.pack(run, failure.code, 1, len(message), len(hint), len(failure.attachment))
        self._channel.write(frames.FAILED, head, message, hint, failure.attachment)

    def _notice(self, text: str) -> None:
        self._channel.write(frames.NOTICE, text.encode("utf-8", "replace"))


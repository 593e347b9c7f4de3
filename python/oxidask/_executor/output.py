"""What tasks print.

Owns `sys.stdout` and `sys.stderr` of a child: each line goes to the worker with the task that printed it.
What is written past Python (by a library in C, by a program) goes through the child's own standard output
and error, which the worker reads too.

Invariants: a line comes before the result of its task; printing never fails because a task has closed
something.
"""

from __future__ import annotations

import fcntl
import io
import os
import sys
import threading

from oxidask._executor import frames
from oxidask._executor.frames import Channel

OUT = 0
ERR = 1

#: Whether a task has closed the files of its output is looked at after so many tasks.
_TASKS_PER_LOOK = 16

#: Longer lines are cut into pieces.
LINE_BYTES_MAX = 8 << 10


class LineWriter(io.BufferedIOBase):
    """Sends whole lines to the worker."""

    def __init__(self, channel: Channel, level: int) -> None:
        self._channel = channel
        self._level = level
        self._unfinished = b""
        self._lock = threading.RLock()
        #: The run whose lines these are.
        self.run = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The file that programs write to."""
        return self._level + 1

    def write(self, data: object) -> int:
        """Sends the lines that are whole."""
        content = bytes(data)  # type: ignore[call-overload]
        with self._lock:
            lines = (self._unfinished + content).replace(b"\r\n", b"\n").split(b"\n")
            self._unfinished = lines.pop()
            for line in lines:
                self._send(line)
            while len(self._unfinished) > LINE_BYTES_MAX:
                self._send(self._unfinished[:LINE_BYTES_MAX])
                self._unfinished = self._unfinished[LINE_BYTES_MAX:]
        return len(content)

    def end(self) -> None:
        """The task is over: what is left is a line."""
        if self._unfinished:
            with self._lock:
                rest, self._unfinished = self._unfinished, b""
                self._send(rest)

    def _send(self, line: bytes) -> None:
        head = frames.LINE_HEAD.pack(self.run, self._level)
        try:
            self._channel.write(frames.LINE, head, line[: 2 * LINE_BYTES_MAX])
        except OSError:
            return  # The worker is gone, and this process soon.


class Output:
    """The two streams of a child."""

    def __init__(self, channel: Channel) -> None:
        self._writers = (LineWriter(channel, OUT), LineWriter(channel, ERR))
        self._saved = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10) for number in (1, 2)]
        self._streams: list[io.TextIOWrapper] = []
        self._ended = 0
        self._install()
        os.register_at_fork(after_in_child=_print_plainly)

    def _install(self) -> None:
        self._streams = [
            io.TextIOWrapper(writer, "utf-8", errors="backslashreplace", line_buffering=True, write_through=True)
            for writer in self._writers
        ]
        sys.stdout, sys.stderr = self._streams
        sys.__stdout__, sys.__stderr__ = self._streams  # type: ignore[misc]

    def begin(self, run: int) -> None:
        """Lines from now on are of this run."""
        out, err = self._writers
        out.run = err.run = run

    def end(self) -> None:
        """The run is over: unfinished lines are sent, and what the task has closed is opened again."""
        (out, err), (stdout, stderr) = self._writers, self._streams
        if stdout.closed or stderr.closed:
            self._reopen()
        else:
            out.end()
            err.end()
            if sys.stdout is not stdout or sys.stderr is not stderr:
                sys.stdout, sys.stderr = stdout, stderr
            out.run = err.run = 0
        self._ended += 1
        if self._ended % _TASKS_PER_LOOK == 1:
            self._look()

    def _look(self) -> None:
        for number, saved in zip((1, 2), self._saved, strict=True):
            try:
                os.fstat(number)
            except OSError:
                os.dup2(saved, number)

    def _reopen(self) -> None:
        old = self._writers
        self._writers = LineWriter(old[0]._channel, OUT), LineWriter(old[1]._channel, ERR)
        for new, before in zip(self._writers, old, strict=True):
            new.run, new._unfinished = before.run, before._unfinished
            new.end()
            new.run = 0
        self._install()


def _print_plainly() -> None:
    """In a process that a task has forked: the channel is not its own."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        try:
            stream = open(number, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
        except OSError:
            continue  # It is closed.
        setattr(sys, name, stream)

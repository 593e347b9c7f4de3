"""Frames between a worker and its processes: a length, a kind, a body, and open files beside them.

Owns the layout that `runtime/exec-python` also has. A channel may be written by several threads, and
is read by one.

Invariants: a frame is written whole; files arrive before the frame that speaks of them.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import threading
from typing import Any

HEADER = struct.Struct("<IB")
HEADER_BYTES = HEADER.size

#: More than this in one frame is nonsense.
FRAME_BYTES_MAX = 64 << 20

#: Values above this travel as a file in memory.
INLINE_BYTES_MAX = 32 << 10

#: Files that travel beside one frame.
FILES_MAX = 200

#: Longer packets travel on the stream.
PACKET_BYTES_MAX = 48 << 10

_READ_BYTES = 1 << 16
_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * (FILES_MAX + 8))

# From the worker to a child.
TABLE = 1
DROP_TABLE = 2
TASK = 3
FILES = 4
COMMAND = 5
#: In line: the next frame is on the stream.
STREAM = 6

# From a child to the worker.
DONE = 1
FAILED = 2
LINE = 3
SECEDE = 4
REJOIN = 5
READY = 6
NOTICE = 7
ANSWER = 8

# Between the worker and the fork server.
FORK = 1
KILL = 2
HURRY = 3
FORKED = 1
EXITED = 2
LOADED = 3
NOT_FORKED = 4

#: Stands for the number of a file where the bytes are in the frame.
INLINE = 0xFFFF_FFFF

TABLE_HEAD = struct.Struct("<IIQQ")  # table, file, offset, length
TASK_HEAD = struct.Struct("<QIIIIIIQQI")
# run, graph, attempt, table, files, length of key, arguments as file, offset, length, inputs
INPUT = struct.Struct("<BIQQ")  # kind, file, offset, length
DONE_HEAD = struct.Struct("<QBBQ")  # run, kind, whether in a file, length
FAILED_HEAD = struct.Struct("<QHBIII")  # run, code, whether to retry, lengths of message, hint, attachment
LINE_HEAD = struct.Struct("<QB")  # run, level
RUN = struct.Struct("<Q")
COMMAND_HEAD = struct.Struct("<QIQ")  # request, file, length
ANSWER_HEAD = struct.Struct("<QBBQ")  # request, whether it went well, whether in a file, length
FORK_HEAD = struct.Struct("<Q")
KILL_HEAD = struct.Struct("<i")
FORKED_HEAD = struct.Struct("<Qi")
EXITED_HEAD = struct.Struct("<ii")


class Line:
    """The end of the line at which tasks are taken out, one when the one before is done.

    What is not taken out yet may still be taken back by the worker, so nothing is read ahead here.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._block = memoryview(bytearray(PACKET_BYTES_MAX))

    def read(self) -> tuple[int, memoryview] | None:
        """The kind and the body of the next packet; None at the end."""
        length = self._connection.recv_into(self._block)
        if not length:
            return None
        packet = memoryview(bytes(self._block[:length]))
        return packet[0], packet[1:]


class Channel:
    """One end of a socket pair."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.files: list[int] = []
        self._lock = threading.RLock()
        self._data = b""
        self._at = 0
        self._block = memoryview(bytearray(_READ_BYTES))

    def read(self) -> tuple[int, memoryview] | None:
        """The next frame; None at the end. Its body is valid as long as it is held."""
        while True:
            start = self._at + HEADER_BYTES
            if len(self._data) >= start:
                length, kind = HEADER.unpack_from(self._data, self._at)
                end = start + length
                if len(self._data) >= end:
                    self._at = end
                    return kind, memoryview(self._data)[start:end]
                if length > FRAME_BYTES_MAX:
                    raise ValueError(f"a frame of {length} bytes")
            if not self._receive():
                return None

    def has_news(self) -> bool:
        """Whether there is something to read, or the end."""
        return self.has_frame() or bool(select.select([self.connection], [], [], 0)[0])

    def has_frame(self) -> bool:
        """Whether a whole frame is here already."""
        start = self._at + HEADER_BYTES
        if len(self._data) < start:
            return False
        return len(self._data) >= start + HEADER.unpack_from(self._data, self._at)[0]

    def _receive(self) -> bool:
        try:
            count, ancillary, _, _ = self.connection.recvmsg_into(
                [self._block], _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            return False
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                files = array.array("i")
                files.frombytes(content[: len(content) - len(content) % files.itemsize])
                self.files.extend(files)
        if not count:
            return False
        data = bytes(self._block[:count])
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0
        return True

    def take_files(self, count: int) -> list[int]:
        """The files that came with the frame that speaks of so many."""
        files = self.files[:count]
        del self.files[:count]
        if len(files) < count:
            raise OSError("files of a frame did not come; has this process too many open files?")
        return files

    def write(self, kind: int, *body: Any, file: int | None = None) -> None:
        """Writes one frame, with a file beside it if one is given."""
        frame = b"".join(body)
        frame = HEADER.pack(len(frame), kind) + frame
        with self._lock:
            if file is None:
                self.connection.sendall(frame)
                return
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))]
            sent = self.connection.sendmsg([frame], rights)
            if sent < len(frame):
                self.connection.sendall(frame[sent:])

    def close(self) -> None:
        """Closes the socket and the files that nobody took."""
        for file in self.files:
            os.close(file)
        self.files.clear()
        self.connection.close()

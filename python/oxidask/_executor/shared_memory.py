"""Memory that a child shares with its worker: files that have no name.

Owns the writing of values into such files and the mapping of those that come. A file lies in memory; if
there is no room it lies in the worker's scratch folder, which is said once.

Invariants: whoever gets a file in memory can rely on it: it is sealed, nobody changes it any more; a
file is closed here once it is handed over or mapped; a mapping goes with the last value that uses it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import tempfile
from collections.abc import Callable
from typing import Any

#: The system's limit of pieces in one write.
_PIECES_MAX = 1000

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

#: The folder for files when there is no room in memory.
SCRATCH_DIR_VARIABLE = "OXIDASK_EXECUTOR_SCRATCH_DIR"

#: `files`: values never lie in shared memory.
SHARED_MEMORY_VARIABLE = "OXIDASK_SHARED_MEMORY"

#: Numbers of open files that belong to standard input, output and error.
_STANDARD_FILES = 3


class Writer:
    """Writes values into files."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._has_said = False
        self._is_in_memory = os.environ.get(SHARED_MEMORY_VARIABLE, "memory") != "files"

    def write(self, buffers: list[Any]) -> int:
        """An open file with the buffers one behind the other; the caller closes it."""
        if self._is_in_memory:
            try:
                return _write_sealed(buffers)
            except OSError as error:
                if error.errno == errno.EBADF:
                    raise
                reason = error.strerror or str(error)
        else:
            reason = f"{SHARED_MEMORY_VARIABLE}=files"
        if not self._has_said:
            self._has_said = True
            self._say(f"values go to files in the scratch folder instead of shared memory: {reason}")
        return _write_file(buffers)


def _write_sealed(buffers: list[Any]) -> int:
    file = _above_standard(os.memfd_create("oxidask", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        _write_all(file, buffers)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(file)
        raise
    return file


def _write_file(buffers: list[Any]) -> int:
    folder = os.environ.get(SCRATCH_DIR_VARIABLE) or tempfile.gettempdir()
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as opened:
        _write_all(opened.fileno(), buffers)
        return _above_standard(os.dup(opened.fileno()))


def _above_standard(file: int) -> int:
    """A task may have closed its standard output: what is printed must not get into a value."""
    if file >= _STANDARD_FILES:
        return file
    moved = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, _STANDARD_FILES)
    os.close(file)
    return moved


def _write_all(file: int, buffers: list[Any]) -> None:
    views = [view for view in (memoryview(buffer).cast("B") for buffer in buffers) if view.nbytes]
    first = 0
    while first < len(views):
        written = os.writev(file, views[first : first + _PIECES_MAX])
        while first < len(views) and written >= views[first].nbytes:
            written -= views[first].nbytes
            first += 1
        if written:
            views[first] = views[first][written:]


def map_file(file: int, *, is_writable: bool) -> memoryview:
    """Maps a file and closes it. What is written to the mapping is seen by nobody else."""
    try:
        length = os.fstat(file).st_size
        if length == 0:
            return memoryview(b"")
        protection = mmap.PROT_READ | mmap.PROT_WRITE if is_writable else mmap.PROT_READ
        return memoryview(mmap.mmap(file, length, flags=mmap.MAP_PRIVATE, prot=protection))
    finally:
        os.close(file)

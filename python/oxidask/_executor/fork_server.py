"""Starts the processes that run tasks, from one that has loaded the libraries already.

Owns the children of a worker: it forks them, says how each ended, and ends them all when the worker
goes. Its standard input is a socket to the worker. It never runs code of a user.

Invariants: it has one thread when it forks; every child that it starts is reaped and reported; no child
outlives it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import platform
import resource
import select
import signal
import socket
import sys
import traceback
from types import FrameType

from oxidask._executor import frames
from oxidask._executor.frames import Channel

#: Names of modules to load before the first fork, separated by commas.
PRELOAD_VARIABLE = "OXIDASK_PRELOAD"
#: In the order in which tasks are likely to need them: when one waits already, the rest is not loaded here.
PRELOAD = "cloudpickle,numpy,pandas,pyarrow,tblib,dask,distributed,distributed.worker_client"
#: Slow to load. A worker with one slot has nobody to share them with: the task that needs them loads them.
PRELOAD_SHARED = "dask.array,dask.dataframe"

#: Says how many children there are at a time.
SLOTS_VARIABLE = "OXIDASK_WORKER_SLOTS"

_PR_SET_PDEATHSIG = 1
_FILES_PER_CHILD = 6

#: As many open files as values that are read at a time need, within the system's limit.
_OPEN_FILES = 1 << 20


def main() -> None:
    """Serves the worker at the other end of standard input until that goes."""
    channel = Channel(socket.socket(fileno=os.dup(0)))
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 0)
    os.close(quiet)
    _raise_limits()
    # Loading makes nothing but what stays: looking for garbage meanwhile only takes time.
    gc.disable()
    notes = _preload(channel)
    gc.freeze()
    gc.enable()
    server = ForkServer(channel, notes)
    server.serve()


def _raise_limits() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _preload(channel: Channel) -> list[str]:
    """Loads what is there. What is broken is named, and fails in the task that needs it.

    A worker with one slot shares what is loaded with nobody, so its first task does not wait for more than it
    needs. What somebody has named is always loaded.
    """
    may_hurry = _slots() == 1 and PRELOAD_VARIABLE not in os.environ
    notes = []
    importlib.import_module("oxidask._executor.child")
    for name in _preloaded().split(","):
        if may_hurry and channel.has_news():
            break
        name = name.strip()
        if not name:
            continue
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except Exception as error:
            notes.append(f"{name} cannot be loaded: {error!r}")
    return notes


def _slots() -> int:
    try:
        return int(os.environ.get(SLOTS_VARIABLE, ""))
    except ValueError:
        return 1


def _preloaded() -> str:
    named = os.environ.get(PRELOAD_VARIABLE)
    if named is not None:
        return named
    return PRELOAD if _slots() == 1 else f"{PRELOAD},{PRELOAD_SHARED}"


def versions() -> dict[str, str]:
    """Versions of what decides whether values of the client can be read here."""
    found = {"python": platform.python_version()}
    for name in ("dask", "distributed", "numpy", "pandas", "pyarrow", "cloudpickle"):
        module = sys.modules.get(name)
        if module is not None:
            found[name] = str(getattr(module, "__version__", ""))
    return found


class ForkServer:
    """The loop of the fork server."""

    def __init__(self, channel: Channel, notes: list[str]) -> None:
        self._channel = channel
        self._children: set[int] = set()
        self._wakeup, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        text = json.dumps({"versions": versions(), "notes": notes, "threads": _threads()})
        channel.write(frames.LOADED, text.encode())

    def serve(self) -> None:
        """Until the worker goes."""
        signal.signal(signal.SIGCHLD, _ignore)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._channel.connection, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        try:
            while True:
                ready = {file for file, _ in poll.poll()}
                if self._wakeup in ready:
                    _drain(self._wakeup)
                    self._reap()
                if self._channel.connection.fileno() in ready and not self._answer():
                    return
        except (ConnectionError, BrokenPipeError):
            return
        finally:
            self._end_all()

    def _answer(self) -> bool:
        frame = self._channel.read()
        while frame is not None:
            kind, body = frame
            if kind == frames.FORK:
                self._fork(*frames.FORK_HEAD.unpack_from(body))
            elif kind == frames.KILL:
                self._kill(*frames.KILL_HEAD.unpack_from(body))
            if not self._channel.has_frame():
                return True
            frame = self._channel.read()
        return False

    def _fork(self, request: int) -> None:
        files = self._channel.files[:_FILES_PER_CHILD]
        del self._channel.files[:_FILES_PER_CHILD]
        if len(files) < _FILES_PER_CHILD:
            self._channel.write(frames.NOT_FORKED, frames.RUN.pack(request), b"files are missing")
            return
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._channel.write(frames.NOT_FORKED, frames.RUN.pack(request), str(error).encode())
            _close(files)
            return
        if pid == 0:
            self._become_child(parent, files)
        _close(files)
        self._children.add(pid)
        self._channel.write(frames.FORKED, frames.FORKED_HEAD.pack(request, pid))

    def _become_child(self, parent: int, files: list[int]) -> None:
        """Never returns."""
        status = 70
        try:
            _die_with(parent)
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.close(self._wakeup)
            os.close(self._waker)
            self._channel.close()
            line, tasks, control, output, errors, mark = files
            os.dup2(output, 1)
            os.dup2(errors, 2)
            _close([output, errors])
            from oxidask._executor import child

            child.main(line, tasks, control, mark)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _kill(self, pid: int) -> None:
        # Only what was not reaped yet: its number cannot be another's.
        if pid in self._children:
            _kill_group(pid)

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._children:
                self._children.discard(pid)
                # What it has left behind goes too.
                _kill_group(pid, has_ended=True)
                self._channel.write(frames.EXITED, frames.EXITED_HEAD.pack(pid, status))

    def _end_all(self) -> None:
        for pid in self._children:
            _kill_group(pid)
        for pid in self._children:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                continue


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1


def _ignore(_signal: int, _frame: FrameType | None) -> None:
    """The number in the wake-up pipe says it."""


def _drain(file: int) -> None:
    try:
        while os.read(file, 4096):
            pass
    except BlockingIOError:
        return


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def _kill_group(pid: int, *, has_ended: bool = False) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        if not has_ended:
            try:
                os.kill(pid, signal.SIGKILL)  # It has not become a group yet.
            except ProcessLookupError:
                return


def _die_with(parent: int) -> None:
    """The system kills this process when its parent ends, however that happens."""
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(0)


if __name__ == "__main__":
    main()

"""Processes of a cluster on this machine: starting, watching, starting again, ending.

Owns one thread that starts all of them: the system ends a child with the thread that started it, so
that thread lives as long as the cluster, and the processes end with this Python however it ends.
Workers that end by themselves are started again, but not for ever. Knows nothing of tasks.
"""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

logger = logging.getLogger("oxidask")

#: How often the thread looks at its processes.
_LOOK_SECONDS = 0.1
#: A worker that ends more often than this within this time is not started again.
_RESTARTS_MAX = 5
_RESTARTS_WINDOW_SECONDS = 60.0
_RESTART_PAUSE_SECONDS = 0.5
#: Time for a tidy end; then processes are killed.
_END_SECONDS = 5.0
#: Bytes of a log file, after which it begins anew.
_LOG_BYTES_MAX = 16 << 20
#: Calls that wait for the thread.
_CALLS_MAX = 1_000

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def _end_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


@dataclass
class Member:
    """A process and how to start it again."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    #: It is asked to end when this Python ends; workers see to that by themselves.
    ends_by_signal: bool = False
    #: It may go, and is not started again.
    is_leaving: bool = False
    process: subprocess.Popen[bytes] | None = None
    #: Of the process that runs, or ran last.
    last_process_id: int = 0
    ended: deque[float] = field(default_factory=deque)
    start_after: float | None = 0.0

    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.poll() is None

    def last_lines(self) -> str:
        """What it has said last."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
        except OSError:
            return ""


class Processes:
    """All processes of one cluster."""

    def __init__(self, on_end: Callable[[Member, str], None]) -> None:
        #: Called on the thread with a process that has ended, and how.
        self._on_end = on_end
        self._members: dict[str, Member] = {}
        self._calls: queue.Queue[tuple[Callable[[], Any], Future[Any]] | None] = queue.Queue(_CALLS_MAX)
        self._thread = threading.Thread(target=self._watch, name="oxidask-processes", daemon=True)
        self._thread.start()

    # ---- from any thread ----

    def add(self, member: Member) -> None:
        """Start a process; raises if it cannot be started."""
        self._call(lambda: self._add(member))

    def leave(self, name: str) -> None:
        """A process may end and is not started again."""
        self._call(lambda: self._leave(name))

    def names(self) -> list[str]:
        """Processes that run or are started again, without those that leave."""
        return self._call(lambda: [name for name, member in self._members.items() if not member.is_leaving])

    def is_alive(self, name: str) -> bool:
        """Whether the process runs now."""
        return self._call(lambda: name in self._members and self._members[name].is_alive())

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a process that runs."""
        self._call(lambda: self._signal(name, number))

    def end(self, last: str | None = None) -> None:
        """End all processes, the one named last after all others, and the thread."""
        if self._thread.is_alive():
            self._call(lambda: self._end(last))
            self._calls.put(None)
            self._thread.join(_END_SECONDS)

    def _call(self, function: Callable[[], Any]) -> Any:
        if threading.current_thread() is self._thread:
            return function()
        future: Future[Any] = Future()
        self._calls.put((function, future), timeout=_END_SECONDS)
        return future.result(4 * _END_SECONDS)

    # ---- on the thread ----

    def _watch(self) -> None:
        looked = 0.0
        while True:
            # Also while there are many calls.
            if time.monotonic() - looked >= _LOOK_SECONDS:
                self._look()
                looked = time.monotonic()
            try:
                call = self._calls.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
            if call is None:
                return
            function, future = call
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 (whoever called sees it)
                future.set_exception(error)

    def _look(self) -> None:
        now = time.monotonic()
        for member in list(self._members.values()):
            if member.process is not None and member.process.poll() is not None:
                self._ended(member, now)
            elif member.process is None and member.start_after is not None and now >= member.start_after:
                self._start_again(member)
            _bound(member.log)

    def _ended(self, member: Member, now: float) -> None:
        assert member.process is not None
        how = _describe(member.process.returncode)
        process, member.process = member.process, None
        try:
            self._on_end(member, how if process.returncode else "")
        except Exception:  # noqa: BLE001 (the scheduler notices by itself, only later)
            logger.debug("the end of %s could not be told", member.name, exc_info=True)
        if member.is_leaving:
            del self._members[member.name]
            return
        member.ended.append(now)
        while member.ended and now - member.ended[0] > _RESTARTS_WINDOW_SECONDS:
            member.ended.popleft()
        if len(member.ended) > _RESTARTS_MAX:
            member.start_after = None
            logger.error(
                "%s ended %d times within %d s, the last time with %s, and is not started again:\n%s",
                member.name, len(member.ended), _RESTARTS_WINDOW_SECONDS, how, member.last_lines(),
            )  # fmt: skip
            return
        logger.warning("%s ended (%s) and is started again", member.name, how)
        member.start_after = now + _RESTART_PAUSE_SECONDS * (len(member.ended) - 1)

    def _start_again(self, member: Member) -> None:
        try:
            self._start(member)
        except OSError as error:
            member.start_after = None
            logger.error("%s cannot be started again: %s", member.name, error)

    def _add(self, member: Member) -> None:
        if member.name in self._members:
            raise ValueError(f"`{member.name}` runs already")
        self._start(member)
        self._members[member.name] = member

    def _start(self, member: Member) -> None:
        member.log.parent.mkdir(parents=True, exist_ok=True)
        with member.log.open("ab") as log:
            member.process = subprocess.Popen(  # noqa: S603 (a program that the user named)
                member.command,
                env=member.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if member.ends_by_signal else subprocess.DEVNULL,
                stderr=log,
                # Ctrl-C is for this Python, which then ends them in order.
                start_new_session=True,
                preexec_fn=_end_with_parent if member.ends_by_signal else None,
            )
        member.last_process_id = member.process.pid

    def _leave(self, name: str) -> None:
        member = self._members.get(name)
        if member is not None:
            member.is_leaving = True
            if member.process is None:
                del self._members[name]

    def _signal(self, name: str, number: int) -> None:
        member = self._members.get(name)
        if member is not None and member.is_alive():
            assert member.process is not None
            member.process.send_signal(number)

    def _end(self, last: str | None) -> None:
        others = [member for name, member in self._members.items() if name != last]
        _end_all(others)
        _end_all([member for name, member in self._members.items() if name == last])
        self._members.clear()


def _end_all(members: list[Member]) -> None:
    processes = [member.process for member in members if member.process is not None]
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + _END_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _bound(log: Path) -> None:
    try:
        if log.stat().st_size > _LOG_BYTES_MAX:
            os.truncate(log, 0)
    except OSError:
        pass


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"

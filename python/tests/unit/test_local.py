"""Processes of local clusters and their numbers; whole clusters are tested with the program."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oxidask import OxidaskError
from oxidask._adaptive import Rule
from oxidask._local import _Settings, find_program, memory_bytes
from oxidask._processes import _RESTARTS_MAX, Member, Processes


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def member(tmp_path: Path, name: str, program: str) -> Member:
    return Member(name, [sys.executable, "-c", program], {}, tmp_path / f"{name}.log")


SLEEP = "import time; time.sleep(100)"


def test_processes_are_started_again_and_ended(tmp_path: Path) -> None:
    ended: list[tuple[str, str]] = []
    processes = Processes(lambda member, how: ended.append((member.name, how)))
    first = member(tmp_path, "a", SLEEP)
    processes.add(first)
    processes.add(member(tmp_path, "b", SLEEP))
    assert processes.names() == ["a", "b"]
    with pytest.raises(ValueError, match="runs already"):
        processes.add(member(tmp_path, "a", SLEEP))
    before = first.last_process_id
    processes.signal("a", signal.SIGKILL)
    until(lambda: processes.is_alive("a") and first.last_process_id != before)
    assert ended == [("a", "signal SIGKILL")]
    processes.leave("b")
    assert processes.names() == ["a"]
    processes.signal("b", signal.SIGTERM)
    until(lambda: len(ended) == 2)
    processes.end()
    assert not first.is_alive()
    processes.end()


def test_one_that_always_fails_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ended: list[str] = []
    processes = Processes(lambda _, how: ended.append(how))
    processes.add(member(tmp_path, "a", "import sys; sys.exit('no room')"))
    until(lambda: any("is not started again" in record.message for record in caplog.records), 60)
    assert ended == ["exit status 1"] * (_RESTARTS_MAX + 1)
    assert "no room" in caplog.text
    processes.end()
    with pytest.raises(FileNotFoundError):
        other = Processes(lambda *_: None)
        try:
            other.add(Member("b", ["/nowhere"], {}, tmp_path / "b.log"))
        finally:
            other.end()


def test_processes_live_longer_than_the_thread_that_asked(tmp_path: Path) -> None:
    processes = Processes(lambda *_: None)
    signalled = member(tmp_path, "a", SLEEP)
    signalled.ends_by_signal = True
    thread = threading.Thread(target=processes.add, args=(signalled,))
    thread.start()
    thread.join()
    time.sleep(0.3)
    assert processes.is_alive("a")
    processes.end()


def test_the_rule_grows_at_once_and_shrinks_slowly() -> None:
    rule = Rule(1, 10, wait_count=3)
    assert rule.next(1, 50) == 10
    assert [rule.next(10, wanted) for wanted in (2, 5, 3)] == [10, 10, 5]
    assert [rule.next(5, wanted) for wanted in (0, 7, 0)] == [5, 7, 5]
    assert [rule.next(5, 0), rule.next(5, 0)] == [5, 1]
    for minimum, maximum in ((-1, 5), (3, 2), (0, 0)):
        with pytest.raises(ValueError, match="cannot have between"):
            Rule(minimum, maximum, 1)


def test_memory_of_a_worker() -> None:
    from distributed.system import MEMORY_LIMIT

    assert memory_bytes("2GiB", 4) == 2 << 30
    assert memory_bytes("auto", 4) == MEMORY_LIMIT // 4
    assert memory_bytes(0.5, 4) == MEMORY_LIMIT // 2
    assert memory_bytes(None, 4) == MEMORY_LIMIT
    assert memory_bytes(1_000_000, 4) == 1_000_000
    assert _Settings(None, None, "auto").n_workers >= 1
    with pytest.raises(ValueError, match="cannot have -1 workers"):
        _Settings(-1, 1, "auto")


def test_the_program_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "oxidask"
    monkeypatch.delenv("OXIDASK_PROGRAM", raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OxidaskError) as error:
        find_program()
    assert error.value.code == "OX352"
    assert any("OXIDASK_PROGRAM" in cause for cause in error.value.causes)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_program() == program
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("OXIDASK_PROGRAM", str(program))
    assert find_program() == program
    with pytest.raises(OxidaskError, match="not a program"):
        find_program(tmp_path / "none")

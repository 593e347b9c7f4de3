"""The Rust half by itself: what it refuses, how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from oxidask import OxidaskError
from oxidask._oxidask import Credentials, Session, order

NOWHERE = "oxidask://127.0.0.1:1"


class Events:
    """What a session tells."""

    def __init__(self) -> None:
        self.all: list[tuple[Any, ...]] = []
        self.over = threading.Event()

    def __call__(self, events: list[tuple[Any, ...]]) -> None:
        self.all.extend(events)
        if events[-1][0] in {"refused", "closed"}:
            self.over.set()


@pytest.fixture
def credentials(certificates: Path) -> Credentials:
    return Credentials.from_dir(certificates)


def open_session(credentials: Credentials, seconds: float = 60.0) -> tuple[Session, Events]:
    events = Events()
    return Session(NOWHERE, credentials, "c", {"python": "3"}, events, seconds), events


def test_an_absent_scheduler_ends_the_session(credentials: Credentials) -> None:
    session, events = open_session(credentials, 0.3)
    assert events.over.wait(20)
    assert events.all[-1][:2] == ("refused", "OX113")
    assert events.all[0][0] == "reconnecting"
    with pytest.raises(OxidaskError, match="closed"):
        session.want(["a"])
    answers: list[Any] = []
    done = threading.Event()
    session.ask(b"{}", [], lambda *answer: (answers.append(answer), done.set()))
    assert done.wait(20)
    assert answers[0][0][0] == "OX113"
    results: list[Any] = []
    done.clear()
    session.fetch([(1, 2)], lambda *result: (results.append(result), done.set()))
    assert done.wait(20)
    assert results[0][:2] == (0, None)
    done.clear()
    session.put("k", 5, [b"abc", memoryview(b"de")], [], False, lambda fault: (results.append(fault), done.set()))
    assert done.wait(20)
    assert results[1][0] == "OX113"


def test_a_session_is_closed_once(credentials: Credentials) -> None:
    session, events = open_session(credentials)
    session.submit(["a", "ä"], b"table", [b"1", b"2"], ["g"], [0, 0], [0, 1], [0], [], [0, 1])
    session.release(["a"])
    session.close()
    assert events.over.wait(20)
    assert events.all[-1] == ("closed", "")
    session.close()
    with pytest.raises(OxidaskError):
        session.submit(["b"], b"", [b""], ["g"], [0], [0], [], [], [])


def test_nonsense_is_refused(credentials: Credentials) -> None:
    with pytest.raises(OxidaskError, match="is not an address"):
        Session("tcp://a:1", credentials, "c", {}, print, 1.0)
    with pytest.raises(ValueError, match="reconnect_seconds"):
        Session(NOWHERE, credentials, "c", {}, print, -1.0)
    session, _ = open_session(credentials)
    with pytest.raises(ValueError, match="no kind of payload"):
        session.put("k", 99, [], [], False, print)
    with pytest.raises(TypeError):
        session.put("k", 5, ["text"], [], False, print)
    session.close()


def test_a_child_of_a_fork_is_told(credentials: Credentials) -> None:
    session, _ = open_session(credentials)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            session.want(["a"])
        except RuntimeError as error:
            status = 0 if "forked" in str(error) else 2
        # One of its own works.
        own, events = open_session(credentials, 0.1)
        if not events.over.wait(20):
            status = 3
        del own, session
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    session.close()


def test_the_interpreter_ends_with_sessions_open(certificates: Path) -> None:
    program = (
        "import sys\n"
        "from oxidask._oxidask import Credentials, Session\n"
        f"credentials = Credentials.from_dir({str(certificates)!r})\n"
        "heard = []\n"
        f"sessions = [Session({NOWHERE!r}, credentials, str(i), {{}}, heard.append, 60.0) for i in range(8)]\n"
        "for session in sessions:\n"
        "    session.ask(b'', [], lambda *answer: None)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")


def test_order() -> None:
    # Four leaves, two sums, one sum: each sum follows its leaves.
    assert order([0, 0, 0, 0, 2, 2, 2], [0, 1, 2, 3, 4, 5]) == [0, 1, 3, 4, 2, 5, 6]
    assert order([], []) == []
    with pytest.raises(ValueError, match="circle"):
        order([1, 1], [1, 0])

"""What a task raises reaches the client as it was, or as its text."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import pytest

from oxidask._executor import task


class Odd(Exception):
    """Its constructor does not take what it keeps in `args`."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.second = second


class Bound(Exception):
    """It cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("bound")
        self.lock = threading.Lock()


class Mute(Exception):
    """It cannot even be printed."""

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def failure(function: Callable[[], Any]) -> tuple[task.Failure, dict[str, Any]]:
    try:
        function()
    except BaseException as error:
        failed = task.failed(error)
    parts = pickle.loads(failed.attachment)
    assert set(parts) == {"exception", "traceback", "text", "traceback_text"}
    assert len(failed.attachment) <= task.ATTACHMENT_BYTES_MAX
    return failed, parts


def raising(error: BaseException) -> Callable[[], None]:
    def deeper() -> None:
        raise error

    return deeper


@pytest.mark.parametrize("error", [ValueError("ä"), KeyError("k"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_exceptions_keep_their_class(error: BaseException) -> None:
    failed, parts = failure(raising(error))
    found = pickle.loads(parts["exception"])
    assert type(found) is type(error)
    assert found.args == error.args
    assert parts["text"] == repr(error)
    assert failed.code == 208
    trace = pickle.loads(parts["traceback"])
    assert isinstance(trace, TracebackType)
    assert "in deeper" in parts["traceback_text"]


def test_causes_survive() -> None:
    def both() -> None:
        try:
            1 / 0
        except ZeroDivisionError as error:
            raise ValueError("outer") from error

    found = pickle.loads(failure(both)[1]["exception"])
    assert isinstance(found, ValueError)
    assert isinstance(found.__cause__, ZeroDivisionError)
    assert found.__cause__.__traceback__ is not None


def test_odd_constructors_survive() -> None:
    found = pickle.loads(failure(raising(Odd(1, 2)))[1]["exception"])
    assert (type(found), str(found), found.second) == (Odd, "1 and 2", 2)


@pytest.mark.parametrize("error", [Bound(), Mute()], ids=lambda error: type(error).__name__)
def test_what_cannot_be_pickled_becomes_text(error: Exception) -> None:
    failed, parts = failure(raising(error))
    assert type(error).__name__ in failed.message
    found = pickle.loads(parts["exception"])
    assert isinstance(found, (Exception, Mute))


def test_classes_of_the_main_program_travel_by_value() -> None:
    program = (
        "import sys\n"
        "from oxidask._executor import task\n"
        "class Mine(Exception): pass\n"
        "try: raise Mine('here')\n"
        "except Mine as error: sys.stdout.buffer.write(task.failed(error).attachment)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)
    found = pickle.loads(pickle.loads(run.stdout)["exception"])
    assert (type(found).__name__, str(found)) == ("Mine", "here")


def test_deep_recursion_is_text_only_where_it_must_be() -> None:
    def down(depth: int) -> int:
        return down(depth + 1)

    failed, parts = failure(lambda: down(0))
    assert isinstance(pickle.loads(parts["exception"]), RecursionError)
    assert "in down" in pickle.loads(parts["traceback"])
    assert failed.message.startswith("RecursionError: maximum recursion depth")


def test_large_messages_are_cut() -> None:
    failed, parts = failure(raising(ValueError("x" * 1_000_000)))
    assert len(failed.message) < 9_000
    assert len(parts["text"]) < 9_000
    assert isinstance(pickle.loads(parts["exception"]), Exception)


def test_results_that_cannot_be_sent_say_so() -> None:
    with pytest.raises(task.Failure) as caught:
        task.encode(x for x in [1])
    assert caught.value.code == 351
    assert "builtins.generator" in caught.value.message
    assert isinstance(pickle.loads(pickle.loads(caught.value.attachment)["exception"]), TypeError)

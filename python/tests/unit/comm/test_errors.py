"""What users see when something fails."""

from __future__ import annotations

import pickle

import pytest
from distributed.core import error_message
from distributed.scheduler import KilledWorker

from oxidask._errors import NotThereError, OxidaskError, task_failure
from oxidask._versions import mismatch, own_versions


def attachment(error: BaseException) -> bytes:
    try:
        raise error
    except BaseException as raised:
        said = error_message(raised)
    return pickle.dumps({"exception": said["exception"].data, "traceback": said["traceback"].data, "text": repr(error)})


def test_errors_can_be_pickled_and_say_all() -> None:
    error = OxidaskError("OX101", "it broke", "mend it", ["a cause"])
    back = pickle.loads(pickle.dumps(error))
    assert str(back) == str(error) == "error[OX101]: it broke\n  caused by: a cause\n  hint: mend it"
    refused = pickle.loads(pickle.dumps(NotThereError("no", "yes")))
    assert isinstance(refused, NotImplementedError) and str(refused) == "no\n  hint: yes"


def test_the_exception_of_the_task_comes_first() -> None:
    error, traceback = task_failure("OX310", "m", "", [], attachment(ZeroDivisionError("by zero")))
    assert isinstance(error, ZeroDivisionError) and traceback is not None


def test_an_exception_that_cannot_be_read_becomes_text() -> None:
    broken = pickle.dumps({"exception": b"no pickle", "traceback": None, "text": "Odd('x')"})
    error, traceback = task_failure("OX310", "m", "h", [], broken)
    assert isinstance(error, OxidaskError) and "Odd('x')" in str(error) and traceback is None
    error, _ = task_failure("OX310", "the message", "h", [], b"nonsense")
    assert "the message" in str(error)


def test_a_process_that_died_is_a_killed_worker() -> None:
    error, _ = task_failure("OX349", "ended by signal 9", "less memory", ["last words"], None)
    assert isinstance(error, KilledWorker) and isinstance(error, OxidaskError) and "signal 9" in str(error)
    back = pickle.loads(pickle.dumps(error))
    assert isinstance(back, KilledWorker) and str(back) == str(error) and back.allowed_failures == 0
    other, _ = task_failure("OX220", "m", "", [], None)
    assert not isinstance(other, KilledWorker)


@pytest.mark.parametrize(
    ("theirs", "named"),
    [({"python": "3.9.1"}, "python"), ({"dask": "1.0"}, "dask"), ({}, None), ({"numpy": "0.1"}, None)],
)
def test_versions_that_differ_name_both_sides(theirs: dict[str, str], named: str | None) -> None:
    mine = own_versions()
    text = mismatch(mine, {"w1": {**mine, **theirs}, "w2": mine})
    if named is None:
        assert text is None
    else:
        assert text is not None and mine[named] in text and theirs[named] in text and "w1" in text
        assert "w2" not in text

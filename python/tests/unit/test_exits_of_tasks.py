"""What clients get when a task raises something that is no `Exception`."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from oxidask._errors import OxidaskError, task_failure


@pytest.mark.parametrize("raised", [SystemExit(4), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()])
def test_it_becomes_an_exception_because_it_would_end_the_event_loop(raised: BaseException) -> None:
    attachment = pickle.dumps({"exception": pickle.dumps(raised), "traceback": b"", "text": "", "traceback_text": ""})
    found, _ = task_failure("OX208", "it failed", "", [], attachment)
    assert isinstance(found, OxidaskError)
    assert type(raised).__name__ in str(found)

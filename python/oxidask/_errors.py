"""Errors that users of the package see.

Owns the exception for what the scheduler or a worker says in its own words, and which of
`distributed`'s exceptions fits a failure of a task. All can be pickled. Never talks to anyone.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable
from typing import Any

logger = logging.getLogger("oxidask")

#: The process that ran the task, or its worker, ended under it more often than it may.
WORKER_DIED_CODES = frozenset({"OX303", "OX312", "OX349"})


class OxidaskError(RuntimeError):
    """What the scheduler or a worker says, with its code and what to do about it."""

    def __init__(self, code: str, message: str, hint: str = "", causes: Iterable[str] = ()) -> None:
        super().__init__(code, message, hint, tuple(causes))
        self.code = code
        self.message = message
        self.hint = hint
        self.causes = tuple(causes)

    def __str__(self) -> str:
        text = f"error[{self.code}]: {self.message}" if self.code else self.message
        for cause in self.causes:
            text += f"\n  caused by: {cause}"
        if self.hint:
            text += f"\n  hint: {self.hint}"
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.message, self.hint, self.causes)


class NotThereError(OxidaskError, NotImplementedError):
    """Something that stock Dask has and oxidask does not, or not yet."""

    def __init__(self, message: str, hint: str = "", *_: Any) -> None:
        OxidaskError.__init__(self, "", message, hint)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.hint)


def _killed_worker() -> type[Exception]:
    from distributed.scheduler import KilledWorker

    class TaskKilled(OxidaskError, KilledWorker):
        """The process that ran the task died; a `KilledWorker` of `distributed` with our text."""

        # `KilledWorker` reads these from arguments that ours does not have.
        task = property(lambda self: self.message)
        last_worker = property(lambda self: None)
        allowed_failures = property(lambda self: 0)

    TaskKilled.__module__, TaskKilled.__qualname__ = __name__, "TaskKilled"
    return TaskKilled


def __getattr__(name: str) -> Any:
    if name == "TaskKilled":
        found = globals()["TaskKilled"] = _killed_worker()
        return found
    raise AttributeError(name)


def task_failure(code: str, message: str, hint: str, causes: list[str], attachment: bytes | None) -> tuple[Any, Any]:
    """Exception and traceback of a failed task."""
    if attachment:
        try:
            found = pickle.loads(attachment)
        except Exception:  # a newer worker may say it in another form
            logger.debug("an exception could not be read", exc_info=True)
        else:
            return _attached(found, code, hint)
    kind = __getattr__("TaskKilled") if code in WORKER_DIED_CODES else OxidaskError
    return kind(code, message, hint, causes), None


def _attached(found: dict[str, Any], code: str, hint: str) -> tuple[Any, Any]:
    try:
        exception = pickle.loads(found["exception"])
        if not isinstance(exception, BaseException):
            exception = Exception(str(exception))
        if not isinstance(exception, Exception):
            # `SystemExit` and its like would end the event loop of the client, and everybody would wait for ever.
            name = type(exception).__name__
            exception = OxidaskError(code, f"the task raised {name}: {exception}", "let tasks raise exceptions or return")
    except Exception:  # its class may not be importable here; its text remains
        text = found.get("text") or "the exception of the task cannot be unpickled here"
        exception = OxidaskError(code, text, found.get("traceback_text") or hint)
    try:
        traceback = pickle.loads(found["traceback"]) if found.get("traceback") else None
    except Exception:  # a traceback is worth less than the exception
        traceback = None
    return harmless(exception, code), traceback


def harmless(exception: Any, code: str = "") -> Any:
    """Raised on an event loop, `SystemExit` would end it and `GeneratorExit` go unnoticed: whoever waits would hang."""
    if isinstance(exception, Exception) or not isinstance(exception, BaseException):
        return exception
    text = f"{type(exception).__name__}: {exception}" if str(exception) else type(exception).__name__
    wrapped = OxidaskError(code, f"the code on the worker has raised {text}", "raise an `Exception` instead")
    wrapped.__cause__ = exception
    return wrapped


def from_fault(fault: tuple[str, str, str]) -> OxidaskError:
    """The exception of a question that was not answered."""
    return OxidaskError(*fault)

"""How many workers a local cluster should have.

Owns the rule: grow at once to what the scheduler wants, shrink only when it has wanted less several
times in a row. The scheduler counts tasks and knows how long they take; this only obeys slowly. The
thread that asks it holds no process.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable

logger = logging.getLogger("oxidask")


class Rule:
    """A pure rule: what is wanted in, the number of workers out."""

    def __init__(self, minimum: int, maximum: float, wait_count: int) -> None:
        if minimum < 0 or maximum < max(minimum, 1):
            raise ValueError(f"a cluster cannot have between {minimum} and {maximum} workers")
        self.minimum, self.maximum, self.wait_count = minimum, maximum, wait_count
        self._lower: list[int] = []

    def next(self, current: int, wanted: int) -> int:
        """How many there should be now."""
        wanted = int(min(max(wanted, self.minimum), self.maximum))
        if wanted >= current:
            self._lower.clear()
            return wanted
        self._lower.append(wanted)
        if len(self._lower) < self.wait_count:
            return int(min(max(current, self.minimum), self.maximum))
        # What was enough in the whole time is enough now.
        target = max(self._lower)
        self._lower.clear()
        return target


class Adaptive:
    """Asks and scales until it is stopped."""

    def __init__(
        self,
        rule: Rule,
        interval_seconds: float,
        look: Callable[[], tuple[int, int]],
        scale: Callable[[int], None],
    ) -> None:
        self.rule = rule
        self.minimum, self.maximum = rule.minimum, rule.maximum
        self._interval_seconds = interval_seconds
        #: Gives the number of workers and how many the scheduler wants.
        self._look = look
        self._scale = scale
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._adapt, name="oxidask-adaptive", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Scale no more."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(self._interval_seconds)

    def _adapt(self) -> None:
        while not self._stopped.wait(self._interval_seconds):
            try:
                current, wanted = self._look()
                target = self.rule.next(current, wanted)
                if target != current and not self._stopped.is_set():
                    self._scale(target)
            except Exception:  # noqa: BLE001 (the scheduler may be away for a moment)
                logger.debug("the cluster could not be adapted", exc_info=True)


def bounds(minimum: int | None, maximum: float | None) -> tuple[int, float]:
    """The user's bounds, or what they stand for."""
    return minimum or 0, math.inf if maximum is None else maximum

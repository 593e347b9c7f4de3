"""The short way of a graph to the scheduler: in the thread that submits it.

Owns when that keeps the order: a graph goes at once if no message of its client is on its way through the
event loop; otherwise it queues up behind them, as everything else does. What has to wait for something, or
fails, goes the plain way, too.

Invariant: messages of one client take effect in the order in which they were sent.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from oxidask import _waiting

if TYPE_CHECKING:
    from oxidask._stream import Stream

logger = logging.getLogger("oxidask")

_SAFE = "_send_to_scheduler_safe"
_PLAIN = "_send_to_scheduler"


class Sending:
    """Stands for the method by which a client sends messages, from any thread."""

    def __init__(self, client: Any, plain: Any, safe: Any) -> None:
        self._client = client
        self._plain = plain
        self._safe = safe
        #: An object that goes while a graph is sent may send something in the same thread.
        self._lock = threading.RLock()
        #: The event loop's.
        self._thread = threading.get_ident()
        #: Messages that no stream has taken yet, by identity, and whether they wait in the client's buffer.
        self._on_the_way: dict[int, tuple[dict[str, Any], bool]] = {}
        self._stream: Stream | None = None

    def use(self, stream: Stream) -> None:
        """Messages go to this stream from now on. What was buffered for the one before has gone with it."""
        with self._lock:
            left = {number: entry for number, entry in self._on_the_way.items() if not entry[1]}
            self._on_the_way = left
            self._stream = stream
        stream.on_taken = self._taken

    def __call__(self, message: dict[str, Any]) -> None:
        """Send a message."""
        with self._lock:
            is_first = not self._on_the_way
            if is_first and self._is_sent_at_once(message):
                return
            self._on_the_way[id(message)] = (message, False)
        if is_first and self._client.status == "running" and threading.get_ident() == self._thread:
            # It is there already: no turn is needed to get there.
            self.safe(message)
            return
        try:
            self._plain(message)
        except BaseException:
            self._taken([message])
            raise

    def _is_sent_at_once(self, message: dict[str, Any]) -> bool:
        stream = self._stream
        if stream is None or message.get("op") != "update-graph" or self._client.status != "running":
            return False
        if getattr(self._client, "_pending_msg_buffer", None):
            return False
        try:
            if len(message["keys"]) == 1:
                _waiting.expect(self._client, *message["keys"])
            return stream.take_at_once(message)
        except Exception:  # on the plain way it becomes the failure of the keys
            logger.debug("a graph could not be sent at once", exc_info=True)
            return False

    def safe(self, message: dict[str, Any]) -> None:
        """On the event loop: a message goes into the client's buffer, from which the stream takes it turns later."""
        with self._lock:
            self._on_the_way[id(message)] = (message, True)
        try:
            self._safe(message)
        except BaseException:
            self._taken([message])
            raise

    def _taken(self, messages: Iterable[dict[str, Any]]) -> None:
        with self._lock:
            for message in messages:
                self._on_the_way.pop(id(message), None)


def send_at_once(client: Any) -> Sending | None:
    """Let graphs of a client go the short way; nothing if its release of `distributed` has another one."""
    plain, safe = getattr(client, _PLAIN, None), getattr(client, _SAFE, None)
    if plain is None or safe is None or not hasattr(client.loop, "asyncio_loop"):
        return None
    if _SAFE not in getattr(getattr(plain, "__code__", None), "co_names", ()):
        return None
    sending = Sending(client, plain, safe)
    setattr(client, _SAFE, sending.safe)
    setattr(client, _PLAIN, sending)
    return sending

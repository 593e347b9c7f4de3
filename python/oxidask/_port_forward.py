"""Ports of this machine that lead to a pod.

Owns a listener and two threads for each connection. What goes through is encrypted from end to end
by whoever connects, so nothing here looks at it. A pod that is replaced is looked up anew for the
next connection.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("oxidask")

#: Connections at a time.
_CONNECTIONS_MAX = 64
_PART_BYTES = 1 << 16
_BACKLOG = 16


class PortForward:
    """A port of this machine; `open_remote` gives a connection to the other end."""

    def __init__(self, open_remote: Callable[[], Any], port: int = 0) -> None:
        self._open_remote = open_remote
        self._listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
        self.port: int = self._listener.getsockname()[1]
        self._slots = threading.BoundedSemaphore(_CONNECTIONS_MAX)
        self._open: set[Any] = set()
        self._lock = threading.Lock()
        self._is_closed = False
        threading.Thread(target=self._accept, name="oxidask-forward", daemon=True).start()

    def close(self) -> None:
        """Listen no more, and end all connections."""
        with self._lock:
            self._is_closed = True
            ends = list(self._open)
        # Closing alone would leave it to the thread that waits at it.
        _shut(self._listener)
        for end in ends:
            _shut(end)

    def _accept(self) -> None:
        while True:
            try:
                local, _ = self._listener.accept()
            except OSError:
                return
            if not self._slots.acquire(blocking=False):
                logger.warning("more than %d connections to one pod: one was refused", _CONNECTIONS_MAX)
                local.close()
                continue
            threading.Thread(target=self._serve, args=(local,), name="oxidask-forward", daemon=True).start()

    def _serve(self, local: socket.socket) -> None:
        remote: Any = None
        try:
            local.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            remote = self._open_remote()
            with self._lock:
                if self._is_closed:
                    return
                self._open |= {local, remote}
            back = threading.Thread(target=_pump, args=(remote, local), name="oxidask-forward", daemon=True)
            back.start()
            _pump(local, remote)
            back.join()
        except Exception as error:  # noqa: BLE001 (whoever connected sees a connection that ends)
            logger.debug("a connection could not be forwarded: %s", error)
        finally:
            with self._lock:
                self._open -= {local, remote}
            for end in (local, remote):
                if end is not None:
                    _shut(end)
            self._slots.release()


def _pump(source: Any, target: Any) -> None:
    try:
        while part := source.recv(_PART_BYTES):
            target.sendall(part)
    except (OSError, ValueError):
        pass
    finally:
        # Both directions end together: our protocol has no half-closed connections.
        for end in (source, target):
            _shut(end)


def _shut(end: Any) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except (OSError, ValueError, AttributeError):
        pass
    try:
        end.close()
    except (OSError, ValueError):
        pass

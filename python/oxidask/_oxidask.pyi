"""The Rust half of the package: connections to schedulers.

Callbacks are called on a thread of the module's own, with the interpreter's lock, never twice at
once for one session or one call: hop to an event loop by `loop.call_soon_threadsafe`. A fault is
`(code, message, hint)`.
"""

from collections.abc import Buffer, Callable
from os import PathLike
from typing import Any

__version__: str
PROTOCOL_VERSION: int

Fault = tuple[str, str, str]

class Credentials:
    """Certificate, key and trusted authorities, checked to fit together."""

    @staticmethod
    def from_dir(path: str | PathLike[str]) -> Credentials:
        """Reads `ca.crt`, `tls.crt` and `tls.key` of a folder; renewed files are used later."""
    @staticmethod
    def from_pem(ca: str, certificate: str, key: str) -> Credentials:
        """Takes the content of the three files."""
    @property
    def identity(self) -> str:
        """Who the certificate speaks for."""

class Session:
    """A connection of one client to a scheduler, made again by itself when it breaks.

    It belongs to the process that made it: after a fork its methods raise `RuntimeError`.
    """

    def __init__(
        self,
        address: str,
        credentials: Credentials,
        client: str,
        versions: dict[str, str],
        on_events: Callable[[list[tuple[Any, ...]]], None],
        reconnect_seconds: float,
    ) -> None:
        """Connects in the background to `oxidask://host:port`.

        `on_events` gets lists of at most 1,000 of these, in order: `("connected",)`,
        `("ready", key, graph, task, nbytes)`,
        `("failed", key, code, message, hint, causes, attachment)`, `("lost", key)`,
        `("cancelled", key, reason, message)`, `("retried", key)`,
        `("topic", topic, time, content)`, `("notice", text)`, `("restarted",)`,
        `("reconnecting", text)`; and at the end one of `("refused", code, message, hint)` and
        `("closed", text)`.
        """
    def submit(
        self,
        keys: list[str],
        body: bytes,
        arguments: list[bytes],
        groups: list[str],
        group: list[int],
        input_counts: list[int],
        inputs: list[int],
        external: list[str],
        wanted: list[int],
        priority: list[int] | None = None,
        retries: list[int] | None = None,
        requirement: list[int] | None = None,
        requirements: list[tuple[int, dict[str, int], list[str]]] | None = None,
    ) -> None:
        """New tasks with their keys, in columns; waits while 256 MiB are on their way."""
    def want(self, keys: list[str]) -> None:
        """These keys are wanted as well."""
    def release(self, keys: list[str]) -> None:
        """These keys are no longer wanted; many calls become one command."""
    def cancel(self, keys: list[str], is_forced: bool, reason: str, message: str) -> None:
        """Stops the tasks of these keys."""
    def retry(self, keys: list[str]) -> None:
        """Runs tasks that have failed once more."""
    def ask(
        self,
        content: bytes,
        values: list[bytes],
        callback: Callable[[Fault | None, bytes, list[bytes]], None],
    ) -> None:
        """Asks the scheduler; the answer may take as long as the question allows."""
    def fetch(
        self,
        tasks: list[tuple[int, int]],
        callback: Callable[[int, int | None, memoryview | Fault], None],
    ) -> None:
        """Reads results by graph and task, in order: position, payload kind and content.

        The content is a writable view of memory that begins at a multiple of 64 bytes. Without a
        result the kind is `None` and the content a fault.
        """
    def put(
        self,
        key: str,
        kind: int,
        buffers: list[Buffer],
        workers: list[str],
        is_shared: bool,
        callback: Callable[[Fault | None], None],
    ) -> None:
        """Sends the buffers, one after the other, as the result of a key."""
    def close(self) -> None:
        """Releases all keys and ends the session; waits at most a second for the scheduler."""

class Cluster:
    """A connection of whoever runs a cluster. Each call waits for its answer, a bounded time."""

    def __init__(self, address: str, credentials: Credentials) -> None:
        """Connects, and waits until the scheduler has answered."""
    def status(self) -> dict[str, Any]:
        """`uptime_ms`, `workers` (a list) and `groups` (by name) as the scheduler sees them."""
    def retire(self, group: str, count: int, deadline_ms: int = 0) -> tuple[list[str], list[tuple[str, str]]]:
        """Workers of a group that can go most cheaply hand over what they hold and end.

        Names of those that go; names of others, and why they may not.
        """
    def worker_ended(self, worker: str, reason: str, process_id: int) -> bool:
        """The process of a worker has ended, and how. Whether the scheduler knew it."""
    def logs(self, worker: str = "", lines: int = 1000) -> list[tuple[str, str, str]]:
        """Log lines that are kept: worker (empty for the scheduler), level and text."""

def order(input_counts: list[int], inputs: list[int]) -> list[int]:
    """The place of each task in an order in which few results are held at a time."""

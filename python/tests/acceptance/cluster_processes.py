"""The processes of a local cluster, for those who end them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import oxidask


def descendants(process_id: int) -> Iterator[tuple[int, list[str]]]:
    """Processes below one, and how they were started."""
    for children in Path(f"/proc/{process_id}/task").glob("*/children"):
        try:
            found = [int(word) for word in children.read_text().split()]
        except OSError:
            continue
        for child in found:
            try:
                words = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            yield child, words
            yield from descendants(child)


def services(cluster: oxidask.LocalCluster, service: str) -> list[int]:
    """The cluster's processes that are `oxidask worker` or `oxidask scheduler`."""
    folder = f"--tls-dir={cluster.tls_dir.parent / service}"
    return sorted(pid for pid, words in descendants(os.getpid()) if service in words and folder in words)

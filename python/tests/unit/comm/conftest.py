"""Stock clients on a scheduler in this process."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

import fake_oxidask

fake_oxidask.provide_module()

_ports = itertools.count(1)


@pytest.fixture
def scheduler() -> Iterator[Any]:
    """A cluster of its own."""
    with fake_oxidask.installed():
        yield fake_oxidask.Scheduler.of(f"oxidask://fake:{next(_ports)}")


@pytest.fixture
def client(scheduler: Any) -> Iterator[Any]:
    """A stock client."""
    from distributed import Client

    with Client(scheduler.address) as client:
        yield client

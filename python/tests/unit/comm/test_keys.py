"""Keys on the wire can be sent, whatever they are, and come back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client

from oxidask._keys import KEY_BYTES_MAX, KeyNames
from oxidask._operations import progress

KEYS = ["plain", "größe", "", "\ud800", "a\udfffb" * 600, "日本" * 1000, ("x", "\ud800", 1), ("ü", 2), 7, b"bytes"]


@pytest.mark.parametrize("key", KEYS, ids=ascii)
def test_keys_can_be_sent_and_come_back(key: Any) -> None:
    names = KeyNames()
    wire = names.to_wire(key)
    assert 0 < len(wire.encode()) <= KEY_BYTES_MAX
    assert names.from_wire(wire) == key


def test_keys_stay_apart() -> None:
    names = KeyNames()
    assert len({names.to_wire(key) for key in KEYS}) == len(KEYS)


def _states(monkeypatch: pytest.MonkeyPatch, **states: str) -> None:
    futures = {key: SimpleNamespace(status=state, exception=None) for key, state in states.items()}
    monkeypatch.setattr(Client, "_instances", [SimpleNamespace(futures={}), SimpleNamespace(futures=futures)])


def test_progress_counts_what_is_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    _states(monkeypatch, a="finished", b="pending", c="pending")
    assert progress.progress({"a", "b", "c"}, None, False) == {"all": 3, "remaining": 2, "status": "pending"}
    # A future that is gone is no reason to wait.
    assert progress.progress({"a", "gone"}, None, False)["status"] == "finished"
    told = progress.progress({"a", "b"}, str.upper, True)
    assert told == {"all": {"A": 1, "B": 1}, "remaining": {"A": 0, "B": 1}, "status": "pending"}


def test_progress_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _states(monkeypatch, a="pending", b="cancelled")
    told = progress.progress({"a", "b"}, None, False)
    assert (told["status"], told["key"]) == ("error", "b")
    assert "cancelled" in str(told["exception"])

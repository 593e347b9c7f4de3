"""What the fork server loads before its first child."""

from __future__ import annotations

import socket

import pytest

from oxidask._executor import fork_server, frames


def test_one_slot_does_not_load_what_nobody_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(fork_server.PRELOAD_VARIABLE, raising=False)
    monkeypatch.setenv(fork_server.SLOTS_VARIABLE, "1")
    assert "dask.dataframe" not in fork_server._preloaded().split(",")
    monkeypatch.setenv(fork_server.SLOTS_VARIABLE, "4")
    assert {"pandas", "dask.array", "dask.dataframe"} <= set(fork_server._preloaded().split(","))
    monkeypatch.setenv(fork_server.PRELOAD_VARIABLE, "json")
    assert fork_server._preloaded() == "json"


def _loaded(monkeypatch: pytest.MonkeyPatch, slots: str, *, is_awaited: bool, named: str | None = None) -> list[str]:
    loaded: list[str] = []
    monkeypatch.setattr(fork_server.importlib, "import_module", loaded.append)
    monkeypatch.setenv(fork_server.SLOTS_VARIABLE, slots)
    monkeypatch.delenv(fork_server.PRELOAD_VARIABLE, raising=False)
    if named is not None:
        monkeypatch.setenv(fork_server.PRELOAD_VARIABLE, named)
    here, there = socket.socketpair()
    with here, there:
        if is_awaited:
            there.sendall(frames.HEADER.pack(0, frames.HURRY))
        fork_server._preload(frames.Channel(here))
    return loaded[1:]


def test_a_task_that_waits_is_not_kept_waiting_by_what_it_may_not_need(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = fork_server.PRELOAD.split(",")
    assert _loaded(monkeypatch, "1", is_awaited=False) == everything
    assert _loaded(monkeypatch, "1", is_awaited=True) == []


def test_what_is_shared_or_named_is_always_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(fork_server.PRELOAD.split(",")) <= set(_loaded(monkeypatch, "2", is_awaited=True))
    assert _loaded(monkeypatch, "1", is_awaited=True, named="json,wave") == ["json", "wave"]

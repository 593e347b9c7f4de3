"""Values in files that have no name: in memory, or on a disk when there is no room."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from oxidask._executor import frames, shared_memory


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    monkeypatch.setenv(shared_memory.SCRATCH_DIR_VARIABLE, str(tmp_path / "scratch"))
    monkeypatch.delenv(shared_memory.SHARED_MEMORY_VARIABLE, raising=False)
    return []


BUFFERS = [b"abc", memoryview(bytearray(b"x" * 100_000)), b"", *[b"y"] * 3000]
WHOLE = b"abc" + b"x" * 100_000 + b"y" * 3000


def test_memory_is_sealed_and_shared(said: list[str]) -> None:
    file = shared_memory.Writer(said.append).write(list(BUFFERS))
    with pytest.raises(PermissionError):
        os.pwrite(file, b"z", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(file, 5)
    view = shared_memory.map_file(file, is_writable=False)
    assert bytes(view) == WHOLE
    assert view.readonly
    with pytest.raises(OSError):
        os.fstat(file)
    assert said == []


def test_what_is_written_to_a_copy_is_seen_by_nobody(said: list[str]) -> None:
    file = shared_memory.Writer(said.append).write(list(BUFFERS))
    other = os.dup(file)
    view = shared_memory.map_file(file, is_writable=True)
    view[0] = 0
    assert bytes(shared_memory.map_file(other, is_writable=False)) == WHOLE


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENOSYS])
def test_without_room_values_go_to_files_and_that_is_said_once(
    said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "memfd_create", refuse)
    writer = shared_memory.Writer(said.append)
    for _ in range(2):
        file = writer.write(list(BUFFERS))
        assert bytes(shared_memory.map_file(file, is_writable=False)) == WHOLE
    assert len(said) == 1
    assert os.strerror(number) in said[0]
    assert list((tmp_path / "scratch").iterdir()) == [], "the files have no names"


def test_files_can_be_asked_for(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shared_memory.SHARED_MEMORY_VARIABLE, "files")
    file = shared_memory.Writer(said.append).write([b"abc"])
    assert bytes(shared_memory.map_file(file, is_writable=False)) == b"abc"
    assert "files" in said[0]


def test_frames_and_their_files_arrive_in_order() -> None:
    one, other = socket.socketpair()
    sender, receiver = frames.Channel(one), frames.Channel(other)
    files = [os.memfd_create(f"file {number}") for number in range(3)]
    sender.write(1, b"none")
    for number, file in enumerate(files):
        os.write(file, bytes([number]))
        sender.write(2, b"with", file=file)
        sender.write(3, b"x" * 20_000)
    kinds = []
    while len(kinds) < 7:
        frame = receiver.read()
        assert frame is not None
        kinds.append(frame[0])
        if frame[0] == 2:
            (taken,) = receiver.take_files(1)
            assert os.pread(taken, 1, 0) == bytes([kinds.count(2) - 1])
            os.close(taken)
    assert kinds == [1, 2, 3, 2, 3, 2, 3]
    with pytest.raises(OSError):
        receiver.take_files(1)
    sender.close()
    assert receiver.read() is None

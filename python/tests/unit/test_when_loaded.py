"""Modules that are changed when somebody loads them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from oxidask._when_loaded import when_loaded


def test_it_happens_when_the_module_is_loaded_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "awaited_module.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []

    def action() -> None:
        seen.append(sys.modules["awaited_module"].value)

    when_loaded("awaited_module", action)
    when_loaded("awaited_module", action)
    assert seen == []
    module = importlib.import_module("awaited_module")
    assert seen == [1]
    assert type(module.__loader__).__name__ == type(module.__spec__.loader).__name__ == "SourceFileLoader"
    when_loaded("awaited_module", action)
    assert seen == [1, 1]


def test_an_action_that_fails_does_not_fail_the_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "awaited_other.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    when_loaded("awaited_other", lambda: 1 / 0)
    assert importlib.import_module("awaited_other").value == 1


def test_modules_that_are_not_there_stay_so() -> None:
    when_loaded("awaited_nowhere", lambda: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("awaited_nowhere")


def test_a_client_loads_no_frames() -> None:
    program = """
import sys
from oxidask import _annotations, _shuffle
_annotations.remember_frames()
_shuffle.use_tasks()
assert "dask.dataframe" not in sys.modules and "pandas" not in sys.modules
import dask.dataframe
from dask.dataframe.dask_expr import _collection, _merge, _shuffle
assert _collection.FrameBase.__init__._oxidask
assert _merge.Merge._lower._oxidask and _shuffle.Shuffle._lower._oxidask
import distributed.shuffle
assert distributed.shuffle.rechunk_p2p._oxidask
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)

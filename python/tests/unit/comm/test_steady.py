"""Pickles of functions that are used again, and those that must not be."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest
from oxidask._intern import _BLOBS
from oxidask._steady import are_same, parts_of

PROGRAM = """
import math
import xml

factor = 3
table = [1]

def plain(x): return x + 1
def by_module(x): return math.sqrt(x)
def by_number(x, *, _=None): return x
def scaled(x): return x * factor
def listed(x): return table[x]
def with_default(x, y=2): return x + y
def with_list(x, y=[]): return y
def parsed(x): return xml.dom.minidom.parseString(x)
def outer(x):
    def inner(y): return y * factor
    return inner(x)
def make(n):
    def closed(x): return x + n
    return closed
"""


@pytest.fixture
def program() -> Any:
    """The functions of a program, which no other process can import."""
    module = types.ModuleType("__main__")
    exec(PROGRAM, module.__dict__)  # noqa: S102
    return module


def pickled_again(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, change: Callable[[], Any]) -> bool:
    """Whether a function is pickled once more after a change, to what it is then."""
    first = _BLOBS.of(function)
    assert _BLOBS.of(function)[1] == first[1]
    change()
    calls: list[Any] = []
    from oxidask import _intern

    slowly = _intern.dump_slowly
    monkeypatch.setattr(_intern, "dump_slowly", lambda *args: calls.append(args) or slowly(*args))
    again = _BLOBS.of(function)
    assert cloudpickle.loads(again[1]).__code__ == function.__code__
    return bool(calls)


@pytest.mark.parametrize("name", ["plain", "by_module", "scaled", "with_default", "outer"])
def test_what_cannot_change_is_pickled_once(program: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert not pickled_again(getattr(program, name), monkeypatch, lambda: None)


@pytest.mark.parametrize("name", ["listed", "with_list", "by_number"])
def test_what_refers_to_things_that_change_is_pickled_each_time(
    program: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert pickled_again(getattr(program, name), monkeypatch, lambda: None)


def test_a_closure_is_pickled_each_time(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pickled_again(program.make(3), monkeypatch, lambda: None)


def test_a_global_that_is_bound_anew_counts_also_in_inner_functions(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for function in (program.scaled, program.outer):
        program.factor = 3
        assert pickled_again(function, monkeypatch, lambda: setattr(program, "factor", 1000))
        assert cloudpickle.loads(_BLOBS.of(function)[1])(2) == 2000


def test_new_code_and_new_defaults_count(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    function = program.plain
    assert pickled_again(function, monkeypatch, lambda: setattr(function, "__code__", program.scaled.__code__))
    function = program.with_default
    assert pickled_again(function, monkeypatch, lambda: setattr(function, "__defaults__", (7,)))
    assert cloudpickle.loads(_BLOBS.of(function)[1])(1) == 8
    assert pickled_again(function, monkeypatch, lambda: setattr(function, "note", 1))


def test_a_name_that_comes_to_be_counts(program: Any) -> None:
    before = parts_of(program.by_module)
    program.sqrt = 5
    after = parts_of(program.by_module)
    assert before is not None
    assert after is not None
    assert not are_same(before, after)


def test_parts_of_packages_that_are_imported_later_count(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "xml.dom", raising=False)
    assert parts_of(program.parsed) is not None
    import xml.dom.minidom  # noqa: F401

    assert parts_of(program.parsed) is None

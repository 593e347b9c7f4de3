"""Values of several frames or arrays: each part can be read alone, and is what the whole has."""

from __future__ import annotations

import collections
import operator
import struct
from typing import Any

import numpy
import pandas
import pytest
from dask.dataframe.backends import ShuffleGroupResult

from oxidask import _parts, _payload
from oxidask._intern import PART, Table, TableWriter, input_marker, step_marker


def frame(rows: int, start: int = 0) -> pandas.DataFrame:
    columns = {"key": numpy.arange(start, start + rows), "x": numpy.arange(rows) / 3, "name": ["ä"] * rows}
    return pandas.DataFrame(columns, index=pandas.RangeIndex(start, start + rows))


def there(value: Any) -> bytes:
    kind, buffers = _payload.encode(value)
    assert kind == _payload.PYTHON
    data = b"".join(bytes(buffer) for buffer in buffers)
    assert len(data) == _payload.size(buffers)
    return data


def part(data: bytes, key: Any) -> bytes | None:
    """The bytes of a part, found as a worker finds them."""
    (count,) = struct.unpack_from("<Q", data)
    lengths = struct.unpack_from(f"<{count}Q", data, 8)
    stream = data[8 * (count + 1) :][: lengths[0]]
    if not stream.endswith(_parts.MARK):
        return None
    (parts,) = struct.unpack("<Q", stream[-16:-8])
    assert parts == count - 1
    marks = stream[-16 - 8 * parts : -16]
    fingerprints = [marks[start : start + 8] for start in range(0, len(marks), 8)]
    wanted = fingerprints.index(_parts.fingerprint(key))
    end = 8 * (count + 1) + lengths[0]
    for length in lengths[1 : wanted + 2]:
        start = end + -end % _payload.ALIGNMENT_BYTES if length else end
        end = start + length
    return data[start:end]


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, pandas.DataFrame):
        pandas.testing.assert_frame_equal(one, other)
        return True
    if isinstance(one, pandas.Series):
        pandas.testing.assert_series_equal(one, other)
        return True
    return numpy.array_equal(one, other) and one.dtype == other.dtype


ARRAYS = [numpy.arange(1000), numpy.arange(12_000.0).reshape(300, 40).T, numpy.arange(5).astype("M8[s]")]
DIVIDED = {
    "groups": {number: frame(number * 100, number) for number in range(5)},
    "groups of Dask": ShuffleGroupResult({0: frame(10), 1: frame(0)}),
    "by name": {"left": frame(3), "right": frame(4).x},
    "list": [frame(3), frame(5)],
    "arrays": tuple(ARRAYS),
    "slices of one frame": {number: frame(100).iloc[number * 10 : number * 20] for number in range(3)},
}


@pytest.mark.parametrize("value", DIVIDED.values(), ids=DIVIDED)
def test_each_part_is_what_the_whole_has(value: Any) -> None:
    data = there(value)
    whole = _payload.decode(_payload.PYTHON, memoryview(data))
    assert type(whole) is type(value) and len(whole) == len(value)
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in items:
        assert is_same(whole[key], one)
        alone = part(data, key)
        assert alone is not None
        found = _payload.decode(_payload.PYTHON, memoryview(alone))
        assert type(found) is type(one) and is_same(found, one)


def test_parts_can_be_written_where_the_memory_can() -> None:
    data = there([numpy.arange(1000), numpy.arange(1000)])
    for view, is_writable in ((memoryview(data), False), (memoryview(bytearray(data)), True)):
        assert [one.flags.writeable for one in _payload.decode(_payload.PYTHON, view)] == [is_writable] * 2


class Doubled(dict[Any, Any]):
    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) * 2


class Noted(dict[Any, Any]):
    note = ""


def noted() -> Noted:
    made = Noted({0: frame(3), 1: frame(4)})
    made.note = "kept"
    return made


one_frame = frame(3)
WHOLE = {
    "few bytes": [numpy.arange(3), numpy.arange(3)],
    "one": {0: frame(3)},
    "mixed": {0: frame(3), 1: 2},
    "odd keys": {(0, 1): frame(3), 1: frame(4)},
    "a truth as key": {True: frame(3), 2: frame(4)},
    "the same twice": [one_frame, one_frame],
    "default": collections.defaultdict(list, {0: frame(3), 1: frame(4)}),
    "ordered": collections.OrderedDict({0: frame(3), 1: frame(4)}),
    "own access": Doubled({0: frame(3), 1: frame(4)}),
    "own attributes": noted(),
}


@pytest.mark.parametrize("value", WHOLE.values(), ids=WHOLE)
def test_what_is_more_than_its_parts_stays_whole(value: Any) -> None:
    data = there(value)
    assert _parts.MARK not in data
    found = _payload.decode(_payload.PYTHON, memoryview(data))
    assert type(found) is type(value) and len(found) == len(value)
    assert getattr(found, "note", "") == getattr(value, "note", "")
    if isinstance(value, list):
        assert (found[0] is found[1]) == (value[0] is value[1])


def test_a_task_says_which_part_it_takes() -> None:
    for key in (0, -1, 2**70, "", "ä\ud800"):
        writer = TableWriter()
        arguments = writer.call(operator.getitem, (input_marker(0), key), {})
        assert arguments[:9] == PART + _parts.fingerprint(key)
        call = Table(writer.content()).load(memoryview(arguments), [{key: "found"}])
        assert call() == "found", "a process of Python reads it too"


def test_other_tasks_do_not() -> None:
    writer = TableWriter()
    others = [
        (operator.getitem, (input_marker(0), True)),
        (operator.getitem, (input_marker(0), 1.0)),
        (operator.getitem, (input_marker(0), (0, 1))),
        (operator.getitem, (input_marker(0), slice(1))),
        (operator.getitem, (input_marker(0), input_marker(1))),
        (operator.getitem, (input_marker(1), 0)),
        (operator.getitem, (step_marker(0), 0)),
        (operator.getitem, ([1, 2], 0)),
        (operator.add, (input_marker(0), 0)),
    ]
    for function, args in others:
        assert writer.call(function, args, {})[:1] != PART, (function, args)
    assert _parts.fingerprint(1) != _parts.fingerprint("1")

"""Values survive the way into bytes and back."""

from __future__ import annotations

import datetime
import pickle
import threading
from typing import Any

import numpy
import pandas
import pyarrow
import pytest

from oxidask import _payload


def there(value: Any) -> tuple[int, bytes]:
    kind, buffers = _payload.encode(value)
    data = b"".join(bytes(buffer) for buffer in buffers)
    assert len(data) == _payload.size(buffers)
    return kind, data


def and_back(value: Any) -> Any:
    kind, data = there(value)
    return _payload.decode(kind, memoryview(data))


SIMPLE = [
    0, -1, 2**70, 1.5, True, None, "ä\ud800", 1j, b"", b"bytes", [], [1, [2]], {"a": (1, 2)}, {1, 2}, frozenset(),
    datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), Ellipsis, range(3), int, len,
]


@pytest.mark.parametrize("value", SIMPLE, ids=repr)
def test_simple_values(value: Any) -> None:
    found = and_back(value)
    assert found == value
    assert type(found) is type(value)


def test_layout() -> None:
    array = numpy.arange(100, dtype="i8")
    kind, data = there({"b": array, "a": array + 1, "c": numpy.empty(0)})
    assert kind == 5
    numbers = numpy.frombuffer(data[:40], "u8")
    assert list(numbers[[0, 2, 3]]) == [4, 800, 800]
    start = 40 + int(numbers[1])
    start += -start % 64
    assert data[start : start + 800] == array.tobytes()
    assert there(1) == (5, b"\x01" + bytes(7) + b"\x05" + bytes(7) + pickle.dumps(1, 5))


ARRAYS = {
    "ints": numpy.arange(10_000),
    "two dimensions": numpy.arange(10_000.0).reshape(100, 100),
    "by columns": numpy.asfortranarray(numpy.arange(10_000.0).reshape(100, 100)),
    "transposed": numpy.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
    "strided": numpy.arange(10_000)[::-3],
    "times": numpy.arange(10_000).astype("M8[us]"),
    "strided times": numpy.arange(10_000).astype("m8[s]")[::2],
    "big-endian times": numpy.arange(100).astype(">M8[ns]"),
    "texts": numpy.array(["a", "bc"]),
    "objects": numpy.array([1, "a", None], dtype=object),
    "records": numpy.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
    "scalar": numpy.array(3.5),
    "empty": numpy.empty((0, 3)),
    "masked": numpy.ma.masked_array([1, 2], [True, False]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name: str) -> None:
    array = ARRAYS[name]
    found = and_back(array)
    assert type(found) is type(array)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    numpy.testing.assert_array_equal(found, array)


def test_arrays_are_not_copied_and_as_writable_as_their_bytes() -> None:
    kind, data = there(numpy.arange(10_000).astype("M8[s]"))
    found = _payload.decode(kind, memoryview(data))
    assert not found.flags.owndata
    assert not found.flags.writeable
    changed = _payload.decode(kind, memoryview(bytearray(data)))
    changed[0] = "2020"
    _, stream_and_buffers = _payload.encode(numpy.arange(10_000).astype("M8[s]"))
    assert len(stream_and_buffers[1]) < 1000, "times are out of band"


def test_only_the_part_that_is_seen_travels() -> None:
    series = pandas.Series([str(number) * 10 for number in range(100_000)])
    part = series.iloc[500:510]
    kind, data = there(part)
    assert len(data) < 20_000
    pandas.testing.assert_series_equal(_payload.decode(kind, memoryview(data)), part)
    assert len(there({"a": numpy.arange(1_000_000)[::1000]})[1]) < 10_000
    table = pyarrow.table({"a": range(100_000)}).slice(10, 5)
    assert len(there(table)[1]) < 2_000
    assert and_back(table).equals(table)


TIMES = pandas.date_range("2020", periods=3, freq="s")
EXACT = {
    "numbers": pandas.DataFrame({"a": [1, 2, 3], "b": [1.5, numpy.nan, -0.0], "c": [True, False, True]}),
    "small numbers": pandas.DataFrame({"a": numpy.array([1, 2], "u1"), "b": numpy.array([1, 2], "f4")}),
    "texts": pandas.DataFrame({"a": ["x", None, "ä"]}),
    "times": pandas.DataFrame({"a": TIMES, "b": TIMES - TIMES[0]}),
    "no time": pandas.DataFrame({"a": [pandas.NaT, pandas.Timestamp("2020")]}),
    "seconds": pandas.DataFrame({"a": TIMES.astype("M8[s]"), "b": (TIMES - TIMES[0]).astype("m8[ms]")}),
    "index of times": pandas.DataFrame({"a": [1, 2]}, index=TIMES[[2, 0]]),
    "index of texts": pandas.DataFrame({"a": [1, 2]}, index=["x", "y"]),
    "index of numbers": pandas.DataFrame({"a": [1, 2]}, index=pandas.Index([5, 3], name="i")),
    "index of floats": pandas.DataFrame({"a": [1, 2]}, index=[1.5, numpy.nan]),
    "range": pandas.DataFrame({"a": [1, 2]}, index=pandas.RangeIndex(10, 4, -3, name="r")),
    "categories": pandas.DataFrame({"a": pandas.Categorical(["x", None], ["y", "x"], ordered=True)}),
    "categories of numbers": pandas.DataFrame({"a": pandas.Categorical([3, 3])}),
    "nullable": pandas.DataFrame({"a": pandas.array([1, None], "Int64"), "b": pandas.array([True, None], "boolean")}),
    "name of columns": pandas.DataFrame({"a": [1]}).rename_axis(columns="n"),
    "columns of objects": pandas.DataFrame([[1, 2]], columns=pandas.Index(["a", "b"], dtype=object)),
    "no rows": pandas.DataFrame({"a": numpy.empty(0), "b": pandas.Series([], dtype="str")}),
    "no rows of times": pandas.DataFrame({"a": TIMES[:0]}, index=pandas.Index([], dtype="i8")),
}
INEXACT = {
    "objects": pandas.DataFrame({"a": [1, "x", None]}),
    "numbers as names": pandas.DataFrame([[1, 2]]),
    "twice the same name": pandas.DataFrame([[1, 2]], columns=["a", "a"]),
    "two levels": pandas.DataFrame({"a": [1, 2]}, index=pandas.MultiIndex.from_tuples([(1, "x"), (2, "y")])),
    "two levels of columns": pandas.DataFrame([[1, 2]], columns=pandas.MultiIndex.from_product([["a"], ["b", "c"]])),
    "frequency": pandas.DataFrame({"a": [1, 2, 3]}, index=TIMES),
    "zone": pandas.DataFrame({"a": TIMES.tz_localize("Europe/Berlin")}),
    "periods": pandas.DataFrame({"a": pandas.period_range("2020", periods=2, freq="M")}),
    "categories of times": pandas.DataFrame({"a": pandas.Categorical(TIMES)}),
    "nothing": pandas.DataFrame(),
    "index like a column": pandas.DataFrame({"a": [1, 2]}, index=pandas.Index([3, 4], name="a")),
    "complex": pandas.DataFrame({"a": [1j]}),
    "halves": pandas.DataFrame({"a": numpy.array([1], "f2")}),
}


def check_frame(frame: pandas.DataFrame, kind: int) -> None:
    found_kind, data = there(frame)
    found = _payload.decode(found_kind, memoryview(data))
    pandas.testing.assert_frame_equal(found, frame, check_freq=True, check_index_type=True, check_column_type=True)
    assert type(found.index) is type(frame.index)
    assert list(found.dtypes) == list(frame.dtypes)
    assert (found.columns.dtype, found.columns.name) == (frame.columns.dtype, frame.columns.name)
    assert found_kind == kind


@pytest.mark.parametrize("name", EXACT)
def test_frames_that_come_back_exactly_are_tables(name: str) -> None:
    check_frame(EXACT[name], _payload.TABLE)
    # Also when its layout is known already, and when it is large.
    check_frame(EXACT[name], _payload.TABLE)
    check_frame(pandas.concat([EXACT[name]] * 5000) if len(EXACT[name]) else EXACT[name], _payload.TABLE)


@pytest.mark.parametrize("name", INEXACT)
def test_other_frames_are_pickles(name: str) -> None:
    check_frame(INEXACT[name], _payload.PYTHON)


def test_attributes_survive() -> None:
    frame = pandas.DataFrame({"a": [1]})
    frame.attrs["unit"] = "km"
    assert and_back(frame).attrs == {"unit": "km"}


class Special(pandas.DataFrame):
    """Somebody's own frame."""


def test_frames_of_other_classes_keep_them() -> None:
    assert type(and_back(Special({"a": [1]}))) is Special


def test_native_tables_are_frames_and_ours_are_readable_to_others() -> None:
    sink = pyarrow.BufferOutputStream()
    native = pyarrow.table({"a": [1, None], "b": ["x", "y"]})
    with pyarrow.ipc.new_stream(sink, native.schema) as writer:
        writer.write_table(native)
    found = _payload.decode(_payload.TABLE, memoryview(sink.getvalue()))
    assert list(found.columns) == ["a", "b"]
    assert found["b"].tolist() == ["x", "y"]
    _, data = there(EXACT["numbers"])
    table = pyarrow.ipc.open_stream(data).read_all()
    assert table.column("b").null_count == 1, "what is missing is null"
    pandas.testing.assert_frame_equal(table.to_pandas(), EXACT["numbers"])


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_frames_are_copied_when_they_are_written(kind: type) -> None:
    frame = EXACT["numbers"]
    for value in (frame, frame["a"], INEXACT["objects"].assign(a=[1, 2, 3], b=["x", 1, None])):
        number, data = there(value)
        stored = kind(data)
        found = _payload.decode(number, memoryview(stored))
        if isinstance(found, pandas.DataFrame):
            found.loc[0, "a"] = 7
            found.iloc[1:2, 0] = 8
            found["c"] = 1
            assert found["a"].tolist() == [7, 8, 3]
        else:
            found.iloc[0] = 7
            assert found.tolist() == [7, 2, 3]
        if kind is bytes:
            assert stored == data, "what is stored never changes"
            continue
        # What is made of it can be written too, when the first is gone.
        found = _payload.decode(number, memoryview(stored)).copy(deep=False)
        found.iloc[:1] = found.iloc[1:2].to_numpy()


def test_arrow_tables_stay_what_they_are() -> None:
    table = pyarrow.table({"a": [1, 2]}).replace_schema_metadata({"k": "v"})
    found = and_back(table)
    assert found.equals(table, check_metadata=True)


def test_native_values_and_bytes() -> None:
    assert _payload.decode(_payload.VALUE, memoryview(b'{"a":[1,null]}')) == {"a": [1, None]}
    assert _payload.decode(_payload.BYTES, memoryview(b"ab")) == b"ab"
    for kind in (_payload.SLICES, _payload.GRAPH, 77):
        with pytest.raises(ValueError):
            _payload.decode(kind, memoryview(b""))


@pytest.mark.parametrize("value", [threading.Lock(), (x for x in [1])], ids=lambda v: type(v).__name__)
def test_what_cannot_be_pickled_says_so(value: Any) -> None:
    with pytest.raises(_payload.EncodeError, match=type(value).__name__):
        _payload.encode({"inside": value} if isinstance(value, type(threading.Lock())) else value)


def test_classes_of_the_main_program_travel_by_value() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("class Mine:\n    def __init__(self, a): self.a = a\n    def twice(self): return 2 * self.a", namespace)
    kind, data = there(namespace["Mine"](numpy.arange(100_000)))
    assert b"twice" in data
    found = _payload.decode(kind, memoryview(data))
    assert found.twice()[-1] == 2 * 99_999
    assert and_back(lambda: 5)() == 5


@pytest.mark.parametrize("cut", [0, 7, 16, 30])
def test_damaged_pickles_are_refused(cut: int) -> None:
    kind, data = there(numpy.arange(1000))
    with pytest.raises(Exception):  # noqa: B017 (whatever is wrong first)
        _payload.decode(kind, memoryview(data[:cut]))
    with pytest.raises(ValueError):
        _payload.decode(kind, memoryview(data[:-1]))


def test_repeated_values_travel_once() -> None:
    repeated = [
        numpy.broadcast_to(numpy.float64(1.5), (1000, 1000)),
        numpy.broadcast_to(numpy.arange(1000), (1000, 1000)),
        numpy.broadcast_to(numpy.arange(1000)[:, None], (1000, 1000)),
        numpy.broadcast_to(numpy.datetime64("2026-01-01", "D"), (1000, 1000)),
    ]
    for array in repeated:
        kind, buffers = _payload.encode(array)
        assert _payload.size(buffers) < 10_000
        found = _payload.decode(kind, memoryview(b"".join(bytes(one) for one in buffers)))
        assert found.dtype == array.dtype and found.shape == array.shape
        numpy.testing.assert_array_equal(found, array)
    # One value has strides of any number.
    kind, buffers = _payload.encode(numpy.ones((1, 1))[:, ::2])
    found = _payload.decode(kind, memoryview(b"".join(bytes(one) for one in buffers)))
    assert found.shape == (1, 1)

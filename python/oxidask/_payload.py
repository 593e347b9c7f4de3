"""Values as payloads, and back.

Owns how a value of Python becomes bytes that travel, lie in memory or on a disk, for the client and
for the processes that run tasks. Never talks to anything.

Invariants: what is decoded equals what was encoded, types included; a data frame becomes an Arrow
table only if it comes back exactly, else a pickle; the buffers that `encode` gives, one behind the
other, are the payload; `decode` copies no buffer, so what it gives is as writable as the view.

Kinds: 0 is JSON, 1 bytes, 2 an Arrow stream, 5 a pickle of protocol 5 with its buffers: how many byte
strings and the length of each as 64-bit little-endian numbers, then the pickle, then the buffers, each
at a multiple of 64 bytes. A value of several frames or arrays has a form in which each can be read alone,
see `_parts`.
"""

from __future__ import annotations

import copyreg
import io
import json
import pickle
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any

VALUE = 0
BYTES = 1
TABLE = 2
SLICES = 3
GRAPH = 4
PYTHON = 5

#: Of pickles.
PROTOCOL = 5

ALIGNMENT_BYTES = 64
_PADDING = bytes(ALIGNMENT_BYTES)
_NUMBER = struct.Struct("<Q")
_ONE = struct.Struct("<QQ")

#: Types whose pickles have no buffers and no class of the user's.
_PLAIN = frozenset({int, float, bool, str, type(None), complex})

_CONTAINERS = (dict, list, tuple)

#: A sliced Arrow array is made compact when its buffers are larger than this many times its own part.
_SLACK_FACTOR = 2


class EncodeError(Exception):
    """A value that cannot be encoded."""


Buffers = list[Any]


def encode(value: Any) -> tuple[int, Buffers]:
    """The kind of the payload and its bytes, as buffers one behind the other."""
    kind = type(value)
    if kind in _PLAIN:
        stream = pickle.dumps(value, protocol=PROTOCOL)
        return PYTHON, [_ONE.pack(1, len(stream)), stream]
    if kind is bytes:
        return BYTES, [value]
    module = kind.__module__
    if kind.__name__ == "DataFrame" and module.startswith("pandas"):
        frames = _frames()
        stream = frames.encode_frame(value) if frames is not None else None
        if stream is not None:
            return TABLE, stream
    elif kind.__name__ == "Table" and module == "pyarrow.lib":
        from oxidask import _frames as tables

        return TABLE, tables.encode_table(value)
    elif isinstance(value, _CONTAINERS):
        from oxidask import _parts

        parts = _parts.divided(value)
        if parts is not None:
            return PYTHON, parts
    return PYTHON, pickled(value)


def size(buffers: Iterable[Any]) -> int:
    """Bytes of all buffers."""
    total = 0
    for buffer in buffers:
        total += len(buffer) if type(buffer) is bytes else memoryview(buffer).nbytes
    return total


def decode(kind: int, view: Any) -> Any:
    """The value behind a payload. The view must be contiguous; the value may keep it."""
    if kind == PYTHON:
        value = unpickled(view)
        return copied_when_written(value) if type(value).__module__.startswith("pandas") else value
    if kind == BYTES:
        return bytes(view)
    if kind == VALUE:
        return json.loads(bytes(view))
    if kind == TABLE:
        from oxidask import _frames as tables

        value = tables.decode(view)
        if not memoryview(view).readonly and hasattr(value, "_mgr"):
            return value.copy()  # Arrow gives nothing out for writing.
        return copied_when_written(value)
    if kind == SLICES:
        raise ValueError("slices of a shuffle cannot be read as one value")
    raise ValueError(f"a payload of kind {kind} is no value")


def copied_when_written(value: Any) -> Any:
    """The same frame or series; pandas copies a column of it before it writes there.

    Its columns may lie in memory that cannot be written. pandas copies on write what a second frame
    uses too, so there is one, as long as this lives.
    """
    if hasattr(value, "_mgr"):
        object.__setattr__(value, "_oxidask_twin", value.copy(deep=False))
    return value


def _frames() -> Any:
    """The module for data frames; None without pyarrow."""
    try:
        from oxidask import _frames as frames
    except ImportError:
        return None
    return frames


# Pickles.


def pickled(value: Any) -> Buffers:
    """The value as a pickle with its buffers, behind their index."""
    stream, buffers = _pickle(value)
    return with_index(stream, [[buffer] for buffer in buffers])


def with_index(stream: bytes, buffers: list[Buffers]) -> Buffers:
    """A pickle and its buffers, each given in pieces, behind their index."""
    lengths = [len(stream), *(size(pieces) for pieces in buffers)]
    index = struct.pack(f"<{len(lengths) + 1}Q", len(lengths), *lengths)
    parts: Buffers = [index, stream]
    end = len(index) + len(stream)
    for pieces, length in zip(buffers, lengths[1:], strict=True):
        if padding := -end % ALIGNMENT_BYTES:
            parts.append(_PADDING[:padding])
            end += padding
        if length:
            parts.extend(pieces)
            end += length
    return parts


def unpickled(view: Any) -> Any:
    """The value of a pickle with its buffers."""
    (count,) = _NUMBER.unpack_from(view)
    index_bytes = 8 * (count + 1)
    view = memoryview(view)
    if count == 1:
        return pickle.loads(view[index_bytes:])
    if count == 0 or index_bytes > view.nbytes:
        raise ValueError("the index of a pickle is damaged")
    lengths = struct.unpack_from(f"<{count}Q", view, 8)
    end = index_bytes + lengths[0]
    stream = view[index_bytes:end]
    buffers = []
    for length in lengths[1:]:
        start = end + -end % ALIGNMENT_BYTES if length else end
        end = start + length
        if end > view.nbytes:
            raise ValueError("a pickle is cut short")
        buffers.append(view[start:end])
    return pickle.loads(stream, buffers=buffers)


def _pickle(value: Any) -> tuple[bytes, list[memoryview]]:
    """As `distributed` does: by reference where that can be, by value otherwise."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        file = io.BytesIO()
        pickler = pickle.Pickler(file, protocol=PROTOCOL, buffer_callback=buffers.append)
        pickler.dispatch_table = _dispatch_table()
        pickler.dump(value)
        stream = file.getvalue()
        is_by_reference = b"__main__" not in stream
    except Exception:
        is_by_reference = False
    if not is_by_reference:
        buffers.clear()
        stream = _pickle_by_value(value, buffers)
    return stream, [_raw(buffer) for buffer in buffers]


def _pickle_by_value(value: Any, buffers: list[pickle.PickleBuffer]) -> bytes:
    import cloudpickle

    try:
        file = io.BytesIO()
        pickler = cloudpickle.Pickler(file, protocol=PROTOCOL, buffer_callback=buffers.append)
        pickler.dispatch_table = {**pickler.dispatch_table, **_dispatch_table()}
        pickler.dump(value)
        return file.getvalue()
    except Exception as error:
        kind = type(value)
        text = f"a value of type {kind.__module__}.{kind.__qualname__} cannot be pickled: {error}"
        raise EncodeError(text) from error


def _raw(buffer: pickle.PickleBuffer) -> memoryview:
    return buffer.raw()


_Reducer = Callable[[Any], Any]
_reducers: dict[type, _Reducer] = {}
_modules_seen: set[str] = set()


def _dispatch_table() -> dict[type, _Reducer]:
    """How some types are pickled. Grows with the modules that are loaded."""
    for name, register in (("numpy", _register_numpy), ("pyarrow", _register_arrow)):
        if name not in _modules_seen and name in sys.modules:
            try:
                register(sys.modules[name])
            except AttributeError:
                continue  # It is being imported just now.
            _modules_seen.add(name)
    return {**copyreg.dispatch_table, **_reducers}


def _register_numpy(numpy: Any) -> None:
    _reducers[numpy.ndarray] = _reduce_array


def _register_arrow(pyarrow: Any) -> None:
    _reducers[pyarrow.lib.ChunkedArray] = _reduce_chunked_array


def _reduce_array(array: Any) -> Any:
    """Out of band whenever there is no object in it.

    NumPy gives times (they know no buffer protocol) and arrays with gaps into the pickle itself.
    """
    if array.dtype.hasobject:
        return array.__reduce_ex__(5)
    if 0 in array.strides and array.size > 1:
        # A value that is repeated, as `dask.array.ones` makes it: only what is there travels.
        part = array[tuple(slice(None) if stride else slice(1) for stride in array.strides)]
        if part.size < array.size:
            return _repeated, (part, array.shape)
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = array.copy(order="C")
    if array.dtype.kind in "mM":
        return _times, (array.view("i8"), array.dtype)
    return array.__reduce_ex__(5)


def _repeated(part: Any, shape: tuple[int, ...]) -> Any:
    import numpy

    return numpy.broadcast_to(part, shape)


def _times(numbers: Any, dtype: Any) -> Any:
    return numbers.view(dtype)


def _reduce_chunked_array(array: Any) -> Any:
    """Only the part that is seen: an array keeps the whole buffers that it is a slice of."""
    import pyarrow

    if array.get_total_buffer_size() > _SLACK_FACTOR * array.nbytes + 1024 and array.num_chunks:
        whole = pyarrow.concat_arrays([*array.chunks, array.chunk(0).slice(0, 0)])
        array = pyarrow.chunked_array([whole])
    return array.__reduce__()

"""Data frames as Arrow streams, and back.

Owns which data frames become Arrow tables: those that come back exactly, types, index and names
included. Native tasks read what is written here, with the metadata that pandas and pyarrow agree on;
what native tasks write comes back as a data frame. Never reads or writes a pickle.

Invariants: a frame that would not come back exactly is refused (`None`); writing copies no column
that lies in memory as Arrow wants it; reading copies none that pandas can use as it is.
"""

from __future__ import annotations

import json
from typing import Any

import numpy
import pandas
import pyarrow

#: In the metadata of a schema: what the value was, and that this module wrote it.
_MARK = b"oxidask"
_IS_TABLE = b"table"
_IS_FRAME = b"frame"

#: Smaller tables are written to one buffer: many small parts cost more than a copy.
_COPY_BYTES_MAX = 64 << 10

#: Layouts of frames that are remembered.
_LAYOUTS_MAX = 1024

_TEXT = pandas.StringDtype(na_value=numpy.nan)
_NULLABLE = (pandas.Int64Dtype, pandas.Int32Dtype, pandas.BooleanDtype)

try:
    from pandas.api.internals import create_dataframe_from_blocks as _frame_from_blocks
except ImportError:
    _frame_from_blocks = None

#: Schema of a layout without the range of its index, and the metadata of pandas.
_layouts: dict[Any, tuple[Any, dict[str, Any]]] = {}
_exact: dict[Any, bool] = {}


def encode_table(table: Any) -> list[Any]:
    """A `pyarrow.Table` that comes back as one."""
    marked = {**(table.schema.metadata or {}), _MARK: _IS_TABLE}
    return _stream(table.replace_schema_metadata(marked))


def encode_frame(frame: Any) -> list[Any] | None:
    """A data frame as an Arrow stream; None if it would not come back exactly."""
    if type(frame) is not pandas.DataFrame or frame.attrs or not frame.flags.allows_duplicate_labels:
        return None
    columns, index, dtypes = frame.columns, frame.index, list(frame.dtypes)
    if not _has_plain_names(columns) or not all(_is_exact(dtype) for dtype in dtypes):
        return None
    if not _is_exact_index(index, columns):
        return None
    try:
        table = _table(frame, columns, index, dtypes)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
        return None
    return _stream(table)


def decode(view: Any) -> Any:
    """The frame or table behind a stream; a frame also of what was never one."""
    table = pyarrow.ipc.open_stream(pyarrow.py_buffer(view)).read_all()
    metadata = table.schema.metadata or {}
    mark = metadata.get(_MARK)
    if mark == _IS_TABLE:
        rest = {key: value for key, value in metadata.items() if key != _MARK}
        return table.replace_schema_metadata(rest or None)
    if mark == _IS_FRAME and table.num_rows:
        frame = _frame(table, json.loads(metadata[b"pandas"]))
        if frame is not None:
            return frame
    return table.to_pandas(split_blocks=True, use_threads=False)


# Which frames come back exactly.


def _has_plain_names(columns: Any) -> bool:
    if type(columns) is not pandas.Index or not len(columns) or not columns.is_unique:
        return False
    return columns.inferred_type == "string" and _is_plain_name(columns.name)


def _is_plain_name(name: Any) -> bool:
    return name is None or type(name) is str


def _is_exact_index(index: Any, columns: Any) -> bool:
    if not _is_plain_name(index.name) or index.name in columns:
        return False
    kind = type(index)
    if kind is pandas.RangeIndex:
        return True
    if kind is pandas.DatetimeIndex or kind is pandas.TimedeltaIndex:
        return index.freq is None and _is_exact(index.dtype)
    return kind is pandas.Index and (index.dtype == _TEXT or index.dtype.kind in "iufb") and _is_exact(index.dtype)


def _is_exact(dtype: Any) -> bool:
    if isinstance(dtype, pandas.CategoricalDtype):
        return _is_exact_category(dtype)
    known = _exact.get(dtype)
    if known is None:
        known = _is_exact_type(dtype)
        if len(_exact) < _LAYOUTS_MAX:
            _exact[dtype] = known
    return known


def _is_exact_type(dtype: Any) -> bool:
    if isinstance(dtype, numpy.dtype):
        is_number = dtype.kind in "iub" or (dtype.kind == "f" and dtype.itemsize in (4, 8))
        return dtype.isnative and (is_number or (dtype.kind in "mM" and numpy.datetime_data(dtype)[0] != "generic"))
    return isinstance(dtype, _NULLABLE) or _is_text(dtype)


def _is_text(dtype: Any) -> bool:
    """The default type of text of pandas 3."""
    return isinstance(dtype, pandas.StringDtype) and dtype.na_value is not pandas.NA and dtype.storage == "pyarrow"


def _is_exact_category(dtype: Any) -> bool:
    categories = dtype.categories
    if categories is None or type(categories) is not pandas.Index or categories.name is not None:
        return False
    is_numbers = isinstance(categories.dtype, numpy.dtype) and categories.dtype.kind in "iu"
    return is_numbers or _is_text(categories.dtype)


# Writing.


def _table(frame: Any, columns: Any, index: Any, dtypes: list[Any]) -> Any:
    is_range = type(index) is pandas.RangeIndex
    # The names as a tuple: an index cannot be hashed.
    index_dtype = None if is_range else index.dtype
    layout = (tuple(columns), columns.name, columns.dtype, tuple(dtypes), type(index), index.name, index_dtype)
    if any(isinstance(dtype, pandas.CategoricalDtype) for dtype in dtypes):
        return pyarrow.Table.from_pandas(frame, nthreads=1)
    known = _layouts.get(layout)
    if known is None:
        schema = pyarrow.Schema.from_pandas(frame.iloc[:0])
        known = schema.remove_metadata(), json.loads(schema.metadata[b"pandas"])
        if len(_layouts) < _LAYOUTS_MAX:
            _layouts[layout] = known
    schema, about = known
    if is_range:
        span = {"kind": "range", "name": index.name, "start": index.start, "stop": index.stop, "step": index.step}
        about = {**about, "index_columns": [span]}
    fields = zip(_columns(frame), schema, strict=False)
    arrays = [pyarrow.array(values, field.type, from_pandas=True) for values, field in fields]
    if not is_range:
        arrays.append(pyarrow.array(index.array, schema.field(len(arrays)).type, from_pandas=True))
    metadata = {b"pandas": json.dumps(about).encode(), _MARK: _IS_FRAME}
    return pyarrow.Table.from_arrays(arrays, schema=schema.with_metadata(metadata))


def _columns(frame: Any) -> list[Any]:
    """The columns as pandas holds them."""
    manager = getattr(frame, "_mgr", None)
    if hasattr(manager, "column_arrays"):
        return list(manager.column_arrays)
    return [frame.iloc[:, position].array for position in range(frame.shape[1])]


class _Parts:
    """A file that keeps what is written to it, without a copy."""

    closed = False

    def __init__(self) -> None:
        self.parts: list[Any] = []

    def write(self, data: Any) -> int:
        """Keeps it. What is no buffer of Arrow is only lent."""
        self.parts.append(memoryview(data) if isinstance(data, pyarrow.Buffer) else bytes(data))
        return len(data)

    def writable(self) -> bool:
        """It is."""
        return True

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is open."""


def _stream(table: Any) -> list[Any]:
    if table.nbytes > _COPY_BYTES_MAX:
        parts = _Parts()
        with pyarrow.ipc.new_stream(pyarrow.PythonFile(parts, mode="w"), table.schema) as writer:
            writer.write_table(table)
        return parts.parts
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return [memoryview(sink.getvalue())]


# Reading.


def _frame(table: Any, about: dict[str, Any]) -> Any:
    """As `to_pandas`, for what this module wrote, in a fraction of the time; None if it cannot."""
    if _frame_from_blocks is None or any(column.num_chunks != 1 for column in table.columns):
        return None
    span = about["index_columns"][0]
    count = table.num_columns - (0 if isinstance(span, dict) else 1)
    described = about["columns"]
    blocks = []
    for position in range(count):
        values = _values(table.column(position), described[position])
        if values is None:
            return None
        blocks.append((values, numpy.array([position])))
    if isinstance(span, dict):
        index: Any = pandas.RangeIndex(span["start"], span["stop"], span["step"], name=span["name"])
    else:
        values = _values(table.column(count), described[count], is_flat=True)
        if values is None:
            return None
        index = pandas.Index(values, name=described[count]["name"], copy=False)
    level = about["column_indexes"][0]
    names = [described[position]["name"] for position in range(count)]
    dtype = object if level["numpy_type"] == "object" else _TEXT
    return _frame_from_blocks(blocks, index, pandas.Index(names, name=level["name"], dtype=dtype))


def _values(column: Any, about: dict[str, Any], *, is_flat: bool = False) -> Any:
    """A column as pandas holds it; None for what only `to_pandas` knows."""
    kind = column.type
    if about["numpy_type"] == "str":
        return _TEXT.__from_arrow__(column)
    is_plain = pyarrow.types.is_floating(kind) or pyarrow.types.is_timestamp(kind) or pyarrow.types.is_duration(kind)
    is_whole = (pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind)) and not column.null_count
    if not (is_plain or (is_whole and about["numpy_type"] == about["pandas_type"])):
        return None
    values = column.chunk(0).to_numpy(zero_copy_only=False)
    return values if is_flat else values.reshape(1, -1)

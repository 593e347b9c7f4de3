"""Tables of callables, and the arguments of tasks that refer to them.

Owns the bytes that clients write and the Python processes of workers read. A submission has one
*table* (the content of its body): callables, each once, by the hash of what they are pickled to.
Each task has *arguments*: a tag byte and a pickle that names callables by their place in the table
and inputs by their place among the task's inputs, so that reading them yields real values.

Clients use `TableWriter`; workers use `Table`:

    table = Table(content)                       # once per body; content is the body's content
    call = table.load(arguments, inputs)         # the values of the inputs, in the task's order
    value = call()                               # raises what the user's function raises

Never looks at graphs (see `_record`), never sends anything. A callable is unpickled once per
process: `Table` keeps those used last in a cache of bounded size.
"""

from __future__ import annotations

import hashlib
import io
import operator
import pickle
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle

from oxidask._parts import FINGERPRINT_BYTES, fingerprint_of_item
from oxidask._steady import ATOMS, are_same, parts_of

PROTOCOL = 5
#: The first byte of a table: the form of what follows.
TABLE_FORM = b"\x01"
#: Arguments without references: a pickle of (place of the callable, args) or, with keywords, of
#: (place, args, kwargs). Arguments of several steps are (None, [(place, args, kwargs, freed)]).
PLAIN = b"\x00"
#: Arguments whose pickle has persistent ids: n >= 0 is a place in the table, n < 0 is input -1 - n,
#: (n,) is the result of step n.
LINKED = b"\x01"
#: Arguments that take one part of the only input: its fingerprint (see `_parts`), then the arguments as they would
#: be without it, for a value that has no parts.
PART = b"\x02"
#: Callables that a process keeps unpickled.
CACHE_ENTRIES_MAX = 4096
DIGEST_BYTES = 16
_OTHER_VERSION = "the client and this worker have different versions of oxidask"

_INTERNED = frozenset(
    {types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, type}
)


class CannotPickle(Exception):
    """A value cannot be sent; the cause says why."""


class Marker:
    """Stands for an input or the result of a step while arguments are written."""

    __slots__ = ("link",)

    def __init__(self, link: int | tuple[int]) -> None:
        self.link = link


class StepResult:
    """Stands for the result of an earlier step in arguments that were read."""

    __slots__ = ("step",)

    def __init__(self, step: int) -> None:
        self.step = step


def input_marker(position: int) -> Marker:
    """The marker of the task's input at this position."""
    return Marker(-1 - position)


_FIRST_INPUT = -1


def step_marker(step: int) -> Marker:
    """The marker of the result of an earlier step."""
    return Marker((step,))


class _Blobs:
    """What callables are pickled to. Remembered as long as they would be pickled to the same again."""

    def __init__(self) -> None:
        #: With the parts that must still be the same; none if it only names a module's attribute.
        self._known: weakref.WeakKeyDictionary[Any, tuple[tuple[Any, ...] | None, tuple[bytes, bytes]]]
        self._known = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def of(self, value: Any) -> tuple[bytes, bytes]:
        """Digest and pickle of a callable."""
        if type(value) is not types.FunctionType or cloudpickle.list_registry_pickle_by_value():
            return _entry(_pickle_callable(value)[0])
        with self._lock:
            known = self._known.get(value)
        if known is not None and known[0] is None:
            return known[1]
        parts = parts_of(value)
        if known is not None and parts is not None and are_same(parts, known[0] or ()):
            return known[1]
        blob, is_reference = _pickle_callable(value)
        entry = _entry(blob)
        if is_reference or parts is not None:
            with self._lock:
                self._known[value] = (None if is_reference else parts, entry)
        return entry


def _entry(blob: bytes) -> tuple[bytes, bytes]:
    return hashlib.blake2b(blob, digest_size=DIGEST_BYTES).digest(), blob


def _pickle_callable(value: Any) -> tuple[bytes, bool]:
    """The pickle of a callable, and whether it only names a module's attribute."""
    if not cloudpickle.list_registry_pickle_by_value():
        try:
            blob = pickle.dumps(value, PROTOCOL)
        except Exception:  # anything may go wrong there; cloudpickle says it better
            pass
        else:
            if b"__main__" not in blob:
                return blob, True
    return dump_slowly(value, None), False


_BLOBS = _Blobs()


class _FastPickler(pickle.Pickler):
    """The plain pickler with references."""

    def __init__(self, file: io.BytesIO, table: TableWriter) -> None:
        super().__init__(file, PROTOCOL)
        self._table = table

    def persistent_id(self, value: Any) -> Any:
        """A reference instead of the value, or None."""
        kind = type(value)
        if kind in _INTERNED:
            return self._table.place(value)
        if kind is Marker:
            return value.link
        return None


class _SlowPickler(cloudpickle.Pickler):
    """Pickles what the plain pickler does not, or what is not importable elsewhere."""

    def __init__(self, file: io.BytesIO, table: TableWriter | None, is_last_resort: bool) -> None:
        super().__init__(file, PROTOCOL)
        self._table = table
        self._is_last_resort = is_last_resort

    def persistent_id(self, value: Any) -> Any:
        """A reference instead of the value, or None."""
        if self._table is None:
            return None
        kind = type(value)
        if kind in _INTERNED:
            return self._table.place(value)
        if kind is Marker:
            return value.link
        return None

    def reducer_override(self, value: Any) -> Any:
        """What Dask serialises in its own way goes that way once all else failed."""
        if self._is_last_resort and not isinstance(value, (type, types.FunctionType)):
            from distributed.protocol.serialize import dask_deserialize, dask_serialize

            try:
                serialize = dask_serialize.dispatch(type(value))
                deserialize = dask_deserialize.dispatch(type(value))
            except TypeError:
                pass
            else:
                return deserialize, serialize(value)
        return super().reducer_override(value)


def dump_slowly(value: Any, table: TableWriter | None) -> bytes:
    """Pickle by cloudpickle, then with Dask's own serialisation besides."""
    first: Exception | None = None
    for is_last_resort in (False, True):
        file = io.BytesIO()
        try:
            _SlowPickler(file, table, is_last_resort).dump(value)
        except Exception as error:
            if is_last_resort:
                raise CannotPickle from (first or error)
            first = error
        else:
            return file.getvalue()
    raise AssertionError("unreachable")


class TableWriter:
    """Writes the table of a submission and the arguments of its tasks."""

    def __init__(self) -> None:
        self._entries: list[tuple[bytes, bytes]] = []
        self._by_digest: dict[bytes, int] = {}
        self._by_identity: dict[int, tuple[int, Any]] = {}
        self._file = io.BytesIO()
        self._pickler = _FastPickler(self._file, self)
        #: Bytes of the callables so far.
        self.content_bytes = 0

    def place(self, value: Any) -> int:
        """The place of a callable in the table; it is added if it is new."""
        known = self._by_identity.get(id(value))
        if known is not None:
            return known[0]
        digest, blob = _BLOBS.of(value)
        place = self._by_digest.get(digest)
        if place is None:
            place = len(self._entries)
            self._entries.append((digest, blob))
            self._by_digest[digest] = place
            self.content_bytes += len(blob) + DIGEST_BYTES
        # The value is kept, so that no other takes its identity.
        self._by_identity[id(value)] = (place, value)
        return place

    def plain_call(self, place: int, args: tuple[Any, ...]) -> bytes:
        """Arguments of a call whose args are atoms."""
        return PLAIN + pickle.dumps((place, args), PROTOCOL)

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Arguments of one call; args may hold markers of inputs."""
        if function is operator.getitem and len(args) == 2 and not kwargs and type(args[0]) is Marker:
            mark = fingerprint_of_item(args[1]) if args[0].link == _FIRST_INPUT else None
            if mark is not None:
                return PART + mark + LINKED + self._dump((self.place(function), args))
        place = self.place(function)
        if all(type(value) in ATOMS for value in args) and all(type(value) in ATOMS for value in kwargs.values()):
            return PLAIN + pickle.dumps((place, args, kwargs) if kwargs else (place, args), PROTOCOL)
        return LINKED + self._dump((place, args, kwargs) if kwargs else (place, args))

    def steps(self, steps: list[tuple[Any, tuple[Any, ...], dict[str, Any], tuple[int, ...]]]) -> bytes:
        """Arguments of several calls, the last of which gives the result.

        Each is (function, args, kwargs, steps whose results are not needed after it).
        """
        placed = [(self.place(function), args, kwargs, freed) for function, args, kwargs, freed in steps]
        return LINKED + self._dump((None, placed))

    def _dump(self, record: tuple[Any, ...]) -> bytes:
        file, pickler = self._file, self._pickler
        file.seek(0)
        file.truncate()
        pickler.clear_memo()
        try:
            pickler.dump(record)
        except Exception:  # anything may go wrong there; cloudpickle says it better
            return dump_slowly(record, self)
        data = file.getvalue()
        if b"__main__" in data or cloudpickle.list_registry_pickle_by_value():
            return dump_slowly(record, self)
        return data

    def content(self) -> bytes:
        """The table so far: the content of the body."""
        return TABLE_FORM + pickle.dumps(self._entries, PROTOCOL)


def identity(value: Any) -> Any:
    """A task that only has data, or that stands for another key."""
    return value


def build(kind: type, *values: Any) -> Any:
    """A container of results of steps; of a dictionary keys and values alternate."""
    if kind is dict:
        return dict(zip(values[::2], values[1::2], strict=True))
    return kind(values)


def run_node(node: Any, keys: tuple[Any, ...], *values: Any) -> Any:
    """A node of a graph of a kind that is not taken apart."""
    return node(dict(zip(keys, values, strict=True)))


class _Cache:
    """Unpickled callables by digest, those used last."""

    def __init__(self, entries_max: int) -> None:
        self._values: OrderedDict[bytes, Any] = OrderedDict()
        self._entries_max = entries_max
        self._lock = threading.Lock()

    def load(self, digest: bytes, blob: bytes) -> Any:
        """The callable of this digest."""
        with self._lock:
            if digest in self._values:
                self._values.move_to_end(digest)
                return self._values[digest]
        value = pickle.loads(blob)
        with self._lock:
            self._values[digest] = value
            while len(self._values) > self._entries_max:
                self._values.popitem(last=False)
        return value

    def clear(self) -> None:
        """Forget all: a module that they may name has changed."""
        with self._lock:
            self._values.clear()


_CACHE = _Cache(CACHE_ENTRIES_MAX)


def forget_callables() -> None:
    """Unpickle callables anew: after a module was uploaded."""
    _CACHE.clear()


class _LinkedUnpickler(pickle.Unpickler):
    """Reads arguments with references."""

    def __init__(self, data: bytes | memoryview, table: Table, inputs: Sequence[Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._table = table
        self._inputs = inputs

    def persistent_load(self, link: Any) -> Any:
        """The value that a reference stands for."""
        if type(link) is tuple:
            return StepResult(link[0])
        if link < 0:
            return self._inputs[-1 - link]
        return self._table.get(link)


class Table:
    """Reads the table of a body and the arguments of its tasks."""

    def __init__(self, content: bytes | memoryview) -> None:
        content = memoryview(content)
        if bytes(content[:1]) != TABLE_FORM:
            raise ValueError(f"{_OTHER_VERSION}: the body is of another form")
        self._entries: list[tuple[bytes, bytes]] = pickle.loads(content[1:])

    def get(self, place: int) -> Any:
        """The callable at this place."""
        digest, blob = self._entries[place]
        return _CACHE.load(digest, blob)

    def load(self, arguments: bytes | memoryview, inputs: Sequence[Any]) -> Call:
        """Read a task's arguments; raises what unpickling raises."""
        arguments = memoryview(arguments)
        tag = bytes(arguments[:1])
        if tag == PART:
            arguments = arguments[1 + FINGERPRINT_BYTES :]
            tag = bytes(arguments[:1])
        if tag == PLAIN:
            record = pickle.loads(arguments[1:])
        elif tag == LINKED:
            record = _LinkedUnpickler(arguments[1:], self, inputs).load()
        else:
            raise ValueError(f"{_OTHER_VERSION}: the arguments are of another form")
        if record[0] is None:
            return Call([(self.get(place), *rest) for place, *rest in record[1]])
        kwargs = record[2] if len(record) == 3 else {}
        return Call([(self.get(record[0]), record[1], kwargs, ())])


class Call:
    """What a task does, ready to run once."""

    __slots__ = ("steps",)

    def __init__(
        self, steps: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], tuple[int, ...]]]
    ) -> None:
        self.steps = steps

    @property
    def function(self) -> Callable[..., Any]:
        """The function that gives the result."""
        return self.steps[-1][0]

    def __call__(self) -> Any:
        """Run it. Steps let go of their arguments as they are done."""
        steps, self.steps = self.steps, self.steps[-1:]
        if len(steps) == 1:
            function, args, kwargs, _ = steps[0]
            return function(*args, **kwargs)
        results: list[Any] = [None] * len(steps)
        for position, (function, args, kwargs, freed) in enumerate(steps):
            steps[position] = None  # type: ignore[call-overload]
            args = [results[value.step] if type(value) is StepResult else value for value in args]
            if kwargs:
                kwargs = {
                    name: results[value.step] if type(value) is StepResult else value for name, value in kwargs.items()
                }
            for step in freed:
                results[step] = None
            results[position] = function(*args, **kwargs)
        return results[-1]

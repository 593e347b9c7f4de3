"""Functions of the user's program whose pickle can be used again.

A function that other processes cannot import is pickled with what it refers to, which takes longer
than all else of a `submit`. Owns the answer to the question whether the pickle would be the same
again: it is if the function and everything that goes into its pickle are the same objects as
before and none of them can change. Never pickles, never guesses: for whatever it does not know, the
answer is no.
"""

from __future__ import annotations

import operator
import sys
import types
from typing import Any

#: Values without parts, which cannot change.
ATOMS = frozenset({int, float, bool, str, bytes, complex, type(None)})
_MISSING = object()
#: What a pickle says of the module, whatever the function refers to.
_OF_MODULE = ("__package__", "__name__", "__path__", "__file__")


def parts_of(function: types.FunctionType) -> tuple[Any, ...] | None:
    """All that goes into the pickle of a function; None if some of it may change by itself."""
    if function.__closure__ or function.__kwdefaults__ or function.__dict__ or getattr(function, "__type_params__", ()):
        return None
    defaults = function.__defaults__ or ()
    annotations = function.__annotations__
    if not all(type(value) in ATOMS for value in defaults):
        return None
    if not all(type(value) is str or getattr(value, "__module__", None) == "builtins" for value in annotations.values()):
        return None
    names = (*_OF_MODULE, *_names_of(function.__code__))
    values = [function.__globals__.get(name, _MISSING) for name in names]
    for value in values:
        kind = type(value)
        if kind is types.ModuleType:
            if sys.modules.get(value.__name__) is not value or _needs_submodules(value.__name__, names):
                return None
        elif kind not in ATOMS and value is not _MISSING:
            return None
    head = (function.__code__, function.__module__, function.__qualname__, function.__doc__, function.__name__)
    return (*head, *defaults, *annotations, *annotations.values(), *values)


def are_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether both are made of the same objects."""
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _names_of(code: types.CodeType) -> tuple[str, ...]:
    """Names that a function may look up among its globals, also in functions inside of it."""
    inner = [name for const in code.co_consts if type(const) is types.CodeType for name in _names_of(const)]
    return (*code.co_names, *inner)


def _needs_submodules(package: str, names: tuple[str, ...]) -> bool:
    """Whether a pickle may have to import parts of a package: which, depends on what is imported here."""
    return any(f"{package}.{name}" in sys.modules for name in names)

"""What is done to a module once somebody loads it.

Owns one finder on `sys.meta_path`, which is there only while something waits. So that a client does
not load data frames and arrays, which takes more than a second, only to change a name in them. Never
loads a module of its own accord; what fails is logged and leaves the module as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

logger = logging.getLogger("oxidask")

_waiting: dict[str, list[Callable[[], None]]] = {}
_lock = threading.Lock()


def when_loaded(name: str, action: Callable[[], None]) -> None:
    """Call it as soon as the module is loaded; now if it is. The same action waits only once."""
    with _lock:
        is_loaded = name in sys.modules
        if not is_loaded:
            actions = _waiting.setdefault(name, [])
            if action not in actions:
                actions.append(action)
            if _FINDER not in sys.meta_path:
                sys.meta_path.insert(0, _FINDER)
    if is_loaded:
        # Waits for a thread that is still loading it.
        importlib.import_module(name)
        _call(action)


def _call(action: Callable[[], None]) -> None:
    try:
        action()
    except Exception:  # the module of another release; it works as it is
        logger.debug("a module was not changed", exc_info=True)


class _Finder(MetaPathFinder):
    """Finds what others find, with a loader that tells."""

    def __init__(self) -> None:
        self._searching = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module that somebody waits for."""
        if fullname not in _waiting or getattr(self._searching, "is_on", False):
            return None
        self._searching.is_on = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching.is_on = False
        if spec is None or spec.loader is None:
            return None
        spec.loader = _Telling(spec.loader)
        return spec


class _Telling(Loader):
    """Loads as the other loader does, then calls those who wait."""

    def __init__(self, plain: Loader) -> None:
        self._plain = plain

    def __getattr__(self, name: str) -> object:
        return getattr(self._plain, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the other."""
        return self._plain.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As the other; then the module is as it always is."""
        spec = module.__spec__
        if spec is not None:
            spec.loader = self._plain
        module.__loader__ = self._plain
        self._plain.exec_module(module)
        with _lock:
            actions = _waiting.pop(module.__name__, [])
            if not _waiting and _FINDER in sys.meta_path:
                sys.meta_path.remove(_FINDER)
        for action in actions:
            _call(action)


_FINDER = _Finder()

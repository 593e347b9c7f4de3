"""Stock Dask on a Rust runtime.

Owns the names that users import. Everything behind them is imported when it is first used: processes
that run tasks import this package too and must start quickly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oxidask._connect import connect
    from oxidask._errors import OxidaskError
    from oxidask._kubernetes import KubeCluster
    from oxidask._local import LocalCluster
    from oxidask._oxidask import __version__
    from oxidask._security import find_credentials, security_from_dir

__all__ = [
    "KubeCluster",
    "LocalCluster",
    "OxidaskError",
    "__version__",
    "connect",
    "find_credentials",
    "security_from_dir",
]

_PLACES = {
    "KubeCluster": "oxidask._kubernetes",
    "LocalCluster": "oxidask._local",
    "OxidaskError": "oxidask._errors",
    "__version__": "oxidask._oxidask",
    "connect": "oxidask._connect",
    "find_credentials": "oxidask._security",
    "security_from_dir": "oxidask._security",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'oxidask' has no attribute '{name}'")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))

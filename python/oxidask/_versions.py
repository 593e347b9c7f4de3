"""Versions of both sides, and what to say when they differ.

Owns what the client tells about itself and the one warning about workers that do not fit it.
"""

from __future__ import annotations

import platform
import sys
from importlib import metadata

_PACKAGES = ("dask", "distributed", "oxidask", "cloudpickle", "numpy", "pandas", "pyarrow")


def own_versions() -> dict[str, str]:
    """Versions of this process by name."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        module = sys.modules.get(name)
        version = getattr(module, "__version__", None)
        if version is None:
            try:
                version = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        found[name] = str(version)
    return found


def mismatch(own: dict[str, str], workers: dict[str, dict[str, str]]) -> str | None:
    """What does not fit between this client and workers, by name; nothing if all does."""
    lines = []
    for name, exact in (("python", False), ("dask", True), ("distributed", True), ("oxidask", True)):
        mine = own.get(name)
        others: dict[str, list[str]] = {}
        for worker, versions in sorted(workers.items()):
            theirs = versions.get(name)
            if mine and theirs and _shown(theirs, exact) != _shown(mine, exact):
                others.setdefault(theirs, []).append(worker)
        for theirs, names in others.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines.append(f"{name}: this client has {mine}, worker {names[0]}{more} has {theirs}")
    if not lines:
        return None
    return "OX353: the client and workers have different versions; functions and results may not be readable:\n  " + (
        "\n  ".join(lines)
    )


def _shown(version: str, exact: bool) -> str:
    return version if exact else ".".join(version.split(".")[:2])

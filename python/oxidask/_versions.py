"""Versions of both sides, and what to say when they differ.

Owns what the client tells about itself and the one warning about workers that do not fit it.
"""

from __future__ import annotations

import os
import platform
import sys

_PACKAGES = ("dask", "distributed", "oxidask", "cloudpickle", "numpy", "pandas", "pyarrow")


def own_versions() -> dict[str, str]:
    """Versions of this process by name."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        version = getattr(sys.modules.get(name), "__version__", None) or _installed(name)
        if version is not None:
            found[name] = str(version)
    return found


def _installed(name: str) -> str | None:
    """The version of a package that is not loaded.

    By the names of folders, as the packaging standard has them: `importlib.metadata` is slow to load, and a
    worker is asked while its first task waits.
    """
    for folder in sys.path:
        try:
            entries = os.listdir(folder or ".")
        except OSError:
            continue
        for entry in entries:
            if entry.startswith(f"{name}-") and entry.endswith(".dist-info"):
                return entry.removeprefix(f"{name}-").removesuffix(".dist-info")
    return None


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

"""Where a cluster is: its address and the certificates for it.

Owns the places that are looked at and the list of them that an error shows. Knows files and
variables only: never connects, never asks Kubernetes. Both must come from one place if they can: the
address of one cluster with the certificates of another is refused by the scheduler.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: The scheduler's address, as the command line reads it; the second is Dask's own.
ADDRESS_VARIABLES = ("OXIDASK_SCHEDULER", "DASK_SCHEDULER_ADDRESS")
#: A folder with `ca.crt`, `tls.crt` and `tls.key`.
TLS_DIR_VARIABLE = "OXIDASK_TLS_DIR"
#: Where pods of a cluster have theirs.
MOUNTED_TLS_DIR = Path("/etc/oxidask/tls")
#: The three files of a folder with certificates.
TLS_FILES = ("ca.crt", "tls.crt", "tls.key")

SCHEME = "oxidask://"

_LOCAL_FOLDERS = "oxidask-local-*"
_LOCAL_FILE = "cluster.json"
_LOCAL_LOCK = "lock"
#: Folders of local clusters that are looked at.
_LOCAL_FOLDERS_MAX = 1_024


@dataclass(frozen=True)
class Found:
    """A cluster that can be connected to."""

    address: str
    tls_dir: Path


@dataclass
class Search:
    """What was looked at, for the error if nothing was found."""

    looked_at: list[str] = field(default_factory=list)

    def note(self, place: str, outcome: str) -> None:
        """Remember one place."""
        self.looked_at.append(f"{place}: {outcome}")


def has_certificates(folder: Path) -> bool:
    """Whether all three files are there."""
    try:
        return all((folder / name).is_file() for name in TLS_FILES)
    except OSError:
        return False


def address_of_environment(search: Search, environment: Mapping[str, str] = os.environ) -> str | None:
    """The address that a variable gives, if it is one of ours."""
    for name in ADDRESS_VARIABLES:
        value = environment.get(name, "").strip()
        if value.startswith(SCHEME):
            return value
        search.note(f"the variable {name}", f"is `{value}`, not an {SCHEME} address" if value else "is not set")
    return None


def tls_dir_of_environment(search: Search, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder that the variable names, or the mounted Secret."""
    value = environment.get(TLS_DIR_VARIABLE, "").strip()
    if value:
        # Also if it is not there: whoever names a folder wants to hear what is wrong with it.
        return Path(value)
    search.note(f"the variable {TLS_DIR_VARIABLE}", "is not set")
    if has_certificates(MOUNTED_TLS_DIR):
        return MOUNTED_TLS_DIR
    search.note(f"the folder {MOUNTED_TLS_DIR}", "has no certificates")
    return None


def local_clusters(search: Search, parent: Path | None = None) -> list[Found]:
    """Clusters of this user that `oxidask up` keeps on this machine, the newest first."""
    parent = parent or Path(tempfile.gettempdir())
    alive = []
    for folder in sorted(parent.glob(_LOCAL_FOLDERS))[:_LOCAL_FOLDERS_MAX]:
        found = _local_cluster(folder)
        if found is not None:
            alive.append(found)
    if not alive:
        search.note(f"what `oxidask up` has started ({parent}/{_LOCAL_FOLDERS})", "nothing runs")
    return [found for _, found in sorted(alive, key=lambda entry: entry[0], reverse=True)]


def _local_cluster(folder: Path) -> tuple[float, Found] | None:
    file = folder / _LOCAL_FILE
    try:
        status = file.stat()
        # A folder of somebody else could lead a client to a scheduler of theirs.
        if status.st_uid != os.getuid() or not _is_locked(folder / _LOCAL_LOCK):
            return None
        content = json.loads(file.read_text())
        address, tls_dir = content["address"], content["tls_dir"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(address, str) or not isinstance(tls_dir, str):
        return None
    return status.st_mtime, Found(address, Path(tls_dir))


def _is_locked(file: Path) -> bool:
    """Whether the program that made the folder still runs."""
    with file.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False

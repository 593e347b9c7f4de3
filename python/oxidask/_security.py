"""Certificates, to and from `distributed.security.Security`.

Owns which certificates a connection uses. A `Security` names them by files or holds their text; what
it says of ciphers, versions of TLS and other roles does not matter here: connections use TLS 1.3 with
both sides proving who they are, always. Never connects.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oxidask import _finding
from oxidask._errors import OxidaskError
from oxidask._oxidask import Credentials

if TYPE_CHECKING:
    from distributed.security import Security

#: Key of `extra_conn_args` under which a folder with certificates may be given.
TLS_DIR_ARGUMENT = "tls_dir"

_HINT = (
    "set OXIDASK_TLS_DIR to a folder with ca.crt, tls.crt and tls.key of this cluster, or use "
    "`oxidask.connect()`, which also finds clusters on Kubernetes by their names"
)


def security_from_dir(folder: str | os.PathLike[str]) -> Security:
    """A `Security` for `Client(address, security=…)`.

    The folder holds `ca.crt`, `tls.crt` and `tls.key`. They are read anew for each connection, so
    certificates may be renewed while a client lives.
    """
    from distributed.security import Security

    folder = Path(folder).absolute()
    missing = [name for name in _finding.TLS_FILES if not (folder / name).is_file()]
    if missing:
        # Reading them later would say that a file is missing, but not which.
        raise OxidaskError("OX401", f"the folder `{folder}` has no {', '.join(missing)}", _HINT)
    ca, certificate, key = (str(folder / name) for name in _finding.TLS_FILES)
    return Security(
        require_encryption=True,
        tls_ca_file=ca,
        tls_client_cert=certificate,
        tls_client_key=key,
        extra_conn_args={TLS_DIR_ARGUMENT: str(folder)},
    )


def security_from_pem(ca: str, certificate: str, key: str) -> Security:
    """A `Security` that holds the text of the three files."""
    from distributed.security import Security

    return Security(require_encryption=True, tls_ca_file=ca, tls_client_cert=certificate, tls_client_key=key)


def credentials_of(security: Security | None) -> Credentials | None:
    """What a `Security` says; nothing if it names no certificates."""
    if security is None:
        return None
    ca = getattr(security, "tls_ca_file", None)
    certificate = getattr(security, "tls_client_cert", None)
    key = getattr(security, "tls_client_key", None)
    given = {"tls_ca_file": ca, "tls_client_cert": certificate, "tls_client_key": key}
    missing = [name for name, value in given.items() if not value]
    if len(missing) == len(given):
        return None
    if missing:
        raise OxidaskError(
            "OX401",
            f"the certificates of `Security` are not complete: {', '.join(missing)} is missing",
            "give all three, or use `oxidask.security_from_dir(folder)`",
        )
    folder = _common_folder([str(value) for value in given.values()])
    if folder is not None:
        return Credentials.from_dir(folder)
    return Credentials.from_pem(*(_text(str(value)) for value in given.values()))


def credentials_for(
    security: Security | None,
    extra_conn_args: Mapping[str, Any] | None,
    address: str,
) -> Credentials:
    """The certificates for a connection to an address.

    They are looked for in what the client was given, in Dask's configuration (which a `Security`
    reads), in the environment, in a mounted Secret and in what `oxidask up` has started.
    """
    folder = (extra_conn_args or {}).get(TLS_DIR_ARGUMENT)
    if folder:
        return Credentials.from_dir(folder)
    given = credentials_of(security)
    if given is None and security is None:
        given = _credentials_of_configuration()
    if given is not None:
        return given
    search = _finding.Search()
    search.note("the client's `security`", "names no certificates")
    clusters = _finding.local_clusters(search)
    # A cluster of this machine has certificates of its own, whatever the environment is for.
    for cluster in clusters:
        if _same_address(cluster.address, address):
            return Credentials.from_dir(cluster.tls_dir)
    if clusters:
        search.note("what `oxidask up` has started", f"listens on {', '.join(c.address for c in clusters)}")
    folder = _finding.tls_dir_of_environment(search)
    if folder is not None:
        return Credentials.from_dir(folder)
    raise OxidaskError(
        "OX352",
        f"there are no certificates for a connection to `{address}`",
        _HINT,
        search.looked_at,
    )


def find_credentials(address: str) -> Credentials:
    """The certificates that a plain `Client(address)` uses."""
    return credentials_for(None, None, address)


def _credentials_of_configuration() -> Credentials | None:
    from distributed.security import Security

    return credentials_of(Security())


def _common_folder(values: list[str]) -> Path | None:
    """The folder, if these are its three files: then renewed ones are noticed."""
    if any("\n" in value for value in values):
        return None
    paths = [Path(value) for value in values]
    is_folder = [path.name for path in paths] == list(_finding.TLS_FILES)
    return paths[0].parent if is_folder and len({path.parent for path in paths}) == 1 else None


def _text(value: str) -> str:
    """The text of a file, or the text itself."""
    if "\n" in value:
        return value
    try:
        return Path(value).read_text()
    except OSError as error:
        raise OxidaskError("OX401", f"`{value}` cannot be read: {error.strerror}", _HINT) from error


def _same_address(one: str, other: str) -> bool:
    def normal(address: str) -> str:
        host, _, port = address.removeprefix(_finding.SCHEME).rstrip("/").rpartition(":")
        return f"{'127.0.0.1' if host in {'localhost', '[::1]'} else host}:{port}"

    return normal(one) == normal(other)

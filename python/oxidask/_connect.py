"""Finding a cluster and connecting to it.

Owns the order in which places are looked at: arguments, the environment, a mounted Secret, what
`oxidask up` has started, a cluster on Kubernetes by its name. The first that gives an address wins;
its certificates come from the same place if it has any. Starts nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oxidask import _finding
from oxidask._errors import OxidaskError
from oxidask._security import security_from_dir

if TYPE_CHECKING:
    from distributed import Client

_HINT = (
    "start one with `oxidask up CLUSTER.yaml` or `oxidask.LocalCluster()`, set OXIDASK_SCHEDULER and "
    'OXIDASK_TLS_DIR, or name one on Kubernetes: `oxidask.connect(name="my-cluster")`'
)


def connect(
    address: str | None = None,
    *,
    tls_dir: str | os.PathLike[str] | None = None,
    name: str | None = None,
    namespace: str | None = None,
    **client_kwargs: Any,
) -> Client:
    """Connect to a cluster that runs.

    Without arguments, the cluster is looked for in the environment (`OXIDASK_SCHEDULER` or
    `DASK_SCHEDULER_ADDRESS`, with `OXIDASK_TLS_DIR` or the Secret mounted at `/etc/oxidask/tls`), and
    then among those that `oxidask up` keeps on this machine.

    Parameters
    ----------
    address
        `oxidask://host:port`.
    tls_dir
        A folder with `ca.crt`, `tls.crt` and `tls.key`.
    name, namespace
        Of a cluster on Kubernetes; its address and certificates are asked for there. This needs the
        package `kubernetes`: `pip install 'oxidask[kubernetes]'`.
    client_kwargs
        For `distributed.Client`, such as `asynchronous=True` or `timeout="10s"`.

    Raises
    ------
    OxidaskError
        OX352 if no cluster was found, with all places that were looked at.
    """
    from distributed import Client

    if name is not None:
        if address is not None:
            raise TypeError("give either `address` or `name`, not both")
        return _connect_by_name(name, namespace, client_kwargs)
    found, folder = find(address, tls_dir)
    if folder is not None and client_kwargs.get("security") is None:
        client_kwargs["security"] = security_from_dir(folder)
    return Client(found, **client_kwargs)


def find(
    address: str | None = None,
    tls_dir: str | os.PathLike[str] | None = None,
) -> tuple[str, Path | None]:
    """Address and folder of certificates; no folder if the connection is to look for it."""
    folder = None if tls_dir is None else Path(tls_dir)
    if address is not None:
        return address, folder
    search = _finding.Search()
    search.note("the argument `address`", "was not given")
    from_environment = _finding.address_of_environment(search)
    if from_environment is not None:
        return from_environment, folder or _finding.tls_dir_of_environment(search)
    clusters = _finding.local_clusters(search)
    if clusters:
        return clusters[0].address, folder or clusters[0].tls_dir
    raise OxidaskError("OX352", "no cluster was found", _HINT, search.looked_at)


def _connect_by_name(name: str, namespace: str | None, client_kwargs: dict[str, Any]) -> Client:
    from oxidask._kubernetes import KubeCluster

    cluster = KubeCluster.from_name(name, namespace=namespace, shutdown_on_close=False)
    try:
        client = cluster.get_client(**client_kwargs)
    except BaseException:
        cluster.close()
        raise
    # It forwards ports for as long as the client lives.
    client._oxidask_cluster = cluster
    return client

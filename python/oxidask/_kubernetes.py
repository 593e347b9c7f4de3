"""A cluster on Kubernetes, as an object of Python.

Owns the DaskCluster object and what follows from it: waiting until the operator has made it ready,
its address and certificates, its size. The operator does all the work; nothing here makes pods. Names
and defaults are those that users of `dask_kubernetes.operator.KubeCluster` know.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oxidask import _finding
from oxidask._cluster import BaseCluster
from oxidask._errors import OxidaskError
from oxidask._kubernetes_api import AUTOSCALERS, CLUSTERS, GROUP, VERSION, WORKER_GROUPS, Api, is_in_cluster
from oxidask._port_forward import PortForward
from oxidask._security import security_from_dir

CREATE_OR_CONNECT = "CREATE_OR_CONNECT"
CREATE_ONLY = "CREATE_ONLY"
CONNECT_ONLY = "CONNECT_ONLY"

_COMM_PORT = 8786
_HTTP_PORT = 8787
_NAME_LENGTH_MAX = 53
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LOOK_SECONDS = 0.25
_CLOSE_SECONDS = 3600.0
#: Certificates live for days; renewed ones are taken this often.
_CERTIFICATES_SECONDS = 600.0
_OWNER_LABEL = "dask.org/cluster-name"
_COMPONENT_LABEL = "dask.org/component"


class KubeCluster(BaseCluster):
    """A cluster that the operator keeps on Kubernetes.

    Parameters
    ----------
    name
        Of the DaskCluster; one is made up unless it is given.
    namespace
        That of the kubeconfig or of this pod unless it is given.
    image
        Of the workers: any image with glibc and the Python packages that tasks need. Binary and
        package of oxidask are brought in. Without it, workers run the image of oxidask.
    n_workers, threads_per_worker
        The size of the group `default`.
    resources
        Of each worker, as in a pod: `{"limits": {"memory": "2Gi", "cpu": "1"}}`.
    env
        Variables of the workers: a dictionary, or a list as in a pod.
    idle_timeout
        Seconds without work after which the operator deletes the cluster; 0: never.
    resource_timeout
        Seconds that the cluster has to become ready.
    shutdown_on_close
        Whether `close` deletes the cluster.
    create_mode
        `"CREATE_OR_CONNECT"`, `"CREATE_ONLY"` or `"CONNECT_ONLY"`.
    custom_cluster_spec
        A whole DaskCluster, instead of the settings above.
    scheduler_forward_port
        Port of this machine for the dashboard; a free one unless it is given.
    context
        Of the kubeconfig.
    asynchronous
        Methods are awaited: `async with KubeCluster(asynchronous=True) as cluster`.
    """

    def __init__(  # noqa: PLR0913 (named settings, as dask_kubernetes has them)
        self,
        *,
        name: str | None = None,
        namespace: str | None = None,
        image: str | None = None,
        n_workers: int = 3,
        threads_per_worker: int | None = None,
        resources: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | list[dict[str, Any]] | None = None,
        idle_timeout: int = 0,
        resource_timeout: float = 60,
        shutdown_on_close: bool | None = None,
        create_mode: str = CREATE_OR_CONNECT,
        custom_cluster_spec: Mapping[str, Any] | None = None,
        scheduler_forward_port: int | None = None,
        context: str | None = None,
        asynchronous: bool = False,
    ) -> None:
        if custom_cluster_spec is not None:
            name = custom_cluster_spec["metadata"]["name"]
            namespace = namespace or custom_cluster_spec["metadata"].get("namespace")
        super().__init__(name or _made_up_name(), asynchronous)
        check_name(self.name)
        if create_mode not in {CREATE_OR_CONNECT, CREATE_ONLY, CONNECT_ONLY}:
            raise ValueError(f"`{create_mode}` is no mode of creating a cluster")
        self._api = Api(context)
        self.namespace = namespace or self._api.namespace
        self._create_mode = create_mode
        self._resource_timeout = resource_timeout
        self._body = dict(custom_cluster_spec or {}) or make_cluster_spec(
            self.name,
            image=image,
            n_workers=n_workers,
            threads_per_worker=threads_per_worker,
            resources=resources,
            env=env,
            idle_timeout=idle_timeout,
        )
        self.shutdown_on_close = create_mode != CONNECT_ONLY if shutdown_on_close is None else shutdown_on_close
        self._was_created = False
        self._link = _Link(self._api, self.namespace, self.name, scheduler_forward_port)
        self._finalizer = weakref.finalize(
            self, _leave, self._link, self._api if self.shutdown_on_close else None, self.namespace, self.name
        )
        if not asynchronous:
            self._ensure_started()

    @classmethod
    def from_name(cls, name: str, **kwargs: Any) -> KubeCluster:
        """A cluster that runs already; closing the object leaves it alone."""
        kwargs.setdefault("shutdown_on_close", False)
        return cls(name=name, create_mode=CONNECT_ONLY, **kwargs)

    # ---- starting and ending ----

    def _start(self) -> None:
        found = self._api.get(CLUSTERS, self.namespace, self.name)
        if found is None:
            if self._create_mode == CONNECT_ONLY:
                message = f"there is no DaskCluster `{self.name}` in the namespace `{self.namespace}`"
                raise OxidaskError("OX352", message, "`kubectl get daskclusters -A` lists those that are there")
            self._was_created = self._api.create(CLUSTERS, self.namespace, self._body)
        elif self._create_mode == CREATE_ONLY:
            # Closing must not delete what is somebody else's.
            self.shutdown_on_close = False
            self._finalizer.detach()
            message = f"there is a DaskCluster `{self.name}` in the namespace `{self.namespace}` already"
            raise OxidaskError("OX352", message, "take another name, or connect to it: `create_mode='CREATE_OR_CONNECT'`")
        try:
            self._wait_ready()
        except BaseException:
            if not self._was_created:
                self.shutdown_on_close = False
            raise
        self.scheduler_address, tls_dir = self._link.open()
        self.security = security_from_dir(tls_dir)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + self._resource_timeout
        seen = "the operator has not looked at it: is it running?"
        while True:
            found = self._api.get(CLUSTERS, self.namespace, self.name)
            if found is None:
                raise OxidaskError("OX352", f"the DaskCluster `{self.name}` was deleted meanwhile")
            status = found.get("status") or {}
            phase = status.get("phase")
            if phase == "Error":
                raise OxidaskError("OX352", f"the operator refuses the DaskCluster `{self.name}`: {_said(status)}")
            if phase == "Running" and _is_ready(status):
                return
            if phase is not None:
                seen = f"it is in the phase `{phase}`: {_said(status)}"
            if time.monotonic() > deadline:
                message = f"the DaskCluster `{self.name}` was not ready within {self._resource_timeout} s: {seen}"
                raise TimeoutError(message)
            time.sleep(_LOOK_SECONDS)

    def _close(self) -> None:
        self._finalizer.detach()
        self._link.close()
        if not self.shutdown_on_close:
            return
        self._api.delete(CLUSTERS, self.namespace, self.name)
        deadline = time.monotonic() + _CLOSE_SECONDS
        while self._api.get(CLUSTERS, self.namespace, self.name) is not None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the DaskCluster `{self.name}` is being deleted for too long")
            time.sleep(_LOOK_SECONDS)

    # ---- size ----

    def scale(self, n: int, worker_group: str = "default") -> Any:
        """Have so many workers in a group; an autoscaler of the cluster goes."""
        if n < 0:
            raise ValueError(f"a group cannot have {n} workers")
        return self._run(self._scale, n, worker_group)

    def _scale(self, n: int, worker_group: str = "default") -> None:
        self._api.delete(AUTOSCALERS, self.namespace, self.name)
        group = f"{self.name}-{worker_group}"
        if not self._api.patch(WORKER_GROUPS, self.namespace, group, {"spec": {"worker": {"replicas": n}}}):
            message = f"the cluster `{self.name}` has no group `{worker_group}`"
            raise OxidaskError("OX352", message, "`kubectl get daskworkergroups` lists them")

    def adapt(self, minimum: int | None = None, maximum: int | None = None) -> Any:
        """Let the number of workers follow the load, between these bounds."""
        return self._run(self._adapt, minimum, maximum)

    def _adapt(self, minimum: int | None, maximum: int | None) -> None:
        bounds = {"minimum": minimum or 0, "maximum": maximum}
        bounds = {key: value for key, value in bounds.items() if value is not None}
        spec = {"cluster": self.name, **bounds}
        if not self._api.patch(AUTOSCALERS, self.namespace, self.name, {"spec": {"maximum": None, **spec}}):
            self._api.create(AUTOSCALERS, self.namespace, self._object("DaskAutoscaler", self.name, spec))

    def add_worker_group(
        self,
        name: str,
        n_workers: int = 3,
        image: str | None = None,
        resources: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | list[dict[str, Any]] | None = None,
    ) -> Any:
        """Add a group of workers, with settings of its own."""
        worker = make_worker_spec(n_workers, image, None, resources, env)
        spec = {"cluster": self.name, "worker": worker}
        body = self._object("DaskWorkerGroup", f"{self.name}-{name}", spec)
        return self._run(self._add_worker_group, body)

    def _add_worker_group(self, body: dict[str, Any]) -> None:
        if not self._api.create(WORKER_GROUPS, self.namespace, body):
            raise OxidaskError("OX352", f"there is a DaskWorkerGroup `{body['metadata']['name']}` already")

    def delete_worker_group(self, name: str) -> Any:
        """Remove a group; its workers hand over what they hold first."""
        return self._run(self._api.delete, WORKER_GROUPS, self.namespace, f"{self.name}-{name}")

    def _object(self, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": {"name": name}, "spec": spec}

    # ---- what it is ----

    @property
    def dashboard_link(self) -> str:
        """Where the scheduler serves HTTP, with the token that opens it."""
        return self._link.dashboard()

    @property
    def worker_spec(self) -> dict[str, Any]:
        """The group `default` as the DaskCluster has it."""
        found = self._api.get(CLUSTERS, self.namespace, self.name) or self._body
        return dict(found["spec"].get("worker") or {})

    def _logs(self, cluster: bool, scheduler: bool, workers: bool) -> Any:
        from distributed.utils import Log, Logs

        found = Logs()
        if cluster:
            status = (self._api.get(CLUSTERS, self.namespace, self.name) or {}).get("status") or {}
            found["Cluster"] = Log(f"phase `{status.get('phase')}`: {_said(status)}")
        for pod in self._api.pods(self.namespace, f"{_OWNER_LABEL}={self.name}"):
            component = (pod.metadata.labels or {}).get(_COMPONENT_LABEL)
            if (component == "scheduler" and scheduler) or (component == "worker" and workers):
                found[pod.metadata.name] = Log(self._api.pod_log(self.namespace, pod.metadata.name))
        return found


class _Link:
    """How this process reaches the cluster: address, certificates, forwarded ports."""

    def __init__(self, api: Api, namespace: str, name: str, forward_port: int | None) -> None:
        self._api, self._namespace, self._name = api, namespace, name
        self._forward_port = forward_port or 0
        self._forwards: dict[int, PortForward] = {}
        self._folder: Path | None = None
        self._closed = threading.Event()

    def open(self) -> tuple[str, Path]:
        """The scheduler's address, and a folder with certificates that is kept fresh."""
        self._folder = Path(tempfile.mkdtemp(prefix="oxidask-tls-"))
        self._write_certificates()
        threading.Thread(target=self._refresh, name="oxidask-certificates", daemon=True).start()
        if is_in_cluster():
            return f"{_finding.SCHEME}{self._service()}:{_COMM_PORT}", self._folder
        return f"{_finding.SCHEME}127.0.0.1:{self._forwarded(_COMM_PORT)}", self._folder

    def dashboard(self) -> str:
        """With the token, if this user may read it."""
        if is_in_cluster():
            link = f"http://{self._service()}:{_HTTP_PORT}"
        else:
            link = f"http://127.0.0.1:{self._forwarded(_HTTP_PORT)}"
        try:
            secret = self._api.secret(self._namespace, f"{self._name}-http-token")
        except OxidaskError:
            secret = None
        token = (secret or {}).get("token", b"").decode().strip()
        return f"{link}/#token={token}" if token else link

    def close(self) -> None:
        """Forward nothing any more, and remove the certificates."""
        self._closed.set()
        for forward in self._forwards.values():
            forward.close()
        self._forwards.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _service(self) -> str:
        return f"{self._name}-scheduler.{self._namespace}.svc"

    def _forwarded(self, port: int) -> int:
        if port not in self._forwards:
            local = self._forward_port if port == _HTTP_PORT else 0
            self._forwards[port] = PortForward(lambda: self._to_scheduler(port), local)
        return self._forwards[port].port

    def _to_scheduler(self, port: int) -> Any:
        selector = f"{_OWNER_LABEL}={self._name},{_COMPONENT_LABEL}=scheduler"
        for pod in self._api.pods(self._namespace, selector):
            if pod.status.phase == "Running" and pod.metadata.deletion_timestamp is None:
                return self._api.forwarded(self._namespace, pod.metadata.name, port)
        raise OxidaskError("OX352", f"the scheduler of `{self._name}` has no pod that runs")

    def _write_certificates(self) -> None:
        assert self._folder is not None
        name = f"{self._name}-tls-client"
        secret = self._api.secret(self._namespace, name)
        missing = [file for file in _finding.TLS_FILES if not (secret or {}).get(file)]
        if secret is None or missing:
            what = "does not exist" if secret is None else f"has no {', '.join(missing)}"
            message = f"the Secret `{name}` with the certificates of clients {what}"
            raise OxidaskError("OX352", message, "only clusters with `runtime: Rust` have it")
        for file in _finding.TLS_FILES:
            draft = self._folder / f"{file}.new"
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as target:
                target.write(secret[file])
            draft.rename(self._folder / file)

    def _refresh(self) -> None:
        while not self._closed.wait(_CERTIFICATES_SECONDS):
            try:
                self._write_certificates()
            except (OSError, OxidaskError):
                # Those that are there are good for days; the next look is soon.
                continue


def _leave(link: _Link, api: Api | None, namespace: str, name: str) -> None:
    """At the end of Python, if nobody has closed the cluster: it is deleted, and nobody waits."""
    link.close()
    if api is not None:
        api.delete(CLUSTERS, namespace, name)


def discover(context: str | None = None) -> list[tuple[str, str]]:
    """Name and namespace of each DaskCluster."""
    found = Api(context).list_everywhere(CLUSTERS)
    return [(entry["metadata"]["name"], entry["metadata"]["namespace"]) for entry in found]


def make_cluster_spec(  # noqa: PLR0913 (named settings)
    name: str,
    *,
    image: str | None = None,
    n_workers: int = 3,
    threads_per_worker: int | None = None,
    resources: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | list[dict[str, Any]] | None = None,
    idle_timeout: int = 0,
) -> dict[str, Any]:
    """The DaskCluster for these settings, to be changed and given as `custom_cluster_spec`."""
    spec: dict[str, Any] = {
        "runtime": "Rust",
        "worker": make_worker_spec(n_workers, image, threads_per_worker, resources, env),
    }
    if idle_timeout:
        spec["idleTimeout"] = idle_timeout
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "DaskCluster", "metadata": {"name": name}, "spec": spec}


def make_worker_spec(
    n_workers: int,
    image: str | None,
    threads: int | None,
    resources: Mapping[str, Any] | None,
    env: Mapping[str, str] | list[dict[str, Any]] | None,
) -> dict[str, Any]:
    """The workers of a group."""
    worker: dict[str, Any] = {"replicas": n_workers}
    if image:
        worker["image"] = image
    if threads:
        worker["threads"] = threads
    if resources:
        wrong = set(resources) - {"limits", "requests", "claims"}
        if wrong:
            names = ", ".join(sorted(wrong))
            raise ValueError(f"`resources` has limits, requests and claims, not {names}")
        worker["resources"] = dict(resources)
    if env:
        pairs = [{"name": key, "value": str(value)} for key, value in env.items()] if isinstance(env, Mapping) else env
        worker["env"] = list(pairs)
    return worker


def check_name(name: str) -> None:
    """Refuse a name that Kubernetes or the operator would refuse."""
    if len(name) > _NAME_LENGTH_MAX or not _NAME.fullmatch(name):
        raise ValueError(
            f"`{name}` is no name for a cluster: small letters, digits and `-`, a letter first, "
            f"at most {_NAME_LENGTH_MAX} characters"
        )


def _made_up_name() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "user"
    user = re.sub(r"[^a-z0-9]+", "-", user.lower()).strip("-")[:20] or "user"
    return f"dask-{user}-{uuid.uuid4().hex[:8]}"


def _is_ready(status: Mapping[str, Any]) -> bool:
    conditions = status.get("conditions") or []
    ready = [condition for condition in conditions if condition.get("type") == "SchedulerReady"]
    ready = ready or [condition for condition in conditions if condition.get("type") == "Ready"]
    # Other operators have no conditions.
    return not conditions or any(condition.get("status") == "True" for condition in ready)


def _said(status: Mapping[str, Any]) -> str:
    """What the conditions say, the trouble first."""
    conditions = status.get("conditions") or []
    order = {"Stalled": 0, "Ready": 1}
    conditions = sorted(conditions, key=lambda condition: order.get(condition.get("type"), 2))
    for condition in conditions:
        is_bad = condition.get("status") == ("True" if condition.get("type") in {"Stalled"} else "False")
        if is_bad and condition.get("message"):
            return str(condition["message"])
    return "it says nothing"

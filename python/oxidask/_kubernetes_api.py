"""The few things that a cluster on Kubernetes is asked for.

Owns calls of the package `kubernetes`, which knows kubeconfigs, accounts of pods and how to log in,
and how its errors become ours. Names and shapes of objects are given by others.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from oxidask._errors import OxidaskError

GROUP = "kubernetes.dask.org"
VERSION = "v1"
CLUSTERS = "daskclusters"
WORKER_GROUPS = "daskworkergroups"
AUTOSCALERS = "daskautoscalers"

#: Time that the API server has for an answer.
_ANSWER_SECONDS = 30
#: Lines of a pod's log.
_LOG_LINES = 1_000
_NOT_FOUND = 404
_CONFLICT = 409
_FORBIDDEN = (401, 403)
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

_INSTALL_HINT = "install it: `pip install 'oxidask[kubernetes]'`"


def is_in_cluster() -> bool:
    """Whether this process is a pod and reaches Services by their names."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and _NAMESPACE_FILE.exists()


class Api:
    """One Kubernetes, and the namespace that is meant if none is named."""

    def __init__(self, context: str | None = None) -> None:
        try:
            import kubernetes
        except ImportError as error:
            message = "clusters on Kubernetes need the package `kubernetes`"
            raise OxidaskError("OX352", message, _INSTALL_HINT) from error
        self._package = kubernetes
        self.namespace = "default"
        configuration = kubernetes.client.Configuration()
        try:
            if context is None and is_in_cluster():
                kubernetes.config.load_incluster_config(client_configuration=configuration)
                self.namespace = _NAMESPACE_FILE.read_text().strip() or "default"
            else:
                kubernetes.config.load_kube_config(context=context, client_configuration=configuration)
                self.namespace = _namespace_of_context(kubernetes, context)
        except kubernetes.config.ConfigException as error:
            message = f"there is no usable configuration for Kubernetes: {error}"
            hint = "check KUBECONFIG and ~/.kube/config, or run in a pod with a service account"
            raise OxidaskError("OX352", message, hint) from error
        client = kubernetes.client.ApiClient(configuration)
        self._objects = kubernetes.client.CustomObjectsApi(client)
        self._core = kubernetes.client.CoreV1Api(client)
        self._configuration = configuration

    # ---- objects of ours ----

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """An object, if it is there."""
        return self._call(
            self._objects.get_namespaced_custom_object, GROUP, VERSION, namespace, kind, name, absent=None
        )

    def create(self, kind: str, namespace: str, body: dict[str, Any]) -> bool:
        """Whether it was made; false if one of this name is there already."""
        try:
            self._call(self._objects.create_namespaced_custom_object, GROUP, VERSION, namespace, kind, body)
        except OxidaskError as error:
            if _status_of(error) == _CONFLICT:
                return False
            raise
        return True

    def patch(self, kind: str, namespace: str, name: str, body: dict[str, Any]) -> bool:
        """Merge a patch; false if there is no such object."""
        found = self._call(
            self._objects.patch_namespaced_custom_object,
            *(GROUP, VERSION, namespace, kind, name, body),
            absent=False,
            _content_type="application/merge-patch+json",
        )
        return found is not False

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object, if it is there."""
        self._call(self._objects.delete_namespaced_custom_object, GROUP, VERSION, namespace, kind, name, absent=None)

    def list_everywhere(self, kind: str) -> list[dict[str, Any]]:
        """Objects of all namespaces."""
        found = self._call(self._objects.list_cluster_custom_object, GROUP, VERSION, kind, absent={"items": []})
        return list(found["items"])

    # ---- what the operator makes ----

    def secret(self, namespace: str, name: str) -> dict[str, bytes] | None:
        """The content of a Secret, if it is there."""
        found = self._call(self._core.read_namespaced_secret, name, namespace, absent=None)
        if found is None:
            return None
        return {key: base64.b64decode(value) for key, value in (found.data or {}).items()}

    def pods(self, namespace: str, selector: str) -> list[Any]:
        """Pods with these labels."""
        return list(self._call(self._core.list_namespaced_pod, namespace, label_selector=selector).items)

    def pod_log(self, namespace: str, name: str) -> str:
        """The last lines of a pod, as far as it has a log."""
        try:
            return self._call(self._core.read_namespaced_pod_log, name, namespace, tail_lines=_LOG_LINES) or ""
        except OxidaskError as error:
            return f"(no log: {error.message})"

    def forwarded(self, namespace: str, pod: str, port: int) -> Any:
        """A connection to a port of a pod, through the API server."""
        # The package changes a client for good when it opens such a connection.
        client = self._package.client.ApiClient(self._configuration)
        core = self._package.client.CoreV1Api(client)
        forward = self._package.stream.portforward(
            core.connect_get_namespaced_pod_portforward, pod, namespace, ports=str(port)
        )
        return forward.socket(port)

    def _call(self, function: Any, *arguments: Any, absent: Any = ..., **keywords: Any) -> Any:
        try:
            return function(*arguments, _request_timeout=_ANSWER_SECONDS, **keywords)
        except self._package.client.ApiException as error:
            if error.status == _NOT_FOUND and absent is not ...:
                return absent
            raise _refused(error) from error
        except OSError as error:
            raise _unreachable(error) from error
        except Exception as error:
            # The package lets errors of the library below it through.
            if type(error).__module__.startswith("urllib3"):
                raise _unreachable(error) from error
            raise


def _refused(error: Any) -> OxidaskError:
    text = error.reason or f"status {error.status}"
    body = error.body if isinstance(error.body, str) else ""
    if '"message"' in body:
        import json

        try:
            text = json.loads(body).get("message") or text
        except ValueError:
            pass
    hint = "the CRDs and the operator of oxidask must be installed, and you may need more rights"
    if error.status in _FORBIDDEN:
        hint = "ask for a Role that allows it; the documentation of certificates shows one"
    refused = OxidaskError("OX352", f"Kubernetes refused: {text}", hint)
    refused.status = error.status  # type: ignore[attr-defined]
    return refused


def _unreachable(error: BaseException) -> OxidaskError:
    hint = "check KUBECONFIG and that the API server can be reached"
    return OxidaskError("OX352", f"the API server of Kubernetes cannot be reached: {error}", hint)


def _status_of(error: OxidaskError) -> int | None:
    return getattr(error, "status", None)


def _namespace_of_context(kubernetes: Any, context: str | None) -> str:
    contexts, active = kubernetes.config.list_kube_config_contexts()
    chosen = active if context is None else next(entry for entry in contexts if entry["name"] == context)
    return chosen["context"].get("namespace") or "default"

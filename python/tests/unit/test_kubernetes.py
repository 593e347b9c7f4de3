"""Clusters on Kubernetes, against an API server that is a few lines of Python."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes")

from oxidask import OxidaskError
from oxidask._kubernetes import KubeCluster, check_name, discover, make_cluster_spec
from oxidask._port_forward import PortForward

OBJECT = re.compile(r"/apis/kubernetes.dask.org/v1/namespaces/(?P<ns>[^/]+)/(?P<kind>[^/?]+)(/(?P<name>[^/?]+))?")
READY = {
    "phase": "Running",
    "conditions": [{"type": "SchedulerReady", "status": "True", "message": "it answers"}],
}


class FakeServer:
    """Objects in a dictionary; clusters get the status that a test wants as soon as they are made."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.status: dict[str, Any] | None = READY
        self.requests: list[tuple[str, str, str | None]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def _handle(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                fake.requests.append((self.command, self.path, self.headers.get("Content-Type")))
                code, answer = fake.answer(self.command, self.path.partition("?")[0], body)
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("Content-Type", "text/plain" if isinstance(answer, bytes) else "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, verb: str, path: str, body: Any) -> tuple[int, Any]:
        if path == "/apis/kubernetes.dask.org/v1/daskclusters":
            items = [value for (kind, _), value in self.objects.items() if kind == "daskclusters"]
            return 200, {"items": items}
        if found := re.fullmatch(r"/api/v1/namespaces/ns/secrets/([^/]+)", path):
            secret = self.secrets.get(found[1])
            return (200, {"data": secret}) if secret else self.absent()
        if path == "/api/v1/namespaces/ns/pods":
            return 200, {"items": [self.pod("a-scheduler-x", "scheduler"), self.pod("a-default-worker-1", "worker")]}
        if re.fullmatch(r"/api/v1/namespaces/ns/pods/[^/]+/log", path):
            return 200, f"said by {path.split('/')[-2]}\n".encode()
        if path.endswith("/portforward"):
            return self.absent()
        found = OBJECT.fullmatch(path)
        assert found is not None, path
        return self.answer_object(verb, found["kind"], found["name"], body)

    def answer_object(self, verb: str, kind: str, name: str | None, body: Any) -> tuple[int, Any]:
        if verb == "POST":
            name = body["metadata"]["name"]
            if (kind, name) in self.objects:
                return 409, {"message": f"{name} already exists"}
            body["metadata"].setdefault("namespace", "ns")
            if kind == "daskclusters" and self.status is not None:
                body["status"] = self.status
            self.objects[kind, name] = body
            return 201, body
        assert name is not None
        if (kind, name) not in self.objects:
            return self.absent()
        if verb == "DELETE":
            del self.objects[kind, name]
            return 200, {}
        if verb == "PATCH":
            merge(self.objects[kind, name], body)
        return 200, self.objects[kind, name]

    @staticmethod
    def absent() -> tuple[int, Any]:
        return 404, {"message": "not found", "code": 404}

    @staticmethod
    def pod(name: str, component: str) -> dict[str, Any]:
        labels = {"dask.org/cluster-name": "a", "dask.org/component": component}
        return {"metadata": {"name": name, "labels": labels}, "status": {"phase": "Running"}}

    def allow_clients(self, name: str) -> None:
        """What the operator makes for clients."""
        encode = lambda text: base64.b64encode(text.encode()).decode()  # noqa: E731
        files = {file: encode(f"content of {file}") for file in ("ca.crt", "tls.crt", "tls.key")}
        self.secrets[f"{name}-tls-client"] = files
        self.secrets[f"{name}-http-token"] = {"token": encode("secret\n")}


def merge(target: dict[str, Any], patch: dict[str, Any]) -> None:
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            merge(target.setdefault(key, {}), value)
        else:
            target[key] = value


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    fake = FakeServer()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{fake.server.server_port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "ns"}}],
    }
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(file))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    fake.allow_clients("a")
    yield fake
    fake.server.shutdown()


def test_a_cluster_is_made_and_deleted(server: FakeServer) -> None:
    with KubeCluster(
        name="a", image="mine:1", n_workers=2, resources={"limits": {"memory": "1Gi"}}, env={"A": 1}, idle_timeout=60
    ) as cluster:
        body = server.objects["daskclusters", "a"]
        assert body["spec"] == {
            "runtime": "Rust",
            "idleTimeout": 60,
            "worker": {
                "replicas": 2,
                "image": "mine:1",
                "resources": {"limits": {"memory": "1Gi"}},
                "env": [{"name": "A", "value": "1"}],
            },
        }
        assert cluster.namespace == "ns"
        assert cluster.scheduler_address.startswith("oxidask://127.0.0.1:")
        assert cluster.worker_spec["replicas"] == 2
        folder = Path(cluster.security.tls_ca_file).parent
        assert (folder / "tls.key").read_text() == "content of tls.key"
        assert (folder / "tls.key").stat().st_mode & 0o777 == 0o600
        assert folder.stat().st_mode & 0o777 == 0o700
        assert cluster.dashboard_link.endswith("/#token=secret")
        port = int(cluster.scheduler_address.rpartition(":")[2])
    assert ("daskclusters", "a") not in server.objects
    assert not folder.exists()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_one_that_runs_is_left_alone(server: FakeServer) -> None:
    server.answer_object("POST", "daskclusters", None, make_cluster_spec("a"))
    with KubeCluster.from_name("a") as cluster:
        assert cluster.status.name == "running"
    assert ("daskclusters", "a") in server.objects
    with pytest.raises(OxidaskError, match="already"):
        KubeCluster(name="a", create_mode="CREATE_ONLY")
    assert ("daskclusters", "a") in server.objects
    with pytest.raises(OxidaskError, match="there is no DaskCluster `b` in the namespace `ns`") as error:
        KubeCluster.from_name("b")
    assert error.value.code == "OX352"
    assert discover() == [("a", "ns")]


def test_groups_and_autoscalers(server: FakeServer) -> None:
    with KubeCluster(name="a") as cluster:
        cluster.add_worker_group("default", n_workers=1)
        cluster.adapt(minimum=1, maximum=5)
        assert server.objects["daskautoscalers", "a"]["spec"] == {"cluster": "a", "minimum": 1, "maximum": 5}
        cluster.adapt(minimum=2)
        assert server.objects["daskautoscalers", "a"]["spec"] == {"cluster": "a", "minimum": 2}
        cluster.scale(7)
        assert ("daskautoscalers", "a") not in server.objects
        assert server.objects["daskworkergroups", "a-default"]["spec"]["worker"]["replicas"] == 7
        kinds = {kind for verb, _, kind in server.requests if verb == "PATCH"}
        assert kinds == {"application/merge-patch+json"}
        cluster.add_worker_group("big", n_workers=1, resources={"requests": {"cpu": 4}})
        cluster.scale(2, worker_group="big")
        assert server.objects["daskworkergroups", "a-big"]["spec"]["worker"]["replicas"] == 2
        cluster.delete_worker_group("big")
        with pytest.raises(OxidaskError, match="has no group `big`"):
            cluster.scale(1, worker_group="big")
        with pytest.raises(ValueError, match="cannot have -1"):
            cluster.scale(-1)


def test_logs_are_those_of_pods(server: FakeServer) -> None:
    with KubeCluster(name="a") as cluster:
        logs = cluster.get_logs()
        assert set(logs) == {"Cluster", "a-scheduler-x", "a-default-worker-1"}
        assert logs["a-scheduler-x"] == "said by a-scheduler-x\n"
        assert set(cluster.logs(cluster=False, workers=False)) == {"a-scheduler-x"}


def test_without_an_operator_it_says_so_and_leaves_nothing(server: FakeServer) -> None:
    server.status = None
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="is it running"):
        KubeCluster(name="a", resource_timeout=0.5)
    assert time.monotonic() - began < 10
    assert not server.objects


def test_what_is_wrong_is_said(server: FakeServer) -> None:
    stalled = {"type": "Stalled", "status": "True", "message": "no node has room"}
    not_ready = {"type": "SchedulerReady", "status": "False", "message": "the pod waits"}
    server.status = {"phase": "Running", "conditions": [not_ready, stalled]}
    with pytest.raises(TimeoutError, match="no node has room"):
        KubeCluster(name="a", resource_timeout=0.3)
    server.status = {"phase": "Error", "conditions": [stalled]}
    with pytest.raises(OxidaskError, match="refuses"):
        KubeCluster(name="a")
    server.status = READY
    server.secrets.clear()
    with pytest.raises(OxidaskError, match="`a-tls-client` with the certificates of clients does not exist"):
        KubeCluster(name="a")
    assert not server.objects


def test_an_absent_server_is_an_error_of_ours(server: FakeServer) -> None:
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(OxidaskError, match="cannot be reached"):
        KubeCluster(name="a")


async def _asynchronous() -> None:
    async with KubeCluster(name="a", asynchronous=True) as cluster:
        await cluster.adapt(0, 1)
        logs = await cluster.get_logs(cluster=False)
        assert len(logs) == 2


def test_asynchronous_forms(server: FakeServer) -> None:
    import asyncio

    asyncio.run(_asynchronous())
    assert ("daskclusters", "a") not in server.objects


@pytest.mark.parametrize("name", ["A", "a.b", "1a", "a" * 54, "", "a-"])
def test_bad_names_are_refused_at_once(name: str) -> None:
    with pytest.raises(ValueError, match="no name for a cluster"):
        check_name(name)


def test_resources_with_a_typing_error_are_refused() -> None:
    with pytest.raises(ValueError, match="not limit"):
        make_cluster_spec("a", resources={"limit": {"cpu": 1}})


def test_a_port_leads_to_the_other_end() -> None:
    other = socket.create_server(("127.0.0.1", 0))

    def echo() -> None:
        while True:
            try:
                connection, _ = other.accept()
            except OSError:
                return
            with connection:
                while part := connection.recv(1 << 16):
                    connection.sendall(part)

    threading.Thread(target=echo, daemon=True).start()
    forward = PortForward(lambda: socket.create_connection(other.getsockname()))
    content = bytes(range(256)) * 4_000
    with socket.create_connection(("127.0.0.1", forward.port), timeout=10) as connection:
        threading.Thread(target=connection.sendall, args=(content,), daemon=True).start()
        received = b""
        while len(received) < len(content):
            received += connection.recv(1 << 16)
        assert received == content
        forward.close()
        assert connection.recv(1) == b""
    other.close()


def test_a_pod_that_is_gone_ends_the_connection() -> None:
    def refuse() -> Any:
        raise OxidaskError("OX352", "no pod")

    forward = PortForward(refuse)
    with socket.create_connection(("127.0.0.1", forward.port), timeout=10) as connection:
        assert connection.recv(1) == b""
    forward.close()

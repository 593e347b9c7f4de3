"""Where addresses and certificates are found, and what is said if they are not."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from oxidask import OxidaskError, _finding, _security
from oxidask._connect import find
from oxidask._finding import Search

#: Of the certificates that `conftest.py` makes.
IDENTITY = "spiffe://oxidask/ns/local/cluster/test/role/client"


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*_finding.ADDRESS_VARIABLES, _finding.TLS_DIR_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_finding, "MOUNTED_TLS_DIR", tmp_path / "mounted")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def local_cluster(parent: Path, name: str, address: str, tls_dir: Path) -> Any:
    folder = parent / f"oxidask-local-{name}"
    folder.mkdir()
    (folder / "cluster.json").write_text(json.dumps({"address": address, "tls_dir": str(tls_dir)}))
    lock = (folder / "lock").open("w")
    return lock


@pytest.fixture
def alive(tmp_path: Path, certificates: Path) -> Iterator[Any]:
    lock = local_cluster(tmp_path, "x", "oxidask://127.0.0.1:1234", certificates)
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield lock
    lock.close()


def test_arguments_win(monkeypatch: pytest.MonkeyPatch, alive: Any) -> None:
    monkeypatch.setenv("OXIDASK_SCHEDULER", "oxidask://b:1")
    assert find("oxidask://a:1", "/t") == ("oxidask://a:1", Path("/t"))
    assert find("oxidask://a:1") == ("oxidask://a:1", None)


def test_the_environment_comes_next(monkeypatch: pytest.MonkeyPatch, alive: Any) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "oxidask://b:1")
    monkeypatch.setenv("OXIDASK_TLS_DIR", "/x")
    assert find() == ("oxidask://b:1", Path("/x"))
    # Another Dask's address is none of ours.
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://b:1")
    assert find()[0] == "oxidask://127.0.0.1:1234"


def test_what_up_has_started_is_found_while_it_runs(alive: Any, certificates: Path) -> None:
    assert find() == ("oxidask://127.0.0.1:1234", certificates)
    fcntl.flock(alive, fcntl.LOCK_UN)
    with pytest.raises(OxidaskError) as error:
        find()
    assert error.value.code == "OX352"
    said = str(error.value)
    for place in ("OXIDASK_SCHEDULER", "DASK_SCHEDULER_ADDRESS", "oxidask up"):
        assert place in said


def test_nonsense_in_the_folder_is_passed_over(tmp_path: Path, certificates: Path) -> None:
    lock = local_cluster(tmp_path, "x", "oxidask://127.0.0.1:1", certificates)
    fcntl.flock(lock, fcntl.LOCK_EX)
    file = tmp_path / "oxidask-local-x" / "cluster.json"
    for text in ("", "[]", "{}", '{"address": 1, "tls_dir": 2}', "\xff"):
        file.write_text(text)
        assert _finding.local_clusters(Search()) == []


def test_certificates_of_a_security(certificates: Path) -> None:
    from distributed.security import Security

    expected = f"Credentials({IDENTITY})"
    security = _security.security_from_dir(certificates)
    assert repr(_security.credentials_of(security)) == expected
    # Also those that a user has made: of files with other names, or of texts.
    texts = [(certificates / name).read_text() for name in _finding.TLS_FILES]
    assert repr(_security.credentials_of(_security.security_from_pem(*texts))) == expected
    other = certificates / "other.pem"
    other.write_text(texts[1])
    ca, _, key = (str(certificates / name) for name in _finding.TLS_FILES)
    made = Security(tls_ca_file=ca, tls_client_cert=str(other), tls_client_key=key)
    assert repr(_security.credentials_of(made)) == expected
    assert _security.credentials_of(Security()) is None
    with pytest.raises(OxidaskError, match="tls_client_key is missing"):
        _security.credentials_of(Security(tls_ca_file=ca, tls_client_cert=str(other)))
    with pytest.raises(OxidaskError, match="cannot be read"):
        _security.credentials_of(Security(tls_ca_file=ca, tls_client_cert="/nowhere", tls_client_key=key))


def test_a_plain_client_finds_certificates(
    monkeypatch: pytest.MonkeyPatch, alive: Any, certificates: Path, tmp_path: Path
) -> None:
    import dask
    from distributed.security import Security

    expected = f"Credentials({IDENTITY})"
    # What `oxidask up` has started, also by another name of this machine.
    for address in ("oxidask://127.0.0.1:1234", "oxidask://localhost:1234/"):
        assert repr(_security.find_credentials(address)) == expected
    with pytest.raises(OxidaskError, match="there are no certificates") as error:
        _security.credentials_for(Security(), None, "oxidask://elsewhere:1")
    assert error.value.code == "OX352"
    assert any("127.0.0.1:1234" in cause for cause in error.value.causes)
    monkeypatch.setenv("OXIDASK_TLS_DIR", str(certificates))
    assert repr(_security.find_credentials("oxidask://elsewhere:1")) == expected
    monkeypatch.delenv("OXIDASK_TLS_DIR")
    (tmp_path / "mounted").symlink_to(certificates)
    assert repr(_security.find_credentials("oxidask://elsewhere:1")) == expected
    (tmp_path / "mounted").unlink()
    tls = {"ca-file": "ca.crt", "client.cert": "tls.crt", "client.key": "tls.key"}
    tls = {f"distributed.comm.tls.{key}": str(certificates / name) for key, name in tls.items()}
    with dask.config.set(tls):
        assert repr(_security.credentials_for(Security(), None, "oxidask://elsewhere:1")) == expected
    given = _security.credentials_for(None, {"tls_dir": str(certificates)}, "oxidask://elsewhere:1")
    assert repr(given) == expected


def test_a_folder_that_is_named_and_bad_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OXIDASK_TLS_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(OxidaskError, match="cannot be read") as error:
        _security.find_credentials("oxidask://a:1")
    assert error.value.code == "OX401"


def test_importing_the_package_is_light() -> None:
    program = "import sys, oxidask; print([name for name in ('dask', 'distributed', 'numpy') if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_folder_without_certificates_is_named_with_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("")
    with pytest.raises(OxidaskError, match=r"has no tls\.crt, tls\.key") as raised:
        _security.security_from_dir(tmp_path)
    assert raised.value.code == "OX401"

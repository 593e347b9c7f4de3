"""Certificates for tests, made by openssl as an authority of ours makes them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

IDENTITY = "spiffe://oxidask/ns/local/cluster/test/role/client"


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as an authority of ours writes it; the identity is in the certificate's URI."""
    folder = tmp_path_factory.mktemp("tls")
    run = lambda *words: subprocess.run(words, cwd=folder, check=True, capture_output=True)  # noqa: E731
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    run("openssl", "req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca", "-days", "1")
    run("openssl", "req", *curve, "-keyout", "tls.key", "-out", "tls.csr", "-subj", "/CN=client")
    (folder / "extensions").write_text(f"subjectAltName=URI:{IDENTITY}\nextendedKeyUsage=clientAuth,serverAuth\n")
    sign = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", "extensions"]
    run("openssl", "x509", "-req", "-in", "tls.csr", *sign, "-out", "tls.crt")
    return folder

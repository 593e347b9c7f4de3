"""Every script prints the same on a local cluster of ours as it did on stock Dask.

Needs the program `oxidask` (`OXIDASK_PROGRAM`, or on the `PATH`) and what README.md names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import oxidask

FOLDER = Path(__file__).parent
SCRIPTS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
SCRIPT_SECONDS_MAX = 120


@pytest.fixture(scope="session")
def cluster() -> Iterator[oxidask.LocalCluster]:
    """Two workers of one slot each, for all scripts one after the other."""
    with oxidask.LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        yield cluster


@pytest.mark.timeout(SCRIPT_SECONDS_MAX + 60)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_prints_the_same_as_on_stock_dask(cluster: oxidask.LocalCluster, script: Path) -> None:
    command = [sys.executable, str(FOLDER / "harness.py"), str(script), "--expected"]
    command += ["--address", cluster.scheduler_address, "--timeout", str(SCRIPT_SECONDS_MAX)]
    environment = {**os.environ, "OXIDASK_TLS_DIR": str(cluster.tls_dir)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

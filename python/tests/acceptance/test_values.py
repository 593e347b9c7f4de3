"""How results reach a stock client of a real cluster: with the news, from workers, and anew."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator

import cloudpickle
import pytest
from cluster_processes import services

import oxidask

SECONDS_MAX = 60

# Workers do not have this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def cluster() -> Iterator[oxidask.LocalCluster]:
    """Its own: workers are killed."""
    with oxidask.LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        cluster.wait_for_workers(2, timeout=30)
        yield cluster


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS_MAX
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def made() -> str:
    """Another value each time."""
    return uuid.uuid4().hex


def same(value: str) -> str:
    return value


def relayed_bytes(cluster: oxidask.LocalCluster) -> int:
    """Bytes of results that have gone through the scheduler."""
    address = re.match(r"https?://[^/]+", cluster.dashboard_link)
    assert address is not None
    with urllib.request.urlopen(address[0] + "/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(r"^oxidask_scheduler_relayed_bytes_total (\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


@pytest.mark.timeout(2 * SECONDS_MAX)
def test_a_result_that_is_made_again_is_the_new_one(cluster: oxidask.LocalCluster) -> None:
    with cluster.get_client() as client:
        future = client.submit(made, pure=False)
        first = future.result(timeout=SECONDS_MAX)
        assert future.result() == first
        for worker in services(cluster, "worker"):
            os.kill(worker, signal.SIGKILL)
        until(lambda: future.result(timeout=SECONDS_MAX) != first)
        second = future.result()
        assert client.submit(same, future).result(timeout=SECONDS_MAX) == second
        assert client.gather([future]) == [second]


@pytest.mark.timeout(SECONDS_MAX)
def test_results_that_can_be_had_elsewhere_do_not_go_through_the_scheduler(cluster: oxidask.LocalCluster) -> None:
    with cluster.get_client() as client:
        small = client.map(hex, range(1_000))
        assert client.gather(small) == [hex(number) for number in range(1_000)]
        large = [client.submit(bytes, 3_000_000 + number, pure=False) for number in range(4)]
        assert [len(value) for value in client.gather(large)] == [3_000_000 + number for number in range(4)]
        assert relayed_bytes(cluster) < 3_000
        middling = client.submit(bytes, 50_000)
        assert len(middling.result(timeout=SECONDS_MAX)) == 50_000
        assert relayed_bytes(cluster) >= 50_000

"""The loads of the figures, each for one system, in a process of its own.

Owns what is timed. Reads requests (JSON lines: name, size) from standard input and answers each with
one JSON line. Never compares, never runs two systems: `figures.py` does that.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

SYSTEMS = ("oxidask", "dask")
GATE_PAUSE_SECONDS = 0.001
#: Round trips before those that count.
WARM_UP_TIMES = 20
#: Until the tasks that can be sent to workers are there.
SETTLED_SECONDS = 1.0
#: Until a cluster that has just started has done what it does by itself.
READY_SECONDS = 2.0
#: Tasks whose results one task reads, so that the end is one result.
COLLECTED = 100


def inc(value: int) -> int:
    """Next to nothing."""
    return value + 1


def no_operation(*_: Any) -> None:
    """Nothing."""


def gate(path: str) -> None:
    """Waits until there is a file."""
    while not os.path.exists(path):
        time.sleep(GATE_PAUSE_SECONDS)


def length(frame: Any) -> int:
    """The rows of a frame."""
    return len(frame)


def first_frame() -> float:
    """What a first task with pandas does."""
    import pandas

    return float(pandas.DataFrame({"a": range(1000)}).a.sum())


@contextlib.contextmanager
def connected(system: str) -> Iterator[Any]:
    """A client of a new cluster of two workers with one thread each."""
    from distributed import Client

    if system == "oxidask":
        from oxidask import LocalCluster
    else:
        from distributed import LocalCluster
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1}
    if system == "dask":
        options["dashboard_address"] = ":0"
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        client.wait_for_workers(2)
        yield client


# ---- loads: each takes a client and its size, and gives the value of the figure ----


def map_gather(client: Any, tasks: int) -> float:
    """Microseconds a task of `map` and `gather`."""
    began = time.perf_counter()
    client.gather(client.map(inc, range(tasks), pure=False))
    return (time.perf_counter() - began) / tasks * 1e6


def submitted(client: Any, tasks: int) -> float:
    """Tasks a second that wait for one that ends, and that the scheduler has already."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "open")
        mark = time.monotonic_ns()
        graph: dict[str, Any] = {f"gate-{mark}": (gate, path)}
        names = [f"none-{mark}-{number}" for number in range(tasks)]
        for name in names:
            graph[name] = (no_operation, f"gate-{mark}")
        collectors = []
        for number, start in enumerate(range(0, tasks, COLLECTED)):
            collectors.append(f"collect-{mark}-{number}")
            graph[collectors[-1]] = (no_operation, *names[start : start + COLLECTED])
        graph[f"end-{mark}"] = (no_operation, *collectors)
        future = client.get(graph, f"end-{mark}", sync=False)
        # The answer to a question that comes after the graph says that the scheduler has it.
        client.who_has([future])
        time.sleep(SETTLED_SECONDS)
        began = time.perf_counter()
        with open(path, "w"):
            pass
        future.result()
        return tasks / (time.perf_counter() - began)


def chain(client: Any, tasks: int) -> float:
    """Microseconds a hop."""
    from dask import delayed

    step = delayed(inc, pure=False)
    value = step(0)
    for _ in range(tasks - 1):
        value = step(value)
    began = time.perf_counter()
    assert client.compute(value).result() == tasks
    return (time.perf_counter() - began) / tasks * 1e6


def round_trip(client: Any, times: int) -> float:
    """Milliseconds from `submit` to the result."""
    for number in range(WARM_UP_TIMES):
        client.submit(inc, number, pure=False).result()
    began = time.perf_counter()
    for number in range(times):
        client.submit(inc, number, pure=False).result()
    return (time.perf_counter() - began) / times * 1e3


def array(client: Any, chunks: int) -> float:
    """Seconds of `(x + x.T).sum()`, of chunks times chunks small chunks."""
    import dask.array as da

    x = da.random.random((chunks * 10, chunks * 10), chunks=(10, 10))
    began = time.perf_counter()
    (x + x.T).sum().compute()
    return time.perf_counter() - began


def _parquet(files: int) -> str:
    """A folder with files that all processes of one run share."""
    import numpy as np
    import pandas as pd

    folder = os.path.join(os.environ["OXIDASK_BENCH_FOLDER"], f"parquet-{files}")
    if not os.path.isdir(folder):
        part = folder + ".part"
        os.makedirs(part)
        for number in range(files):
            random = np.random.default_rng(number)
            columns = {"key": random.integers(0, 100, 20_000), "x": random.random(20_000), "y": random.random(20_000)}
            pd.DataFrame(columns).to_parquet(f"{part}/{number:04}.parquet")
        os.rename(part, folder)
    return folder


def _groupby(files: int) -> Any:
    import dask.dataframe as dd

    frames = sorted(glob.glob(_parquet(files) + "/*.parquet"))
    return dd.read_parquet(frames).groupby("key").x.mean()


def parquet(client: Any, files: int) -> float:
    """Seconds of a groupby over Parquet files."""
    grouped = _groupby(files)
    began = time.perf_counter()
    assert len(grouped.compute()) == 100
    return time.perf_counter() - began


def threads(_: Any, files: int) -> float:
    """The same on the threads of this process."""
    import dask

    # Dask would choose p2p, because there is a client: its threads cannot do that.
    with dask.config.set({"dataframe.shuffle.method": "tasks"}):
        grouped = _groupby(files)
        began = time.perf_counter()
        assert len(grouped.compute(scheduler="threads", num_workers=2)) == 100
        return time.perf_counter() - began


def merge(client: Any, partitions: int) -> float:
    """Seconds of a merge by tasks."""
    import dask
    import dask.dataframe as dd
    import numpy as np
    import pandas as pd
    from distributed import wait

    rows = partitions * 10_000
    random = np.random.default_rng(7)
    left = pd.DataFrame({"key": random.permutation(rows), "x": random.random(rows)})
    right = pd.DataFrame({"key": random.permutation(rows), "y": random.random(rows)})
    with dask.config.set({"dataframe.shuffle.method": "tasks"}):
        left, right = (dd.from_pandas(one, npartitions=partitions).persist() for one in (left, right))
        wait([left, right])
        began = time.perf_counter()
        merged = left.merge(right, on="key", how="inner", broadcast=False)
        assert int(merged.map_partitions(length, meta=("n", int)).sum().compute()) == rows
        return time.perf_counter() - began


def gather(client: Any, megabytes: int) -> float:
    """Seconds to bring the blocks of an array from both workers into the client."""
    import dask.array as da
    from distributed import futures_of, wait

    # Not `ones`: Dask repeats one value, and sends no more than that.
    x = da.random.random((8, megabytes * 125_000 // 8), chunks=(1, -1)).persist()
    wait(x)
    began = time.perf_counter()
    blocks = client.gather(futures_of(x))
    seconds = time.perf_counter() - began
    assert sum(block.nbytes for block in blocks) == megabytes * 125_000 // 8 * 8 * 8
    return seconds


def memory(client: Any, futures: int) -> float:
    """Bytes by which scheduler and workers grow for each finished future. Its client is a process beside."""
    cluster = client.cluster
    environment = dict(os.environ)
    if hasattr(cluster, "tls_dir"):
        environment["OXIDASK_TLS_DIR"] = str(cluster.tls_dir)
    command = [sys.executable, __file__, "hold", cluster.scheduler_address, str(futures)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdout.readline()
        before = _memory_bytes(holder.pid)
        holder.stdin.write("go\n")
        holder.stdin.flush()
        holder.stdout.readline()
        time.sleep(SETTLED_SECONDS)
        grown = _memory_bytes(holder.pid) - before
        holder.stdin.close()
    return grown / futures


def hold(address: str, futures: int) -> None:
    """Has futures until standard input ends, and says when it is connected and when they are there."""
    from distributed import Client, wait

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with Client(address) as client:
        wait(client.map(inc, range(COLLECTED), pure=False))
        answers.write("connected\n")
        sys.stdin.readline()
        held = client.map(inc, range(futures), pure=False)
        wait(held)
        answers.write("held\n")
        sys.stdin.read()
        del held


def _memory_bytes(left_out: int) -> int:
    """Proportional memory of this process and all that descend from it, but for one."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as file:
                parents[int(entry)] = int(file.read().rpartition(")")[2].split()[1])
    family = {os.getpid()}
    while True:
        further = {process for process, parent in parents.items() if parent in family} - family
        if not further:
            break
        family |= further
    family.discard(left_out)
    total = 0
    for process in family:
        with contextlib.suppress(OSError), open(f"/proc/{process}/smaps_rollup") as file:
            total += sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    return total


LOADS: dict[str, Callable[[Any, int], float]] = {
    "map": map_gather,
    "submitted": submitted,
    "chain": chain,
    "round-trip": round_trip,
    "array": array,
    "parquet": parquet,
    "threads": threads,
    "merge": merge,
    "gather": gather,
    "memory": memory,
}


def first(system: str) -> float:
    """Seconds of the first task with pandas on a cluster that had a moment to get ready."""
    with connected(system) as client:
        time.sleep(READY_SECONDS)
        began = time.perf_counter()
        assert client.submit(first_frame).result() == 999 * 1000 / 2
        return time.perf_counter() - began


def cold(system: str) -> float:
    """Seconds from nothing to the result of a first task with pandas."""
    began = time.perf_counter()
    with connected(system) as client:
        assert client.submit(first_frame).result() == 999 * 1000 / 2
        return time.perf_counter() - began


def main() -> None:
    """Serve requests until standard input ends."""
    if sys.argv[1] == "hold":
        hold(sys.argv[2], int(sys.argv[3]))
        return
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What libraries print does not get between the answers.
    system = sys.argv[1]
    if len(sys.argv) > 2:
        answers.write(json.dumps({"value": {"first": first, "cold": cold}[sys.argv[2]](system)}) + "\n")
        return
    with connected(system) as client:
        # Both systems have loaded their libraries when the first value is taken.
        client.gather(client.map(inc, range(COLLECTED), pure=False))
        answers.write(json.dumps({"ready": True}) + "\n")
        for line in sys.stdin:
            request = json.loads(line)
            try:
                value = LOADS[request["name"]](client, request["size"])
                answers.write(json.dumps({"value": value}) + "\n")
            except Exception as error:  # one load that fails is a row of the table
                answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")


if __name__ == "__main__":
    main()

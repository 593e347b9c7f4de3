"""The loads of `cargo xtask bench`, run by dask.distributed: one JSON object a line.

usage: dask_loads.py e2e|transfer RUNS

The cluster is two worker processes of one thread on the loopback address with default settings,
which means no TLS. A graph is submitted as a plain dictionary and its wanted results are gathered,
as the bench does with ours.
"""

import json
import sys
import time

from distributed import Client, LocalCluster, wait


def noop(*_inputs):
    return None


def independent(count):
    graph = {f"t-{i}": (noop,) for i in range(count)}
    return graph, list(graph)


def merge(count):
    graph, keys = independent(count)
    graph["merge"] = (noop, *keys)
    return graph, ["merge"]


def tree(leaves):
    graph = {("tree", 0, i): (noop,) for i in range(leaves)}
    level = 0
    while leaves > 1:
        leaves //= 2
        level += 1
        for i in range(leaves):
            graph["tree", level, i] = (noop, ("tree", level - 1, 2 * i), ("tree", level - 1, 2 * i + 1))
    return graph, [("tree", level, 0)]


def stencil(width, steps):
    graph = {("s", 0, i): (noop,) for i in range(width)}
    for step in range(1, steps):
        for i in range(width):
            near = [("s", step - 1, j) for j in (i - 1, i, i + 1) if 0 <= j < width]
            graph["s", step, i] = (noop, *near)
    return graph, [("s", steps - 1, i) for i in range(width)]


def all_to_all(width):
    graph = {("a", i): (noop,) for i in range(width)}
    for i in range(width):
        graph["b", i] = (noop, *(("a", j) for j in range(width)))
    return graph, [("b", i) for i in range(width)]


def edges(graph):
    return sum(len(task) - 1 for task in graph.values())


def e2e(client, runs):
    shapes = [
        ("independent", independent(5_000)),
        ("merge", merge(5_000)),
        ("tree", tree(2**12)),
        ("stencil", stencil(60, 60)),
        ("all-to-all", all_to_all(200)),
    ]
    for name, (graph, wanted) in shapes:
        seconds = []
        for run in range(runs + 1):
            renamed = rename(graph, run)
            keys = [f"{run}:{key}" for key in wanted]
            start = time.perf_counter()
            client.get(renamed, keys)
            if run > 0:
                seconds.append(time.perf_counter() - start)
        report = {"shape": name, "tasks": len(graph), "edges": edges(graph), "seconds": seconds}
        print(json.dumps(report), flush=True)


def rename(graph, run):
    """Fresh keys, so that no result of the run before is used."""
    return {
        f"{run}:{key}": (task[0], *(f"{run}:{name}" for name in task[1:]))
        for key, task in graph.items()
    }


def make(_index):
    return bytes(64 * 2**20)


def transfer(client, runs):
    source, target = list(client.scheduler_info()["workers"])
    seconds = []
    for run in range(runs + 1):
        buffers = client.map(make, range(16), workers=[source], pure=False)
        wait(buffers)
        start = time.perf_counter()
        lengths = client.submit(lambda *parts: sum(map(len, parts)), *buffers, workers=[target], pure=False)
        assert lengths.result() == 2**30
        if run > 0:
            seconds.append(time.perf_counter() - start)
        del buffers, lengths
    print(json.dumps({"shape": "transfer", "bytes": 2**30, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with Client(cluster) as dask_client:
            {"e2e": e2e, "transfer": transfer}[sys.argv[1]](dask_client, int(sys.argv[2]))

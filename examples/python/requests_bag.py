"""What a web server was asked for: a bag over lines of JSON, which need no schema."""

import json
import sys

import dask.bag as db
from distributed import Client


def is_error(request):
    return request["status"] >= 500


if __name__ == "__main__":
    location = sys.argv[1] if len(sys.argv) > 1 else "data/requests.jsonl"
    with Client() as client:
        requests = db.read_text(location, blocksize="16KiB").map(json.loads)
        errors = requests.filter(is_error)
        paths = requests.pluck("path").frequencies().topk(3, key=lambda pair: (pair[1], pair[0]))
        slowest = requests.topk(1, key=lambda request: request["seconds"])
        count, failed, paths, slowest = client.compute(
            [requests.count(), errors.count(), paths, slowest], sync=True
        )
        print(f"{count} requests, {failed} of them failed")
        for path, times in paths:
            print(f"{times:5} {path}")
        print(f"the slowest took {slowest[0]['seconds']} s: {slowest[0]['path']}")

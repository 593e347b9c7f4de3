"""client.restart: keys go, and tasks run in new processes, in which files and plugins are there again."""

import os
import sys
import tempfile
from pathlib import Path

from distributed import WorkerPlugin, get_worker


class Greeting(WorkerPlugin):
    """Says something to tasks."""

    name = "accept-greeting"

    def setup(self, worker):
        worker.accept_greeting = "hello"


def remember(value):
    sys.accept_memory = value
    return value


def remembered():
    return getattr(sys, "accept_memory", None)


def greeting():
    return get_worker().accept_greeting


def uploaded():
    import accept_uploaded

    return accept_uploaded.VALUE


def main(client):
    folder = tempfile.mkdtemp(dir=os.environ.get("ACCEPT_TMP"))
    module = Path(folder) / "accept_uploaded.py"
    module.write_text("VALUE = 'from a file'\n")
    client.upload_file(str(module))
    client.register_plugin(Greeting())
    print("before:", client.submit(uploaded, pure=False).result(), client.submit(greeting, pure=False).result())
    print("remembered:", set(client.run(remember, 7).values()), set(client.run(remembered).values()))

    before = set(client.run(os.getpid).values())
    done = client.submit(pow, 2, 10)
    print("result:", done.result())
    waiting = client.submit(sum, client.map(pow, [1, 2, 3], [2, 2, 2]))
    scattered = client.scatter([1, 2, 3])
    client.restart()

    print("cancelled:", [future.status for future in (done, waiting, *scattered)])
    after = set(client.run(os.getpid).values())
    print("new processes:", len(after) == len(before), not after & before)
    print("forgotten:", set(client.run(remembered).values()), client.submit(remembered, pure=False).result())
    print("still there:", client.submit(uploaded, pure=False).result(), client.submit(greeting, pure=False).result())
    print("works on:", client.gather(client.map(pow, [1, 2, 3], [3, 3, 3])))
    client.restart()
    print("and again:", client.submit(pow, 3, 3).result(), after.isdisjoint(client.run(os.getpid).values()))
    client.unregister_worker_plugin("accept-greeting")

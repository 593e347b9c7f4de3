"""Functions of the tests of this crate; prints their tables and arguments.

One line for each function: name, table and arguments, the last two in hexadecimal.
"""

from __future__ import annotations

import operator
import sys

from oxidask._intern import TableWriter, input_marker


def one() -> int:
    return 1


def text(value):
    return repr(value).encode()


def types(*values):
    return ", ".join(f"{type(value).__module__}.{type(value).__name__}" for value in values).encode()


def table():
    import pandas

    return pandas.DataFrame({"a": range(50_000), "b": ["x"] * 50_000})


def groups():
    import pandas

    return {number: pandas.DataFrame({"a": range(number * 1000)}) for number in range(8)}


def table_sum(frame):
    return str(int(frame["a"].sum())).encode()


def array(megabytes=8):
    import numpy

    return numpy.full(megabytes * 131072, 1.5)


def array_sum(values):
    return f"{values.sum()} {values.flags.writeable}".encode()


def count(*values):
    import numpy

    kinds = [type(value) for value in values]
    assert all(value.sum() > 0 for value in values if type(value) is numpy.ndarray)
    return f"{kinds.count(numpy.ndarray)} {kinds.count(int)} {kinds.count(bytes)}".encode()


def array_write(values):
    values[0] = 7
    return str(values[0]).encode()


def fail():
    raise ValueError("no such luck: ä")


class Odd(Exception):
    def __init__(self, first, second):
        super().__init__(first)
        self.lock = __import__("threading").Lock()


def fail_oddly():
    raise Odd(1, 2)


def recurse():
    def down(n):
        return down(n + 1)

    return down(0)


def interrupt():
    raise KeyboardInterrupt("now")


def leave():
    raise SystemExit(3)


def generator():
    return (x for x in [1])


def exit_now():
    import os

    print("last words", flush=True)
    os._exit(7)


def crash():
    import ctypes

    print("before the crash")
    ctypes.string_at(0)


def printing():
    import os
    import sys

    print("to output")
    print("to errors", file=sys.stderr)
    sys.stdout.write("no end")
    os.system("echo from a program")
    return b"printed"


def close_output():
    import os
    import sys

    sys.stdout.close()
    os.close(1)
    return b"closed"


def close_all():
    import os

    os.closerange(3, 4096)
    return b"closed"


def forks():
    import os
    import threading

    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    found = []
    thread = threading.Thread(target=lambda: found.append(1))
    thread.start()
    thread.join()
    return str(found).encode()


def leaves_a_program():
    import subprocess

    return str(subprocess.Popen(["sleep", "1000"]).pid).encode()


def forever():
    while True:
        pass


def pid():
    import os

    return str(os.getpid()).encode()


def key():
    from distributed import get_worker

    worker = get_worker()
    return f"{worker.get_current_task()} {worker.name} {worker.plugins.get('p')}".encode()


def secedes():
    import time

    from distributed import rejoin, secede

    secede()
    time.sleep(4)
    rejoin()
    return b"back"


def random_number():
    import random

    import numpy

    return f"{random.random()} {numpy.random.rand()}".encode()


async def awaits():
    import asyncio

    await asyncio.sleep(0.01)
    return b"awaited"


def sleeps():
    import time

    time.sleep(0.05)
    return b"slept"


def sleeps_long():
    import time

    time.sleep(1.5)
    return b"slept long"


def pid_after_a_while():
    import time

    time.sleep(5)
    return pid()


CALLS = {
    "sleeps_long": (sleeps_long, ()),
    "one": (one, ()),
    "text": (text, (input_marker(0),)),
    "types": (types, (input_marker(0), input_marker(1), input_marker(2))),
    "table": (table, ()),
    "table_sum": (table_sum, (input_marker(0),)),
    "groups": (groups, ()),
    "group": (operator.getitem, (input_marker(0), 5)),
    "no_group": (operator.getitem, (input_marker(0), 8)),
    "array": (array, ()),
    "count": (count, tuple(input_marker(number) for number in range(900))),
    "array_sum": (array_sum, (input_marker(0),)),
    "array_write": (array_write, (input_marker(0),)),
    **{
        function.__name__: (function, ())
        for function in (
            fail, fail_oddly, recurse, interrupt, leave, generator, exit_now, crash, printing, close_output, close_all,
            forks, leaves_a_program, forever, pid, key, secedes, random_number, sleeps, awaits,
            pid_after_a_while,
        )
    },
}

for name, (function, args) in CALLS.items():
    writer = TableWriter()
    arguments = writer.call(function, args, {})
    sys.stdout.write(f"{name} {writer.content().hex()} {arguments.hex()}\n")

from oxidask import _commands  # noqa: E402


class Plugin:
    name = "p"

    def setup(self, worker):
        self.pid = __import__("os").getpid()

    def __repr__(self):
        return f"plugin of {self.pid == __import__('os').getpid()}"


import cloudpickle  # noqa: E402

COMMANDS = {
    "command_run": _commands.run(cloudpickle.dumps(lambda dask_worker: dask_worker.name), None, None, True),
    "command_fail": _commands.run(cloudpickle.dumps(fail), None, None, True),
    "command_plugin": _commands.plugin_add("p", cloudpickle.dumps(Plugin())),
}
for name, command in COMMANDS.items():
    sys.stdout.write(f"{name} {command.hex()} -\n")

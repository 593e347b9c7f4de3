"""Figures of stock Dask code on oxidask, beside Dask's own cluster in the same run.

    python figures.py [--only NAME[,NAME]] [--repetitions N] [--small] [--record FILE.md] [--note TEXT]

Each system has a process of its own (`loads.py`) and a cluster of two workers with one thread; values
are taken alternately, some with no other cluster there. Ours uses mutual TLS, Dask's does not. Owns the rows, their bounds and the
report; never times anything itself.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOADS = Path(__file__).with_name("loads.py")
REPETITIONS = 5
#: The part of every size that `--small` takes.
SMALL = 10


@dataclass(frozen=True)
class Row:
    """One figure: what is asked of `loads.py`, and what must come out."""

    name: str
    what: str
    load: str
    size: int
    unit: str
    must: str
    #: "ours" compares our median with the bound, "factor" how many times better than Dask we are,
    #: "threads" our median with that of Dask's threads.
    kind: str
    bound: float
    is_more_better: bool = False
    is_slow: bool = False
    #: What is measured waits for threads to wake, and a cluster that has nothing to do wakes them
    #: too: the other system's is not there meanwhile.
    is_alone: bool = False


@dataclass
class Values:
    """What was measured for a row."""

    row: Row
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


ROWS = (
    Row(
        "map", "`client.map(inc)` and `gather`, 10,000",
        "map", 10_000, "µs/task", "6 times faster", "factor", 6, False, True,
    ),
    Row(
        "submitted", "no-op tasks already submitted, 10,000",
        "submitted", 10_000, "tasks/s", "20,000/s", "ours", 20_000, True, True,
    ),
    Row("chain", "chain of 500 delayed", "chain", 500, "µs/hop", "400 µs", "ours", 400, is_alone=True),
    Row("round-trip", "`submit().result()`", "round-trip", 100, "ms", "1 ms", "ours", 1, is_alone=True),
    Row("array", "array `(x + x.T).sum()`, 40 x 40 chunks", "array", 40, "s", "8 times faster", "factor", 8),
    Row("parquet", "Parquet groupby, 200 files", "parquet", 200, "s", "1.3 times Dask's threads", "threads", 1.3),
    Row("merge-8", "merge of 8 by 8 partitions", "merge", 8, "s", "not slower", "factor", 1),
    Row("merge-50", "merge of 50 by 50 partitions", "merge", 50, "s", "1.5 times faster", "factor", 1.5, False, True),
    Row("gather", "gather of 800 MB from two workers", "gather", 800, "s", "2 times faster", "factor", 2),
    Row(
        "memory", "memory of scheduler and workers per finished future, of 20,000",
        "memory", 20_000, "B", "a quarter", "factor", 4, False, True,
    ),
    Row("first", "first task with pandas, 2 s after the cluster", "first", 0, "s", "half of Dask's", "factor", 2),
    Row("cold", "cluster and first task with pandas, from nothing", "cold", 0, "s", "half of Dask's", "factor", 2),
)
#: Repetitions of rows that take Dask very long.
SLOW_REPETITIONS = 2


class System:
    """The process of one system."""

    def __init__(self, name: str, folder: str) -> None:
        self._environment = {**os.environ, "OXIDASK_BENCH_FOLDER": folder}
        self._name = name
        self._process: subprocess.Popen[str] | None = None

    def value(self, row: Row, load: str, size: int) -> float:
        """One value; `RuntimeError` with the reason if there is none."""
        if row.load in ("first", "cold"):
            # Nothing may be loaded before.
            process = self._start(row.load)
            return float(self._answer(process)["value"])
        if self._process is None:
            self._process = self._start()
            self._answer(self._process)
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(json.dumps({"name": load, "size": size}) + "\n")
        stdin.flush()
        return float(self._answer(self._process)["value"])

    def _start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(LOADS), self._name, *words]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment
        )

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            self._process = None
            raise RuntimeError(f"the process of {self._name} ended with status {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process and its cluster."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(60)
            self._process = None


def measure(rows: list[Row], repetitions: int, is_small: bool) -> Iterator[Values]:
    """All rows, the systems in turn."""
    with tempfile.TemporaryDirectory(prefix="oxidask-bench-") as folder:
        for row in rows:
            # New clusters for each row: what one leaves behind is no part of the next.
            systems = System("oxidask", folder), System("dask", folder)
            try:
                yield _measure(row, systems, repetitions, is_small)
            finally:
                for system in systems:
                    system.close()


def _measure(row: Row, systems: tuple[System, System], repetitions: int, is_small: bool) -> Values:
    values = Values(row)
    ours, theirs = systems
    size = max(1, row.size // SMALL) if is_small else row.size
    for _ in range(min(SLOW_REPETITIONS, repetitions) if row.is_slow else repetitions):
        takers = [(values.ours, ours, row.load), (values.theirs, theirs, row.load)]
        if row.kind == "threads":
            takers.append((values.beside, theirs, "threads"))
        if row.load == "parquet" and not values.ours:
            # Makes the files, and brings all code and files into memory.
            takers.insert(0, ([], theirs, "threads"))
        for into, system, load in takers:
            try:
                into.append(system.value(row, load, size))
            except RuntimeError as error:
                values.errors.append(f"{row.name}: {error}")
                return values
            if row.is_alone:
                system.close()
    return values


def shown(values: list[float]) -> str:
    """Median and range."""
    if not values:
        return "-"
    digits = 0 if statistics.median(values) >= 100 else 2
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def ratio(values: Values) -> float | None:
    """Ours over theirs."""
    if not values.ours or not values.theirs:
        return None
    return statistics.median(values.ours) / statistics.median(values.theirs)


def holds(values: Values) -> bool:
    """Whether the bound holds."""
    row, over = values.row, ratio(values)
    if over is None or values.errors:
        return False
    ours = statistics.median(values.ours)
    if row.kind == "factor":
        return (over if row.is_more_better else 1 / over) >= row.bound
    if row.kind == "threads":
        return ours <= row.bound * statistics.median(values.beside)
    return ours >= row.bound if row.is_more_better else ours <= row.bound


def line(values: Values) -> str:
    """A row of the table."""
    row, over = values.row, ratio(values)
    note = "; ".join(values.errors)
    if values.beside:
        note = f"Dask's threads: {shown(values.beside)}"
    ratio_text = "-" if over is None else f"{over:.3f}"
    verdict = "yes" if holds(values) else "no"
    cells = (row.what, row.must, row.unit, shown(values.ours), shown(values.theirs), ratio_text, verdict, note)
    return "| " + " | ".join(cells) + " |"


def machine() -> str:
    """Processor, cores, memory and kernel."""
    model, total = platform.machine(), "?"
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith("model name"):
            model = text.partition(":")[2].strip()
            break
    for text in Path("/proc/meminfo").read_text().splitlines():
        if text.startswith("MemTotal"):
            total = text.split()[1]
    return f"{model}, {os.cpu_count()} cores, {total} kB memory, Linux {platform.release()}"


def record(path: Path, note: str, found: list[Values]) -> None:
    """The table, and all values beside it as JSON."""
    import dask

    note = f"{note}, Python {platform.python_version()}, Dask {dask.__version__}"
    head = "| figure | must | unit | oxidask | Dask | ratio | holds | |\n|---|---|---|---:|---:|---:|---|---|\n"
    rows = "".join(line(values) + "\n" for values in found)
    path.write_text(f"{note}: {machine()}.\n\n{head}{rows}")
    figures = [
        {
            "what": values.row.what,
            "unit": values.row.unit,
            "ours": values.ours,
            "theirs": values.theirs,
            "threads": values.beside,
            "errors": values.errors,
        }
        for values in found
    ]
    content = {"note": note, "machine": machine(), "figures": figures}
    path.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Figures of stock Dask code on oxidask, beside Dask's own cluster.")
    names = ", ".join(row.name for row in ROWS)
    parser.add_argument("--only", default="", help=f"names of rows, separated by commas: {names}")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    parser.add_argument("--small", action="store_true", help="a tenth of every size")
    parser.add_argument("--record", type=Path, help="a Markdown file; JSON is written beside it")
    parser.add_argument("--note", default=str(datetime.date.today()))
    given = parser.parse_args()
    chosen = set(filter(None, given.only.split(",")))
    unknown = chosen - {row.name for row in ROWS}
    if unknown:
        parser.error(f"unknown figures: {', '.join(sorted(unknown))}")
    if given.repetitions < 1:
        parser.error("--repetitions must be 1 or more")
    rows = [row for row in ROWS if not chosen or row.name in chosen]
    found: list[Values] = []
    for values in measure(rows, given.repetitions, given.small):
        found.append(values)
        print(line(values), flush=True)
        if given.record:
            # After each row: such a run takes long, and may be ended.
            record(given.record, given.note + (", a tenth of every size" if given.small else ""), found)
    return int(any(values.errors for values in found))


if __name__ == "__main__":
    sys.exit(main())

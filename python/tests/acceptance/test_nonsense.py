"""What users do by mistake, on a real cluster: each test blames what is to blame, and the rest goes on.

Owns tasks that cannot be sent, end their process or never end, values of unusual size, names of
unusual letters. Operations, clients that misbehave and clusters of their own are in
test_nonsense_clients.py. Every test has a time limit: whatever happens, nothing may hang. The
largest sizes run only with `OXIDASK_ALL_FAULTS=1`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import cloudpickle
import numpy as np
import pytest
from distributed import Client, wait
from distributed.system import MEMORY_LIMIT

import oxidask

IS_ALL = os.environ.get("OXIDASK_ALL_FAULTS") == "1"
TEST_SECONDS_MAX = 30
LONG_TEST_SECONDS_MAX = 600
#: One answer of a cluster that is well.
ANSWER_SECONDS_MAX = 15
GIB = 1 << 30

pytestmark = pytest.mark.timeout(TEST_SECONDS_MAX)
# Workers need not be able to import the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def cluster() -> Iterator[oxidask.LocalCluster]:
    with oxidask.LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        cluster.wait_for_workers(2, timeout=30)
        yield cluster


@pytest.fixture
def client(cluster: oxidask.LocalCluster) -> Iterator[Client]:
    """A client; after the test the cluster must be well."""
    with cluster.get_client() as client:
        yield client
        numbers = client.map(plus_one, range(20), pure=False)
        assert client.gather(numbers) == list(range(1, 21))
        assert len(cluster.scheduler_info["workers"]) == 2


def plus_one(number: int) -> int:
    return number + 1


class Unpicklable:
    """Holds what cannot travel."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Traitor:
    """Can be pickled, and not read again."""

    def __reduce__(self) -> Any:
        return (_refuse, ("I do not come back",))


def _refuse(text: str) -> None:
    raise RuntimeError(text)


class Demanding(Exception):
    """Cannot be made from its `args`."""

    def __init__(self, first: int, *, second: int) -> None:
        super().__init__(f"{first} of {second}")


class Locked(Exception):
    """Cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Nameless(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


# ---- what cannot be sent ----


def test_a_function_that_cannot_be_pickled(client: Client) -> None:
    held = threading.Lock()
    with pytest.raises(Exception, match="(?i)pickle|serialize|lock"):
        client.submit(lambda: held.locked()).result(timeout=ANSWER_SECONDS_MAX)


def test_an_argument_that_cannot_be_pickled(client: Client) -> None:
    with pytest.raises(Exception, match="(?i)pickle|serialize|lock"):
        client.submit(type, Unpicklable(), pure=False).result(timeout=ANSWER_SECONDS_MAX)


def test_an_argument_that_cannot_be_read(client: Client) -> None:
    with pytest.raises(RuntimeError, match="I do not come back"):
        client.submit(type, Traitor(), pure=False).result(timeout=ANSWER_SECONDS_MAX)


def test_a_result_that_cannot_be_pickled(client: Client) -> None:
    future = client.submit(Unpicklable, pure=False)
    dependent = client.submit(type, future)
    for each in (future, dependent):
        error = each.exception(timeout=ANSWER_SECONDS_MAX)
        assert error is not None and "pickle" in str(error), error


def test_a_result_that_cannot_be_read(client: Client) -> None:
    future = client.submit(Traitor, pure=False)
    with pytest.raises(RuntimeError, match="I do not come back"):
        future.result(timeout=ANSWER_SECONDS_MAX)
    dependent = client.submit(type, future)
    with pytest.raises(RuntimeError, match="I do not come back"):
        dependent.result(timeout=ANSWER_SECONDS_MAX)


def test_a_scattered_value_that_cannot_be_pickled(client: Client) -> None:
    with pytest.raises(Exception, match="(?i)pickle|serialize|lock"):
        client.scatter(Unpicklable(), hash=False, timeout=ANSWER_SECONDS_MAX)


# ---- what is raised ----


@pytest.mark.parametrize("kind", [Demanding, Locked, Nameless])
def test_exceptions_with_odd_constructors(client: Client, kind: type[Exception]) -> None:
    def fail() -> None:
        raise Demanding(1, second=2) if kind is Demanding else kind("locked")

    error = client.submit(fail, pure=False).exception(timeout=ANSWER_SECONDS_MAX)
    assert error is not None
    words = {Demanding: "1 of 2", Locked: "locked", Nameless: "Nameless"}[kind]
    assert words in (type(error).__name__ if isinstance(error, Nameless) else f"{type(error).__name__} {error}")


def test_too_deep_recursion(client: Client) -> None:
    def dig(depth: int) -> int:
        return dig(depth + 1) + 1

    with pytest.raises(RecursionError):
        client.submit(dig, 0).result(timeout=ANSWER_SECONDS_MAX)


def test_a_result_too_deep_to_be_pickled(client: Client) -> None:
    def nest() -> list[Any]:
        nested: list[Any] = []
        for _ in range(100_000):
            nested = [nested]
        return nested

    assert client.submit(nest).exception(timeout=ANSWER_SECONDS_MAX) is not None


ENDING = [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, MemoryError, asyncio.CancelledError]


@pytest.mark.parametrize("kind", ENDING)
def test_exceptions_that_mean_something_to_the_process(client: Client, kind: type[BaseException]) -> None:
    def fail() -> None:
        raise kind("odd")

    future = client.submit(fail, pure=False)
    wait(future, timeout=ANSWER_SECONDS_MAX)
    assert future.status == "error"
    # It ends neither the client's event loop nor whoever asks.
    for ask in (future.result, lambda: client.gather(future), lambda: client.run(fail)):
        with pytest.raises(Exception, match=f"{kind.__name__}|odd"):
            ask()


class Liar:
    """Answers nothing that Python may ask."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError(name)

    def __bool__(self) -> bool:
        raise ValueError("bool")

    __eq__ = __hash__ = __len__ = __repr__ = __bool__  # type: ignore[assignment]


def test_a_result_that_answers_nothing(client: Client) -> None:
    future = client.submit(Liar, pure=False)
    assert client.submit(lambda _: "well", future).result(timeout=ANSWER_SECONDS_MAX) == "well"
    assert type(future.result(timeout=ANSWER_SECONDS_MAX)).__name__ == "Liar"


def test_a_very_long_text(client: Client) -> None:
    def fail() -> None:
        raise ValueError("long " * 1_000_000)

    error = client.submit(fail).exception(timeout=ANSWER_SECONDS_MAX)
    assert str(error).strip("'\"").startswith(("long ", "ValueError")), str(error)[:100]


# ---- what ends or never ends ----


def test_an_infinite_loop_is_cancelled(client: Client) -> None:
    def spin() -> None:
        while True:
            pass

    loops = [client.submit(spin, pure=False) for _ in range(2)]
    time.sleep(0.5)
    behind = client.submit(plus_one, 1, pure=False)
    client.cancel(loops)
    assert behind.result(timeout=ANSWER_SECONDS_MAX) == 2
    with pytest.raises(CancelledError):
        loops[0].result(timeout=1)


def test_a_loop_that_ignores_signals_is_cancelled(client: Client) -> None:
    def spin() -> None:
        import signal

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass

    loops = [client.submit(spin, pure=False) for _ in range(2)]
    time.sleep(0.5)
    client.cancel(loops)
    assert client.submit(plus_one, 1, pure=False).result(timeout=ANSWER_SECONDS_MAX) == 2


def _leave_at_once() -> None:
    os._exit(7)


def _segfault() -> None:
    import ctypes

    ctypes.string_at(0)


def _abort() -> None:
    os.abort()


@pytest.mark.parametrize(
    ("function", "words"),
    [(_leave_at_once, ("7",)), (_segfault, ("SIGSEGV", "signal 11")), (_abort, ("SIGABRT", "signal 6"))],
)
def test_a_crash_blames_its_task_only(client: Client, function: Any, words: tuple[str, ...]) -> None:
    before = client.map(plus_one, range(40), pure=False)
    crash = client.submit(function, pure=False)
    after = client.map(plus_one, range(40), pure=False)
    error = crash.exception(timeout=ANSWER_SECONDS_MAX)
    assert any(word in str(error) for word in words), error
    assert client.gather(before) == client.gather(after) == list(range(1, 41))
    assert client.submit(plus_one, crash).exception(timeout=ANSWER_SECONDS_MAX) is not None


def test_fork_in_a_task(client: Client) -> None:
    def split() -> int:
        child = os.fork()
        if child == 0:
            os._exit(3)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert client.submit(split, pure=False).result(timeout=ANSWER_SECONDS_MAX) == 3


def test_a_fork_that_returns_as_well(client: Client) -> None:
    """The copy of the process must not answer in the place of the process."""

    def split() -> str:
        return "the copy" if os.fork() == 0 else "the process"

    futures = [client.submit(split, pure=False) for _ in range(4)]
    done = wait(futures, timeout=ANSWER_SECONDS_MAX)
    assert not done.not_done
    assert {future.result() for future in futures if future.status == "finished"} <= {"the process"}


def test_multiprocessing_in_a_task(client: Client) -> None:
    def spread() -> list[int]:
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, [-1, -2, -3])

    assert client.submit(spread).result(timeout=ANSWER_SECONDS_MAX) == [1, 2, 3]


def test_threads_in_a_task(client: Client) -> None:
    def spread() -> int:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(8) as pool:
            total = sum(pool.map(abs, range(-100, 0)))
        # This one outlives the task and prints when others run.
        threading.Thread(target=lambda: (time.sleep(0.2), print("late")), daemon=True).start()
        return total

    assert client.submit(spread, pure=False).result(timeout=ANSWER_SECONDS_MAX) == 5050


def test_a_task_that_closes_its_output(client: Client) -> None:
    def close() -> str:
        for file in (0, 1, 2):
            os.close(file)
        return "closed"

    def close_objects() -> str:
        sys.stdout.close()
        sys.stderr.close()
        return "closed"

    for function in (close, close_objects):
        assert client.submit(function, pure=False).result(timeout=ANSWER_SECONDS_MAX) == "closed"
        printed = client.map(lambda n: print(n) or n, range(8), pure=False)
        wait(printed, timeout=ANSWER_SECONDS_MAX)
        assert all(future.done() for future in printed)


def test_a_task_that_closes_all_files(client: Client) -> None:
    """It may lose its process, but nobody waits for ever."""
    closing = client.submit(lambda: os.closerange(0, 4096), pure=False)
    wait(closing, timeout=ANSWER_SECONDS_MAX)
    assert closing.done()


def test_a_task_that_prints_much(client: Client) -> None:
    def shout() -> int:
        return sum(len(f"{print('x' * 1000) or ''}") for _ in range(5_000))

    assert client.submit(shout, pure=False).result(timeout=ANSWER_SECONDS_MAX) == 0


# ---- sizes ----


@pytest.mark.timeout(LONG_TEST_SECONDS_MAX)
def test_a_large_result(client: Client) -> None:
    """With room for the value in the worker, on its way and here, and once more for the others."""
    size = 4 * GIB if IS_ALL else GIB
    if size * 4 > MEMORY_LIMIT:
        pytest.skip(f"{size} bytes are too many for this machine")
    future = client.submit(np.full, size // 8, 1.5)
    value = future.result(timeout=LONG_TEST_SECONDS_MAX / 2)
    assert value.nbytes == size and value[0] == value[-1] == 1.5
    assert client.submit(lambda array: array.nbytes, future).result(timeout=ANSWER_SECONDS_MAX) == size


@pytest.mark.timeout(LONG_TEST_SECONDS_MAX)
def test_many_futures(client: Client) -> None:
    count = 1_000_000 if IS_ALL else 100_000
    futures = client.map(plus_one, range(count), pure=False)
    assert sum(client.gather(futures)) == count * (count + 1) // 2
    assert len({future.key for future in futures}) == count


def test_many_arguments(client: Client) -> None:
    assert client.submit(sum, client.map(plus_one, range(5_000))).result(timeout=ANSWER_SECONDS_MAX) == 12_502_500


def test_a_large_argument(client: Client) -> None:
    """Larger than one message may be."""
    value = np.arange(12_000_000)
    future = client.submit(lambda array: int(array[-1]), value)
    assert future.result(timeout=ANSWER_SECONDS_MAX) == 11_999_999


# ---- letters ----


NAMES = ["größe-日本語-🦀", "a\nb", "a\0b", " ", "'\"\\", "x" * 10_000, "\u202eabc"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_keys_of_any_letters(client: Client, name: str) -> None:
    future = client.submit(plus_one, 1, key=name)
    assert future.result(timeout=ANSWER_SECONDS_MAX) == 2
    assert client.submit(plus_one, future, key=("tuple", name, 3)).result(timeout=ANSWER_SECONDS_MAX) == 3
    assert name in client.who_has([future])


@pytest.mark.parametrize("key", ["", "\ud800", "x" * 2_000_000], ids=["empty", "surrogate", "long"])
def test_keys_that_are_hardly_keys(client: Client, key: str) -> None:
    """A result or an error, but an answer."""
    try:
        future = client.submit(plus_one, 1, key=key)
        assert future.result(timeout=ANSWER_SECONDS_MAX) == 2
    except TimeoutError:
        raise
    except Exception as error:
        assert str(error)


def test_names_values_and_exceptions_of_any_letters(client: Client) -> None:
    def größe(länge: int) -> str:
        print("日本語 🦀", länge)
        return "🦀" * länge

    def fail() -> None:
        raise ValueError("schlecht: 日本語 🦀 \ud800")

    assert client.submit(größe, länge=3).result(timeout=ANSWER_SECONDS_MAX) == "🦀🦀🦀"
    assert client.gather({"ключ": client.submit(größe, 1)}) == {"ключ": "🦀"}
    assert "日本語 🦀" in str(client.submit(fail).exception(timeout=ANSWER_SECONDS_MAX))
    client.set_metadata(["größe", "日本語"], "🦀")
    assert client.get_metadata(["größe", "日本語"]) == "🦀"
    client.log_event("тема", {"größe": "🦀"})
    assert client.get_events("тема")[-1][1] == {"größe": "🦀"}

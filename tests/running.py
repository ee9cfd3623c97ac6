"""A test that hangs ends as a failure with a name, and not the run as one without.

A set-up, a test or a tear-down that takes `PATIENCE` is interrupted where it waits, which fails it as any error there
would. What cannot be interrupted (the kernel does not let go of it, or it goes round in C) is ended with its worker.
Each worker has a file in the folder `OSMODA_TEST_RUNNING` that holds its pid and the test that it has begun and not
ended, and the process that hands out the tests looks on: when pytest's `faulthandler_timeout` has shown the stacks of a
worker that is overdue, the processes which that test started are listed, and all are killed; xdist reports the test as
failed and goes on with a new worker. `.ci/run` shows what is in the folder when its own time is up.

`faulthandler_exit_on_timeout` would not do: a forked child of the worker holds the pipe whose end tells xdist. For the
same reason the strays of a worker that died otherwise are ended.

These are watchdogs, far above what any test takes, and not times that a test must keep.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from types import FrameType

import pytest

FOLDER = "OSMODA_TEST_RUNNING"
PATIENCE = float(os.environ.get("OSMODA_TEST_SECONDS", "300"))  # seconds
# What a shell has ignored for what it runs in the background, or nohup(1): a sandbox would ignore it, as it should.
USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGQUIT: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
GRACE = 20.0  # seconds: for the stacks to be shown, and for xdist to notice that a worker is gone


def pytest_configure(config: pytest.Config) -> None:
    """Say that this worker is here; or look on, in the process that hands out the tests."""
    for number, usual in USUAL.items():
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)
    limit = float(config.getini("faulthandler_timeout"))
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        if folder := os.environ.get(FOLDER):
            Path(folder, worker).write_text(f"{os.getpid()}\n")
    elif limit and config.getoption("numprocesses", None):
        if FOLDER not in os.environ:
            os.environ[FOLDER] = tempfile.mkdtemp(prefix="osmoda-running-")
            config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(FOLDER)))
        lookout = Lookout(Path(os.environ[FOLDER]), limit + GRACE)
        config.add_cleanup(lookout.close)
        config.pluginmanager.register(lookout)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    worker, folder = os.environ.get("PYTEST_XDIST_WORKER"), os.environ.get(FOLDER)
    if not worker or not folder:
        return (yield)
    file = Path(folder, worker)
    file.write_text(f"{os.getpid()} {item.nodeid}\n")
    outcome = yield  # an interrupted test stays in the file
    file.write_text(f"{os.getpid()}\n")
    return outcome


@contextlib.contextmanager
def interrupted_after(seconds: float, what: str) -> Iterator[None]:
    """In the main thread, which runs the tests."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        there = [f"after {seconds:g} s {what} was still waiting here, with these processes:"]
        pytest.fail("\n".join([*there, *map(describe, descendants([os.getpid()]))]))

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    with interrupted_after(PATIENCE, "the set-up"):
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    with interrupted_after(PATIENCE, "the test"):
        return (yield)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    with interrupted_after(PATIENCE, "the tear-down"):
        return (yield)


def pytest_enter_pdb() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)


class Lookout:
    """A thread that ends every worker whose test takes more than `limit` seconds, with all that it started."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder = folder
        self.limit = limit
        self._stderr = os.dup(2)  # not what a capture makes of it later
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)
        os.close(self._stderr)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """Xdist knows that a worker is gone, or will be."""
        gateway = getattr(node, "gateway")  # noqa: B009
        Path(self.folder, gateway.id).unlink(missing_ok=True)

    def _look_on(self) -> None:
        gone_since: dict[int, float] = {}
        known: set[int] = set()
        while not self._stop.wait(1):
            workers = {}
            for file in self.folder.iterdir():
                with contextlib.suppress(FileNotFoundError):  # its worker is done
                    pid, _, test = file.read_text().strip().partition(" ")
                    if pid:  # else it is just being written
                        workers[int(pid)] = (test, time.time() - file.stat().st_mtime)
            known |= workers.keys()
            for pid, (test, age) in workers.items():
                if test and age > self.limit:
                    self._end(f"{test} has run for {age:.0f} s", [pid, *descendants([pid])])
                elif is_gone(pid):
                    since = gone_since.setdefault(pid, time.monotonic())
                    strays = set(children(os.getpid())) - known
                    if strays and time.monotonic() - since > GRACE:
                        self._end(f"the worker of {test or 'no test'} is dead", [*strays, *descendants(strays)])

    def _end(self, why: str, processes: list[int]) -> None:
        lines = [f"\n{why}; these processes are ended:", *map(describe, processes), ""]
        os.write(self._stderr, "\n".join(lines).encode(errors="replace"))
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def status(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def is_gone(pid: int) -> bool:
    return status(pid)[:1] in ([], ["Z"])


def children(parent: int) -> list[int]:
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [pid for pid in pids if status(pid)[1:2] == [str(parent)]]


def descendants(ancestors: Iterable[int]) -> list[int]:
    below = [child for ancestor in ancestors for child in children(ancestor)]
    return [*below, *descendants(below)] if below else []


def describe(pid: int) -> str:
    """Its state, the kernel function that it waits in, its system call with arguments, and its command line."""
    seen = {}
    for name in ("wchan", "syscall", "cmdline"):
        try:
            with open(f"/proc/{pid}/{name}", errors="replace") as file:
                seen[name] = file.read().replace("\0", " ").strip()
        except OSError as error:
            seen[name] = f"({error.strerror})"
    state = " ".join(status(pid)[:1])
    return f"  {pid} {state} {seen['wchan']} [{seen['syscall']}] {seen['cmdline'][:300]}"

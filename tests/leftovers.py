"""After each test: nothing it started, mounted, opened or wrote for osmoda is still there.

`no_leftovers` compares what belonged to this test process before and after. It judges only what is this process's
own, so that tests may run side by side: descendants (the test process adopts orphans, so none escapes), its
descriptors, the runtime directory that each test has for itself, and new mounts and cgroups that no other process is
using. What it finds it removes, so that one test's leak is one failure.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.worlds import make_directories

PR_SET_CHILD_SUBREAPER = 36
# Seconds in which the kernel may finish taking down what a test has ended.
PATIENCE = float(os.environ.get("OSMODA_TEST_PATIENCE", "30"))
libc = ctypes.CDLL(None, use_errno=True)

# What the lanes beside the tests name the control groups in which they have a systemd of their own.
OTHERS = ("osmoda-container-", "osmoda-agreement-")

# Processes that outlive a test on purpose: servers of the session, whose own fixture sees to their end. What they start
# is theirs (`tests/internet.py`).
SPARED: set[int] = set()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "orphans: the test leaves ended processes to init on purpose; here the test process reaps them"
    )
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if not os.path.exists("/proc/thread-self/children"):
        raise pytest.UsageError("this kernel does not tell whose child a process is (CONFIG_PROC_CHILDREN)")


# What there is.


def processes() -> dict[str, int]:
    """Every descendant of this process: a line that describes it (it holds the start time) to its pid.

    Those of `SPARED` are left out, with their descendants.
    """
    found: dict[str, int] = {}
    parents = [os.getpid()]
    while parents:
        # Not by looking at every process there is, which would cost more than most tests.
        for pid in children(parents.pop()):
            if pid not in SPARED:
                with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", errors="replace") as file:
                    head, _, tail = file.read().rpartition(")")
                    fields = tail.split()
                    name = head.partition("(")[2]
                    found[f"process {pid} ({name}, state {fields[0]}, started {fields[19]})"] = pid
                parents.append(pid)
    return found


def children(pid: int) -> list[int]:
    """Those of all its threads (proc_pid_tid_children(5))."""
    found = []
    with contextlib.suppress(OSError):  # it has just ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found


def mounts() -> dict[str, str]:
    """Every mount in view, but not those in another worker's directories: a line to its mount point."""
    found = {}
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        for line in file:
            mount_id, _, _, _, point, *_, filesystem, source, _ = line.split()
            if worker is None or "/popen-gw" not in point or f"/popen-{worker}/" in point:
                found[f"mount {point} ({filesystem} of {source}, id {mount_id})"] = point
    return found


def cgroups() -> dict[str, str]:
    """Every cgroup that osmoda made, in every hierarchy: a line to its directory.

    But not those in which a systemd of the tests' own, which may run beside these, has its units.
    """
    found = {}
    for top, folders, _ in os.walk("/sys/fs/cgroup"):
        folders[:] = [name for name in folders if not name.startswith(OTHERS)]
        if "/osmoda" in top and not top.endswith("/osmoda"):
            found[f"cgroup {top}"] = top
    return found


def descriptors() -> dict[str, int]:
    """Every open file of this process."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[f"descriptor {entry} ({os.readlink(f'/proc/self/fd/{entry}')})"] = int(entry)
    return found


def files(directory: Path) -> dict[str, Path]:
    """Every file under a folder of runtime directories; the lock file of the uid leases stays by design."""
    return {f"file {path}": path for path in directory.rglob("*") if not path.is_dir() and path.name != "uids"}


def forked_here(line: str) -> bool:
    """Whether an ended process was this process's to reap.

    One that still has this process's name was forked here, and a sandbox's first process names itself. The rest are
    programs: orphans that end unnoticed (a shell's background job), which init would have reaped.
    """
    with open("/proc/self/comm") as file:
        own = file.read().rstrip("\n")
    name = line.partition("(")[2].partition(", state")[0]
    return name == own or name.startswith("osmoda")


# And how to be rid of it.


def end(pid: int) -> None:
    """Kill it, and reap it if it is a child of this process (a grandchild becomes one when its parent has gone)."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def in_use_elsewhere(cgroup: str) -> bool:
    """Whether processes other than this one's descendants live in the cgroup or below it."""
    mine = {os.getpid(), *processes().values()}
    for top, _, _ in os.walk(cgroup):
        with contextlib.suppress(OSError), open(f"{top}/cgroup.procs") as file:
            if any(int(line) not in mine for line in file):
                return True
    return False


def remove_cgroup(cgroup: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(cgroup)


def unmount(point: str) -> None:
    MNT_DETACH = 2
    libc.umount2(os.fsencode(point), MNT_DETACH)


class Watch:
    """What there was at the start, and what is there beyond it now."""

    def __init__(self, runtime: Path, *, adopts_orphans: bool) -> None:
        self.runtime = runtime
        self.adopts_orphans = adopts_orphans
        self.before = self._lines()

    def _lines(self) -> set[str]:
        return {*processes(), *mounts(), *cgroups(), *descriptors(), *files(self.runtime)}

    def leftovers(self) -> dict[str, Callable[[], None]]:
        """Each leftover, with what removes it."""
        new: dict[str, Callable[[], None]] = {}
        for line, pid in processes().items():
            # The state is part of the line, and a process from before the test may have changed it.
            identity = line.partition(", state")[0], line.rpartition(", ")[2]
            if any(known.startswith(identity[0]) and known.endswith(identity[1]) for known in self.before):
                continue
            if ", state Z" in line and (self.adopts_orphans or not forked_here(line)):
                reap(pid)
            else:
                new[line] = lambda pid=pid: end(pid)
        for line, point in mounts().items():
            new[line] = lambda point=point: unmount(point)
        for line, cgroup in cgroups().items():
            if line not in self.before and not in_use_elsewhere(cgroup):
                new[line] = lambda cgroup=cgroup: remove_cgroup(cgroup)
        for line in descriptors():
            new[line] = lambda: None
        for line, path in files(self.runtime).items():
            new[line] = lambda path=path: path.unlink(missing_ok=True)
        return {line: remove for line, remove in new.items() if line not in self.before}

    def settle(self) -> dict[str, Callable[[], None]]:
        """The leftovers that are still there when the kernel and the garbage collector have had their time."""
        left = self.leftovers()
        if left:
            gc.collect()
        deadline = time.monotonic() + PATIENCE
        while left and time.monotonic() < deadline:
            time.sleep(0.02)
            still = self.leftovers()
            left = {line: remove for line, remove in still.items() if line in left or line.startswith("process")}
        return left


@pytest.fixture(scope="session")
def _directories() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="osmoda-test-") as directory:
        os.chmod(directory, 0o711)
        yield Path(directory)


@pytest.fixture(autouse=True)
def no_leftovers(request: pytest.FixtureRequest, _directories: Path) -> Iterator[Path]:
    """Give the test directories of its own for osmoda's files; fail it if it leaves anything behind.

    The value is a folder for runtime directories, where every file counts as a leftover.
    """
    with tempfile.TemporaryDirectory(dir=_directories) as own, pytest.MonkeyPatch.context() as environment:
        os.chmod(own, 0o711)
        runtime = Path(own, "runtime")
        runtime.mkdir(mode=0o711)
        for variable, value in make_directories(runtime / "tests", Path(own)).items():
            environment.setenv(variable, value)
        watch = Watch(runtime, adopts_orphans=request.node.get_closest_marker("orphans") is not None)
        yield runtime
        left = watch.settle()
        for remove in left.values():
            remove()
        if left:  # a killed child's children have only now become this process's own
            for line, remove in watch.leftovers().items():
                if line.startswith("process"):
                    remove()
        if left:
            pytest.fail("the test left behind:\n  " + "\n  ".join(sorted(left)), pytrace=False)

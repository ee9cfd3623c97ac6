"""The fixture that fails a test for what it leaves behind, shown to fail for each kind of leftover."""

from __future__ import annotations

import ctypes
import fcntl
import os
import textwrap
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs to be root, for mount and mkdir in a cgroup hierarchy")


@pytest.fixture
def alone(tmp_path_factory: pytest.TempPathFactory):
    """Nobody else in a parallel run tests this: a cgroup that one of these tests makes is a leftover to the others."""
    with open(tmp_path_factory.getbasetemp().parent / "leftovers.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def outcome(alone, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Run the source of a test body in a pytest of its own, with the fixture on."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OSMODA_TEST_PATIENCE", "0.2")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)

    def run(body: str, mark: str = "") -> pytest.RunResult:
        head = "import os, pathlib, subprocess\nimport pytest\n"
        head += "RUNTIME, STATE = 'OSMODA_RUNTIME_DIR', 'OSMODA_STATE_DIR'\n"
        head += "if os.getuid() != 0:\n    RUNTIME, STATE = 'XDG_RUNTIME_DIR', 'XDG_STATE_HOME'\n"
        pytester.makepyfile(head + f"{mark}\ndef test_it(tmp_path):\n" + textwrap.indent(textwrap.dedent(body), "    "))
        return pytester.runpytest_subprocess("-p", "tests.leftovers", "-p", "no:cacheprovider", "-q")

    return run


def test_a_test_that_leaves_nothing_passes(outcome):
    result = outcome("""
        subprocess.run(["true"], check=True)
        with open(tmp_path / "written", "w") as file:
            file.write("x")
        pathlib.Path(os.environ[STATE], "kept").touch()
    """)
    result.assert_outcomes(passed=1)


def test_a_running_child_is_named(outcome):
    result = outcome("pid = os.spawnlp(os.P_NOWAIT, 'sleep', 'sleep', '1000')")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*the test left behind:*", "*process * (sleep, state S*"])


def test_an_orphan_in_a_session_of_its_own_is_named(outcome):
    result = outcome("subprocess.run(['sh', '-c', 'setsid sleep 1000 >/dev/null 2>&1 &'], check=True)")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*process * (sleep, state S*"])


def test_an_unreaped_child_is_named_unless_the_test_orphans_processes(outcome):
    body = """
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    """
    result = outcome(body)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*process * (*, state Z*"])
    outcome(body, mark="@pytest.mark.orphans").assert_outcomes(passed=1)


def test_a_program_that_ended_as_an_orphan_is_nobody_s_fault(outcome):
    result = outcome("""
        read, write = os.pipe()
        subprocess.run(["sh", "-c", "setsid sh -c 'exit 0' &"], pass_fds=(write,), check=True)
        os.close(write)
        assert os.read(read, 1) == b"", "the pipe closes when the orphan has ended"
        os.close(read)
    """)
    result.assert_outcomes(passed=1)


def test_a_running_orphan_is_named_even_in_a_test_that_orphans_processes(outcome):
    result = outcome("os.spawnlp(os.P_NOWAIT, 'sleep', 'sleep', '1000')", mark="@pytest.mark.orphans")
    result.assert_outcomes(passed=1, errors=1)


def test_an_open_descriptor_is_named(outcome):
    result = outcome("os.open('/dev/null', os.O_RDONLY)")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*descriptor * (/dev/null)*"])


def test_a_file_in_the_runtime_directory_is_named(outcome):
    result = outcome("pathlib.Path(os.environ[RUNTIME], 'socket').touch()")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*file */runtime/*/socket"])


@needs_root
def test_a_mount_is_named_and_taken_down(outcome, tmp_path):
    point = tmp_path / "mounted"
    point.mkdir()
    try:
        result = outcome(f"subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', {str(point)!r}], check=True)")
        result.assert_outcomes(passed=1, errors=1)
        result.stdout.fnmatch_lines([f"*mount {point} (tmpfs*"])
        assert not point.is_mount()
    finally:
        ctypes.CDLL(None).umount2(os.fsencode(point), 2)


@needs_root
def test_a_cgroup_is_named_and_removed(outcome):
    hierarchy = next(path for path in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup") if os.path.isdir(path))
    cgroup = Path(hierarchy, f"osmoda-leftover-{os.getpid()}")
    try:
        result = outcome(f"os.mkdir({str(cgroup)!r})")
        result.assert_outcomes(passed=1, errors=1)
        result.stdout.fnmatch_lines([f"*cgroup {cgroup}*"])
        assert not cgroup.exists()
    finally:
        if cgroup.exists():
            cgroup.rmdir()

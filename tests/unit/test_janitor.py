"""What removes control groups when a monitor cannot."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

from osmoda.host import cgroup
from osmoda.host.cgroup import Group
from tests.worlds import Program

NAME = f"osmoda-janitor-{os.getpid():x}"
HERE = cgroup.find()
delegated = pytest.mark.skipif(not HERE.has("pids") or HERE.scope, reason="no cgroup is delegated to this user")

START = """
import os, sys
from osmoda.host.cgroup import Group
from osmoda.sandbox.janitor import Janitor
janitor = Janitor()
groups = [Group(int(text.split(":")[0]), tuple(text.split(":")[1:])) for text in sys.argv[1:]]
for group in groups:
    janitor.mind(group)
print(janitor._pid, flush=True)
"""


@pytest.fixture
def groups():
    made = [Group.create(HERE, f"{NAME}-{number}", 0, 0.0, 9) for number in range(2)]
    yield made
    for group in made:
        while not group.remove():
            group.kill()


def there(groups):
    return [all(map(os.path.isdir, group.directories)) for group in groups]


def start(code, groups):
    words = [":".join((str(group.version), *group.directories)) for group in groups]
    process = Program(
        [sys.executable, "-c", START + code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    return process, os.pidfd_open(pid)


def wait(pidfd):
    """Until the janitor is gone."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(30_000)
    os.close(pidfd)


@delegated
@pytest.mark.orphans
def test_a_killed_monitors_groups_are_removed(groups):
    process, janitor = start("sys.stdin.read()", groups)
    with process:
        assert there(groups) == [True, True]
        process.kill()
    wait(janitor)
    assert there(groups) == [False, False]


@delegated
@pytest.mark.orphans
def test_with_the_processes_in_them(groups):
    joins = groups[0].open_for_join()
    code = f"from osmoda.host import cgroup; cgroup.join({joins}); print('in', flush=True); input()"
    with Program(
        [sys.executable, "-c", code], pass_fds=joins, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as inside:
        for fd in joins:
            os.close(fd)
        assert inside.stdout is not None
        assert inside.stdout.readline() == "in\n"
        process, janitor = start("sys.stdin.read()", groups)
        with process:
            process.kill()
        wait(janitor)
        assert inside.wait(30) == -signal.SIGKILL
    assert there(groups) == [False, False]


@delegated
@pytest.mark.orphans
def test_a_group_that_was_never_made_is_no_error(groups):
    """Its monitor may die between the two, and others come after it."""
    planned = Group.named(HERE, f"{NAME}-never", 0, 0.0, 9)
    process, janitor = start("sys.stdin.read()", [planned, *groups])
    with process:
        process.kill()
    wait(janitor)
    assert there(groups) == [False, False]


@delegated
@pytest.mark.orphans
def test_one_that_was_killed_is_replaced_by_one_that_knows_all(groups):
    code = "sys.stdin.readline(); os.kill(janitor._pid, 9)\n"
    code += "os.waitid(os.P_PID, janitor._pid, os.WEXITED | os.WNOWAIT)\n"
    code += "janitor.release(groups[0]); janitor.mind(groups[1]); print(janitor._pid, flush=True); sys.stdin.read()"
    process, janitor = start(code, groups[:1] + groups[1:])
    os.close(janitor)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        second = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
    wait(second)
    assert there(groups) == [True, False]


@delegated
@pytest.mark.orphans
def test_a_group_that_was_released_is_left_alone(groups):
    process, janitor = start("janitor.release(groups[1]); print('told', flush=True); sys.stdin.read()", groups)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "told\n"
        process.kill()
    wait(janitor)
    assert there(groups) == [False, True]


@delegated
@pytest.mark.orphans
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_no_signal_from_the_terminal_ends_it_before_its_monitor(number, groups):
    process, janitor = start("sys.stdin.read()", groups)
    signal.pidfd_send_signal(janitor, number)
    with process:
        assert there(groups) == [True, True]
        process.kill()
    wait(janitor)
    assert there(groups) == [False, False]


def test_at_a_normal_end_no_process_is_left():
    process, janitor = start("sys.stdin.readline(); janitor.close(); print('closed', flush=True)", [])
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "closed\n"
    assert process.returncode == 0
    wait(janitor)


@pytest.mark.orphans
def test_it_holds_nothing_of_its_monitor():
    """Else a pipe of the monitor's would never be at its end."""
    process, janitor = start("sys.stdin.read()", [])
    with process:
        with open(f"/proc/self/fdinfo/{janitor}") as info:
            pid = next(int(line.split()[1]) for line in info if line.startswith("Pid:"))
        while os.readlink(f"/proc/{pid}/cwd") != "/":  # the last step of its beginning
            os.sched_yield()
        held = {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        assert [fd for fd, target in held.items() if not target.startswith("/sys/fs/cgroup")] == ["0"]
        with open(f"/proc/{pid}/comm") as name:
            assert name.read() == "osmoda-janitor\n"
        process.kill()
    wait(janitor)


SETTLED = """
import os, sys
from osmoda.host import cgroup
from osmoda.sandbox import janitor
place = sys.argv[1]
with open(f"{place}/cgroup.procs", "w") as group:
    group.write("0")
cgroup.settle(cgroup.Hierarchy(2, (("pids", place),)))
janitor._AS_LONG = 1e9  # it would wait for ever
janitor.Janitor().close()
print(cgroup.leave(), os.listdir(place).count("osmoda-monitor-%x" % os.getpid()), flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make groups anywhere")
def test_at_a_normal_end_the_two_do_not_wait_for_each_other():
    """Both are in the leaf that a monitor makes for itself where its place has processes in it (cgroup v2)."""
    with open("/proc/self/mountinfo") as mounts:
        found = [line.split()[4] for line in mounts if line.partition(" - ")[2].startswith("cgroup2 ")]
    if not found:
        pytest.skip("this host has no cgroup v2")
    place = f"{found[0]}/osmoda-settled-{os.getpid():x}"
    os.mkdir(place)
    try:
        with Program([sys.executable, "-c", SETTLED, place], stdout=subprocess.PIPE, text=True) as process:
            output, _ = process.communicate(timeout=30)
        assert output == "True 0\n"
    finally:
        group = Group(2, (place, f"{place}/osmoda-monitor-{process.pid:x}"))
        while not group.remove():
            group.kill()

"""Taking what the host needs: processes, memory, inodes, descriptors, the monitor's attention; and staying."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from osmoda.host import features
from tests.attacks.conftest import Attacker, as_root

MEGABYTE = 1 << 20


def stopped(line: str) -> tuple[str, int]:
    error, count = line.split()
    return error, int(count)


def test_a_bomb_of_processes(attacker: Attacker) -> None:
    """All at once, each waiting. The rlimit counts in the sandbox's own user namespace, so that nobody else's count."""
    bombs = {bomb: [bomb, "300"] for bomb in ("forks", "threads")}
    assert attacker.all_outside(bombs) == dict.fromkeys(bombs, "OK all")
    profile = attacker.profile("[process]\npids = 100\n")
    for line in attacker.all_inside(bombs, ["--profile", profile]).each().values():
        error, count = stopped(line)
        assert error == "EAGAIN"
        assert 90 <= count < 100


@as_root
@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_a_bomb_of_processes_under_a_control_group(attacker: Attacker) -> None:
    """With a group there is a second count, and a report."""
    assert attacker.outside("forks", "300").line == "OK all"
    profile = attacker.profile('[process]\npids = 100\nmemory = "256M"\n')
    ended = attacker.inside("forks", "300", options=["--profile", profile])
    error, count = stopped(ended.line)
    assert error == "EAGAIN"
    assert 90 <= count < 100


@as_root
@pytest.mark.skipif("pids" not in features.probe().controllers, reason="no cgroup with the pids controller here")
@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_a_bomb_of_processes_of_a_root_that_has_no_uids_to_give(attacker: Attacker) -> None:
    """As in a container: the sandbox runs as the host's root, whom RLIMIT_NPROC does not hold."""
    bomb = [attacker.program, "forks", "300"]
    limited = ["prlimit", "--nproc=100", "setpriv", "--bounding-set=-sys_admin"]
    outside = subprocess.run([*limited, *bomb], capture_output=True, text=True, check=True)
    assert outside.stdout == "OK all\n"
    profile = attacker.profile("[process]\npids = 100\n")
    command = attacker.world.osmoda_argv(*attacker.argv(*bomb, options=["--profile", profile]))
    with attacker.world.popen([*limited, *command], stdout=subprocess.PIPE, text=True) as running:
        error, count = stopped(running.stdout.read())
    assert error == "EAGAIN"
    assert 90 <= count < 100


@as_root
@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_a_bomb_of_memory_under_a_control_group(attacker: Attacker) -> None:
    assert attacker.outside("memory", str(200 * MEGABYTE)).line == "OK all"
    profile = attacker.profile('[process]\nmemory = "64M"\n')
    ended = attacker.inside("memory", str(200 * MEGABYTE), options=["--profile", profile])
    assert (ended.status, ended.line) == (137, "")
    assert ended.refused("cgroup") | ended.refused("limits") | ended.refused("memory"), ended.report
    assert ended.report["peak_memory_bytes"] <= 65 * MEGABYTE


def test_a_bomb_of_memory_in_each_process(attacker: Attacker) -> None:
    """Without a control group of one's own the address space of each process is what can be limited."""
    assert attacker.outside("memory", str(200 * MEGABYTE)).line == "OK all"
    profile = attacker.profile('[process.limits]\naddress_space = "100M"\n')
    ended = attacker.inside("memory", str(200 * MEGABYTE), options=["--profile", profile])
    error, taken = stopped(ended.line)
    assert error == "ENOMEM"
    assert taken < 100 * MEGABYTE


def test_a_bomb_of_files(attacker: Attacker) -> None:
    """Empty ones: they take inodes, which are the kernel's memory, and no space."""
    count = 3000
    outside = attacker.world.tmp / "files"
    outside.mkdir()
    attacker.world.own(outside)
    assert attacker.outside("inodes", str(outside), str(count)).line == "OK all"
    profile = attacker.profile('[filesystem]\ntmp = "4M"\n')
    places = ("/tmp", "/home/agent", "/dev/shm")
    ended = attacker.all_inside({place: ["inodes", place, str(count)] for place in places}, ["--profile", profile])
    for place, line in ended.each().items():
        error, made = stopped(line)
        assert error == "ENOSPC", place
        assert made <= 1024, place
    full = attacker.run("sh", "-c", "head -c 5000000 /dev/zero >/tmp/big", options=["--profile", profile])
    assert "No space left on device" in full.errors


def test_a_bomb_of_descriptors(attacker: Attacker) -> None:
    """The hard limit is lowered: raising the soft one leads no further."""
    many = ["sh", "-c", f"ulimit -n 3000 && exec {attacker.program} descriptors 2000"]
    assert attacker.world.run(many).stdout == "OK all\n"
    profile = attacker.profile("[process.limits]\nopen_files = 64\n")
    ended = attacker.inside("descriptors", "2000", options=["--profile", profile])
    error, count = stopped(ended.line)
    assert error == "EMFILE"
    assert count <= 61


def test_a_flood_of_output(attacker: Attacker) -> None:
    """It goes past the monitor, to a reader that stops reading: the program is held up, then ended by SIGPIPE."""
    flood = ["sh", "-c", "exec yes"]
    attacker.run("true")  # the plan is compiled and kept: what the monitor has in memory now is for watching
    for command in (flood, attacker.world.osmoda_argv(*attacker.argv(*flood))):
        with attacker.world.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
            assert running.stdout.read(10 * MEGABYTE) == b"y\n" * (5 * MEGABYTE)
            if command is not flood:
                assert resident_megabytes(running.pid) < 20, "nothing of it is kept by the monitor"
            running.stdout.close()
            running.wait()
        assert running.returncode in (-signal.SIGPIPE, 128 + signal.SIGPIPE, 1), "1 where SIGPIPE is ignored"


def resident_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} is gone")


def test_a_flood_of_refused_calls(attacker: Attacker) -> None:
    """Each is answered by the monitor, which answers so many a second and keeps so many, and no more."""
    count = 5000  # more than two seconds' worth
    assert attacker.outside("denials", "10").status == 0
    ended = attacker.inside("denials", str(count))
    assert ended.line == f"OK {count}", "every single one was refused"
    assert ended.refused() == {"unshare"}
    assert len(ended.report["denials"]) <= 512
    assert ended.report["duration_s"] >= 1.0, "a core of the host's is not theirs for this"


CORES = "grep -o 'core file.*[0-9]' /proc/self/limits; ulimit -c 0; grep -o 'core file.*[0-9]' /proc/self/limits"


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_CORE)[1] == 0, reason="a hard limit of 0 cannot be raised to 1")
def test_the_memory_of_a_crash_given_to_a_program_of_the_hosts(attacker: Attacker) -> None:
    """The kernel asks core_pattern's program, whatever the limit is, but for a limit of 1: no program leaves it."""
    outside = subprocess.run(["sh", "-c", CORES], capture_output=True, text=True, check=True)
    assert outside.stdout.split()[-2:] == ["0", "0"]
    inside = attacker.run("sh", "-c", CORES)
    assert [line.split()[-2:] for line in inside.output.splitlines()] == [["1", "1"]] * 2, inside.errors
    assert inside.status == 0, "programs that want no core go on"


POLICY = ["awk", "{print $41}", "/proc/self/stat"]  # proc_pid_stat(5)
REAL_TIME = ["chrt", "--fifo", "1"]


@as_root
@pytest.mark.parametrize("world", ["root"], indirect=True)
def test_the_real_time_scheduling_of_whoever_starts_it(attacker: Attacker) -> None:
    """Nothing goes before it, and cpu.max does not bound it."""
    outside = subprocess.run([*REAL_TIME, *POLICY], capture_output=True, text=True, check=False)
    if outside.returncode != 0:
        pytest.skip(f"nobody here may ask for real-time scheduling: {outside.stderr.strip()}")
    assert outside.stdout == f"{os.SCHED_FIFO}\n"
    command = attacker.world.osmoda_argv(*attacker.argv(*POLICY))
    with attacker.world.popen([*REAL_TIME, *command], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout.read() == f"{os.SCHED_OTHER}\n"


def test_a_limit_of_real_time_scheduling(attacker: Attacker) -> None:
    assert attacker.run("grep", "-o", "realtime priority *0 *0", "/proc/self/limits").status == 0


@pytest.mark.orphans
def test_a_daemon_that_stays(attacker: Attacker) -> None:
    """In a session of its own, ignoring every signal it can, holding the output open."""
    with attacker.world.popen([attacker.program, "orphan"], stdout=subprocess.PIPE, text=True) as control:
        pid = int(control.stdout.readline().split()[1])
        control.wait()
        os.kill(pid, 0)
        os.kill(pid, signal.SIGKILL)
    command = attacker.world.osmoda_argv(*attacker.argv(attacker.program, "orphan"))
    with attacker.world.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        output = running.stdout.read()
        assert output.startswith("OK "), running.stderr.read()
        assert running.wait() == 0
    # The end of the stream came although the daemon held it: the daemon was gone when the command had ended.

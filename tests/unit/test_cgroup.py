"""Control groups: that limits hold in this kernel's hierarchy, and what is written in one of version 2."""

from __future__ import annotations

import errno
import os
import posix
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from osmoda.host import cgroup, delegation
from osmoda.host.cgroup import Group, Hierarchy
from tests.worlds import Program

NAME = f"osmoda-unit-{os.getpid():x}"
M = 1 << 20
HERE = cgroup.find()
delegated = pytest.mark.skipif(
    not all(HERE.has(name) for name in ("memory", "cpu", "pids")), reason="no cgroup is delegated to this user"
)


@pytest.fixture
def make():
    """Make groups that are gone at the end of the test."""
    made = []

    def create(**limits):
        group = Group.create(HERE, NAME, **{"memory": 0, "cpu": 0.0, "pids": 0} | limits)
        made.append(group)
        return group

    yield create
    for group in made:
        while not group.remove():
            group.kill()


def start(group, code):
    """Python in the group, from before its first line."""
    joins = group.open_for_join()
    program = f"from osmoda.host import cgroup\ncgroup.join({joins})\n{code}"
    process = Program([sys.executable, "-c", program], pass_fds=joins, stdout=subprocess.PIPE, text=True)
    for fd in joins:
        os.close(fd)
    return process


def run(group, code):
    with start(group, code) as process:
        output, _ = process.communicate(timeout=60)
    return process.returncode, output


@delegated
def test_memory_beyond_the_limit_is_a_kill(make):
    group = make(memory=48 * M)
    assert run(group, f"print(len(bytearray({8 * M})))") == (0, f"{8 * M}\n")
    assert group.oom_kills() == 0
    assert run(group, f"print(len(bytes(b'x' * {200 * M})))") == (-9, "")
    assert group.oom_kills() == 1
    assert 8 * M < group.peak_memory() <= 48 * M


@delegated
def test_processes_beyond_the_limit_are_refused(make):
    group = make(pids=4)
    code = """
import os, signal
children = []
try:
    while len(children) < 10:
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
except BlockingIOError:
    print(len(children))
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
"""
    assert run(group, code) == (0, "3\n")
    assert group.pids_refused() == 1


@delegated
def test_processor_time_beyond_the_limit_is_withheld(make):
    group = make(cpu=0.1)
    run(group, "import time\nwhile time.process_time() < 0.1: pass")
    place = next(path for path in group.directories if os.path.exists(path + "/cpu.stat"))
    stat = dict(line.split() for line in Path(place, "cpu.stat").read_text().splitlines())
    assert int(stat["nr_throttled"]) > 0


@delegated
@pytest.mark.skipif(HERE.version != 1, reason="only version 1 has several directories")
def test_only_controllers_with_a_limit_get_a_directory(make):
    places = dict(HERE.places)
    assert make(pids=9).directories == (f"{places['pids']}/{NAME}",)


@delegated
def test_a_group_that_is_in_use_stays_until_it_is_killed(make):
    group = make(memory=64 * M, pids=9)
    with start(group, "print('in', flush=True)\nimport signal\nsignal.pause()") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        assert group.processes() == (process.pid,)
        assert not group.remove()
        assert all(map(os.path.isdir, group.directories))
        group.kill()
        assert process.wait(60) == -9
    while not group.remove():
        group.kill()
    assert not any(map(os.path.exists, group.directories))
    assert group.remove()  # a second time is no error


@delegated
def test_the_group_of_another_process_is_found_by_its_name(make):
    group = make(memory=48 * M, pids=10)
    with start(group, "print('ready', flush=True)\nimport time\ntime.sleep(60)") as process:
        assert process.stdout.readline() == "ready\n"
        found = cgroup.of_process(process.pid, NAME)
        assert (found.version, sorted(found.directories)) == (group.version, sorted(group.directories))
        assert cgroup.of_process(process.pid, NAME[:-1]).directories == ()
        process.kill()
    gone = cgroup.of_process(process.pid, NAME)
    assert (gone.directories, gone.oom_kills(), gone.pids_refused()) == ((), 0, 0)


@pytest.mark.skipif(HERE.version != 1, reason="only version 1 has several directories")
def test_a_creation_that_fails_half_way_leaves_nothing():
    memory = dict(HERE.places)["memory"]
    hierarchy = Hierarchy(1, (("memory", memory), ("pids", "/sys/fs/cgroup/none")))
    with pytest.raises(OSError, match=f"mkdir /sys/fs/cgroup/none/{NAME}: No such file") as failed:
        Group.create(hierarchy, NAME, memory=64 * M, cpu=0.0, pids=5)
    assert failed.value.errno == errno.ENOENT
    assert not os.path.exists(f"{memory}/{NAME}")


@delegated
def test_a_limit_that_the_kernel_refuses_names_the_file_and_leaves_nothing():
    with pytest.raises(OSError, match=rf"write {10**15} to .*/{NAME}/pids.max: Invalid argument"):
        Group.create(HERE, NAME, memory=64 * M, cpu=0.0, pids=10**15)
    assert not any(os.path.exists(f"{place}/{NAME}") for _, place in HERE.places)


@delegated
def test_descriptors_that_cannot_all_be_opened_are_closed_again(make):
    group = make(memory=64 * M)
    broken = Group(group.version, (*group.directories, "/sys/fs/cgroup/none"))
    with pytest.raises(FileNotFoundError, match="open /sys/fs/cgroup/none/"):
        broken.open_for_join()  # a descriptor left open fails the test (see tests/leftovers.py)


@pytest.mark.parametrize("missing", ["memory", "cpu", "pids"])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_limit_without_its_controller_is_refused(missing, version, tmp_path):
    others = [name for name in ("memory", "cpu", "pids") if name != missing] if version else []
    hierarchy = Hierarchy(version, tuple((name, str(tmp_path)) for name in others))
    limits = {"memory": 0, "cpu": 0.0, "pids": 0} | {missing: 1 if missing != "cpu" else 0.5}
    with pytest.raises(OSError, match=f"no cgroup with the {missing} controller is delegated"):
        Group.create(hierarchy, NAME, **limits)
    assert list(tmp_path.iterdir()) == []


# Which hierarchy is found, in a directory that looks like one.


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroup, "_ROOT", str(tmp_path))
    membership = tmp_path / "membership"
    read = cgroup._read
    monkeypatch.setattr(cgroup, "_read", lambda path: read(str(membership) if path == "/proc/self/cgroup" else path))

    def build(lines, **files):
        membership.write_text("".join(f"{line}\n" for line in lines))
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return build


def unified_group(path, controllers):
    """The files of a group of version 2 that this user may rule, alone in it."""
    files = {"controllers": controllers, "procs": f"{os.getpid()}\n", "subtree_control": "", "type": "domain\n"}
    return {f"{path}cgroup.{name}": text for name, text in files.items()}


@pytest.fixture
def no_systemd(tmp_path, monkeypatch):
    monkeypatch.setattr(delegation, "_BOOTED", str(tmp_path / "not-booted"))


without_systemd = pytest.mark.usefixtures("no_systemd")


@without_systemd
def test_the_group_of_version_2_that_this_process_is_in(tree):
    root = tree(["0::/user.slice/a"], **unified_group("user.slice/a/", "cpu memory pids io\n"))
    place = str(root / "user.slice/a")
    assert cgroup.find() == Hierarchy(2, (("memory", place), ("cpu", place), ("pids", place)))


@without_systemd
def test_controllers_of_version_2_that_are_not_there(tree):
    root = tree(["0::/"], **unified_group("", "pids cpuset"))
    assert cgroup.find() == Hierarchy(2, (("pids", str(root)),))
    assert not cgroup.find().has("memory")


@without_systemd
def test_a_hybrid_set_up_has_version_2_below_unified(tree):
    root = tree(["3:cpuset:/", "0::/x"], **unified_group("unified/x/", "memory"))
    assert cgroup.find() == Hierarchy(2, (("memory", str(root / "unified/x")),))


def test_controllers_of_version_1_come_first(tree):
    root = tree(
        ["8:pids:/p", "4:memory:/m/n", "1:cpu,cpuacct:/", "0::/"],
        **{"pids/p/tasks": "", "memory/m/n/tasks": "", "cpu/tasks": "", "cgroup.controllers": ""},
    )
    places = (("memory", f"{root}/memory/m/n"), ("cpu", f"{root}/cpu"), ("pids", f"{root}/pids/p"))
    assert cgroup.find() == Hierarchy(1, places)


@without_systemd
@pytest.mark.parametrize("lines", [["0::/"], ["4:memory:/gone", "0::/gone"], []])
def test_without_a_hierarchy_there_is_nothing(tree, lines):
    tree(lines)
    assert cgroup.find() == Hierarchy(0, ())


# What is written in a group of version 2.

KERNELS = ("memory.max", "memory.swap.max", "memory.oom.group", "cpu.max", "pids.max", "cgroup.procs", "cgroup.kill")


@pytest.fixture
def unified(tmp_path, monkeypatch):
    """A directory in which a new folder holds a group's files, as in cgroup2."""

    def mkdir(path):
        os.mkdir(path)
        for name in KERNELS:
            Path(path, name).write_text("")

    monkeypatch.setattr(cgroup, "_mkdir", mkdir)
    # The files of a real group go with it.
    monkeypatch.setattr(posix, "rmdir", shutil.rmtree)
    (tmp_path / "cgroup.subtree_control").write_text("cpu")
    return Hierarchy(2, tuple((name, str(tmp_path)) for name in ("memory", "cpu", "pids")))


def written(group):
    return {name: Path(group.directories[0], name).read_text() for name in KERNELS}


def test_limits_of_version_2(unified, tmp_path):
    group = Group.create(unified, NAME, memory=64 * M, cpu=1.5, pids=33)
    assert group.directories == (f"{tmp_path}/{NAME}",)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert written(group) == dict.fromkeys(KERNELS, "") | {
        "memory.max": str(64 * M),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": "150000 100000",
        "pids.max": "33",
    }


def test_no_limit_of_a_kind_writes_nothing_of_that_kind(unified, tmp_path):
    group = Group.create(unified, NAME, memory=0, cpu=0.5, pids=0)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "cpu"
    assert written(group) == dict.fromkeys(KERNELS, "") | {"cpu.max": "50000 100000"}


@pytest.mark.parametrize(
    ("cpu", "text"),
    [
        (0.29, "29000 100000"),
        (0.01, "1000 100000"),
        (0.009, "9000 1000000"),
        (0.001, "1000 1000000"),
        (64, "6400000 100000"),
    ],
)
def test_a_small_share_is_one_of_a_longer_time(unified, cpu, text):
    """The kernel takes no quota below a millisecond."""
    group = Group.create(unified, NAME, memory=0, cpu=cpu, pids=0)
    assert written(group)["cpu.max"] == text


def test_a_share_that_the_kernel_cannot_bound(unified, tmp_path):
    with pytest.raises(OSError, match=r"0.0009 processor cores: the kernel bounds no fewer than 0.001"):
        Group.create(unified, NAME, memory=0, cpu=0.0009, pids=0)
    assert not (tmp_path / NAME).exists()


@delegated
def test_a_small_share_in_this_kernel(make):
    (folder,) = make(cpu=0.002).directories
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if HERE.version == 1 else ("cpu.max",)
    found = " ".join(Path(folder, name).read_text().strip() for name in names)
    assert found == "2000 1000000"


SWAPS = "Filename\tType\tSize\tUsed\tPriority\n"


@pytest.mark.parametrize("swaps", [SWAPS, SWAPS + "/swap\tfile\t1024\t0\t-2\n"])
def test_a_kernel_that_does_not_count_swap(unified, tmp_path, monkeypatch, swaps):
    read = cgroup._read
    monkeypatch.setattr(cgroup, "_read", lambda path: swaps if path == "/proc/swaps" else read(path))
    monkeypatch.setattr(cgroup, "_mkdir", uncounted)
    if swaps == SWAPS:  # there is none
        assert (
            Path(Group.create(unified, NAME, memory=64 * M, cpu=0.0, pids=0).directories[0]) / "memory.max"
        ).exists()
        return
    with pytest.raises(OSError, match=r"no memory.swap.max: this kernel does not count swap"):
        Group.create(unified, NAME, memory=64 * M, cpu=0.0, pids=0)


def uncounted(path):
    os.mkdir(path)
    for name in KERNELS:
        if name != "memory.swap.max":
            Path(path, name).write_text("")


def test_version_2_is_joined_and_killed_through_files(unified):
    group = Group.create(unified, NAME, memory=0, cpu=0.0, pids=3)
    cgroup.join(group.open_for_join())
    group.kill()
    assert written(group)["cgroup.procs"] == "0"
    assert written(group)["cgroup.kill"] == "1"


def test_counters_of_version_2(unified):
    group = Group.create(unified, NAME, memory=64 * M, cpu=0.0, pids=3)
    assert (group.oom_kills(), group.pids_refused(), group.peak_memory(), group.processes()) == (0, 0, 0, ())
    for name, text in {
        "memory.events": "low 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 1\n",
        "pids.events": "max 5\n",
        "memory.peak": "12345\n",
        "cgroup.procs": "7\n8\n",
    }.items():
        Path(group.directories[0], name).write_text(text)
    assert (group.oom_kills(), group.pids_refused(), group.peak_memory()) == (1, 5, 12345)
    Path(group.directories[0], "memory.events").write_text("max 7\noom 3\noom_kill 2\n")
    assert group.oom_kills() == 2, "before Linux 5.17"
    assert sorted(group.processes()) == [7, 8]


def test_controllers_that_cannot_be_handed_down_stop_the_creation(unified, tmp_path):
    (tmp_path / "cgroup.subtree_control").unlink()
    with pytest.raises(OSError, match=r"write \+memory to .*/cgroup.subtree_control: No such file"):
        Group.create(unified, NAME, memory=64 * M, cpu=0.0, pids=0)
    assert not (tmp_path / NAME).exists()

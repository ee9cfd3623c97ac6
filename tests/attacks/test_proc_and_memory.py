"""Other processes: their memory, environment, files and lives; and the kernel's switches in /proc."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.attacks.conftest import Attacker

MARK = "OSMODA_TEST_SECRET=of-the-host"


@dataclass(frozen=True)
class Victim:
    pid: int
    address: str
    process: subprocess.Popen[str]

    def ends_with(self) -> str:
        """Let it go on: it prints its secret, as it is then."""
        output, _ = self.process.communicate("\n")
        return output.strip()


@pytest.fixture
def victim(attacker: Attacker) -> Iterator[Victim]:
    """A process of the world's user, outside, that asks to be traced and has a secret in memory and environment."""
    name, _, value = MARK.partition("=")
    command = [attacker.program, "victim"]
    pipe = subprocess.PIPE
    with attacker.world.popen(command, stdin=pipe, stdout=pipe, text=True, env={name: value}) as process:
        pid, address = process.stdout.readline().split()
        yield Victim(int(pid), address, process)
        process.kill()


def test_memory_of_a_process_outside(attacker: Attacker, victim: Victim) -> None:
    """process_vm_readv and writev, with the filter and without it (@debug, which tier 1 may allow)."""
    read = ["readv", str(victim.pid), victim.address]
    write = ["writev", str(victim.pid), victim.address]
    assert attacker.outside(*read).line == "OK the victim's secret"
    ended = attacker.all_inside({"read": read, "write": write})
    assert ended.each() == {"read": "EPERM", "write": "EPERM"}
    assert ended.refused() == {"process_vm_readv", "process_vm_writev"}
    if attacker.tier == 1:
        calls = '["@system-service", "@debug", "process_vm_readv", "process_vm_writev"]'
        allowed = attacker.profile(f"[process]\nsyscalls = {calls}\n")
        ended = attacker.all_inside({"read": read, "write": write}, ["--profile", allowed])
        assert ended.each() == {"read": "ESRCH", "write": "ESRCH"}, "the pid namespace: there is no such process"
    assert victim.ends_with() == "the victim's secret"


def test_tracing_a_process_outside(attacker: Attacker, victim: Victim) -> None:
    assert attacker.outside("seize", str(victim.pid)).line == "OK"
    ended = attacker.inside("seize", str(victim.pid))
    assert (ended.line, ended.refused()) == ("EPERM", {"ptrace"})
    if attacker.tier == 1:
        allowed = attacker.profile('[process]\nsyscalls = ["@system-service", "@debug"]\n')
        ended = attacker.inside("seize", str(victim.pid), options=["--profile", allowed])
        assert (ended.line, ended.refused()) == ("ESRCH", set()), "the pid namespace: there is no such process"


def test_killing_a_process_outside(attacker: Attacker, victim: Victim) -> None:
    """By its pid, by its process group, and everybody at once."""
    group = os.getpgid(victim.pid)
    kill = "/bin/kill"
    assert attacker.world.run([kill, "-0", str(victim.pid)]).returncode == 0
    ended = attacker.run("sh", "-c", f"{kill} -9 {victim.pid}; {kill} -9 -- -{group}; {kill} -9 -- -1")
    assert ended.errors.count("No such process") == 2, "the pid namespace: there are no such processes"
    assert ended.status == 137, "the last one reached the whole sandbox, and nobody else"
    assert victim.process.poll() is None


def test_the_hosts_processes_in_proc(attacker: Attacker, victim: Victim) -> None:
    names = ("environ", "mem", "root", "cwd", "fd", "maps")
    links = ("root", "cwd")
    attacks = {name: ["readlink" if name in links else "read", f"/proc/{victim.pid}/{name}"] for name in names}
    outside = attacker.all_outside(attacks)
    assert MARK in outside["environ"]
    assert outside["root"] == "OK /"
    assert outside["maps"].startswith("OK ")
    ended = attacker.all_inside(attacks)
    assert ended.each() == dict.fromkeys(names, "ENOENT"), "the pid namespace's own /proc"


def test_no_process_of_the_host_is_found_by_looking_everywhere(attacker: Attacker, victim: Victim) -> None:
    search = ["sh", "-c", f"grep -lz {MARK} /proc/[0-9]*/environ 2>/dev/null; ls -d /proc/[0-9]*"]
    found = attacker.world.run(search).stdout.split()
    assert f"/proc/{victim.pid}/environ" in found
    ended = attacker.run(*search)
    processes = ended.output.split()
    assert [path for path in processes if path.endswith("environ")] == []
    assert set(processes) <= {f"/proc/{number}" for number in range(1, 10)}, "pid 1, the shell and its children"


@pytest.mark.parametrize("passed", [False, True], ids=["", "with a secret in the launcher's environment"])
def test_pid_1_which_began_as_a_copy_of_the_launcher(attacker: Attacker, passed: bool) -> None:
    """Its memory holds what the caller's did; its command line, environment and root would tell of the host."""
    name, _, value = MARK.partition("=")
    shell = ["sh", "-c", "tr '\\0' ' ' </proc/$$/environ"]
    assert MARK in attacker.world.run(shell, env={name: value}).stdout
    attacks = {
        "mem": ["read", "/proc/1/mem"],
        "mem, to write": ["write", "/proc/1/mem", "x"],
        "environ": ["read", "/proc/1/environ"],
        "fd": ["read", "/proc/1/fd"],
        "maps": ["read", "/proc/1/maps"],
        "cwd": ["readlink", "/proc/1/cwd"],
        "root": ["readlink", "/proc/1/root"],
        "exe": ["readlink", "/proc/1/exe"],
        "ns": ["readlink", "/proc/1/ns/mnt"],
        "cmdline": ["read", "/proc/1/cmdline"],
    }
    names = {old: old.replace(", ", "-").replace(" ", "-") for old in attacks}
    command = attacker.script({names[old]: attack for old, attack in attacks.items()})
    ended = attacker.run(*command, env={name: value} if passed else {})
    found = ended.each()
    cmdline = found.pop("cmdline")
    assert found == dict.fromkeys((name for name in names.values() if name != "cmdline"), "EACCES"), (
        "pid 1 is not dumpable: only a capability that nobody has would do"
    )
    assert cmdline.split()[:2] == ["OK", "osmoda-init"]
    assert str(attacker.folder) not in cmdline


def test_the_commands_own_environment_holds_only_what_was_passed(attacker: Attacker) -> None:
    name, _, value = MARK.partition("=")
    assert f"{MARK}\n" in attacker.world.run(["env"], env={name: value}).stdout
    ended = attacker.run("env", env={name: value})
    assert ended.status == 0
    assert name not in ended.output


SWITCHES = {
    "core_pattern": ["write", "/proc/sys/kernel/core_pattern", "|/tmp/evil"],
    "sysrq": ["write", "/proc/sysrq-trigger", "h"],
    "modprobe": ["write", "/proc/sys/kernel/modprobe", "/tmp/evil"],
    "hostname": ["write", "/proc/sys/kernel/hostname", "evil"],
    "user-namespaces": ["write", "/proc/sys/user/max_user_namespaces", "100"],
    "ip-forward": ["write", "/proc/sys/net/ipv4/ip_forward", "1"],
    "own-comm": ["write", "/proc/self/comm", "evil"],
    "own-oom": ["write", "/proc/self/oom_score_adj", "1000"],
}


def test_the_kernels_switches(attacker: Attacker) -> None:
    """Writing to /proc. The control writes what it may: its own name, its own likelihood to be killed."""
    own = {name: attack for name, attack in SWITCHES.items() if name.startswith("own-")}
    assert attacker.all_outside(own) == dict.fromkeys(own, "OK")
    ended = attacker.all_inside({name: attack for name, attack in SWITCHES.items() if os.path.exists(attack[1])})
    found = ended.each()
    assert {name: found[name] for name in own} == dict.fromkeys(own, "EROFS"), "the mount is read-only"
    assert set(found.values()) <= {"EROFS", "EACCES"}, "and what is root's is not this user's either"
    mounts = attacker.run("cat", "/proc/self/mountinfo").output
    proc = [line.split() for line in mounts.splitlines() if line.split()[4] == "/proc"]
    assert len(proc) == 1
    assert "ro" in proc[0][5].split(",")


@pytest.mark.skipif(not os.path.exists("/proc/keys"), reason="this kernel has no keyrings")
def test_the_names_of_the_users_keys(attacker: Attacker) -> None:
    """No namespace separates keys by their uid, which an ordinary user's sandboxes share with the user."""
    reads = {path: ["read", path] for path in ("/proc/keys", "/proc/key-users")}
    assert all(line.startswith("OK") for line in attacker.all_outside(reads).values())
    assert attacker.all_inside(reads).each() == dict.fromkeys(reads, "EACCES")


@pytest.mark.skipif(os.getuid() != 0, reason="needs to be root: the control writes to a switch of the kernel")
def test_the_core_pattern(attacker: Attacker) -> None:
    """Root outside may write it (and writes what is there already)."""
    with open("/proc/sys/kernel/core_pattern") as file:
        before = file.read().strip()
    assert attacker.outside("write", "/proc/sys/kernel/core_pattern", before, privileged=True).line == "OK"
    assert attacker.inside("write", "/proc/sys/kernel/core_pattern", "|/tmp/evil").line in ("EACCES", "EROFS")
    with open("/proc/sys/kernel/core_pattern") as file:
        assert file.read().strip() == before

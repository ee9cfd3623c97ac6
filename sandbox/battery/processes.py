"""Other processes: their memory, environment, files and lives; and the kernel's switches in /proc."""

from __future__ import annotations

import posix
from ctypes import addressof
from functools import partial

from osmoda.sandbox.battery.attacks import Facts, add_attack, attack
from osmoda.sandbox.battery.kernel import Absent, Refused, buffer, call, content, open_path, writable

FAMILY = "processes and memory"

_PTRACE_SEIZE = 0x4206
_SIGCONT = 18
_ENOENT, _ESRCH = 2, 3
_OUTSIDE = ("process",)


def _vector(memory: int, length: int) -> bytes:
    return memory.to_bytes(8, "little") + length.to_bytes(8, "little")


@attack(FAMILY, "read another process's memory (process_vm_readv)")
def read_memory(facts: Facts) -> str:
    token = facts["token"].encode()
    mine = buffer(len(token))
    local, remote = _vector(addressof(mine), len(token)), _vector(facts["address"], len(token))
    call("process_vm_readv", facts["victim"], local, 1, remote, 1, 0, about=_OUTSIDE)
    if mine.raw != token:
        raise Refused(_ESRCH, "process_vm_readv", (), _OUTSIDE)
    return "the secret in its memory"


@attack(FAMILY, "write another process's memory (process_vm_writev)")
def write_memory(facts: Facts) -> str:
    token = facts["token"].encode()
    mine = buffer(token)
    local, remote = _vector(addressof(mine), len(token)), _vector(facts["address"], len(token))
    call("process_vm_writev", facts["victim"], local, 1, remote, 1, 0, about=_OUTSIDE)
    return "its memory was written"


@attack(FAMILY, "trace another process (ptrace)")
def trace(facts: Facts) -> str:
    call("ptrace", _PTRACE_SEIZE, facts["victim"], 0, 0, about=_OUTSIDE)
    return "it is traced"


@attack(FAMILY, "take another process's descriptor (pidfd_getfd)")
def take_descriptor(facts: Facts) -> str:
    pidfd = call("pidfd_open", facts["victim"], 0, about=_OUTSIDE)
    call("pidfd_getfd", pidfd, 0, 0, about=_OUTSIDE)
    return "its standard input"


@attack(FAMILY, "signal another process (kill)")
def signal_process(facts: Facts) -> str:
    call("kill", facts["victim"], _SIGCONT, about=_OUTSIDE)
    return "it was signalled"


@attack(FAMILY, "signal another process group (kill)")
def signal_group(facts: Facts) -> str:
    call("kill", -facts["victim"] & 0xFFFFFFFF, _SIGCONT, about=_OUTSIDE)
    return "it was signalled"


@attack(FAMILY, "slow down another process (setpriority)")
def slow_down(facts: Facts) -> str:
    call("setpriority", 0, facts["victim"], 1, about=_OUTSIDE)
    return "its priority was lowered"


def _environment(facts: Facts) -> str:
    if facts["token"].encode() not in content(f"/proc/{facts['victim']}/environ"):
        raise Refused(_ENOENT, "read", (), _OUTSIDE)
    return "the secret in its environment"


def _memory_file(facts: Facts) -> str:
    token = facts["token"].encode()
    path = f"/proc/{facts['victim']}/mem"
    memory = buffer(len(token))
    fd = open_path(path, posix.O_RDONLY)
    call("pread64", fd, memory, len(token), facts["address"], about=("path", path, "read"))
    if memory.raw != token:
        raise Refused(_ENOENT, "pread64", (), _OUTSIDE)
    return "the secret in its memory"


def _by_root(facts: Facts) -> str:
    if facts["token"].encode() not in content(f"/proc/{facts['victim']}/root{facts['secret']}"):
        raise Refused(_ENOENT, "read", (), _OUTSIDE)
    return "the host's secret, by its root"


def _by_directory(facts: Facts) -> str:
    if facts["token"].encode() not in content(f"/proc/{facts['victim']}/cwd/secret"):
        raise Refused(_ENOENT, "read", (), _OUTSIDE)
    return "the host's secret, by its working directory"


def _maps(facts: Facts) -> str:
    if not content(f"/proc/{facts['victim']}/maps"):
        raise Refused(_ENOENT, "read", (), _OUTSIDE)
    return "where its memory lies"


for _file, _action in (
    ("environ", _environment),
    ("mem", _memory_file),
    ("root", _by_root),
    ("cwd", _by_directory),
    ("maps", _maps),
):
    add_attack(f"proc-{_file}", FAMILY, f"read /proc/PID/{_file} of a process of the host", _action)


@attack(FAMILY, "find the secret in any process of /proc")
def search_proc(facts: Facts) -> str:
    token = facts["token"].encode()
    last = Refused(_ENOENT, "openat", (), _OUTSIDE)
    for name in posix.listdir("/proc"):
        if not name.isdecimal() or int(name) == posix.getpid():
            continue
        try:
            if token in content(f"/proc/{name}/environ"):
                return f"in the environment of process {name}"
        except Refused as refused:
            if name == "1":
                last = Refused(refused.number, refused.call, refused.registers, ("init",))
    raise last


def _of_init(facts: Facts, file: str) -> str:
    """Any look into pid 1, which began as a copy of the launcher."""
    path = f"/proc/{facts['init']}/{file}"
    about = ("init", path)
    name = path.encode()
    if file in ("root", "cwd", "exe", "ns/mnt"):
        call("readlinkat", -100, name, buffer(256), 256, about=about)
        return "where it leads"
    flags = posix.O_RDONLY | (posix.O_DIRECTORY if file == "fd" else 0)
    fd = call("openat", -100, name, flags, 0, about=about)
    if file == "fd":
        call("getdents64", fd, buffer(1024), 1024, about=about)
        return "which descriptors it has"
    if file == "mem":
        # Reading at 0 fails for want of a page; that it was opened is the hole.
        return "its memory is open"
    call("read", fd, buffer(256), 256, about=about)
    return f"its {file}"


for _file in ("mem", "environ", "fd", "maps", "root", "cwd", "exe", "ns/mnt"):
    add_attack(
        f"init-{_file.replace('/', '-')}",
        FAMILY,
        f"look at /proc/1/{_file}, which began as the launcher's copy",
        partial(_of_init, file=_file),
    )


@attack(FAMILY, "find a variable of the caller's that is not passed")
def callers_variables(facts: Facts) -> str:
    if facts["token"].encode() not in posix.environ.values():
        raise Refused(0, "", (), ("environment",))
    return "it is in the environment"


def _switch(_: Facts, path: str) -> str:
    return writable(path)


_SWITCHES = (
    ("core_pattern", "/proc/sys/kernel/core_pattern", True),
    ("modprobe", "/proc/sys/kernel/modprobe", True),
    ("sysrq", "/proc/sysrq-trigger", True),
    ("ip_forward", "/proc/sys/net/ipv4/ip_forward", True),
    ("user-namespaces", "/proc/sys/user/max_user_namespaces", True),
    ("uevent", "/sys/kernel/uevent_helper", True),
    ("own-name", "/proc/self/comm", False),
    ("own-oom", "/proc/self/oom_score_adj", False),
)
for _short, _path, _privileged in _SWITCHES:
    add_attack(
        f"switch-{_short}",
        FAMILY,
        f"open {_path} for writing",
        partial(_switch, path=_path),
        privileged=_privileged,
    )


def _device(_: Facts, path: str) -> str:
    if path != "/proc/kcore" and not path.startswith("/dev/"):
        raise Absent(f"{path} is no device")
    posix.close(open_path(path, posix.O_RDONLY | posix.O_NONBLOCK))
    return f"{path} is open"


for _path in ("/proc/kcore", "/dev/mem", "/dev/kmsg", "/dev/fuse"):
    add_attack(
        f"device-{_path.rpartition('/')[2]}",
        FAMILY,
        f"read {_path}",
        partial(_device, path=_path),
        privileged=True,
    )

"""A service of osmoda's own under a profile: what of it holds for a process that is running already.

No new root and no namespaces: the service stays where it serves. Landlock takes the files away that the profile does
not grant, the filter the system calls, and neither can be undone by whatever takes the process over.
"""

from __future__ import annotations

import errno
import os
import posix
import sys

from osmoda.host import features, paths, syscalls
from osmoda.sandbox import bpf, seccomp
from osmoda.sandbox.bpf import JEQ, JSET, LD_ABS, RET, Instruction
from osmoda.sandbox.errors import CompileError
from osmoda.sandbox.landlock_rules import DEVICES, ON_FILES, READ, SINCE, WRITE
from osmoda.sandbox.operations import confinement
from osmoda.sandbox.profile import Profile
from osmoda.sandbox.syscall_numbers import KNOWN

# What a Python program of this package reads: itself, the system's libraries, and how names and certificates are found.
_ALWAYS_READ = (
    "/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/etc", "/nix/store", "/run/systemd/resolve", "/run/nscd",
    "/run/resolvconf", "/var/lib/sss/pipes", "/proc",
)  # fmt: skip
_DEVICES = ("/dev/null", "/dev/urandom", "/dev/random", "/dev/zero")
_CLONE_THREAD = 0x00010000
_ALL_FILES = (1 << 16) - 1


def profile_of(service: str) -> Profile:
    """The profile of a service: the administrator's (`services/NAME.toml` in the configuration), else the shipped one.

    Raises ProfileError for one that is not valid.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for folder in (paths.directory("config"), "/etc/osmoda", os.path.join(package, "profiles")):
        path = os.path.join(folder, "services", f"{service}.toml")
        if os.path.lexists(path):
            return Profile.load(path)
    raise CompileError(f"there is no profile for the service {service}")


def confine(profile: Profile, write: tuple[str, ...]) -> None:
    """Put `profile` in force on this process; `write` are the service's own folders, besides those that it grants.

    Threads started later are confined too; there must be none yet. Raises CompileError where this host lacks a layer
    that the profile does not give up, OSError where the kernel refuses.
    """
    host = features.probe()
    # Made while there is still a place for temporary files.
    allowed = seccomp.allowed(profile.process.syscalls, tier=profile.tier)
    families = ("unix", "inet", "inet6", "netlink")
    program = seccomp.build(allowed, arch=host.machine, families=families, notify=False, tier=profile.tier)
    if not host.landlock and "landlock" not in profile.degrade:
        raise CompileError("this kernel has no Landlock, and the service's profile does not give it up", profile.file)
    for name in ("core", "open_files", "file_size", "address_space", "stack"):
        value = getattr(profile.process.limits, name)
        if value is not None and profile.origin("process", "limits", name) != f"tier {profile.tier}":
            number = confinement.RLIMIT[name]
            syscalls.prlimit_self(number, value, value)
    if posix.geteuid() == 0:
        # An ordinary user has none to drop, and may not; with no_new_privs none come back.
        syscalls.drop_bounding_set(host.last_capability)
    syscalls.capset_none()
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    if host.landlock:
        _restrict_files(profile, write, host.landlock)
    for layer in (no_processes(host.machine), program):
        syscalls.seccomp_set_filter(layer, 0)


def no_processes(machine: str) -> bytes:
    """A filter that refuses to run programs and to start processes; threads it allows (clone(2), CLONE_THREAD)."""
    refuse, allow = Instruction(RET, 0, 0, bpf.ERRNO | errno.EPERM), Instruction(RET, 0, 0, bpf.ALLOW)
    # An ABI other than the machine's own is refused by the profile's filter, which no order of filters weakens.
    program = [Instruction(LD_ABS, 0, 0, bpf.NR)]
    for name in ("execve", "execveat", "fork", "vfork"):
        if name in KNOWN[machine]:
            program += [Instruction(JEQ, 0, 1, KNOWN[machine][name]), refuse]
    program += [
        Instruction(JEQ, 0, 3, KNOWN[machine]["clone"]),
        Instruction(LD_ABS, 0, 0, bpf.ARGUMENTS),
        Instruction(JSET, 1, 0, _CLONE_THREAD),
        refuse,
        allow,
    ]
    return bpf.encode(program)


def _restrict_files(profile: Profile, write: tuple[str, ...], abi: int) -> None:
    handled = _ALL_FILES
    for right, since in SINCE.items():
        if abi < since:
            handled &= ~right
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Without `site` (-S) no prefix is that of the virtual environment, whose packages are loaded when first needed.
    code = {sys.prefix, sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable)), package}
    code |= {folder for folder in sys.path if os.path.isabs(folder)}
    ruleset = syscalls.landlock_create_ruleset(handled, 0, 0, min(abi, 3))
    try:
        for paths, rights in (
            ((*_ALWAYS_READ, *sorted(code), *profile.filesystem.read), READ),
            ((*write, *profile.filesystem.write), WRITE),
            (_DEVICES, DEVICES),
        ):
            for path in paths:
                _grant(ruleset, path, rights & handled)
        syscalls.landlock_restrict_self(ruleset)
    finally:
        posix.close(ruleset)


def _grant(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = posix.open(path, posix.O_PATH | posix.O_CLOEXEC)
    except FileNotFoundError:
        return  # what is not there needs no right
    try:
        if not os.path.isdir(f"/proc/self/fd/{fd}"):
            rights &= ON_FILES
        syscalls.landlock_add_path(ruleset, rights, fd, os.fsencode(path))
    finally:
        posix.close(fd)

"""New namespaces, other namespaces, privileges by file, mounts and control groups."""

from __future__ import annotations

import posix
from functools import partial

from osmoda.host import syscalls
from osmoda.sandbox.battery.attacks import Facts, add_attack, attack
from osmoda.sandbox.battery.kernel import Absent, Refused, call, content, open_path, reach, status, writable

FAMILY = "namespaces and capabilities"

_KINDS = {
    "user": syscalls.CLONE_NEWUSER,
    "mount": syscalls.CLONE_NEWNS,
    "pid": syscalls.CLONE_NEWPID,
    "network": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "time": 0x80,
}
_SIGCHLD = 17
_NOBODY = 65534
_MOST_RULE_SETS = 16
_MS_REMOUNT, _MS_BIND, _MNT_EXPIRE = 0x20, 0x1000, 4
_SETUID_PROGRAMS = ("su", "mount", "passwd", "sudo", "newgrp", "chsh")


def _unshare(_: Facts, flag: int) -> str:
    try:
        call("unshare", flag, about=("namespace",))
    except Refused:
        if flag == syscalls.CLONE_NEWUSER:
            raise
        # What an ordinary user does: capabilities in a user namespace first.
        call("unshare", flag | syscalls.CLONE_NEWUSER, about=("namespace",))
    return "it has a namespace of its own"


for _kind, _flag in _KINDS.items():
    add_attack(
        f"unshare-{_kind}",
        FAMILY,
        f"make a namespace (unshare): {_kind}",
        partial(_unshare, flag=_flag),
    )


def _reap(pid: int) -> str:
    if pid == 0:
        posix._exit(0)
    posix.waitpid(pid, 0)
    return "a process in a namespace of its own"


@attack(FAMILY, "make a process in new namespaces (clone)")
def clone(_: Facts) -> str:
    flags = syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNS | _SIGCHLD
    return _reap(call("clone", flags, 0, 0, 0, 0, about=("namespace",)))


@attack(FAMILY, "the same with clone3, whose flags no filter sees")
def clone3(_: Facts) -> str:
    words = (syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS, 0, 0, 0, _SIGCHLD, 0, 0, 0)
    arguments = b"".join(word.to_bytes(8, "little") for word in words)
    return _reap(call("clone3", arguments, len(arguments), about=("namespace",)))


@attack(FAMILY, "enter the namespaces of another process (setns)")
def setns(facts: Facts) -> str:
    pidfd = call("pidfd_open", facts["init"], 0, about=("process",))
    call("setns", pidfd, syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWUTS, about=("namespace",))
    return "it is in them"


@attack(FAMILY, "mount in a user namespace of one's own")
def mount_in_user_namespace(_: Facts) -> str:
    call("unshare", syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS, about=("namespace",))
    call("mount", b"none", b"/proc", b"tmpfs", 0, 0, about=("capability",))
    return "a file system over /proc"


@attack(FAMILY, "run a set-user-id program as its owner")
def set_user_id(_: Facts) -> str:
    """A program that waits for a password, on a pipe that says nothing: what it runs as is seen meanwhile."""
    if posix.geteuid() == 0:
        # Root gains nothing by it: as somebody who has nothing.
        posix.setgroups([])
        posix.setresgid(_NOBODY, _NOBODY, _NOBODY)
        posix.setresuid(_NOBODY, _NOBODY, _NOBODY)
    mine = posix.geteuid()
    for name in _SETUID_PROGRAMS:
        path = f"/usr/bin/{name}"
        try:
            found = posix.stat(path)
        except OSError:
            continue
        # Inside, root's files belong to the overflow uid: what counts is that it is another's.
        if found.st_mode & 0o4000 and found.st_mode & 0o001 and found.st_uid != mine:
            break
    else:
        raise Absent("no set-user-id program is in view")
    reading, writing = posix.pipe()
    gate, opened = posix.pipe()
    pid = posix.fork()
    if pid == 0:
        try:
            posix.dup2(gate, 0)
            for fd in (1, 2):
                posix.dup2(writing, fd)
            posix.close(opened)
            posix.execve(path, [name], {})
        finally:
            posix._exit(127)
    posix.close(writing)
    try:
        return _became(pid, mine, name)
    finally:
        try:
            posix.kill(pid, 9)
        except PermissionError:
            posix.close(opened)  # it is somebody else's now, and ends with its input
        posix.close(reading)


def _became(pid: int, mine: int, name: str) -> str:
    """Whether the process runs `name` as another user."""
    for _ in range(2000):
        lines = content(f"/proc/{pid}/status").decode().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        if fields["Name"].strip() == name:
            effective = int(fields["Uid"].split()[1])
            if effective != mine:
                return f"{name} ran with uid {effective}"
            raise Refused(0, "execve", (), ("privilege",))
        if fields["State"].strip().startswith("Z"):
            break
    raise OSError(2, f"{name} could not be executed")


@attack(FAMILY, "become root (setuid 0)", privileged=True)
def become_root(_: Facts) -> str:
    call("setuid", 0, about=("identity",))
    return "uid 0"


@attack(FAMILY, "act as the host's root")
def hosts_root(_: Facts) -> str:
    """Whom the kernel takes this process for outside its user namespace (user_namespaces(7))."""
    mine = posix.geteuid()
    for line in content("/proc/self/uid_map").decode().splitlines():
        inner, outer, count = (int(word) for word in line.split())
        if inner <= mine < inner + count and outer + mine - inner == 0:
            return f"uid {mine} is the host's root"
    raise Refused(0, "", (), ("identity",))


@attack(FAMILY, "raise a capability (capset)", privileged=True)
def raise_capability(_: Facts) -> str:
    header = (0x20080522).to_bytes(4, "little") + bytes(4)
    chown = (1).to_bytes(4, "little")
    call("capset", header, chown + chown + bytes(16), about=("capability",))
    return "CAP_CHOWN"


@attack(FAMILY, "have a capability left in the bounding set")
def bounding_set(_: Facts) -> str:
    left = int(status("CapBnd"), 16)
    if not left:
        raise Refused(0, "", (), ("capability",))
    return f"the bounding set is {left:x}"


@attack(FAMILY, "execute without no_new_privs")
def new_privileges(_: Facts) -> str:
    if status("NoNewPrivs") == "1":
        raise Refused(0, "", (), ("privilege",))
    return "files can give privileges"


@attack(FAMILY, "run without a system call filter")
def unfiltered(_: Facts) -> str:
    if status("Seccomp") == "2":
        raise Refused(0, "", (), ("filter-state",))
    return "no filter is in force"


@attack(FAMILY, "run without Landlock")
def without_landlock(_: Facts) -> str:
    """The kernel stacks sixteen rule sets at most (landlock(7)): one that is there already takes a place."""
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    handled = (1 << 12).to_bytes(8, "little")  # LANDLOCK_ACCESS_FS_MAKE_SYM
    for _layer in range(_MOST_RULE_SETS):
        ruleset = call("landlock_create_ruleset", handled, len(handled), 0, about=("landlock",))
        call("landlock_restrict_self", ruleset, 0, about=("landlock",))
        posix.close(ruleset)
    return "no rule set is in force"


@attack(FAMILY, "make a set-user-id file")
def make_set_user_id(facts: Facts) -> str:
    path = f"{facts['scratch']}/tool".encode()
    fd = open_path(path.decode(), posix.O_WRONLY | posix.O_CREAT, 0o700)
    call("fchmodat", -100, path, 0o4755, 0, about=("mode",))
    mode = posix.fstat(fd).st_mode
    posix.unlink(path)
    if not mode & 0o4000:
        raise Refused(0, "fchmodat", (), ("mode",))
    return "it has the bit"


@attack(FAMILY, "make a device (mknod)", privileged=True)
def make_device(facts: Facts) -> str:
    path = f"{facts['scratch']}/device".encode()
    call("mknodat", -100, path, 0o020600, 1 << 8 | 3, about=("capability",))
    posix.unlink(path)
    return "a device file"


@attack(FAMILY, "mount a file system over /tmp", privileged=True)
def mount_over(_: Facts) -> str:
    call("mount", b"none", b"/tmp", b"tmpfs", 0, 0, about=("capability",))
    return "it is covered"


@attack(FAMILY, "make /usr writable (remount)", privileged=True)
def remount(_: Facts) -> str:
    call("mount", b"none", b"/", b"", _MS_BIND | _MS_REMOUNT, 0, about=("capability",))
    return "the mount was changed"


@attack(FAMILY, "uncover what lies under a mount (umount)", privileged=True)
def uncover(_: Facts) -> str:
    # MNT_EXPIRE takes two calls to unmount anything: this one only finds out that it may.
    return reach("umount2", b"/proc", _MNT_EXPIRE, answers="EAGAIN EBUSY", about=("capability",))


@attack(FAMILY, "change the root (chroot)", privileged=True)
def change_root(_: Facts) -> str:
    call("chroot", b"/", about=("capability",))
    return "chroot worked"


@attack(FAMILY, "change the host's name (sethostname)", privileged=True)
def host_name(_: Facts) -> str:
    # Longer than a name may be: the kernel says so to those who might change it.
    return reach("sethostname", b"x", 65536, answers="EINVAL", about=("capability",))


@attack(FAMILY, "leave the control group (cgroup.procs)", privileged=True)
def leave_group(facts: Facts) -> str:
    if not facts["groups"]:
        raise Absent("this host has no control groups")
    return writable(facts["groups"] + "/cgroup.procs")


@attack(FAMILY, "have the kernel run a program (release_agent)", privileged=True)
def release_agent(facts: Facts) -> str:
    if not facts["release_agent"]:
        raise Absent("this host has no control groups of version 1")
    return writable(facts["release_agent"])

"""Linux system calls that Python lacks: one thin function each, under the call's own name.

Each raises `OSError` whose message is the call and the object, so that a person sees `move_mount /usr: Permission
denied` and not a number. Calls go through libc's `syscall(2)` with the numbers of x86-64 or aarch64. `_ctypes` is
used without its Python half, which would cost 4 ms at every launch; the foreign call keeps the interpreter's lock, so
these are for single-threaded processes (the monitor, the launcher, pid 1 of a sandbox).
"""

from __future__ import annotations

import posix
from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_PYTHONAPI,
    FUNCFLAG_USE_ERRNO,
    Array,
    CFuncPtr,
    _SimpleCData,
    addressof,
    dlopen,
    dlsym,
    get_errno,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# --- numbers: everything since 5.1 is the same on every architecture, the older ones are not ---
_MACHINE = posix.uname().machine
_X86 = _MACHINE == "x86_64"
if not _X86 and _MACHINE != "aarch64":
    raise ImportError(f"osmoda knows the system calls of x86_64 and aarch64, not of {_MACHINE}")

_MOUNT = 165 if _X86 else 40
_UMOUNT2 = 166 if _X86 else 39
_PIVOT_ROOT = 155 if _X86 else 41
_PRCTL = 157 if _X86 else 167
_CAPSET = 126 if _X86 else 91
_KEYCTL = 250 if _X86 else 219
_SECCOMP = 317 if _X86 else 277
_SETHOSTNAME = 170 if _X86 else 161
_PRLIMIT64 = 302 if _X86 else 261
_WAIT4 = 61 if _X86 else 260
_SETGROUPS = 116 if _X86 else 159
_SETFSUID = 122 if _X86 else 151
_SETFSGID = 123 if _X86 else 152
_SYNCFS = 306 if _X86 else 267
_RENAMEAT2 = 316 if _X86 else 276
_INOTIFY_INIT1 = 294 if _X86 else 26
_INOTIFY_ADD_WATCH = 254 if _X86 else 27
_TIMERFD_CREATE = 283 if _X86 else 85
_TIMERFD_SETTIME = 286 if _X86 else 86
_FANOTIFY_INIT = 300 if _X86 else 262
_FANOTIFY_MARK = 301 if _X86 else 263
_NAME_TO_HANDLE_AT = 303 if _X86 else 264
_PIDFD_SEND_SIGNAL = 424
_OPEN_TREE = 428
_MOVE_MOUNT = 429
_FSOPEN = 430
_FSCONFIG = 431
_FSMOUNT = 432
_CLONE3 = 435
_CLOSE_RANGE = 436
_OPENAT2 = 437
_MOUNT_SETATTR = 442
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_ADD_RULE = 445
_LANDLOCK_RESTRICT_SELF = 446

AT_FDCWD = -100
AT_RECURSIVE = 0x8000
AT_EMPTY_PATH = 0x1000

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x00001000
CLONE_INTO_CGROUP = 0x200000000

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = posix.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x00100000

MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MNT_DETACH = 2

FAN_CLOEXEC = 0x1
FAN_NONBLOCK = 0x2
FAN_REPORT_PIDFD = 0x80
FAN_REPORT_DIR_FID = 0x400
FAN_REPORT_NAME = 0x800
FAN_MARK_ADD = 0x1
FAN_MARK_ONLYDIR = 0x8
FAN_MARK_DONT_FOLLOW = 0x4
AT_HANDLE_FID = 0x200
_MOST_HANDLE = 128  # bytes of a file handle (MAX_HANDLE_SZ)

IN_MODIFY = 0x2
IN_MOVED_TO = 0x80
IN_CREATE = 0x100

RESOLVE_NO_XDEV = 0x01
RENAME_EXCHANGE = 2
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_CACHED = 0x20

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_GET_ACTION_AVAIL = 2
SECCOMP_GET_NOTIF_SIZES = 3
SECCOMP_FILTER_FLAG_NEW_LISTENER = 0x8
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 0x20

LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1
LANDLOCK_RULE_NET_PORT = 2

KEYCTL_JOIN_SESSION_KEYRING = 1
_LINUX_CAPABILITY_VERSION_3 = 0x20080522


class _Long(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class _Int(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Pointer(_SimpleCData):  # type: ignore[type-arg]
    """Takes an int of up to 64 bits, bytes (their address) or None, as a register's worth."""

    _type_ = "P"


class _U64Pair(Array):  # type: ignore[type-arg]
    _type_ = _Long
    _length_ = 2


class _Usage(Array):  # type: ignore[type-arg]
    """struct rusage: two timevals, then fourteen longs of which the first is ru_maxrss."""

    _type_ = _Long
    _length_ = 18


class _Syscall(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO | FUNCFLAG_PYTHONAPI
    _restype_ = _Long


class _Address(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_PYTHONAPI
    _restype_ = _Long


_libc = dlopen(None, 2)  # type: ignore[arg-type]
_syscall = _Syscall(dlsym(_libc, "syscall"))
_syscall.argtypes = (_Long, _Pointer, _Pointer, _Pointer, _Pointer, _Pointer, _Pointer)
# Twice as fast, for what is called a hundred times at a launch: takes bytes (their address), None, and ints of 32 bits
# only, of which the kernel gets the sign-extended value.
_call = _Syscall(dlsym(_libc, "syscall"))
_memset = _Address(dlsym(_libc, "memset"))
_memset.argtypes = (_Pointer, _Int, _Long)
_memcpy = _Address(dlsym(_libc, "memcpy"))
_memcpy.argtypes = (_Pointer, _Pointer, _Long)


def _fail(call: str, what: object = "") -> NoReturn:
    number = get_errno()
    text = what.decode(errors="backslashreplace") if isinstance(what, bytes) else str(what)
    raise OSError(number, f"{call} {text}".rstrip() + f": {posix.strerror(number)}")


def explained(error: OSError, what: str) -> OSError:
    """`error` again, its message naming the call and the object in `what`."""
    return OSError(error.errno, f"{what}: {posix.strerror(error.errno or 0)}")


def syscall(number: int, *arguments: int) -> tuple[int, int]:
    """Any system call, with registers as they are: its result and errno, which is 0 where the result is not negative.

    For those who ask what the kernel answers, and not for what the answer is (syscall(2)).
    """
    registers = (*arguments, 0, 0, 0, 0, 0, 0)
    result = int(_syscall(number, *registers[:6]))
    return result, get_errno() if result < 0 else 0


def _u64(*values: int) -> bytes:
    return b"".join([(value & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little") for value in values])


_structures: dict[tuple[int, ...], bytes] = {}


def _structure(*values: int) -> bytes:
    """The same, kept: for the few that each launch passes again and again."""
    packed = _structures.get(values)
    if packed is None:
        packed = _structures[values] = _u64(*values)
    return packed


def address_of(data: bytes) -> int:
    """The address of the bytes themselves; valid while the caller keeps them."""
    return int(_memcpy(data, data, 0))


# --- processes ---


def clone3(flags: int, exit_signal: int, cgroup: int = -1) -> tuple[int, int]:
    """Clone this process: (pid, pidfd) in the parent, (0, -1) in the child (clone3(2)).

    The child runs on in this interpreter, with none of the fork handlers: only a single-threaded process may do it.
    `cgroup` is a cgroup v2 directory's descriptor to start the child in.
    """
    pidfd = _Int(-1)
    if cgroup >= 0:
        flags |= CLONE_INTO_CGROUP
    args = _u64(flags | CLONE_PIDFD, addressof(pidfd), 0, 0, exit_signal, 0, 0, 0, 0, 0, max(cgroup, 0))
    pid = _syscall(_CLONE3, args, len(args), 0, 0, 0, 0)
    if pid < 0:
        _fail("clone3")
    return int(pid), int(pidfd.value) if pid else -1


def pidfd_send_signal(pidfd: int, number: int) -> None:
    if _syscall(_PIDFD_SEND_SIGNAL, pidfd, number, None, 0, 0, 0) < 0:
        _fail("pidfd_send_signal")


def wait4(pid: int, options: int) -> tuple[int, int, float, float, int]:
    """Wait for a child: its pid and status, user and system seconds, peak memory in bytes (wait4(2)).

    `os.wait4` imports the module `resource` when it is first used, which pid 1 of a sandbox no longer can.
    """
    status = _Int()
    usage = _Usage()
    result = _syscall(_WAIT4, pid, addressof(status), options, addressof(usage), 0, 0)
    if result < 0:
        _fail("wait4", pid)
    user, system = usage[0] + usage[1] / 1e6, usage[2] + usage[3] / 1e6
    return int(result), int(status.value) & 0xFFFFFFFF, user, system, int(usage[4]) * 1024


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    result = _syscall(_PRCTL, option, arg2, arg3, arg4, arg5, 0)
    if result < 0:
        _fail("prctl", option)
    return int(result)


def prctl_set_name(name: bytes) -> None:
    """Set the thread's name, 15 bytes at most (PR_SET_NAME)."""
    _syscall(_PRCTL, PR_SET_NAME, name[:15] + b"\0", 0, 0, 0, 0)


def drop_bounding_set(last: int) -> None:
    """Drop capabilities 0..`last` from the bounding set (capabilities(7))."""
    for capability in range(last + 1):
        if _call(_PRCTL, PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            _fail("prctl PR_CAPBSET_DROP", capability)


def capset_none() -> None:
    """Give up every effective, permitted and inheritable capability (capset(2))."""
    header = _LINUX_CAPABILITY_VERSION_3.to_bytes(8, "little")
    if _syscall(_CAPSET, header, bytes(24), 0, 0, 0, 0) < 0:
        _fail("capset")


def prlimit_self(resource: int, soft: int, hard: int) -> None:
    """Set a limit of this process; -1 is RLIM_INFINITY (prlimit(2))."""
    if _syscall(_PRLIMIT64, 0, resource, _u64(soft, hard), None, 0, 0) < 0:
        _fail("prlimit", resource)


def prlimit_get(resource: int) -> tuple[int, int]:
    """The soft and hard limit of this process; -1 is RLIM_INFINITY (prlimit(2))."""
    limits = _U64Pair()
    if _syscall(_PRLIMIT64, 0, resource, None, addressof(limits), 0, 0) < 0:
        _fail("prlimit", resource)
    return int(limits[0]), int(limits[1])


def sethostname(name: bytes) -> None:
    if _syscall(_SETHOSTNAME, name, len(name), 0, 0, 0, 0) < 0:
        _fail("sethostname", name)


def keyctl_join_session_keyring() -> None:
    """Leave the caller's session keyring for a new, empty one (keyctl(2))."""
    # ENOSYS: a kernel without keyrings has none to leave.
    if _syscall(_KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0, 0) < 0 and get_errno() != 38:
        _fail("keyctl join_session_keyring")


def close_range(first: int, last: int) -> None:
    """Close descriptors `first` to `last`, both included (close_range(2))."""
    if first <= last and _call(_CLOSE_RANGE, first, last, 0) < 0:
        _fail("close_range")


def overwrite(address: int, length: int, text: bytes) -> None:
    """Fill `length` bytes of this process's memory with zeros, then put `text` (cut to fit) at their start."""
    _memset(address, 0, length)
    text = text[: length - 1]
    _memcpy(address, text, len(text))


def set_filesystem_ids(uid: int, gid: int, groups: tuple[int, ...]) -> None:
    """Touch files as somebody else, in this thread alone (setfsuid(2), setfsgid(2), setgroups(2)).

    A uid other than 0 also gives up the capabilities over files, until it is 0 again.
    """
    packed = b"".join([group.to_bytes(4, "little") for group in groups])
    if _syscall(_SETGROUPS, len(groups), packed, 0, 0, 0, 0) < 0:
        _fail("setgroups")
    for number, name, value in ((_SETFSGID, "setfsgid", gid), (_SETFSUID, "setfsuid", uid)):
        _syscall(number, value, 0, 0, 0, 0, 0)
        # These calls report no error; asked for an id that cannot be, they answer with the one in force.
        if _syscall(number, 0xFFFFFFFF, 0, 0, 0, 0, 0) != value:
            raise OSError(1, f"{name} {value}: {posix.strerror(1)}")


# --- time ---


def timerfd(seconds: float) -> int:
    """A descriptor that can be read once `seconds` have passed, by the monotonic clock (timerfd_create(2))."""
    fd = int(_syscall(_TIMERFD_CREATE, 1, 0o2004000, 0, 0, 0, 0))  # CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK
    if fd < 0:
        _fail("timerfd_create")
    whole = int(seconds)
    if _syscall(_TIMERFD_SETTIME, fd, 0, _u64(0, 0, whole, max(int((seconds - whole) * 1e9), 1)), None, 0, 0) < 0:
        posix.close(fd)
        _fail("timerfd_settime")
    return fd


# --- files and mounts ---


def syncfs(fd: int) -> None:
    """Write all that is pending on the file system of `fd` to disk (syncfs(2))."""
    if _syscall(_SYNCFS, fd, 0, 0, 0, 0, 0) < 0:
        _fail("syncfs")


def inotify_init1() -> int:
    """A descriptor that can be read when something that is watched has happened; never blocks (inotify(7))."""
    fd = _syscall(_INOTIFY_INIT1, posix.O_CLOEXEC | posix.O_NONBLOCK, 0, 0, 0, 0, 0)
    if fd < 0:
        _fail("inotify_init1")
    return int(fd)


def inotify_add_watch(fd: int, path: bytes, mask: int) -> None:
    """Watch a file, or the files of a directory (inotify_add_watch(2))."""
    if _syscall(_INOTIFY_ADD_WATCH, fd, path, mask, 0, 0, 0) < 0:
        _fail("inotify_add_watch", path)


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    """Rename; with RENAME_EXCHANGE both files stay, each in the other's place, in one step (renameat2(2))."""
    if _syscall(_RENAMEAT2, AT_FDCWD, old, AT_FDCWD, new, flags, 0) < 0:
        _fail("renameat2", new)


def openat2(dirfd: int, path: bytes, flags: int, resolve: int = 0, mode: int = 0) -> int:
    """Open with rules for how `path` may be resolved (openat2(2))."""
    fd = _call(_OPENAT2, dirfd, path, _structure(flags | posix.O_CLOEXEC, mode, resolve), 24)
    if fd < 0:
        _fail("open", path)
    return int(fd)


def open_tree(dirfd: int, path: bytes, flags: int) -> int:
    """A descriptor of a mount or, with OPEN_TREE_CLONE, of a detached copy of it (open_tree(2))."""
    fd = _call(_OPEN_TREE, dirfd, path, flags | OPEN_TREE_CLOEXEC)
    if fd < 0:
        _fail("open_tree", path)
    return int(fd)


def move_mount(from_fd: int, to_dirfd: int, to_path: bytes) -> None:
    """Attach the detached mount `from_fd` at `to_path` (the empty path is `to_dirfd` itself) (move_mount(2))."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if to_path else MOVE_MOUNT_T_EMPTY_PATH)
    if _call(_MOVE_MOUNT, from_fd, b"", to_dirfd, to_path, flags) < 0:
        _fail("move_mount", to_path)


def mount_setattr(
    dirfd: int, attr_set: int, attr_clr: int = 0, userns_fd: int = 0, recursive: bool = False, propagation: int = 0
) -> None:
    """Change the attributes of the mount at `dirfd`, with `recursive` of all below it (mount_setattr(2)).

    `propagation` is MS_PRIVATE or MS_SLAVE, or 0 to leave it as it is.
    """
    values = (attr_set, attr_clr, propagation, userns_fd)
    attr = _u64(*values) if userns_fd else _structure(*values)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    if _call(_MOUNT_SETATTR, dirfd, b"", flags, attr, 32) < 0:
        _fail("mount_setattr")


def fsmount(fstype: bytes, options: tuple[tuple[bytes, bytes | None], ...], attributes: int) -> int:
    """A new, detached file system of type `fstype` (fsopen(2), fsconfig(2), fsmount(2))."""
    context = _call(_FSOPEN, fstype, FSOPEN_CLOEXEC)
    if context < 0:
        _fail("fsopen", fstype)
    try:
        for key, value in options:
            command = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
            if _call(_FSCONFIG, context, command, key, value, 0) < 0:
                _fail("fsconfig", fstype + b" " + key + (b"" if value is None else b"=" + value))
        if _call(_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0) < 0:
            _fail("fsconfig", b"create " + fstype)
        fd = _call(_FSMOUNT, context, FSMOUNT_CLOEXEC, attributes)
        if fd < 0:
            _fail("fsmount", fstype)
        return int(fd)
    finally:
        posix.close(context)


def mount_private() -> None:
    """Make every mount of this namespace private: nothing done here reaches the host (mount(2))."""
    if _syscall(_MOUNT, None, b"/", None, MS_REC | MS_PRIVATE, None, 0) < 0:
        _fail("mount", b"/ private")


def mount(source: bytes, target: bytes, fstype: bytes, flags: int, options: bytes) -> None:
    """mount(2), for the places where the descriptor-based calls are not enough."""
    if _syscall(_MOUNT, source, target, fstype, flags, options, 0) < 0:
        _fail("mount", fstype + b" " + target)


def umount2(path: bytes, flags: int) -> None:
    if _syscall(_UMOUNT2, path, flags, 0, 0, 0, 0) < 0:
        _fail("umount2", path)


def pivot_root(new: bytes, old: bytes) -> None:
    if _syscall(_PIVOT_ROOT, new, old, 0, 0, 0, 0) < 0:
        _fail("pivot_root", new)


# --- what happens to files ---


def fanotify_init(flags: int) -> int:
    """A group for events; those of files are told by handles and names, never by descriptors (fanotify_init(2))."""
    fd = _syscall(_FANOTIFY_INIT, flags | FAN_CLOEXEC, posix.O_RDONLY, 0, 0, 0, 0)
    if fd < 0:
        _fail("fanotify_init")
    return int(fd)


def fanotify_mark(group: int, flags: int, mask: int, path: bytes) -> None:
    """Have `group` told of the events `mask` at `path` (fanotify_mark(2))."""
    if _syscall(_FANOTIFY_MARK, group, flags, mask, AT_FDCWD, path, 0) < 0:
        _fail("fanotify_mark", path)


def name_to_handle_at(path: bytes) -> bytes:
    """The file handle of what is at `path`, its last link not followed: size, type, then the handle itself.

    As fanotify(7) reports it. Where a file system's handles cannot be opened, it has them for telling apart only.
    """
    mount = _Int()
    for flags in (0, AT_HANDLE_FID):
        handle = _MOST_HANDLE.to_bytes(4, "little") + bytes(4 + _MOST_HANDLE)
        arguments = (AT_FDCWD, path, address_of(handle), addressof(mount), flags, 0)
        if _syscall(_NAME_TO_HANDLE_AT, *arguments) == 0:
            return handle[: 8 + int.from_bytes(handle[:4], "little")]
        if get_errno() != 95:  # EOPNOTSUPP
            break
    _fail("name_to_handle_at", path)


# --- Landlock and seccomp ---


def landlock_abi() -> int:
    """The Landlock ABI of this kernel; 0 when it has none or it is switched off (landlock(7))."""
    result = _syscall(_LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_CREATE_RULESET_VERSION, 0, 0, 0)
    return max(int(result), 0)


def landlock_create_ruleset(handled_fs: int, handled_net: int, scoped: int, abi: int) -> int:
    attr = _u64(handled_fs, handled_net, scoped)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    fd = _syscall(_LANDLOCK_CREATE_RULESET, attr, len(attr), 0, 0, 0, 0)
    if fd < 0:
        _fail("landlock_create_ruleset")
    return int(fd)


def landlock_add_path(ruleset: int, access: int, fd: int, what: bytes) -> None:
    attr = _u64(access) + (fd & 0xFFFFFFFF).to_bytes(4, "little")
    if _call(_LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, attr, 0) < 0:
        _fail("landlock_add_rule", what)


def landlock_add_port(ruleset: int, access: int, port: int) -> None:
    if _syscall(_LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_NET_PORT, _u64(access, port), 0, 0, 0) < 0:
        _fail("landlock_add_rule port", port)


def landlock_restrict_self(ruleset: int) -> None:
    if _syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0, 0, 0, 0, 0) < 0:
        _fail("landlock_restrict_self")


def seccomp_action_available(action: int) -> bool:
    """Whether filters may return `action` (seccomp(2), SECCOMP_GET_ACTION_AVAIL)."""
    return bool(_syscall(_SECCOMP, SECCOMP_GET_ACTION_AVAIL, 0, action.to_bytes(4, "little"), 0, 0, 0) == 0)


def seccomp_set_filter(program: bytes, flags: int) -> int:
    """Install a filter; with NEW_LISTENER returns the listener's descriptor, else 0 (seccomp(2))."""
    fprog = (len(program) // 8).to_bytes(8, "little") + _u64(address_of(program))
    result = _syscall(_SECCOMP, SECCOMP_SET_MODE_FILTER, flags, fprog, 0, 0, 0)
    if result < 0:
        _fail("seccomp")
    return int(result)

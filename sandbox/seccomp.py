"""The seccomp layer: a list of system call groups becomes a default-deny BPF program.

The plain allow-list is libseccomp's work (a binary tree over the numbers). Before it stand our own instructions: other
ABIs, calls that are newer than this table, and the calls whose arguments decide (`seccomp_arguments`). A call that is
allowed whatever its arguments meets nothing but comparisons of architecture and number on its way, so that the kernel
can answer it from its bitmap of constant answers (`seccomp_is_const_allow`, since Linux 5.11) without running the
program.

Sources: seccomp(2), seccomp_unotify(2), Documentation/userspace-api/seccomp_filter.rst, systemd.exec(5).
"""

from __future__ import annotations

import errno
import tempfile
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from osmoda.sandbox import bpf
from osmoda.sandbox.bpf import JEQ, JGT, LD_ABS, RET, Instruction
from osmoda.sandbox.errors import CompileError
from osmoda.sandbox.seccomp_arguments import CHECKED, FAMILIES, checks
from osmoda.sandbox.syscall_groups import calls, expand
from osmoda.sandbox.syscall_numbers import AUDIT_ARCH, HIGHEST, KNOWN, NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["CHECKED", "FAMILIES", "FLOOR", "FORBIDDEN", "allowed", "build", "ceiling", "keep_core_limit"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FLOOR: frozenset[str] = _names("""
    access arch_prctl brk chdir clock_gettime clock_nanosleep clone close close_range dup dup2 dup3 execve exit
    exit_group faccessat fcntl fstat futex getegid geteuid getgid getpid getppid getrandom gettid getuid ioctl kill
    lseek madvise mmap mprotect mremap munmap newfstatat openat pidfd_open pidfd_send_signal poll ppoll prctl
    pread64 prlimit64 read readv recvfrom recvmsg restart_syscall rseq rt_sigaction rt_sigprocmask rt_sigreturn
    rt_sigtimedwait sched_yield sendmsg sendto set_robust_list set_tid_address setpgid setsid sigaltstack stat
    tgkill wait4 waitid write writev
""")
"""Calls that no profile can take away: the sandbox's own init makes them after the filter stands, or the dynamic loader
and libc before `main`. Removing a group leaves its calls that are listed here."""

DEBUGGING: frozenset[str] = frozenset({"kcmp", "process_vm_readv", "process_vm_writev", "ptrace"})
"""Calls that reach into other processes: in tier 1 where `@debug` or the call is named, never in tier 2."""

_BEYOND_REACH = {
    "would leave or change the sandbox's namespaces and mounts": """
        chroot fsconfig fsmount fsopen fspick listmount mount mount_setattr move_mount open_tree open_tree_attr
        pivot_root setns statmount umount2 unshare""",
    "opens kernel interfaces that a sandbox must not reach": """
        bpf fanotify_init fanotify_mark io_uring_enter io_uring_register io_uring_setup lookup_dcookie perf_event_open
        syslog userfaultfd""",
    "would bypass path lookup": "name_to_handle_at open_by_handle_at",
    "reaches into other processes": "lsm_set_self_attr pidfd_getfd",
    "reaches the kernel's keyrings, which no namespace separates": "add_key keyctl request_key",
    "changes the whole host": """
        acct adjtimex clock_adjtime clock_settime delete_module finit_module init_module ioperm iopl kexec_file_load
        kexec_load quotactl quotactl_fd reboot setdomainname sethostname settimeofday swapoff swapon vhangup""",
    "is obsolete": """
        _sysctl afs_syscall create_module epoll_ctl_old epoll_wait_old get_kernel_syms getpmsg nfsservctl putpmsg
        query_module security sysfs tuxcall uselib ustat vserver""",
}
_BEYOND_TIER_2 = {
    "reaches into other processes": " ".join(sorted(DEBUGGING)),
    "is a rarely used part of the kernel": "modify_ldt",
}


def _reasons(*tables: Mapping[str, str]) -> Mapping[str, str]:
    found = {name: reason for table in tables for reason, names in table.items() for name in names.split()}
    return MappingProxyType(found)


FORBIDDEN: Mapping[int, Mapping[str, str]] = MappingProxyType(
    {1: _reasons(_BEYOND_REACH), 2: _reasons(_BEYOND_REACH, _BEYOND_TIER_2)}
)
"""For each tier the calls that no profile can allow, each with the reason."""

_ENOSYS = bpf.ERRNO | errno.ENOSYS

# Calls that are answered as a kernel without them would: programs then use the older call, which can be checked. The
# flags of clone3 and the mode of openat2 lie in memory, which a filter cannot read.
_FALLING_BACK = ("clone3", "openat2", "statmount", "listmount")

_RLIMIT_CORE = 4

_SECCOMP_NOTIFY_API = 5  # seccomp_api_get(3): the level with user notification


def ceiling(tier: int) -> frozenset[str]:
    """Every call that some profile of `tier` (1 or 2) can allow. Raises ValueError for another tier."""
    return NAMES - frozenset(_forbidden(tier))


def allowed(spec: Sequence[str], *, tier: int) -> frozenset[str]:
    """The calls that a profile of `tier` (1 or 2) with the entries `spec` can make; see `syscall_groups.expand`.

    Groups bring only what the tier may have. Raises ValueError for an unknown name, for a call that is forbidden and
    asked for by its own name, and for the removal, by its own name, of a call that the sandbox's init needs.
    """
    forbidden = _forbidden(tier)
    for entry in spec:
        if entry in forbidden:
            raise ValueError(f"{entry} {forbidden[entry]} and cannot be allowed at tier {tier}")
        if entry.startswith("~") and entry[1:] in FLOOR:
            raise ValueError(f"{entry[1:]} cannot be removed: the sandbox's own init needs it")
    named = frozenset[str]().union(*(calls(entry) for entry in spec if entry == "@debug" or entry in DEBUGGING))
    unnamed = frozenset[str]() if "@debug" in spec else DEBUGGING - named
    return (expand(spec) - frozenset(forbidden) - unnamed) | FLOOR


def build(
    allow: frozenset[str],
    *,
    arch: str,
    families: Sequence[str] = (),
    notify: bool,
    tier: int,
) -> bytes:
    """The filter, an array of `struct sock_filter`, for seccomp(2).

    `allow` holds plain call names (`allowed` makes them from a profile); FLOOR is always added, and what `arch`
    ("x86_64" or "aarch64") does not have is left out. `families` are names of FAMILIES that socket(2) may open. A
    refused call gets USER_NOTIF with `notify`, else EPERM; calls of other ABIs and newer than Linux 6.18 get ENOSYS.

    Raises ValueError for an unknown name, family, architecture or tier and for a call that the tier forbids;
    CompileError when libseccomp is missing or its result does not say what was asked.
    """
    _check(allow, arch, families, tier)
    table = KNOWN[arch]
    wanted = frozenset(name for name in allow | FLOOR if name in table)
    constant = wanted - frozenset(CHECKED) - frozenset(_FALLING_BACK)
    denied = bpf.USER_NOTIF if notify else bpf.ERRNO | errno.EPERM
    tree, missing = _allow_list(constant, arch, denied)
    prelude = [
        Instruction(LD_ABS, 0, 0, bpf.ARCH),
        Instruction(JEQ, 1, 0, AUDIT_ARCH[arch]),
        Instruction(RET, 0, 0, _ENOSYS),
        Instruction(LD_ABS, 0, 0, bpf.NR),
        Instruction(JGT, 0, 1, HIGHEST),  # x32 as well: its numbers have bit 30 set (__X32_SYSCALL_BIT)
        Instruction(RET, 0, 0, _ENOSYS),
    ]
    for name in CHECKED:
        if name in table:
            prelude += _only_for(table[name], checks(name, allowed=name in wanted, families=families, denied=denied))
    for name in _FALLING_BACK:
        prelude += _only_for(table[name], (Instruction(RET, 0, 0, _ENOSYS),))
    for name in sorted(missing):
        prelude += _only_for(table[name], (Instruction(RET, 0, 0, bpf.ALLOW),))
    program = bpf.encode((*prelude, *bpf.decode(tree)))
    _verify(program, arch, constant, denied)
    return program


def keep_core_limit(arch: str) -> bytes:
    """A filter beside the one of `build`: RLIMIT_CORE stays what it is, and whoever sets it is told that it is set.

    What programs set it to is 0, so that no core is written, and some do not go on where that fails.
    """
    lines: list[bpf.Line] = [
        Instruction(LD_ABS, 0, 0, bpf.ARCH),
        (JEQ, AUDIT_ARCH[arch], "", "allow"),  # of others the plan's own filter allows nothing
        Instruction(LD_ABS, 0, 0, bpf.NR),
        (JEQ, KNOWN[arch]["setrlimit"], "setrlimit", ""),
        (JEQ, KNOWN[arch]["prlimit64"], "", "allow"),
        Instruction(LD_ABS, 0, 0, bpf.ARGUMENTS + 8),
        (JEQ, _RLIMIT_CORE, "", "allow"),
        # A new limit is behind a pointer; without one the limit is only asked for.
        Instruction(LD_ABS, 0, 0, bpf.ARGUMENTS + 16),
        (JEQ, 0, "", "set"),
        Instruction(LD_ABS, 0, 0, bpf.ARGUMENTS + 20),
        (JEQ, 0, "allow", "set"),
        "setrlimit:",
        Instruction(LD_ABS, 0, 0, bpf.ARGUMENTS),
        (JEQ, _RLIMIT_CORE, "set", "allow"),
        "set:",
        Instruction(RET, 0, 0, bpf.ERRNO),
        "allow:",
        Instruction(RET, 0, 0, bpf.ALLOW),
    ]
    return bpf.encode(bpf.assemble(lines))


def _forbidden(tier: int) -> Mapping[str, str]:
    if tier not in FORBIDDEN:
        raise ValueError(f"tier {tier} has no system call filter")
    return FORBIDDEN[tier]


def _check(allow: frozenset[str], arch: str, families: Sequence[str], tier: int) -> None:
    if arch not in KNOWN:
        raise ValueError(f"no system call table for {arch!r}, only for {' and '.join(KNOWN)}")
    for name in sorted(allow & frozenset(_forbidden(tier))):
        raise ValueError(f"{name} {FORBIDDEN[tier][name]} and cannot be allowed at tier {tier}")
    for name in sorted(allow - NAMES):
        raise ValueError(f"there is no system call {name!r} on x86-64 or aarch64")
    for family in families:
        if family not in FAMILIES:
            raise ValueError(f"no socket family {family!r}, only {', '.join(FAMILIES)}")


def _only_for(nr: int, decision: Sequence[Instruction]) -> list[Instruction]:
    """`decision`, which returns on every path, for call `nr`; other calls go on behind it, the number still loaded."""
    return [Instruction(JEQ, 0, len(decision), nr), *decision] if decision else []


def _allow_list(names: frozenset[str], arch: str, denied: int) -> tuple[bytes, frozenset[str]]:
    """A program of libseccomp that allows `names`, and those of them which that libseccomp is too old to know."""
    pyseccomp = _pyseccomp()
    if denied == bpf.USER_NOTIF and pyseccomp.get_api() < _SECCOMP_NOTIFY_API:
        # The level says what libseccomp finds allowed where it *builds*, which is little inside a sandbox; whether the
        # plan's kernel has user notification was probed elsewhere.
        pyseccomp.set_api(_SECCOMP_NOTIFY_API)
    target = {"x86_64": pyseccomp.Arch.X86_64, "aarch64": pyseccomp.Arch.AARCH64}[arch]
    try:
        tree = pyseccomp.SyscallFilter(denied)
        tree.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)
        if target != pyseccomp.system_arch():
            tree.add_arch(target)
            tree.remove_arch(pyseccomp.system_arch())
        missing = set()
        for name in sorted(names):
            # libseccomp takes this machine's numbers and translates them by name to the filter's architecture.
            native = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
            if native == -1:  # __NR_SCMP_ERROR
                missing.add(name)
            else:
                tree.add_rule_exactly(bpf.ALLOW, native)
        # Not a memfd: inside a sandbox, where `doctor` or a test may build one, there are none.
        with tempfile.TemporaryFile() as program:
            tree.export_bpf(program)
            program.seek(0)
            return program.read(), frozenset(missing)
    except OSError as error:
        raise CompileError(f"libseccomp could not build the system call filter for {arch}: {error}") from error


def _pyseccomp() -> Any:
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise CompileError(f"the system call filter needs pyseccomp and libseccomp 2.5 or newer: {error}") from error
    return pyseccomp


def _verify(program: bytes, arch: str, constant: frozenset[str], denied: int) -> None:
    """Ask the finished program about every call that no argument decides: it must answer what was asked for."""
    instructions = bpf.decode(program)
    decided_otherwise = {KNOWN[arch][name] for name in (*CHECKED, *_FALLING_BACK) if name in KNOWN[arch]}
    allowed_numbers = {KNOWN[arch][name] for name in constant}
    for nr in range(HIGHEST + 1):
        if nr not in decided_otherwise:
            answer = bpf.run(instructions, nr=nr, arch=AUDIT_ARCH[arch])
            if answer != (bpf.ALLOW if nr in allowed_numbers else denied):
                raise CompileError(f"libseccomp built a filter that answers call {nr} with {bpf.describe(answer)}")

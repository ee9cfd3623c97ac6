"""The system call surface: calls that reach kernel interfaces a sandbox has no business with, and other ABIs."""

from __future__ import annotations

import os
import platform

import pytest

from osmoda.sandbox import bpf, plans, request
from osmoda.sandbox.operations import confinement
from osmoda.sandbox.syscall_numbers import KNOWN
from tests.attacks.conftest import Attacker, as_root

NUMBER = KNOWN[platform.machine()]
ENOSYS = bpf.ERRNO | 38


def call(name: str, *arguments: str) -> list[str]:
    """A raw call; arguments as `attack call` takes them."""
    return ["call", str(NUMBER[name]), *arguments]


# What the kernel answers outside: "OK", or the errno of an implementation that has looked at the arguments.
ATTACKS = {
    "io_uring_setup": (["io-uring"], "OK"),
    "bpf": (["bpf"], "OK"),
    "perf_event_open": (["perf"], "OK"),
    "userfaultfd": (call("userfaultfd", "0"), "OK"),
    "add_key": (call("add_key", "@user", "@osmoda-attack", "@x", "1", "-1"), "OK"),
    "request_key": (call("request_key", "@user", "@no-such-key", "0", "0"), "ENOKEY"),
    "keyctl": (call("keyctl", "1", "@osmoda-attack"), "OK"),
    "fsopen": (call("fsopen", "@tmpfs", "0"), "OK"),
    "open_tree": (call("open_tree", "-100", "@/", "1"), "OK"),
    "mount_setattr": (call("mount_setattr", "-1", "@", "0", "%32", "32"), "OK EBADF EINVAL"),
    "move_mount": (call("move_mount", "-1", "@", "-1", "@", "0x44"), "EBADF"),
    "fspick": (call("fspick", "-100", "@/no-such-mount", "0"), "ENOENT"),
    "mount": (call("mount", "@none", "@/no-such-mount", "@tmpfs", "0", "0"), "ENOENT"),
    "umount2": (call("umount2", "@/no-such-mount", "0"), "ENOENT"),
    "pivot_root": (call("pivot_root", "@/no-such-mount", "@/no-such-mount"), "ENOENT"),
    "chroot": (call("chroot", "@/"), "OK"),
    "init_module": (call("init_module", "@rubbish", "7", "@"), "ENOEXEC EPERM ENOSYS"),
    "finit_module": (call("finit_module", "-1", "@", "0"), "EBADF EPERM ENOSYS"),
    "delete_module": (call("delete_module", "@no-such-module", "0"), "ENOENT EPERM ENOSYS"),
    "kexec_load": (call("kexec_load", "0", "0", "0", "0xff"), "EINVAL EPERM ENOSYS"),
    "kexec_file_load": (call("kexec_file_load", "-1", "-1", "0", "@", "0xff00"), "EINVAL EPERM ENOSYS"),
    "reboot": (call("reboot", "1", "2", "3", "0"), "EINVAL"),
    "syslog": (call("syslog", "10", "0", "0"), "OK"),
    "acct": (call("acct", "@/no-such-file"), "ENOENT ENOSYS"),
    "swapon": (call("swapon", "@/no-such-file", "0"), "ENOENT ENOSYS"),
    "quotactl": (call("quotactl", "0x80000100", "@/no-such-device", "0", "0"), "ENOENT EINVAL ENOSYS"),
    "fanotify_init": (call("fanotify_init", "0", "0"), "OK ENOSYS"),
    "settimeofday": (call("settimeofday", "1", "0"), "EFAULT"),
    "sethostname": (call("sethostname", "@x", "65536"), "EINVAL"),
    "lookup_dcookie": (call("lookup_dcookie", "0", "0", "0"), "ENOSYS"),
}


@as_root
def test_calls_that_no_program_in_a_sandbox_needs(attacker: Attacker) -> None:
    """Outside, with root's rights, each reaches the kernel's implementation; inside, none does."""
    attacks = {name: attack for name, (attack, _) in ATTACKS.items()}
    outside = attacker.all_outside(attacks, privileged=True)
    wrong = {name: outside[name] for name, (_, answers) in ATTACKS.items() if outside[name] not in answers.split()}
    assert wrong == {}, "the controls fail"
    ended = attacker.all_inside(attacks)
    assert ended.each() == dict.fromkeys(ATTACKS, "EPERM")
    assert ended.refused() >= set(ATTACKS), "the filter stopped them, and said so"


@as_root
def test_files_opened_by_handle(attacker: Attacker) -> None:
    """As Docker was left with CAP_DAC_READ_SEARCH ("shocker"): a handle leads past every mount and path rule."""
    assert attacker.outside("file-handle", "/etc/passwd", privileged=True).line == "OK"
    named = attacker.inside("file-handle", "/etc/passwd")
    assert (named.line, named.refused()) == ("EPERM", {"name_to_handle_at"})
    guessed = attacker.inside("open-handle")
    assert (guessed.line, guessed.refused()) == ("EPERM", {"open_by_handle_at"})


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are x86's")
def test_other_abis(attacker: Attacker) -> None:
    """`int 0x80` has other numbers: 20 is getpid there and writev here. x32's calls come with x86-64's architecture and
    bit 30 set; by simulation, since few kernels have it any more."""
    assert attacker.outside("int80").line == "OK pid"
    assert attacker.inside("int80").line == "ENOSYS"
    program = bpf.decode(attacker.world.call(compiled_filter, attacker.tier))
    x86_64, i386, x32_bit = 0xC000003E, 0x40000003, 0x40000000
    assert bpf.run(program, nr=NUMBER["getpid"], arch=x86_64) == bpf.ALLOW, "the control"
    assert {bpf.run(program, nr=nr, arch=i386) for nr in range(500)} == {ENOSYS}, "the filter's own answer"
    assert {bpf.run(program, nr=x32_bit | nr, arch=x86_64) for nr in range(600)} == {ENOSYS}


def compiled_filter(tier: int) -> bytes:
    """The very program that a sandbox of this world and tier gets."""
    asked = request.parse(["--tier", str(tier), "--", "true"])
    plan, _ = plans.for_request(asked, os.getcwd())
    return next(op.program for op in plan.operations if isinstance(op, confinement.Seccomp))


def test_running_a_nameless_file(attacker: Attacker) -> None:
    """memfd_create, then execveat or execve of /proc/self/fd/N: code that no path rule ever sees."""
    attacks = {
        f"{kind}-{how}": ["memfd", attacker.program, kind, how]
        for kind in ("plain", "explicit")
        for how in ("path", "execveat")
    }
    for line in attacker.all_outside(attacks).values():
        assert line.startswith("OK euid")
    ended = attacker.all_inside(attacks)
    assert ended.each() == dict.fromkeys(attacks, "EPERM")
    assert ended.refused() == {"memfd_create"}
    # With MFD_NOEXEC_SEAL the file may be made, and the kernel keeps the execute bits off for good.
    sealed = {how: ["memfd", attacker.program, "sealed", how] for how in ("path", "execveat")}
    ended = attacker.all_inside(sealed)
    assert (ended.each(), ended.refused()) == (dict.fromkeys(sealed, "EACCES"), set()), "not the filter: the file"

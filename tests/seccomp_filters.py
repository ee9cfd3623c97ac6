"""The default filters that the tests of the seccomp layer ask, each built once."""

from __future__ import annotations

import errno
from functools import cache

from osmoda.sandbox import seccomp, tiers
from osmoda.sandbox.bpf import simulate
from osmoda.sandbox.syscall_numbers import KNOWN

X86_64, AARCH64, I386, ARM = 0xC000003E, 0xC00000B7, 0x40000003, 0x40000028
AUDIT = {"x86_64": X86_64, "aarch64": AARCH64}
EPERM = 0x00050000 | errno.EPERM
ENOSYS = 0x00050000 | errno.ENOSYS
ALLOW = 0x7FFF0000
NOTIFY = 0x7FC00000

ARCHES = ["x86_64", "aarch64"]
TIERS = [1, 2]
FAMILIES = {1: ("unix", "inet", "inet6"), 2: ("inet", "inet6")}
FALLING_BACK = {"clone3", "openat2", "statmount", "listmount"}


DEFAULT_SYSCALLS = {tier: tiers.default(tier).process.syscalls for tier in TIERS}


@cache
def default_filter(arch: str, tier: int, *, notify: bool = False, families: tuple[str, ...] | None = None) -> bytes:
    allow = seccomp.allowed(DEFAULT_SYSCALLS[tier], tier=tier)
    chosen = FAMILIES[tier] if families is None else families
    return seccomp.build(allow, arch=arch, families=chosen, notify=notify, tier=tier)


def answer(program: bytes, name: str, *args: int, arch: str = "x86_64") -> int:
    """What the filter says to the call `name`."""
    return simulate(program, nr=KNOWN[arch][name], arch=AUDIT[arch], args=args)

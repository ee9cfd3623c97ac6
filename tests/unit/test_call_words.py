"""Arguments of refused calls under the kernel's names."""

from __future__ import annotations

import socket

import pytest

from osmoda.sandbox.call_words import arguments_of, habitual


@pytest.mark.parametrize(
    ("call", "arguments", "words"),
    [
        ("socket", (socket.AF_VSOCK, socket.SOCK_STREAM, 0), "AF_VSOCK, SOCK_STREAM"),
        ("socket", (socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 58), "AF_INET6, SOCK_RAW, IPPROTO_ICMPV6"),
        ("socket", (99, 9, 0), "99, 9"),
        ("socket", (socket.AF_NETLINK, socket.SOCK_RAW, 12), "AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER"),
        ("unshare", (0x20000000 | 0x00020000,), "CLONE_NEWNS|CLONE_NEWPID"),
        ("unshare", (0x80,), "CLONE_NEWTIME"),
        ("unshare", (0x10000000 | 0x400,), "CLONE_NEWUSER|0x400"),
        ("clone", (0x10000000 | 0x100 | 17,), "CLONE_NEWUSER"),
        ("setns", (5, 0x40000000), "CLONE_NEWNET"),
        ("ioctl", (0, 0xFFFFFFFF00005412), "TIOCSTI"),
        ("ioctl", (0, 0x50009417), "BTRFS_IOC_SNAP_CREATE_V2"),
        ("mknod", (0, 0o060600), "mode 0600, a block device"),
        ("ptrace", (0x4206,), "PTRACE_SEIZE"),
        ("keyctl", (11,), "KEYCTL_READ"),
        ("getpid", (), ""),
    ],
)
def test_words(call, arguments, words):
    assert arguments_of(call, (*arguments, *(0,) * (6 - len(arguments)))) == words


def test_only_the_very_call_of_the_library_is_a_habit():
    nscd = (1, 1 | 0o2000000 | 0o4000, 0, 0, 0, 0)
    assert habitual("socket", nscd)
    assert not habitual("socket", (1, 1 | 0o2000000, 0, 0, 0, 0))
    assert not habitual("socket", (1, 2 | 0o2000000 | 0o4000, 0, 0, 0, 0))
    assert not habitual("connect", nscd)

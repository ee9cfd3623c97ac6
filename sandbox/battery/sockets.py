"""Services of the host, by every kind of socket that leads to one, and its System V shared memory."""

from __future__ import annotations

import _socket
import errno as errors
import posix
from functools import partial

from osmoda.sandbox.battery.attacks import Facts, add_attack, attack
from osmoda.sandbox.battery.kernel import Absent, Refused, buffer, call

FAMILY = "sockets"

_UNIX, _INET, _INET6, _NETLINK, _PACKET, _VSOCK = 1, 2, 10, 16, 17, 40
_STREAM, _DGRAM, _RAW = 1, 2, 3
_SECONDS = 10.0


def connected(family: int, kind: int, packed: bytes, *about: object) -> int:
    """A descriptor that is connected to an address, packed as the kernel takes it (connect(2))."""
    fd = call("socket", family, kind, 0, about=("socket", family, kind))
    call("connect", fd, packed, len(packed), about=about)
    return fd


def _greeting(fd: int, facts: Facts, about: tuple[object, ...]) -> str:
    """What the service says: the secret, or it was not the host's."""
    one = _socket.socket(fileno=fd)
    one.settimeout(_SECONDS)
    try:
        said = one.recv(256)
    except OSError as error:
        raise Refused(error.errno or errors.ETIMEDOUT, "recvfrom", (), about) from None
    if facts["token"].encode() not in said:
        raise Refused(errors.ECONNRESET, "recvfrom", (), about)
    return "the host's service greeted"


def _unix(path: bytes) -> bytes:
    return _UNIX.to_bytes(2, "little") + path


def internet(host: str, port: int) -> tuple[int, bytes]:
    """Family and packed address (ip(7), ipv6(7))."""
    if ":" in host:
        packed = _socket.inet_pton(_INET6, host)
        return _INET6, _INET6.to_bytes(2, "little") + port.to_bytes(2, "big") + bytes(4) + packed + bytes(4)
    packed = _socket.inet_aton(host)
    return _INET, _INET.to_bytes(2, "little") + port.to_bytes(2, "big") + packed + bytes(8)


@attack(FAMILY, "reach an abstract unix socket of the host")
def abstract(facts: Facts) -> str:
    packed = _unix(b"\0" + facts["abstract"].encode())
    about = ("abstract",)
    return _greeting(connected(_UNIX, _STREAM, packed, *about), facts, about)


@attack(FAMILY, "reach a unix socket in a folder of the host")
def unix_path(facts: Facts) -> str:
    packed = _unix(facts["unix"].encode() + b"\0")
    about = ("path", facts["unix"], "read")
    return _greeting(connected(_UNIX, _STREAM, packed, *about), facts, about)


@attack("services", "reach a service of the system")
def service(_: Facts, path: str) -> str:
    """D-Bus, docker.sock and their like: that it takes the connection is enough."""
    packed = _unix(path.encode() + b"\0")
    posix.close(connected(_UNIX, _STREAM, packed, "path", path, "read"))
    return f"{path} took the connection"


def _tcp(facts: Facts, key: str) -> str:
    if not facts[key]:
        raise Absent("this host has no such address")
    host, port = facts[key]
    family, packed = internet(host, port)
    about = ("address", host, port)
    return _greeting(connected(family, _STREAM, packed, *about), facts, about)


for _name, _title in (
    ("tcp-loopback", "reach a TCP service on the host's loopback"),
    ("tcp-loopback6", "the same by ::1"),
    ("tcp-address", "reach a TCP service on the host's own address"),
):
    add_attack(_name, FAMILY, _title, partial(_tcp, key=_name))


@attack(FAMILY, "send a datagram to a service of the host")
def udp(facts: Facts) -> str:
    family, packed = internet(*facts["udp"])
    about = ("address", *facts["udp"])
    fd = connected(family, _DGRAM, packed, *about)
    call("write", fd, b"hello", 5, about=about)
    return _greeting(fd, facts, about)


_KINDS = (
    ("packet", "read the network's packets (AF_PACKET)", _PACKET, _RAW, 0x0300),
    ("raw", "forge IPv4 packets (SOCK_RAW)", _INET, _RAW, 1),
    ("raw6", "forge IPv6 packets (SOCK_RAW)", _INET6, _RAW, 58),
    ("vsock", "reach a hypervisor (AF_VSOCK)", _VSOCK, _STREAM, 0),
    ("netfilter", "change packet rules (NETLINK_NETFILTER)", _NETLINK, _RAW, 12),
    ("audit", "reach the kernel's audit (NETLINK_AUDIT)", _NETLINK, _RAW, 9),
    ("uevent", "hear of devices (NETLINK_KOBJECT_UEVENT)", _NETLINK, _RAW, 15),
    ("crypto", "reach the kernel's cryptography (AF_ALG)", 38, 5, 0),
)


def _make(_: Facts, family: int, kind: int, protocol: int) -> str:
    posix.close(call("socket", family, kind, protocol, about=("socket", family, kind)))
    return "the socket was made"


for _name, _title, _family, _kind, _protocol in _KINDS:
    add_attack(f"socket-{_name}", FAMILY, _title, partial(_make, family=_family, kind=_kind, protocol=_protocol),
               privileged=True)  # fmt: skip


@attack(FAMILY, "read the host's System V shared memory")
def shared_segment(facts: Facts) -> str:
    if facts["shm_key"] == 0:
        raise Absent("no segment could be made outside")
    about = ("ipc",)
    identifier = call("shmget", facts["shm_key"], 0, 0, about=about)
    address = call("shmat", identifier, 0, 0o10000, about=about)  # SHM_RDONLY
    memory = buffer(256)
    length = len(facts["token"])
    fd_read, fd_write = posix.pipe()
    call("write", fd_write, address, length, about=about)
    call("read", fd_read, memory, length, about=about)
    if memory.raw[:length] != facts["token"].encode():
        raise Refused(errors.ENOENT, "shmat", (), about)
    return "the secret in it"

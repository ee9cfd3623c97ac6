"""The network of a sandbox that may reach names: all of it leads to sockets that are made here and held outside.

There is no route, no interface but `lo`, and no program inside that could make one. The ranges that stand for names,
and the networks that rules list, are local addresses; the kernel redirects every TCP connection to them to one
listening socket (nftables nat), answers everything else with an error at once, and a gateway outside decides.
"""

from __future__ import annotations

import _socket
import fcntl
import posix

from osmoda.egress.name_table import RESOLVER_IPV4_TEXT, RESOLVER_IPV6_TEXT
from osmoda.egress.registration import GATE_PORT
from osmoda.host import syscalls
from osmoda.host.frozen import frozen
from osmoda.sandbox.operations import Operation, Setup

_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_NLMSG_ERROR = 2
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_IPV6_V6ONLY = 26
_BACKLOG = 4096
_DNS = 53


@frozen
class NamesOnly(Operation):
    """`lo`, the addresses that stand for names, the redirect, and the sockets (netlink(7), nft(8)).

    `links` are RTM_* messages and `rules` NFNL messages as a kernel took them at compilation. `networks` are those that
    rules list by address; `localhost` the ports of 127.0.0.1 and ::1 that lead to other agents, `serve` those that
    other agents may reach: for these the namespaces are sent out, too, so that sockets can be made in them later.
    """

    loopback: bool
    ipv6: bool
    networks: tuple[str, ...]
    localhost: tuple[int, ...]
    serve: tuple[int, ...]
    links: tuple[bytes, ...]
    rules: tuple[bytes, ...]

    layer = "network"

    def describe(self) -> str:
        lo = "programs inside reach each other over lo" if self.loopback else "lo is for the way out only"
        addresses = f", addresses in {', '.join(self.networks)}" if self.networks else ""
        ports = f", localhost:{', localhost:'.join(map(str, self.localhost))}" if self.localhost else ""
        served = f"; other agents may reach port {', '.join(map(str, self.serve))}" if self.serve else ""
        return (
            f"a network of its own in which names{addresses}{ports} lead to the gateway, which decides; no other "
            f"address has a route, nothing but TCP and DNS passes; {lo}{served}"
        )

    def apply(self, setup: Setup) -> None:
        _bring_up()
        _converse(_NETLINK_ROUTE, self.links, "rtnetlink")
        _converse(_NETLINK_NETFILTER, self.rules, "nftables")
        sockets = _sockets(_socket.AF_INET, "127.0.0.1", RESOLVER_IPV4_TEXT)
        if self.ipv6:
            sockets += _sockets(_socket.AF_INET6, "::1", RESOLVER_IPV6_TEXT)
        if self.serve:
            for name in (b"user", b"net"):
                sockets.append(posix.open(b"/proc/self/ns/" + name, posix.O_RDONLY | posix.O_CLOEXEC))
        setup.sockets = tuple(sockets)


@frozen
class ShortTracking(Operation):
    """Connections that have ended, and questions, leave the kernel's table at once: a busy program would fill it.

    The table keeps them for half a minute and more otherwise (nf_conntrack-sysctl, kernel doc), and its size is the
    host's.
    """

    layer = "network"

    def describe(self) -> str:
        return "ended connections leave the kernel's table within seconds"

    def apply(self, setup: Setup) -> None:
        for name, seconds in ((b"tcp_timeout_time_wait", b"1"), (b"tcp_timeout_close", b"1"), (b"udp_timeout", b"3")):
            fd = syscalls.openat2(setup.proc, b"sys/net/netfilter/nf_conntrack_" + name, posix.O_WRONLY)
            try:
                posix.write(fd, seconds)
            finally:
                posix.close(fd)


def _bring_up() -> None:
    probe = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        fcntl.ioctl(probe.fileno(), _SIOCSIFFLAGS, b"lo".ljust(16, b"\0") + _IFF_UP.to_bytes(24, "little"))
    finally:
        probe.close()


def _converse(protocol: int, messages: tuple[bytes, ...], what: str) -> None:
    """Send messages of which the last change asks for an acknowledgement: one error refuses the launch.

    The kernel takes them in order and reports every error, asked or not; with the answer to the last all are done
    (netlink(7); a batch of nftables is applied as a whole or not at all).
    """
    channel = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)
    try:
        channel.bind((0, 0))
        channel.send(b"".join(messages))
        while True:
            data = channel.recv(65536)
            while data:
                length = int.from_bytes(data[:4], "little")
                if int.from_bytes(data[4:6], "little") == _NLMSG_ERROR:
                    number = -int.from_bytes(data[16:20], "little", signed=True)
                    if number:
                        raise OSError(number, f"{what}: {posix.strerror(number)}")
                    return
                data = data[max((length + 3) & ~3, 16) :]
    finally:
        channel.close()


def _sockets(family: int, loopback: str, resolver: str) -> list[int]:
    """The listener that TCP is redirected to, and the resolver's two; they are not inherited, but sent outside."""
    made = []
    stream, datagram = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC
    for kind, protocol, address, port in (
        # With the protocol named: asyncio sets TCP_NODELAY only where it is.
        (stream, _socket.IPPROTO_TCP, loopback, GATE_PORT),
        (datagram, 0, resolver, _DNS),
        (stream, _socket.IPPROTO_TCP, resolver, _DNS),
    ):
        made_here = _socket.socket(family, kind, protocol)
        if family == _socket.AF_INET6:
            made_here.setsockopt(_socket.IPPROTO_IPV6, _IPV6_V6ONLY, 1)
        made_here.bind((address, port))
        if kind == stream:
            made_here.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            made_here.listen(_BACKLOG)
        made.append(made_here.detach())
    return made

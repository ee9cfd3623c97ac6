"""Socket units."""

from __future__ import annotations

import pytest

from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units.unit import Listen, Origin
from tests.unit_hosts import listening


def addresses(*lines):
    return [(one.kind, one.address) for one in listening("[Socket]\n" + "\n".join(lines) + "\n").listen]


def test_a_socket_unit():
    unit = listening(
        "[Unit]\nDescription=Web\n[Socket]\nListenStream=8080\nFileDescriptorName=web\nBacklog=16\n"
        "SocketMode=0600\nAccept=no\nBindIPv6Only=both\nNoDelay=yes\n[Install]\nWantedBy=sockets.target\n"
    )
    assert unit.listen == (Listen("stream", "[::]:8080", Origin("/units/agent.socket", 4)),)
    assert (unit.service, unit.descriptor_name, unit.backlog) == ("agent.service", "web", 16)
    assert (unit.mode, unit.directory_mode, unit.ipv6_only, unit.no_delay) == (0o600, 0o755, False, True)
    assert unit.install.wanted_by == ("sockets.target",)


def test_defaults_are_those_of_systemd():
    unit = listening("[Socket]\nListenDatagram=/run/a\n", "web@1.socket")
    assert (unit.service, unit.descriptor_name) == ("web@1.service", "web@1.socket")
    assert (unit.mode, unit.ipv6_only, unit.backlog) == (0o666, None, 0xFFFFFFFF)
    assert not any((unit.remove_on_stop, unit.keep_alive, unit.no_delay, unit.reuse_port, unit.pass_credentials))


def test_addresses():
    assert addresses("ListenStream=/run//a/./b", "ListenDatagram=@name", "ListenSequentialPacket=/run/c") == [
        ("stream", "/run/a/b"),
        ("datagram", "@name"),
        ("sequential-packet", "/run/c"),
    ]
    assert addresses("ListenStream=127.0.0.1:80", "ListenStream=[::1]:443", "ListenStream=1") == [
        ("stream", "127.0.0.1:80"),
        ("stream", "[::1]:443"),
        ("stream", "[::]:1"),
    ]
    assert addresses("ListenStream=80", "ListenDatagram=", "ListenStream=81") == [("stream", "[::]:81")]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ListenStream=a", "is no address"),
        ("ListenStream=0", "is no port"),
        ("ListenStream=65536", "is no port"),
        ("ListenStream=1.2.3:80", "has no IP address"),
        ("ListenStream=localhost:80", "is no address"),
        ("ListenStream=vsock:2:80", "is no address"),
        ("ListenStream=/" + "a" * 107, "longer than the 107 bytes"),
        ("ListenStream=@", "no abstract name"),
        ("ListenSequentialPacket=80", "is no unix socket"),
        ("ListenFIFO=/run/a", "ListenFIFO= is not supported"),
        ("Accept=yes", "Accept=yes is not supported: one process serves all connections"),
        ("MaxConnections=5\nTransparent=yes", "Transparent=yes is not supported"),
        ("FileDescriptorName=a:b", "is no name of a descriptor"),
        ("Service=a.target", "is no name that ends in .service"),
        ("ExecStartPre=/bin/true", "ExecStartPre= is not supported"),
        ("User=agent", "User= is not supported"),
        ("Symlinks=/run/x /run/y", "needs exactly one socket that is a path"),
    ],
)
def test_what_is_refused(line, says):
    with pytest.raises(UnitError, match=says):
        listening(f"[Socket]\nListenStream=80\n{line}\n")


def test_nothing_to_listen_at():
    with pytest.raises(UnitError, match="there is nothing to listen at"):
        listening("[Socket]\nSocketMode=0600\n")


def test_a_start_limit_belongs_to_the_service():
    with pytest.raises(UnitError, match=r"agent.socket:2: StartLimitBurst= is not supported"):
        listening("[Unit]\nStartLimitBurst=3\n[Socket]\nListenStream=80\n")

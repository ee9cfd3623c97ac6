"""Ways around a network of names: other addresses, marks, and the gateway's own listener."""

from __future__ import annotations

import _socket
import errno as errors

from osmoda.sandbox.battery.attacks import Facts, attack
from osmoda.sandbox.battery.kernel import Absent, Refused, call, content
from osmoda.sandbox.battery.sockets import connected, internet

FAMILY = "network"

_SOL_SOCKET, _SOL_IP = 1, 0
_SO_MARK, _IP_TRANSPARENT = 36, 19
_STREAM, _DGRAM = 1, 2
_ONE = (1).to_bytes(4, "little")


def _option(level: int, option: int) -> str:
    fd = call("socket", _socket.AF_INET, _STREAM, 0, about=("socket", _socket.AF_INET, _STREAM))
    call("setsockopt", fd, level, option, _ONE, 4, about=("capability",))
    return "the option was set"


@attack(FAMILY, "mark packets for another route (SO_MARK)", privileged=True)
def mark(_: Facts) -> str:
    return _option(_SOL_SOCKET, _SO_MARK)


@attack(FAMILY, "send from any address (IP_TRANSPARENT)", privileged=True)
def transparent(_: Facts) -> str:
    return _option(_SOL_IP, _IP_TRANSPARENT)


@attack(FAMILY, "ask a name server by its address")
def name_server(facts: Facts) -> str:
    """A query by UDP to a server outside: how data leaves where only TCP is watched."""
    if not facts["name-server"]:
        raise Absent("this host has no address but its loopback's")
    about = ("address", *facts["name-server"])
    family, packed = internet(*facts["name-server"])
    fd = connected(family, _DGRAM, packed, *about)
    one = _socket.socket(fileno=fd)
    one.settimeout(1.0)
    try:
        one.send(b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\1x\0\0\1\0\1")
        if facts["token"].encode() in one.recv(512):
            return "it answered"
    except OSError as error:
        raise Refused(error.errno or errors.ETIMEDOUT, "sendto", (), about) from None
    raise Refused(errors.ECONNREFUSED, "recvfrom", (), about)


@attack(FAMILY, "see the host's network interfaces")
def interfaces(_: Facts) -> str:
    lines = content("/proc/self/net/dev").decode().splitlines()[2:]
    others = [name for name in (line.partition(":")[0].strip() for line in lines) if name != "lo"]
    if not others:
        raise Refused(0, "", (), ("interfaces",))
    return f"it has {', '.join(others)}"

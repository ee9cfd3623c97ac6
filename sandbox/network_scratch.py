"""Run as a program: encode a sandbox's routes and packet rules by having this kernel take them.

In a network namespace of its own it applies what the specification on stdin asks for, through pyroute2 and
python-nftables, reads the rules back from the kernel, and writes both to stdout as the netlink messages that a launch
sends: libnftables takes milliseconds at every start, the messages a tenth of one.
"""

from __future__ import annotations

import _socket
import json
import marshal
import os
import sys
import types
from importlib.util import find_spec
from struct import calcsize, pack, unpack_from
from typing import Any

_ROUTE, _NETFILTER = 0, 12
_RTM_NEWADDR, _RTM_NEWROUTE = 20, 24
_CREATE_EXCL = 0x601
_REQUEST, _ACK, _DUMP, _CREATE, _APPEND = 0x1, 0x4, 0x300, 0x400, 0x800
_BATCH_BEGIN, _BATCH_END = 16, 17
_NFTABLES = 10
_INET = 1  # NFPROTO_INET
_LOCAL = {"table": 255, "type": 2, "scope": 254, "proto": 2}  # rtnetlink(7): RT_TABLE_LOCAL, RTN_LOCAL, host, kernel
# message to read, message to write, and the attributes that a new object has (linux/netfilter/nf_tables.h)
_OBJECTS = ((1, 0, {1, 2}), (4, 3, {1, 3, 4, 5, 7}), (7, 6, {1, 2, 4}))
_LO = 1
_HEADER, _FAMILY = "=IHHII", "=BBH"


def links(addresses: list[str], networks: list[str]) -> tuple[bytes, ...]:
    """RTM_NEWADDR and RTM_NEWROUTE messages: `addresses` on lo, and `networks` local to it."""
    # The package's own __init__ loads all of it, which takes a third of a second; two of its modules are what it takes.
    package = types.ModuleType("pyroute2")
    found = find_spec("pyroute2")
    if found is None or found.submodule_search_locations is None:
        raise ImportError("there is no package pyroute2")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["pyroute2"] = package
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

    messages = []
    for address in addresses:
        family, length = (10, 128) if ":" in address else (2, 32)
        flags = [("IFA_FLAGS", 0x02)] if family == 10 else [("IFA_LOCAL", address)]  # IFA_F_NODAD: nobody to ask
        messages.append(
            _encoded(
                ifaddrmsg(),
                _RTM_NEWADDR,
                {"family": family, "prefixlen": length, "scope": 254, "index": _LO},
                [("IFA_ADDRESS", address), *flags],
            )
        )
    for network in networks:
        address, _, bits = network.partition("/")
        family = 10 if ":" in address else 2
        messages.append(
            _encoded(
                rtmsg(),
                _RTM_NEWROUTE,
                {"family": family, "dst_len": int(bits), **_LOCAL},
                # A route to everything has no destination.
                [*([("RTA_DST", address)] if int(bits) else []), ("RTA_OIF", _LO), ("RTA_TABLE", 255)],
            )
        )
    return (*messages[:-1], _asking(messages[-1]))


def _asking(message: bytes) -> bytes:
    """The same message, asking for an acknowledgement: the flags are two bytes, the seventh and the eighth."""
    return message[:6] + bytes([message[6] | _ACK]) + message[7:]


def _encoded(message: Any, kind: int, fields: dict[str, int], attributes: list[tuple[str, Any]]) -> bytes:
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes
    message["header"]["type"] = kind
    message["header"]["flags"] = _CREATE_EXCL
    message.encode()
    return bytes(message.data)


def apply(messages: tuple[bytes, ...]) -> None:
    """Send route messages and read the answers."""
    with_kernel = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW, _ROUTE)
    for message in messages:
        with_kernel.send(_asking(message))
        number = -unpack_from("=i", with_kernel.recv(65536), 16)[0]
        if number:
            raise OSError(number, f"rtnetlink: {os.strerror(number)}")


def rules(ruleset: dict[str, Any]) -> tuple[bytes, ...]:
    """The ruleset, applied by libnftables and read back, as one batch of messages that asks for acknowledgements."""
    import nftables  # python-nftables, with libnftables of the system

    library = nftables.Nftables()
    code, _, errors = library.json_cmd(ruleset)
    if code != 0:
        raise OSError(0, f"nftables: {errors.strip()}")
    batch = [pack(_HEADER, 20, _BATCH_BEGIN, _REQUEST, 0, 0) + pack(_FAMILY, 0, 0, _NFTABLES << 8)]
    for read, written, kept in _OBJECTS:
        for payload in _dump(read):
            attributes = b"".join(raw for kind, raw in _attributes(payload[4:]) if kind in kept)
            body = payload[:4] + attributes
            flags = _REQUEST | _CREATE | (_APPEND if written == 6 else 0)
            batch.append(pack(_HEADER, 16 + len(body), _NFTABLES << 8 | written, flags, len(batch), 0) + body)
    batch[-1] = _asking(batch[-1])
    batch.append(pack(_HEADER, 20, _BATCH_END, _REQUEST, len(batch), 0) + pack(_FAMILY, 0, 0, _NFTABLES << 8))
    return tuple(batch)


def _dump(kind: int) -> list[bytes]:
    """The payloads (nfgenmsg and attributes) of all objects of a kind."""
    with_kernel = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW, _NETFILTER)
    header = pack(_HEADER, 20, _NFTABLES << 8 | kind, _REQUEST | _DUMP, 1, 0)
    with_kernel.send(header + pack(_FAMILY, _INET, 0, 0))
    found: list[bytes] = []
    while True:
        data = with_kernel.recv(1 << 20)
        while data:
            length, message = unpack_from("=IH", data)
            if message == 3:  # NLMSG_DONE
                return found
            if message == 2:  # NLMSG_ERROR
                raise OSError(-unpack_from("=i", data, 16)[0], "nftables: the rules could not be read back")
            found.append(data[calcsize(_HEADER) : length])
            data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while len(data) >= 4:
        length, kind = unpack_from("=HH", data)
        size = (length + 3) & ~3
        found.append((kind & 0x3FFF, data[:size].ljust(size, b"\0")))
        data = data[size:]
    return found


def main() -> None:
    """From a specification on stdin to marshalled (links, rules) on stdout; one sentence on stderr when it cannot."""
    specification = json.load(sys.stdin)
    try:
        # A user namespace as well: this works without privileges, and touches nothing of the host's.
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)
        from osmoda.sandbox.operations.networking import _bring_up

        _bring_up()
        routes = links(specification["addresses"], specification["networks"])
        apply(routes)
        answer = (routes, rules(specification["ruleset"]))
    except (OSError, ImportError) as error:
        sys.exit(str(error.args[1] if isinstance(error, OSError) and len(error.args) > 1 else error))
    sys.stdout.buffer.write(marshal.dumps(answer))


if __name__ == "__main__":
    main()

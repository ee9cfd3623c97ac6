"""Addresses that a socket unit listens at (systemd.socket(5))."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Literal

from osmoda.supervisor.units import values
from osmoda.supervisor.units.unit import Listen

if TYPE_CHECKING:
    from osmoda.supervisor.units.draft import Draft, Handler
    from osmoda.supervisor.units.syntax import Assignment

LONGEST_PATH = 107  # bytes of a unix socket's path (unix(7))


def listen(kind: Literal["stream", "datagram", "sequential-packet"]) -> Handler:
    """One address is added; an empty value takes back all, of whatever kind."""

    def handle(draft: Draft, assignment: Assignment) -> None:
        if not assignment.value:
            draft.forget("listen")
            return
        found = address(draft.text(assignment.value))
        if kind == "sequential-packet" and found[0] not in "/@":
            raise ValueError("is no unix socket, which ListenSequentialPacket= needs")
        draft.add("listen", [Listen(kind, found, assignment.origin)])

    return handle


def address(text: str) -> str:
    """A path, "@name", or "host:port" with an address in numbers; a port alone is "[::]:port"."""
    if text.startswith("/"):
        path = values.absolute_path(text)
        if len(path.encode("utf-8", "surrogateescape")) > LONGEST_PATH:
            raise ValueError(f"is longer than the {LONGEST_PATH} bytes of a unix socket's path")
        return path
    if text.startswith("@"):
        if not 1 < len(text.encode("utf-8", "surrogateescape")) <= LONGEST_PATH or not text.isprintable():
            raise ValueError("is no abstract name of a unix socket")
        return text
    if re.fullmatch(r"[0-9]+", text):
        return f"[::]:{values.port(text)}"
    match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\]:([0-9]+)", text) or re.fullmatch(r"([0-9.]+):([0-9]+)", text)
    if match is None:
        raise ValueError("is no address: a path, @name, a port, IPv4:PORT or [IPv6]:PORT")
    try:
        host = ipaddress.ip_address(match[1])
    except ValueError:
        raise ValueError(f"has no IP address: {match[1]}") from None
    return f"[{host}]:{values.port(match[2])}" if host.version == 6 else f"{host}:{values.port(match[2])}"


def descriptor_name(text: str) -> str:
    """What sd_listen_fds_with_names(3) tells: printable ASCII without ":"."""
    if not 0 < len(text) <= 255 or any(not " " <= letter < "\x7f" or letter == ":" for letter in text):
        raise ValueError("is no name of a descriptor: at most 255 printable ASCII letters without ':'")
    return text


def ipv6_only(text: str) -> bool | None:
    """BindIPv6Only=: None for the kernel's default."""
    if text not in ("default", "both", "ipv6-only"):
        raise ValueError("is not one of default, both, ipv6-only")
    return {"default": None, "both": False, "ipv6-only": True}[text]

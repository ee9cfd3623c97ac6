"""A host for units that are read in tests: nothing of it is asked of this one."""

from __future__ import annotations

from osmoda.supervisor.units import reading, values
from osmoda.supervisor.units.specifiers import Host
from osmoda.supervisor.units.unit import SocketUnit, Unit

HOST = Host(
    user="root",
    uid=0,
    group="root",
    gid=0,
    home="/root",
    shell="/bin/sh",
    runtime="/run",
    state="/var/lib",
    cache="/var/cache",
    logs="/var/log",
    configuration="/etc",
    hostname="host.example",
    machine_id="0123456789abcdef0123456789abcdef",
    boot_id="fedcba9876543210fedcba9876543210",
    kernel_release="6.12.0",
    architecture="x86-64",
    os_release={"ID": "debian", "VERSION_ID": "13"},
)


def service(text: str | bytes, name: str = "agent.service", *drop_ins: str) -> Unit:
    """A service by its text, and the texts of its drop-ins."""
    texts = [(f"/units/{name}", text if isinstance(text, bytes) else text.encode())]
    texts += [(f"/units/{name}.d/{number}.conf", one.encode()) for number, one in enumerate(drop_ins)]
    return reading.service(values.unit_name(name), texts, HOST)


def listening(text: str, name: str = "agent.socket") -> SocketUnit:
    """A socket unit by its text."""
    return reading.socket(values.unit_name(name), [(f"/units/{name}", text.encode())], HOST)

"""Specifiers (systemd.unit(5)): what `%i`, `%h`, `%t` and others in a value stand for.

Sans-I/O: what a host is called and where its folders are, comes as a `Host`; `host_here` asks this one.
"""

from __future__ import annotations

import os
import platform
import pwd
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class UnknownSpecifier(ValueError):
    """A specifier that there is not, or that means nothing here; its text is the reason."""


@dataclass(frozen=True, slots=True)
class Host:
    """What specifiers say of the host and of the user whose supervisor it is."""

    user: str
    uid: int
    group: str
    gid: int
    home: str
    shell: str
    runtime: str
    state: str
    cache: str
    logs: str
    configuration: str
    hostname: str
    machine_id: str
    boot_id: str
    kernel_release: str
    architecture: str
    os_release: Mapping[str, str]


def host_here() -> Host:
    """This host, for the user that this process runs as: the system's folders for root, the XDG ones for others."""
    uid, gid = os.getuid(), os.getgid()
    try:
        entry = pwd.getpwuid(uid)
        user, home, shell = entry.pw_name, entry.pw_dir, entry.pw_shell or "/bin/sh"
    except KeyError:
        user, home, shell = str(uid), "/", "/bin/sh"
    if uid:
        home = os.environ.get("HOME", home)
    system = ("/run", "/var/lib", "/var/cache", "/var/log", "/etc")
    runtime, state, cache, logs, configuration = system if uid == 0 else _folders(uid, home)
    return Host(
        user=user,
        uid=uid,
        group=_group(gid),
        gid=gid,
        home=home,
        shell=shell,
        runtime=runtime,
        state=state,
        cache=cache,
        logs=logs,
        configuration=configuration,
        hostname=socket.gethostname(),
        machine_id=_line("/etc/machine-id"),
        boot_id=_line("/proc/sys/kernel/random/boot_id").replace("-", ""),
        kernel_release=platform.release(),
        architecture={"x86_64": "x86-64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        os_release=_os_release(),
    )


def _folders(uid: int, home: str) -> tuple[str, str, str, str, str]:
    state = os.environ.get("XDG_STATE_HOME") or f"{home}/.local/state"
    return (
        os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}",
        state,
        os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache",
        f"{state}/log",
        os.environ.get("XDG_CONFIG_HOME") or f"{home}/.config",
    )


def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _line(path: str) -> str:
    """The first line of a short file, empty where there is none: its specifier is refused then."""
    try:
        with open(path, encoding="ascii") as file:
            return file.readline(128).strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _os_release() -> Mapping[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


@dataclass(frozen=True, slots=True)
class Name:
    """A unit's name in its parts: `prefix@instance.suffix`; `instance` is None without "@", "" for a template."""

    full: str
    prefix: str
    instance: str | None
    suffix: str

    @property
    def template(self) -> str:
        return f"{self.prefix}@{self.suffix}"

    @property
    def stem(self) -> str:
        return self.full.removesuffix(self.suffix)


def unescape(text: str) -> str:
    r"""A name as systemd-escape(1) --unescape has it: "-" is "/", `\xHH` a byte. What is no escape stays."""
    raw = bytearray()
    data = text.encode("utf-8", "surrogateescape")
    at = 0
    while at < len(data):
        if data[at] == 0x2D:
            raw.append(0x2F)
            at += 1
            continue
        digits = data[at + 2 : at + 4]
        if (
            data[at : at + 2] == b"\\x"
            and len(digits) == 2
            and all(digit in b"0123456789abcdefABCDEF" for digit in digits)
        ):
            raw.append(int(digits, 16))
            at += 4
            continue
        raw.append(data[at])
        at += 1
    return raw.decode("utf-8", "surrogateescape")


_UNIT: Mapping[str, Callable[[Name], str]] = {
    "n": lambda name: name.full,
    "N": lambda name: name.stem,
    "p": lambda name: name.prefix,
    "P": lambda name: unescape(name.prefix),
    "i": lambda name: name.instance or "",
    "I": lambda name: unescape(name.instance or ""),
    "j": lambda name: name.prefix.rpartition("-")[2],
    "J": lambda name: unescape(name.prefix.rpartition("-")[2]),
    "f": lambda name: "/" + unescape(name.instance or name.prefix).lstrip("/"),
}
_HOST: Mapping[str, Callable[[Host], str]] = {
    "u": lambda host: host.user,
    "U": lambda host: str(host.uid),
    "g": lambda host: host.group,
    "G": lambda host: str(host.gid),
    "h": lambda host: host.home,
    "s": lambda host: host.shell,
    "t": lambda host: host.runtime,
    "S": lambda host: host.state,
    "C": lambda host: host.cache,
    "L": lambda host: host.logs,
    "E": lambda host: host.configuration,
    "H": lambda host: host.hostname,
    "l": lambda host: host.hostname.partition(".")[0],
    "m": lambda host: host.machine_id,
    "b": lambda host: host.boot_id,
    "v": lambda host: host.kernel_release,
    "a": lambda host: host.architecture,
    "o": lambda host: host.os_release.get("ID", ""),
    "w": lambda host: host.os_release.get("VERSION_ID", ""),
    "T": lambda _: "/tmp",
    "V": lambda _: "/var/tmp",
}
_ELSEWHERE = {
    "d": "credentials are not handed to agents",
    "q": "the pretty host name is not read",
    "y": "the path of the unit's file differs between hosts",
    "Y": "the path of the unit's file differs between hosts",
}


def resolve(text: str, name: Name, host: Host) -> str:
    """A value with its specifiers put in. Raises UnknownSpecifier."""
    if "%" not in text:
        return text
    pieces, rest = [], text
    while True:
        before, percent, rest = rest.partition("%")
        pieces.append(before)
        if not percent:
            return "".join(pieces)
        pieces.append(_resolved(rest[:1], name, host))
        rest = rest[1:]


def _resolved(letter: str, name: Name, host: Host) -> str:
    if letter == "%":
        return "%"
    if letter in _UNIT:
        return _UNIT[letter](name)
    if letter in _HOST:
        value = _HOST[letter](host)
        if not value:
            raise UnknownSpecifier(f"this host says nothing that %{letter} could stand for")
        return value
    if letter in _ELSEWHERE:
        raise UnknownSpecifier(f"%{letter} is not supported: {_ELSEWHERE[letter]}")
    if not letter:
        raise UnknownSpecifier("a '%' at the end is no specifier; '%%' is a percent sign")
    raise UnknownSpecifier(f"%{letter} is no specifier; '%%' is a percent sign")

"""What a profile grants, tried: files, names, ports. And what it does not, beside each."""

from __future__ import annotations

import _socket
import errno as errors
import posix

from osmoda.sandbox.battery.attacks import Facts, attack
from osmoda.sandbox.battery.kernel import Refused, call, open_path, read
from osmoda.sandbox.battery.sockets import connected, internet

FAMILY = "grants"

_DIRECTORY, _KIND = 0o040000, 0o170000
_A, _AAAA = 1, 28
_NXDOMAIN_OR_REFUSED = (3, 5)
_SETTLED = 0.25  # seconds, in which a gateway has said whether it refuses a connection


def _is_directory(path: str) -> bool:
    try:
        return posix.stat(path).st_mode & _KIND == _DIRECTORY
    except OSError:
        return False


@attack(FAMILY, "read")
def read_path(_: Facts, path: str) -> str:
    """List a directory, or read the beginning of a file."""
    if _is_directory(path):
        posix.close(open_path(path, posix.O_RDONLY | posix.O_DIRECTORY))
        return "it can be listed"
    fd = open_path(path, posix.O_RDONLY | posix.O_NONBLOCK)
    read(fd, 1, ("path", path, "read"))
    return "it can be read"


@attack(FAMILY, "write")
def write_path(_: Facts, path: str, name: str) -> str:
    """Make a file in a directory and remove it, or open a file for writing and leave it as it is."""
    if _is_directory(path):
        made = f"{path.rstrip('/')}/{name}"
        about = ("path", path, "write")
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL
        fd = call("openat", -100, made.encode("utf-8", "surrogateescape"), flags, 0o600, about=about)
        posix.close(fd)
        posix.unlink(made)
        return "a file can be made in it"
    posix.close(open_path(path, posix.O_WRONLY | posix.O_NONBLOCK))
    return "it can be written"


def _question(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return b"\x4f\x53\x01\x00\0\1\0\0\0\0\0\0" + labels + b"\0" + kind.to_bytes(2, "big") + b"\0\1"


def _address_of(facts: Facts, name: str, about: tuple[object, ...]) -> str:
    """The address that the resolver inside gives for `name`."""
    family, packed = internet(facts["resolver"], 53)
    one = _socket.socket(fileno=connected(family, _socket.SOCK_DGRAM, packed, *about))
    one.settimeout(15.0)
    try:
        one.send(_question(name, _A))
        answer = one.recv(1500)
    except OSError as error:
        raise Refused(error.errno or errors.ETIMEDOUT, "sendto", (), about) from None
    finally:
        one.close()
    if answer[3] & 0xF in _NXDOMAIN_OR_REFUSED or not int.from_bytes(answer[6:8], "big"):
        raise Refused(errors.ENOENT, "resolve", (), about)
    # The first answer stands behind the question, its name a pointer: type, class, time to live, length, address.
    place = 12 + len(_question(name, _A)) - 12
    return _socket.inet_ntoa(answer[place + 12 : place + 16])


@attack(FAMILY, "resolve")
def resolve(facts: Facts, name: str) -> str:
    return f"it leads to {_address_of(facts, name, ('name', name, 0))}"


@attack(FAMILY, "connect to")
def connect(facts: Facts, name: str, port: int) -> str:
    """Whether it is refused is known from the gateway: it may leave the connection open to tell the client why.

    Nothing is sent, so that nothing is said to anybody outside in the profile's name.
    """
    about = ("name", name, port)
    is_address = ":" in name or name.replace(".", "").isdecimal()
    family, packed = internet(name if is_address else _address_of(facts, name, about), port)
    one = _socket.socket(fileno=connected(family, _socket.SOCK_STREAM, packed, *about))
    one.settimeout(_SETTLED)
    try:
        said = one.recv(16)
    except TimeoutError:
        return "the gateway takes the connection"
    except OSError as error:
        raise Refused(error.errno or 0, "recvfrom", (), about) from None
    finally:
        one.close()
    if not said:
        raise Refused(errors.ECONNRESET, "recvfrom", (), about)
    return "somebody answers"


@attack(FAMILY, "serve")
def serve(_: Facts, port: int) -> str:
    about = ("bind", port)
    family, packed = internet("0.0.0.0", port)  # noqa: S104 - within the sandbox's own network
    fd = call("socket", family, _socket.SOCK_STREAM, 0, about=("socket", family, _socket.SOCK_STREAM))
    call("bind", fd, packed, len(packed), about=about)
    call("listen", fd, 1, about=about)
    posix.close(fd)
    return "it can be served"

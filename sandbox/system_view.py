"""What every sandbox shows and no profile declares: the host's programs, a little of /etc, fresh /dev, /proc, /tmp."""

from __future__ import annotations

import glob
import os
import stat
from typing import TYPE_CHECKING

from osmoda.sandbox.operations import mounting, trust_store

if TYPE_CHECKING:
    from collections.abc import Iterable

UID = 1000
GID = 1000
HOME = "/home/agent"
EMPTY_WORKSPACE = "/workspace"
DEVICES = (b"full", b"null", b"random", b"tty", b"urandom", b"zero")

# Folders of programs: a folder is shown read-only, a link (merged /usr) is repeated.
_PROGRAMS = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")

# What ordinary programs read in /etc and holds no secret. Not /etc/ssl, whose private keys lie beside the certificates.
_ETC = (
    "alternatives",
    "fonts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "os-release",
    "pki/ca-trust",
    "pki/tls/cert.pem",
    "pki/tls/certs",
    "protocols",
    "services",
    "ssl/cert.pem",
    "ssl/certs",
    "ssl/openssl.cnf",
    "timezone",
)
# A file up to this size is copied into the sandbox's own /etc, which takes fewer system calls than a mount.
_COPIED = 8192

_PASSWD = (
    f"root:x:0:0:root:/:/usr/sbin/nologin\n"
    f"agent:x:{UID}:{GID}:agent:{HOME}:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
)
_GROUP = f"root:x:0:\nagent:x:{GID}:\nnogroup:x:65534:\n"
_NSSWITCH = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n"


def trees() -> tuple[str, ...]:
    """The host's folders and files that every sandbox shows, read-only: those of the list that this host has."""
    found = ["/usr"]
    for name in _PROGRAMS:
        path = f"/{name}"
        if os.path.isdir(path) and not os.path.islink(path):
            found.append(path)
    found.extend(path for path in _etc() if os.path.isdir(path) or os.path.getsize(path) > _COPIED)
    if os.path.isdir("/nix/store"):
        found.append("/nix/store")
    return tuple(found)


def _etc() -> list[str]:
    """The entries of /etc on this host that everybody may read."""
    paths = [f"/etc/{name}" for name in _ETC] + sorted(glob.glob("/etc/java-*"))
    found = []
    for path in paths:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue
        if (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) and mode & 0o004:
            found.append(path)
    return found


def through_link(path: str) -> bool:
    """Whether `path` starts with a link of the root (merged /usr) that every sandbox repeats."""
    name = path.split("/")[1]
    return name in _PROGRAMS and os.path.islink(f"/{name}")


def copied() -> tuple[str, ...]:
    """The small files of /etc, of which every sandbox gets a copy."""
    return tuple(path for path in _etc() if os.path.isfile(path) and os.path.getsize(path) <= _COPIED)


def _copies(paths: Iterable[str]) -> dict[str, bytes]:
    """Files by their names below the root, as they are now."""
    copies = {}
    for path in paths:
        with open(path, "rb") as file:
            copies[path[1:]] = file.read(_COPIED)
    return copies


GENERATED = tuple(
    f"/etc/{name}" for name in ("passwd", "group", "nsswitch.conf", "hosts", "hostname", "resolv.conf", "mtab")
)
"""What a sandbox has of its own in /etc, instead of the host's: see `skeleton`."""


def skeleton(
    origin: str,
    shown: tuple[str, ...],
    copies: tuple[str, ...],
    hostname: str,
    places: tuple[str, ...],
    resolver: str,
) -> mounting.Skeleton:
    """The folders, links and files that the mounts of `shown` and `places` need, `copies`, and the generated files.

    `resolver` is the content of /etc/resolv.conf.
    """
    directories: dict[str, None] = {}
    files: dict[str, bytes] = _copies(copies) | {
        "etc/passwd": _PASSWD.encode(),
        "etc/group": _GROUP.encode(),
        "etc/nsswitch.conf": _NSSWITCH.encode(),
        "etc/hosts": f"127.0.0.1 localhost {hostname}\n::1 localhost {hostname}\n".encode(),
        "etc/hostname": f"{hostname}\n".encode(),
        "etc/resolv.conf": resolver.encode(),
        ".denied": b"",
        trust_store.BUNDLE[1:]: b"",
    }
    for path in (*shown, *places):
        if os.path.isdir(path) or path in places:
            directories[path[1:]] = None
        else:
            files[path[1:]] = b""
    for name in DEVICES:
        files["dev/" + name.decode()] = b""
    directories.update(dict.fromkeys(("dev/pts", "proc", ".stage", ".trust", "run")))
    for path in (*directories, *files):
        parent = os.path.dirname(path)
        while parent:
            directories[parent] = None
            parent = os.path.dirname(parent)
    links = {"dev/fd": "/proc/self/fd", "dev/stdin": "/proc/self/fd/0", "dev/stdout": "/proc/self/fd/1"}
    links |= {"dev/stderr": "/proc/self/fd/2", "dev/ptmx": "pts/ptmx", "etc/mtab": "/proc/self/mounts"}
    links |= {name: os.readlink(f"/{name}") for name in _PROGRAMS if os.path.islink(f"/{name}")}
    return mounting.Skeleton(
        origin,
        tuple(name.encode() for name in sorted(directories)),
        tuple((name.encode(), target.encode()) for name, target in links.items()),
        tuple((name.encode(), content) for name, content in files.items()),
    )


def environment() -> dict[str, str]:
    """The variables that every sandbox starts from (environ(7)); `container` as systemd's interface has it."""
    return {
        "HOME": HOME,
        "LOGNAME": "agent",
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
        "SHELL": "/bin/sh",
        "USER": "agent",
        "container": "osmoda",
    }

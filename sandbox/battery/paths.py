"""Files that no profile grants, by every name that might lead to them."""

from __future__ import annotations

import posix

from osmoda.sandbox.battery.attacks import Facts, attack
from osmoda.sandbox.battery.kernel import Refused, call, content, open_path, writable

FAMILY = "paths"

_ENOENT = 2


def _secret(facts: Facts, path: str, secret: str = "") -> str:
    about = ("path", secret or facts["secret"], "read")
    if facts["token"].encode() not in content(path, about=about):
        raise Refused(_ENOENT, "read", (), about)
    return "the host's secret"


@attack(FAMILY, "read a file of the host's that is not granted")
def read_secret(facts: Facts) -> str:
    return _secret(facts, facts["secret"])


@attack(FAMILY, "the same by ..")
def read_by_dots(facts: Facts) -> str:
    return _secret(facts, f"{facts['scratch']}/../../../../../..{facts['secret']}")


@attack(FAMILY, "the same by a symbolic link")
def read_by_link(facts: Facts) -> str:
    link = f"{facts['scratch']}/link"
    posix.symlink(facts["secret"], link)
    try:
        return _secret(facts, link)
    finally:
        posix.unlink(link)


@attack(FAMILY, "the same by a hard link")
def read_by_hard_link(facts: Facts) -> str:
    link = f"{facts['scratch']}/hard"
    about = ("path", facts["secret"], "read")
    call("linkat", -100, facts["secret"].encode(), -100, link.encode(), 0, about=about)
    try:
        return _secret(facts, link)
    finally:
        posix.unlink(link)


@attack(FAMILY, "the same by /proc/self/root")
def read_by_root(facts: Facts) -> str:
    return _secret(facts, f"/proc/self/root{facts['secret']}")


@attack(FAMILY, "list a folder of the host's that is not granted")
def list_folder(facts: Facts) -> str:
    posix.close(open_path(facts["folder"], posix.O_RDONLY | posix.O_DIRECTORY))
    return "its names"


@attack(FAMILY, "read the host's passwords", privileged=True)
def read_shadow(_: Facts) -> str:
    content("/etc/shadow")
    return "/etc/shadow"


@attack(FAMILY, "overwrite a program of the system", privileged=True)
def overwrite_system(facts: Facts) -> str:
    return writable(facts["program"])


@attack(FAMILY, "change the list of users", privileged=True)
def change_users(_: Facts) -> str:
    return writable("/etc/passwd")


@attack(FAMILY, "make a file in /usr", privileged=True)
def plant(_: Facts) -> str:
    path = f"/usr/osmoda-battery-{posix.getpid()}"
    posix.close(open_path(path, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL, 0o600))
    posix.unlink(path)
    return "a file was made"


@attack(FAMILY, "find the secret in the host's shared memory (/dev/shm)")
def shared_memory(facts: Facts) -> str:
    return _secret(facts, facts["shm_file"], facts["shm_file"])

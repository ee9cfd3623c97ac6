"""The certificates that programs inside trust, where connections are inspected: the host's, and one CA more."""

from __future__ import annotations

import posix

from osmoda.host import syscalls
from osmoda.host.frozen import frozen
from osmoda.sandbox.operations import Operation, Setup

BUNDLE = "/etc/osmoda/ca-certificates.crt"
"""Where the bundle always lies, whatever the host's own places are; the usual variables name it."""

_ATTRIBUTES = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
_SAFE = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_BENEATH


@frozen
class TrustStore(Operation):
    """The stores are given at the launch (`Setup.trust`), since each sandbox has a CA that nobody else trusts.

    `bundles` are the files that a PEM bundle covers, `java` those that a Java key store does.
    """

    bundles: tuple[bytes, ...]
    java: tuple[bytes, ...]

    layer = "network"

    def describe(self) -> str:
        covered = ", ".join(path.decode(errors="backslashreplace") for path in (*self.bundles, *self.java))
        return (
            "connections under rules with methods, paths, secrets or body limits are opened by the gateway, with a CA "
            f"of this sandbox's own, which {covered} trust"
        )

    def apply(self, setup: Setup) -> None:
        if len(setup.trust) < (2 if self.java else 1):
            raise OSError(2, "the gateway gave no certificates to trust")
        options = ((b"mode", b"0755"), (b"size", b"32m"), (b"nr_inodes", b"8"))
        store = syscalls.fsmount(b"tmpfs", options, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV)
        # Attached only to be copied from: some kernels clone no mount that lies nowhere.
        place = syscalls.openat2(setup.root, b".trust", posix.O_PATH, _SAFE)
        syscalls.move_mount(store, place, b"")
        for name, source, covered in ((b"pem", setup.trust[0], self.bundles), (b"java", setup.trust[-1], self.java)):
            if covered:
                _copy(source, store, name)
                for path in covered:
                    _cover(setup.root, store, name, path)
        syscalls.mount_setattr(store, _ATTRIBUTES)
        posix.close(place)
        posix.close(store)


def _copy(source: int, folder: int, name: bytes) -> None:
    fd = posix.open(name, posix.O_CREAT | posix.O_EXCL | posix.O_WRONLY | posix.O_CLOEXEC, 0o444, dir_fd=folder)
    size, offset = posix.fstat(source).st_size, 0
    while offset < size:
        offset += posix.write(fd, posix.pread(source, 1 << 20, offset))
    posix.close(fd)


def _cover(root: int, folder: int, name: bytes, path: bytes) -> None:
    target = syscalls.openat2(root, path[1:], posix.O_PATH, _SAFE)
    copy = syscalls.open_tree(folder, name, syscalls.OPEN_TREE_CLONE)
    syscalls.mount_setattr(copy, _ATTRIBUTES)
    try:
        syscalls.move_mount(copy, target, b"")
    except OSError as error:
        raise syscalls.explained(error, f"mount {path.decode(errors='backslashreplace')}") from None
    posix.close(copy)
    posix.close(target)

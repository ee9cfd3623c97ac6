"""What `learn` puts into a plan: trees of the host whose changes are thrown away, and a filter that reports calls.

Neither allows anything. The trees are those that a profile of the tier could grant, and what is written to them is gone
with the sandbox. The filter stands beside the one that decides: of all filters' answers the kernel takes the strictest
(seccomp(2)), and "trace" is weaker than each refusal.
"""

from __future__ import annotations

import posix

from osmoda.host import syscalls
from osmoda.host.frozen import frozen
from osmoda.sandbox.operations import Operation, Setup, mounting, overlayfs


@frozen
class Throwaway(mounting.Grant):
    """A tree of the host, written to a layer in memory of at most `size` bytes that is gone with the sandbox.

    `hidden` are names in it that are not there; `kept` are files of the sandbox's own root, below `path`, that stay in
    place of the host's; `places` are folders in it for later mounts. `closed`: the caller may not write it.
    """

    hidden: tuple[bytes, ...]
    kept: tuple[bytes, ...]
    places: tuple[bytes, ...]
    size: int
    closed: bool

    def attributes(self) -> int:
        """MOUNT_ATTR_* of the lower layer's tree."""
        return mounting.WRITABLE | syscalls.MOUNT_ATTR_RDONLY

    def describe(self) -> str:
        return f"read {self.path.decode(errors='backslashreplace')}; what is written there is thrown away"

    def apply(self, setup: Setup) -> None:
        tree = mounting.source_tree(setup, self.path, self.attributes())
        mode = posix.fstat(tree).st_mode & 0o7777
        inodes = max(self.size // 4096, 1024)
        options = ((b"mode", b"0700"), (b"size", b"%d" % self.size), (b"nr_inodes", b"%d" % inodes))
        layer = syscalls.fsmount(b"tmpfs", options, mounting.WRITABLE)
        for name in (b"upper", b"work"):
            posix.mkdir(name, 0o755, dir_fd=layer)
        posix.chmod(b"upper", mode & ~0o222 if self.closed else mode, dir_fd=layer)
        upper = posix.open(b"upper", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC, dir_fd=layer)
        try:
            for name in self.kept:
                _copy(setup.root, self.path[1:] + b"/" + name, upper, name)
        finally:
            posix.close(upper)
        overlay = overlayfs.with_layer(setup, tree, layer, (), self.hidden)
        mounting.make_place(setup.root, self.path, directory=True)
        mounting.attach(setup, overlay, self.path)
        for name in self.places:
            mounting.make_place(setup.root, self.path + b"/" + name, directory=True)


@frozen
class Composed(Operation):
    """A folder of the host that is put together from its entries, which follow: file systems are mounted in it.

    What is made in it, at most `size` bytes, is thrown away. `places` are folders in it for later mounts.
    """

    path: bytes
    places: tuple[bytes, ...]
    mode: int
    size: int

    layer = "mounts"

    def describe(self) -> str:
        return f"{self.path.decode(errors='backslashreplace')}, put together from what follows"

    def apply(self, setup: Setup) -> None:
        inodes = max(self.size // 4096, 1024)
        options = ((b"mode", b"%o" % self.mode), (b"size", b"%d" % self.size), (b"nr_inodes", b"%d" % inodes))
        tree = syscalls.fsmount(b"tmpfs", options, mounting.WRITABLE)
        mounting.make_place(setup.root, self.path, directory=True)
        mounting.attach(setup, tree, self.path)
        for name in self.places:
            mounting.make_place(setup.root, self.path + b"/" + name, directory=True)


def _copy(root: int, source: bytes, folder: int, name: bytes) -> None:
    """Put a file or link of the sandbox's own root into the layer."""
    try:
        posix.symlink(posix.readlink(source, dir_fd=root), name, dir_fd=folder)
        return
    except OSError as error:
        if error.errno != 22:  # EINVAL: no link
            raise
    fd = posix.open(source, posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=root)
    try:
        content = posix.read(fd, 1 << 20)
    finally:
        posix.close(fd)
    fd = posix.open(name, posix.O_CREAT | posix.O_EXCL | posix.O_WRONLY | posix.O_CLOEXEC, 0o444, dir_fd=folder)
    try:
        posix.write(fd, content)
    finally:
        posix.close(fd)


@frozen
class Reported(Operation):
    """A filter that stops the program at system calls for the monitor to look at, and allows none (ptrace(2)).

    When the monitor is gone the kernel answers such a call with ENOSYS.
    """

    program: bytes

    layer = "observation"

    def describe(self) -> str:
        return "the monitor looks at system calls before they are made; it decides about none"

    def apply(self, setup: Setup) -> None:
        syscalls.seccomp_set_filter(self.program, 0)

"""The file system that the sandbox sees, built on file descriptors from an empty root.

Sources are opened without following links and turned into detached mounts; targets are resolved below the new root
only, so no path is looked up twice and none can be swapped in between.
"""

from __future__ import annotations

import posix

from osmoda.host import syscalls
from osmoda.host.frozen import frozen
from osmoda.sandbox.operations import Operation, Setup, overlayfs

_O_PATH = posix.O_PATH | posix.O_CLOEXEC
_SAFE = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
WRITABLE = _NOSUID_NODEV = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
_RDONLY = syscalls.MOUNT_ATTR_RDONLY
_CLONE_TREE = syscalls.AT_EMPTY_PATH | syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE
_IFMT, _IFDIR, _IFREG = 0o170000, 0o040000, 0o100000
COVERED_IN_PROC = (b"keys", b"key-users")
MASK = b".denied"  # the file that covers denied ones: nobody may read it


def _text(name: bytes) -> str:
    """A file's name for a person: it need not be UTF-8 (path_resolution(7))."""
    return name.decode(errors="backslashreplace")


def open_source(path: bytes) -> tuple[int, posix.stat_result]:
    """Open a granted path, refusing a link anywhere in it and anything but a file or a directory."""
    fd = syscalls.openat2(syscalls.AT_FDCWD, path, posix.O_PATH, _SAFE)
    status = posix.fstat(fd)
    if status.st_mode & _IFMT not in (_IFDIR, _IFREG):
        posix.close(fd)
        raise OSError(1, f"open {_text(path)}: neither a file nor a directory")
    return fd, status


def clone_tree(fd: int, attributes: int, userns_fd: int = -1) -> int:
    """A detached copy of the mounts at `fd` with `attributes`; with `userns_fd`, idmapped through that namespace.

    It is private: a copy of a shared mount, as systemd makes them all, is its peer, and what is mounted on either shows
    on the other, on the host as well (mount_namespaces(7)).
    """
    tree = syscalls.open_tree(fd, b"", _CLONE_TREE)
    private = syscalls.MS_PRIVATE
    if userns_fd >= 0:
        mapped = attributes | syscalls.MOUNT_ATTR_IDMAP
        syscalls.mount_setattr(tree, mapped, 0, userns_fd, recursive=True, propagation=private)
    else:
        syscalls.mount_setattr(tree, attributes, recursive=True, propagation=private)
    return tree


def source_tree(setup: Setup, path: bytes, attributes: int) -> int:
    """The tree of a granted path: prepared by the parent when it is root, else opened here."""
    tree = setup.trees.pop(path, -1)
    if tree >= 0:
        return tree
    fd, _ = open_source(path)
    try:
        return clone_tree(fd, attributes)
    finally:
        posix.close(fd)


def attach(setup: Setup, tree: int, target: bytes) -> None:
    """Attach at `target` below the new root; a link anywhere on the way is refused."""
    place = syscalls.openat2(setup.root, target[1:], posix.O_PATH, _SAFE | syscalls.RESOLVE_BENEATH)
    try:
        syscalls.move_mount(tree, place, b"")
    except OSError as error:
        raise syscalls.explained(error, f"mount {_text(target)}") from None
    finally:
        posix.close(place)
    posix.close(tree)


def make_place(root: int, target: bytes, directory: bool) -> None:
    """Make the mount point `target`, and the folders on the way, below the new root where they are missing."""
    parts = target.strip(b"/").split(b"/")
    here = posix.dup(root)
    try:
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            try:
                if last and not directory:
                    posix.close(posix.open(part, posix.O_CREAT | posix.O_EXCL | posix.O_WRONLY, 0o444, dir_fd=here))
                else:
                    posix.mkdir(part, 0o755, dir_fd=here)
            except OSError as error:
                # What is there already is used as it is; EROFS means "there" too, or the open below says otherwise.
                if error.errno not in (17, 30):
                    raise syscalls.explained(error, f"mkdir {_text(target)}") from None
            deeper = syscalls.openat2(here, part, posix.O_PATH, _SAFE)
            posix.close(here)
            here = deeper
    finally:
        posix.close(here)


@frozen
class Root(Operation):
    """An empty, private tmpfs that becomes `/`."""

    layer = "mounts"

    def describe(self) -> str:
        return "an empty root of its own; nothing of the host is in it but what follows"

    def apply(self, setup: Setup) -> None:
        syscalls.mount_private()
        options = ((b"mode", b"0755"), (b"size", b"1m"), (b"nr_inodes", b"4096"))
        setup.root = syscalls.fsmount(b"tmpfs", options, _NOSUID_NODEV)
        # It is stacked onto the old root only to be attached somewhere: pivot_root(2) wants that of a new root.
        syscalls.move_mount(setup.root, syscalls.AT_FDCWD, b"/")


@frozen
class Skeleton(Operation):
    """Folders, links and small generated files of the root."""

    directories: tuple[bytes, ...]
    links: tuple[tuple[bytes, bytes], ...]
    files: tuple[tuple[bytes, bytes], ...]

    layer = "mounts"

    def describe(self) -> str:
        names = [_text(path) for path, content in self.files if content]
        return f"a skeleton of {len(self.directories)} folders; generated {', '.join('/' + name for name in names)}"

    def apply(self, setup: Setup) -> None:
        root = setup.root
        for path in self.directories:
            posix.mkdir(path, 0o755, dir_fd=root)
        for path, target in self.links:
            posix.symlink(target, path, dir_fd=root)
        flags = posix.O_CREAT | posix.O_EXCL | posix.O_WRONLY | posix.O_CLOEXEC
        for path, content in self.files:
            if not content:
                posix.mknod(path, 0o100000 if path == MASK else 0o100444, dir_fd=root)
                continue
            fd = posix.open(path, flags, 0o444, dir_fd=root)
            posix.write(fd, content)
            posix.close(fd)


@frozen
class SystemTree(Operation):
    """A part of the host's system, read-only, at its own name."""

    path: bytes

    layer = "mounts"

    def describe(self) -> str:
        return f"read {_text(self.path)}"

    def apply(self, setup: Setup) -> None:
        tree = syscalls.open_tree(syscalls.AT_FDCWD, self.path, syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE)
        syscalls.mount_setattr(tree, _RDONLY | _NOSUID_NODEV, recursive=True)
        syscalls.move_mount(tree, setup.root, self.path[1:])
        posix.close(tree)


@frozen
class SystemTreeWithout(SystemTree):
    """A part of the host's system without the names that the profile denies, through an overlay (see `ReadTree`)."""

    hidden: tuple[bytes, ...]

    def describe(self) -> str:
        return f"read {_text(self.path)} but not {', '.join(_text(name) for name in self.hidden)}"

    def apply(self, setup: Setup) -> None:
        tree = syscalls.open_tree(syscalls.AT_FDCWD, self.path, syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE)
        syscalls.mount_setattr(tree, _RDONLY | _NOSUID_NODEV, recursive=True)
        attach(setup, overlayfs.without(setup, tree, self.hidden), self.path)


@frozen
class Scratch(Operation):
    """A private tmpfs of at most `size` bytes at `path`, gone with the sandbox (tmpfs(5))."""

    path: bytes
    size: int
    mode: int

    layer = "mounts"

    def describe(self) -> str:
        return f"write {_text(self.path)}: empty, private, at most {self.size >> 20}M, gone at the end"

    def apply(self, setup: Setup) -> None:
        # A fixed ratio of inodes to bytes, so that a million empty files are as bounded as one large one.
        inodes = max(self.size // 4096, 1024)
        options = ((b"mode", b"%o" % self.mode), (b"size", b"%d" % self.size), (b"nr_inodes", b"%d" % inodes))
        tree = syscalls.fsmount(b"tmpfs", options, _NOSUID_NODEV)
        syscalls.move_mount(tree, setup.root, self.path[1:])
        posix.close(tree)


@frozen
class Proc(Operation):
    """A procfs that shows the sandbox's own processes only (proc(5)); made read-only by `Seal`.

    The names of keys are covered: no namespace separates those of the caller's uid from the caller's own (keyrings(7)).
    """

    layer = "mounts"

    def describe(self) -> str:
        return "read /proc: only the processes of this sandbox, and no keys"

    def apply(self, setup: Setup) -> None:
        setup.proc = syscalls.fsmount(b"proc", (), _NOSUID_NODEV | syscalls.MOUNT_ATTR_NOEXEC)
        syscalls.move_mount(setup.proc, setup.root, b"proc")
        for name in COVERED_IN_PROC:
            try:
                place = syscalls.openat2(setup.proc, name, posix.O_PATH)
            except FileNotFoundError:
                continue  # a kernel without keyrings
            cover = syscalls.open_tree(setup.root, MASK, syscalls.OPEN_TREE_CLONE)
            syscalls.mount_setattr(cover, _NOSUID_NODEV | _RDONLY | syscalls.MOUNT_ATTR_NOEXEC)
            syscalls.move_mount(cover, place, b"")
            posix.close(cover)
            posix.close(place)


@frozen
class Devices(Operation):
    """The harmless devices, and a pty instance of the sandbox's own (pts(4))."""

    names: tuple[bytes, ...]

    layer = "mounts"

    def describe(self) -> str:
        return f"/dev with {', '.join(_text(name) for name in self.names)} and terminals of its own"

    def apply(self, setup: Setup) -> None:
        nosuid_noexec = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC
        for name in self.names:
            # A bind: mknod(2) is refused in a user namespace.
            tree = syscalls.open_tree(syscalls.AT_FDCWD, b"/dev/" + name, syscalls.OPEN_TREE_CLONE)
            syscalls.mount_setattr(tree, nosuid_noexec)
            syscalls.move_mount(tree, setup.root, b"dev/" + name)
            posix.close(tree)
        options: tuple[tuple[bytes, bytes | None], ...] = (
            (b"newinstance", None),
            (b"ptmxmode", b"0666"),
            (b"mode", b"0620"),
        )
        tree = syscalls.fsmount(b"devpts", options, nosuid_noexec)
        syscalls.move_mount(tree, setup.root, b"dev/pts")
        posix.close(tree)


@frozen
class Grant(Operation):
    """A path of the host that the profile declares. As root its owner is mapped to the sandbox's user."""

    path: bytes

    layer = "mounts"

    def attributes(self) -> int:
        """MOUNT_ATTR_* of the detached tree (mount_setattr(2))."""
        return _NOSUID_NODEV


@frozen
class ReadFile(Grant):
    """One file, read-only."""

    def describe(self) -> str:
        return f"read {_text(self.path)}"

    def attributes(self) -> int:
        return _NOSUID_NODEV | _RDONLY

    def apply(self, setup: Setup) -> None:
        tree = source_tree(setup, self.path, self.attributes())
        make_place(setup.root, self.path, directory=False)
        attach(setup, tree, self.path)


@frozen
class ReadMounts(Grant):
    """A tree with other file systems mounted below it, read-only: an overlay could not show those."""

    def describe(self) -> str:
        return f"read {_text(self.path)} and the file systems mounted below it; sockets lying there can be connected to"

    def attributes(self) -> int:
        return _NOSUID_NODEV | _RDONLY

    def apply(self, setup: Setup) -> None:
        tree = source_tree(setup, self.path, self.attributes())
        make_place(setup.root, self.path, directory=True)
        attach(setup, tree, self.path)


@frozen
class ReadTree(Grant):
    """A tree, read-only, through an overlay whose upper layer holds a whiteout for each denied name.

    Through an overlay a unix socket of the host is another inode and cannot be connected to; and a whiteout hides a
    name whatever the host does to the file behind it, which a mount over it would not survive (rename(2) over a mount
    point of another namespace detaches it).
    """

    hidden: tuple[bytes, ...]

    def describe(self) -> str:
        but = f" but not {', '.join(_text(name) for name in self.hidden)}" if self.hidden else ""
        return f"read {_text(self.path)}{but}"

    def attributes(self) -> int:
        return _NOSUID_NODEV | _RDONLY

    def apply(self, setup: Setup) -> None:
        tree = source_tree(setup, self.path, self.attributes())
        overlay = overlayfs.without(setup, tree, self.hidden)
        make_place(setup.root, self.path, directory=True)
        attach(setup, overlay, self.path)


@frozen
class WriteTree(Grant):
    """A tree or file of the host, written directly."""

    def describe(self) -> str:
        return f"write {_text(self.path)}, directly; sockets lying there can be connected to"

    def apply(self, setup: Setup) -> None:
        tree = source_tree(setup, self.path, self.attributes())
        make_place(setup.root, self.path, directory=posix.fstat(tree).st_mode & _IFMT == _IFDIR)
        attach(setup, tree, self.path)


@frozen
class DirectWorkspace(Operation):
    """The workspace that the launch names, written directly."""

    layer = "workspace"

    def describe(self) -> str:
        return "write the workspace, directly"

    def attributes(self) -> int:
        """MOUNT_ATTR_* of the workspace's tree."""
        return _NOSUID_NODEV

    def apply(self, setup: Setup) -> None:
        tree = source_tree(setup, setup.workspace, _NOSUID_NODEV)
        make_place(setup.root, setup.workspace, directory=True)
        attach(setup, tree, setup.workspace)


@frozen
class OverlayWorkspace(Operation):
    """The workspace read from the host, written to a layer beside it: what changed is committed or discarded later."""

    masked: tuple[bytes, ...]

    layer = "workspace"

    def attributes(self) -> int:
        """MOUNT_ATTR_* of the lower layer's tree."""
        return _NOSUID_NODEV | _RDONLY

    def describe(self) -> str:
        return "write the workspace in a layer of its own; the host's files change only on `commit`"

    def apply(self, setup: Setup) -> None:
        workspace = setup.workspace
        layer = source_tree(setup, setup.layer, _NOSUID_NODEV)
        tree = source_tree(setup, workspace, _NOSUID_NODEV | _RDONLY)
        inside = [path[len(workspace) + 1 :] for path in self.masked if path.startswith(workspace + b"/")]
        overlay = overlayfs.with_layer(setup, tree, layer, inside)
        make_place(setup.root, workspace, directory=True)
        attach(setup, overlay, workspace)


@frozen
class Alias(Operation):
    """A link to a granted path, where the profile names it by one."""

    path: bytes
    target: bytes

    layer = "mounts"

    def describe(self) -> str:
        return f"{_text(self.path)} leads to {_text(self.target)}"

    def apply(self, setup: Setup) -> None:
        folder = self.path.rpartition(b"/")[0]
        if folder:
            make_place(setup.root, folder, directory=True)
        posix.symlink(self.target, self.path[1:], dir_fd=setup.root)


@frozen
class Mask(Operation):
    """A denied path in a tree that is written: covered by something empty that can be neither read nor replaced.

    Its parents inside cannot be renamed away from it: the mount moves along. `always`
    is false for a path that only the workspace may show.
    """

    path: bytes
    always: bool

    layer = "mounts"

    def describe(self) -> str:
        return f"deny {_text(self.path)}; replacing it on the host ends the sandbox"

    def places(self, workspace: bytes) -> tuple[bytes, ...]:
        """Where it is mounted."""
        shown = self.always or (workspace and self.path.startswith(workspace + b"/"))
        return (self.path,) if shown else ()

    def apply(self, setup: Setup) -> None:
        if not self.places(setup.workspace):
            return
        place = syscalls.openat2(setup.root, self.path[1:], posix.O_PATH, _SAFE | syscalls.RESOLVE_BENEATH)
        attributes = _NOSUID_NODEV | _RDONLY | syscalls.MOUNT_ATTR_NOEXEC
        if posix.fstat(place).st_mode & _IFMT == _IFDIR:
            cover = syscalls.fsmount(b"tmpfs", ((b"mode", b"0"), (b"size", b"4k"), (b"nr_inodes", b"1")), attributes)
        else:
            cover = syscalls.open_tree(setup.root, MASK, syscalls.OPEN_TREE_CLONE)
            syscalls.mount_setattr(cover, attributes)
        syscalls.move_mount(cover, place, b"")
        posix.close(cover)
        posix.close(place)


@frozen
class Pinned(Operation):
    """What decides about the next launch stays as it is, where it lies in a tree that is written.

    `paths` are the profile's files, this package, and the interpreter that runs it; `trees` the written ones besides
    the workspace. The folders on the way are mounted onto themselves, since the parent of a mount point could be
    renamed away from it, but a mount point cannot.
    """

    paths: tuple[bytes, ...]
    trees: tuple[bytes, ...]

    layer = "mounts"

    def describe(self) -> str:
        return (
            "the profile, osmoda itself and its interpreter cannot be written, replaced or moved, wherever they lie; "
            "replacing them on the host ends a sandbox that could write there"
        )

    def places(self, workspace: bytes) -> tuple[bytes, ...]:
        """Where it is mounted: each path, after the folders on the way to it."""
        written = [tree + b"/" for tree in (*self.trees, workspace) if tree]
        found: list[bytes] = []
        for path in self.paths:
            above = [tree for tree in written if path.startswith(tree)]
            if above:
                tree = max(above, key=len)
                parts = path[len(tree) :].split(b"/")
                found.extend(tree + b"/".join(parts[:index]) for index in range(1, len(parts) + 1))
        return tuple(found)

    def apply(self, setup: Setup) -> None:
        for step in self.places(setup.workspace):
            place = syscalls.openat2(setup.root, step[1:], posix.O_PATH, _SAFE | syscalls.RESOLVE_BENEATH)
            copy = syscalls.open_tree(place, b"", _CLONE_TREE)
            if step in self.paths:
                syscalls.mount_setattr(copy, _NOSUID_NODEV | _RDONLY, recursive=True)
            syscalls.move_mount(copy, place, b"")
            posix.close(copy)
            posix.close(place)


@frozen
class Seal(Operation):
    """Leave the host's tree for good, and make the root and /proc read-only (pivot_root(2))."""

    staged: bool

    layer = "mounts"

    def describe(self) -> str:
        return "the host's tree is detached; the root and /proc are read-only"

    def apply(self, setup: Setup) -> None:
        if self.staged:
            overlayfs.unstage(setup.root)
        posix.fchdir(setup.root)
        syscalls.pivot_root(b".", b".")
        syscalls.umount2(b".", syscalls.MNT_DETACH)
        posix.chdir(b"/")
        syscalls.mount_setattr(setup.proc, _RDONLY)
        syscalls.mount_setattr(setup.root, _RDONLY)
        posix.close(setup.proc)
        posix.close(setup.root)

"""Overlays for the mount operations (Documentation/filesystems/overlayfs.rst).

overlayfs looks its layers up by name, so each is attached below `.stage` of the new root until the root is sealed;
the overlay itself holds them by then. The uppermost layer of each, its *shade*, is empty but for what hides or holds
a name.
"""

from __future__ import annotations

import posix

from osmoda.host import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from osmoda.sandbox.operations import Setup

_STAGE = b".stage"
_ATTRIBUTES = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV


def without(setup: Setup, tree: int, hidden: tuple[bytes, ...]) -> int:
    """A read-only overlay of `tree` that lacks the names `hidden`."""
    lower, shade = _stage(setup, tree)
    for name in hidden:
        _whiteout(setup.root, shade, lower, name)
    layers = b":".join((_visible(setup, shade), _visible(setup, lower)))
    return syscalls.fsmount(
        b"overlay", ((b"lowerdir", layers), (b"userxattr", None)), _ATTRIBUTES | syscalls.MOUNT_ATTR_RDONLY
    )


def with_layer(setup: Setup, tree: int, layer: int, masked: Iterable[bytes], hidden: tuple[bytes, ...] = ()) -> int:
    """An overlay of `tree` whose changes go to the mount `layer` (holding `upper` and `work`).

    For each name in `masked` there is something that a mask can be mounted on, whether `tree` has it or not; the names
    `hidden` are not there.
    """
    lower, shade = _stage(setup, tree)
    for name in hidden:
        _whiteout(setup.root, shade, lower, name)
    place = shade + b".layer"
    posix.mkdir(place, 0o755, dir_fd=setup.root)
    syscalls.move_mount(layer, setup.root, place)
    posix.close(layer)
    for name in masked:
        _placeholder(setup.root, shade, lower, name)
    visible = _visible(setup, place)
    options: tuple[tuple[bytes, bytes | None], ...] = (
        (b"lowerdir", b":".join((_visible(setup, shade), _visible(setup, lower)))),
        (b"upperdir", visible + b"/upper"),
        (b"workdir", visible + b"/work"),
        (b"userxattr", None),
    )
    return syscalls.fsmount(b"overlay", options, _ATTRIBUTES)


def _stage(setup: Setup, tree: int) -> tuple[bytes, bytes]:
    """Attach a lower layer where overlayfs finds it, and make an empty upper one: their names below the new root."""
    number = setup.staged
    setup.staged = number + 1
    lower = b"%s/%d" % (_STAGE, number)
    shade = b"%s/%d.shade" % (_STAGE, number)
    posix.mkdir(lower, 0o755, dir_fd=setup.root)
    posix.mkdir(shade, 0o755, dir_fd=setup.root)
    # The merged root takes its mode from the upper layer.
    posix.chmod(shade, posix.fstat(tree).st_mode & 0o7777, dir_fd=setup.root)
    syscalls.move_mount(tree, setup.root, lower)
    posix.close(tree)
    return lower, shade


def _visible(setup: Setup, path: bytes) -> bytes:
    """A name for overlayfs of something below the root that is not yet `/`."""
    return b"/proc/self/fd/%d/%s" % (setup.root, path)


def _shadow_parents(root: int, shade: bytes, lower: bytes, name: bytes) -> None:
    """Make the folders above `name` in the upper layer, with the modes they have below."""
    parts = name.split(b"/")[:-1]
    for index in range(1, len(parts) + 1):
        part = b"/".join(parts[:index])
        try:
            mode = posix.stat(lower + b"/" + part, dir_fd=root, follow_symlinks=False).st_mode & 0o7777
        except FileNotFoundError:
            mode = 0o755
        try:
            posix.mkdir(shade + b"/" + part, mode, dir_fd=root)
        except FileExistsError:
            continue


def _whiteout(root: int, shade: bytes, lower: bytes, name: bytes) -> None:
    """Hide `name`: a character device 0:0, which even an unprivileged process may make (overlayfs.rst)."""
    _shadow_parents(root, shade, lower, name)
    posix.mknod(shade + b"/" + name, 0o020000, 0, dir_fd=root)


def _placeholder(root: int, shade: bytes, lower: bytes, name: bytes) -> None:
    """Something for a mask to be mounted on, where a denied name may not exist."""
    _shadow_parents(root, shade, lower, name)
    try:
        directory = posix.stat(lower + b"/" + name, dir_fd=root, follow_symlinks=False).st_mode & 0o170000 == 0o040000
    except FileNotFoundError:
        directory = False
    if directory:
        posix.mkdir(shade + b"/" + name, 0, dir_fd=root)
    else:
        posix.close(posix.open(shade + b"/" + name, posix.O_CREAT | posix.O_WRONLY | posix.O_CLOEXEC, 0, dir_fd=root))


def unstage(root: int) -> None:
    """Detach the layers from where overlayfs looked them up; it holds them itself by now."""
    place = b"/proc/self/fd/%d/%s" % (root, _STAGE)
    for name in posix.listdir(place):
        if not name.endswith(b".shade"):
            syscalls.umount2(place + b"/" + name, syscalls.MNT_DETACH)

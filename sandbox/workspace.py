"""Overlay workspaces: what a sandbox has written, and what becomes of it (`changes`, `commit`, `discard`).

A commit writes to the workspace as its owner would, also when root makes it: no link is followed, no other file
system entered, each file is replaced by a rename. Until all is on disk nothing leaves the layer, so an interrupted
commit is simply made again.

What counts as a conflict is a file (or link) of the host that was stamped (ctime, which no program can set) after the
layer was last empty. Not noticed are: a file that the host has deleted meanwhile (it comes back as added), a folder
whose mode the host has changed, and anything while the clock was set back.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from osmoda.host import syscalls
from osmoda.ledger.client import printable
from osmoda.sandbox import overlay, place, recording
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.overlay import open_layer
from osmoda.sandbox.overlay_changes import Change, Closed, Trees, is_opaque, join, open_directory
from osmoda.sandbox.overlay_commit import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Change", "changes", "commit", "discard", "open_layer"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAMED = 100  # paths of a commit that are named on the ledger


def changes(workspace: str) -> tuple[Change, ...]:
    """What a commit would change in `workspace`, parents before what they hold; empty when nothing is pending.

    May be called while a sandbox is running there, unless that has closed a folder to its owner. Raises SandboxError.
    """
    work = os.fsencode(place.canonical(workspace))
    try:
        with _trees(work, locked=False) as trees:
            return () if trees is None else tuple(trees.find())
    except Closed:
        with _locked(work), _trees(work, locked=True) as trees:
            return () if trees is None else tuple(trees.find())


def commit(workspace: str, paths: Sequence[str] = (), *, force: bool = False) -> tuple[Change, ...]:
    """Make the pending changes of `workspace`, or those at and below `paths`; returns the changes that were made.

    `paths` are relative to the workspace, or absolute and within it. A change that a profile denies is left out, and
    refused when it is named. Raises SandboxError, before anything is written, for a device, socket or fifo, and for a
    conflict without `force`; when the disk is full or a write is refused, with what is already committed in place and
    everything still pending.
    """
    work = os.fsencode(place.canonical(workspace))
    with _locked(work), _trees(work, locked=True) as trees:
        if trees is None:
            _require(not paths, f"{workspace} has no pending changes")
            return ()
        every = trees.find()
        chosen = _choose(every, work, paths)
        _refuse(chosen, force)
        recording.act("file", _for_ledger(workspace, "commit", chosen))
        with Writer(trees, _temporary_name(work)) as writer:
            writer.write(chosen)
        done = {change.path for change in chosen}
        left = {change.path for change in every if change.path not in done}
        _settle(trees, work, left, writer.stamps())
        return tuple(chosen)


def _for_ledger(workspace: str, what: str, chosen: Sequence[Change]) -> dict[str, object]:
    names = [printable(change.path) for change in chosen[:_NAMED]]
    return {
        "workspace": printable(os.path.realpath(workspace)),
        "what": what,
        "count": len(chosen),
        "paths": names,
    }


def discard(workspace: str, paths: Sequence[str] = ()) -> None:
    """Forget the pending changes of `workspace`, or those at and below `paths` (as for `commit`).

    Without `paths` the layer goes whatever state it is in, also when the workspace itself is gone. Raises SandboxError.
    """
    work = os.fsencode(os.path.realpath(workspace))
    with _locked(work) as found:
        if not found:
            _require(not paths, f"{workspace} has no pending changes")
            return
        if not paths:
            _remove_layer(work)
            return
        with _trees(work, locked=True) as trees:
            assert trees is not None
            every = trees.find()
            for path in _relative(work, paths):
                _discard_one(trees, every, path)
            _settle(trees, work, {change.path for change in trees.find()}, ())


def _discard_one(trees: Trees, every: list[Change], path: str) -> None:
    _require(any(change.within(path) for change in every), f"{path} has no pending change")
    if path == ".":
        raise SandboxError("to discard all changes name no path")
    folder, _, name = path.rpartition("/")
    try:
        parent = open_directory(trees.upper, folder)
    except OSError:
        parent = -1
    try:
        if parent < 0 or name not in os.listdir(parent):
            raise SandboxError(f"{path} was deleted with the folder that held it; discard that folder")
        with _writable(parent):
            remove_tree(parent, name)
    finally:
        if parent >= 0:
            os.close(parent)


@contextlib.contextmanager
def _locked(work: bytes) -> Iterator[bool]:
    """Hold the layer of `work`; false when there is none."""
    try:
        lock = overlay.lock_layer(overlay.layer_path(work), work)
    except FileNotFoundError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(lock)


@contextlib.contextmanager
def _trees(work: bytes, *, locked: bool) -> Iterator[Trees | None]:
    """The workspace and its layer, opened; None when there is no layer."""
    path = overlay.layer_path(work)
    record = overlay.read_record(path)
    if record is None:
        _require(
            not os.path.exists(path), f"the pending changes of {os.fsdecode(work)} have lost their record; discard them"
        )
        yield None
        return
    with contextlib.ExitStack() as opened:
        descriptors = []
        for folder in (work, path + b"/upper"):
            fd = os.open(folder, _DIRECTORY)
            opened.callback(os.close, fd)
            descriptors.append(fd)
        lower, upper = descriptors
        _require(
            os.fstat(lower).st_ino == record.inode,
            f"{os.fsdecode(work)} is not the directory that its pending changes were made in; discard them",
        )
        trees = Trees(lower, upper, path + b"/upper", record, locked)
        try:
            yield trees
        finally:
            trees.close_again()


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise SandboxError(sentence)


def _relative(work: bytes, paths: Sequence[str]) -> list[str]:
    """Each of `paths` relative to the workspace."""
    top = os.fsdecode(work)
    found = []
    for path in paths:
        relative = os.path.relpath(os.path.normpath(path), top) if path.startswith("/") else os.path.normpath(path)
        _require(relative != ".." and not relative.startswith("../"), f"{path} does not lie in the workspace {top}")
        found.append(relative)
    return found


def _choose(every: list[Change], work: bytes, paths: Sequence[str]) -> list[Change]:
    """The changes to make: those asked for that no profile denies, and the new folders that lead to them."""
    if not paths:
        return [change for change in every if not change.denied]
    chosen: set[str] = set()
    for path in _relative(work, paths):
        named = [change for change in every if change.within(path)]
        _require(bool(named), f"{path} has no pending change")
        _require(
            any(not change.denied for change in named),
            f"{path} is denied by the profile it was written under, and never committed",
        )
        chosen.update(change.path for change in named)
        chosen.update(
            change.path
            for change in every
            if change.kind in ("added", "type changed") and path.startswith(change.path + "/")
        )
    return [change for change in every if change.path in chosen and not change.denied]


def _refuse(chosen: list[Change], force: bool) -> None:
    for change in chosen:
        if change.kind != "deleted" and change.file_type in ("device", "fifo", "socket"):
            raise SandboxError(f"{change.path} is a {change.file_type}, which is never committed; discard it")
    conflicts = [change.path for change in chosen if change.conflict]
    if conflicts and not force:
        more = f" (and {len(conflicts) - 1} more)" if len(conflicts) > 1 else ""
        raise SandboxError(
            f"{conflicts[0]}{more} has changed in the workspace while changes to it were pending; "
            "commit with --force to replace it, or discard it"
        )


def _temporary_name(work: bytes) -> str:
    return ".osmoda-commit-" + os.fsdecode(overlay.layer_path(work)).rpartition("/")[2][:16]


# --- what leaves the layer ---


def _settle(trees: Trees, work: bytes, left: set[str], stamps: tuple[tuple[bytes, int, int], ...]) -> None:
    """Take out of the layer what no change in `left` needs; without any, the layer itself."""
    if not left:
        _remove_layer(work)
        return
    record = trees.record
    mine = {path for path, _, _ in stamps}
    seen = (*(entry for entry in record.seen if entry[0] not in mine), *stamps)
    overlay.write_record(
        overlay.layer_path(work),
        overlay.Record(record.workspace, record.inode, record.mode, record.since, record.denied, 0, seen),
    )
    if "." not in left:
        os.fchmod(trees.upper, record.mode)
    needed = {"/".join(parts[:n]) for path in left for parts in [path.split("/")] for n in range(1, len(parts) + 1)}
    pending = [""]
    while pending:
        folder = pending.pop()
        here = open_directory(trees.upper, folder)
        try:
            # Of a folder that hides the host's, a part cannot go: what is below would not show through.
            if folder and is_opaque(here):
                continue
            with _writable(here):
                for name in os.listdir(here):
                    path = join(folder, name)
                    if path not in needed:
                        remove_tree(here, name)
                    elif stat.S_ISDIR(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
                        pending.append(path)
        finally:
            os.close(here)


@contextlib.contextmanager
def _writable(folder: int) -> Iterator[None]:
    """Let the owner write in a folder of the layer, which a program may have closed."""
    mode = os.fstat(folder).st_mode & 0o7777
    if mode & 0o300 == 0o300 or os.geteuid() == 0:
        yield
        return
    os.fchmod(folder, mode | 0o700)
    try:
        yield
    finally:
        os.fchmod(folder, mode)


def _remove_layer(work: bytes) -> None:
    folder, _, name = overlay.layer_path(work).rpartition(b"/")
    parent = os.open(folder, _DIRECTORY)
    try:
        remove_tree(parent, os.fsdecode(name))
    finally:
        os.close(parent)


def remove_tree(parent: int, name: str) -> None:
    """Remove a file or folder of a layer, where nobody else writes.

    Whatever modes and depth a program has given it: each folder is opened to its owner, and what it holds moves up
    rather than being descended into, so that no path becomes too long.
    """
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=parent)
        return
    top = _open_closed(parent, name)
    try:
        number = 0
        while names := os.listdir(top):
            for entry in names:
                if not stat.S_ISDIR(os.stat(entry, dir_fd=top, follow_symlinks=False).st_mode):
                    os.unlink(entry, dir_fd=top)
                    continue
                inner = _open_closed(top, entry)
                try:
                    for child in os.listdir(inner):
                        if not stat.S_ISDIR(os.stat(child, dir_fd=inner, follow_symlinks=False).st_mode):
                            os.unlink(child, dir_fd=inner)
                            continue
                        # A folder that moves has its ".." written.
                        os.close(_open_closed(inner, child))
                        number += 1
                        os.rename(child, f".{number}.{name[:32]}", src_dir_fd=inner, dst_dir_fd=top)
                finally:
                    os.close(inner)
                os.rmdir(entry, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _open_closed(parent: int, name: str) -> int:
    """Open a folder whatever its mode; never through a link, even one that was put there after the caller looked."""
    place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        # chmod(2) of a descriptor that is open for its path only.
        os.chmod(f"/proc/self/fd/{place}", 0o700)
    finally:
        os.close(place)
    return syscalls.openat2(parent, os.fsencode(name), os.O_RDONLY | os.O_DIRECTORY, syscalls.RESOLVE_NO_SYMLINKS)

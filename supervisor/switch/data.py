"""The data of an agent: copied before a switch, put back with the generation that it belongs to.

What an agent may write (`filesystem.write` of its profile) is its data. The copy lies with the generation that it was
made under. Putting it back loses nothing: what is there is kept beside it, under another name. Each step is a rename,
and what lies where says which of them have been made.

Others may write around the data: its user, another agent. So the folder that holds it is opened once, by a name without
links, and all is done through that descriptor.
"""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

from osmoda.sandbox.errors import CompileError
from osmoda.sandbox.granted_paths import resolve_grant
from osmoda.supervisor.switch import tree
from osmoda.supervisor.switch.errors import SwitchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_INDEX = "index.json"
_NOTE = ".put-back"
_ALL = tree.Bounds(1 << 62, 1 << 62)


def folders(written: Iterable[str]) -> list[str]:
    """Of the paths that may be written, the folders to copy, under their names without links.

    Raises SwitchError for what could not be put back by a rename, and for a link that no sandbox would follow.
    """
    try:
        there = {resolve_grant(path, "", write=True, never=()) for path in written if os.path.lexists(path)}
    except CompileError as error:
        raise SwitchError(str(error)) from None
    found: list[str] = []
    for path in sorted(there):
        if any(path.startswith(f"{other}/") for other in found):
            continue
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise SwitchError(f"{path} is no folder: the data of an agent is copied folder by folder (--snapshot-data)")
        if os.path.ismount(path):
            raise SwitchError(f"{path} is a file system of its own: it can be copied, but not put back in one step")
        if not os.access(os.path.dirname(path), os.W_OK):
            raise SwitchError(f"{os.path.dirname(path)} may not be written, so {path} could not be put back")
        found.append(path)
    return found


def snapshot(target: str, switch: int, trees: Sequence[str]) -> None:
    """Copy `trees` to the folder `target`, in the place of an older copy. Raises OSError, SwitchError."""
    if _index(target, switch) is not None:
        return
    partial = f"{target}.partial"
    tree.remove(partial)
    tree.remove(target)
    size = sum(tree.measure(path, _ALL, settled=True) for path in trees)
    tree.require_room(os.path.dirname(target), size, "the data")
    try:
        os.mkdir(partial, 0o700)
        kept = []
        for number, path in enumerate(trees):
            tree.copy(path, os.path.join(partial, str(number)), _ALL, sealed=False, settled=True)
            kept.append(path)
        with open(os.path.join(partial, _INDEX), "x", encoding="utf-8") as file:
            json.dump({"switch": switch, "trees": kept}, file)
            file.flush()
            os.fsync(file.fileno())
        tree.sync_folder(partial)
        os.rename(partial, target)
        tree.sync_folder(os.path.dirname(target))
    except BaseException:
        tree.remove(partial)
        raise


def set_aside(path: str, switch: int) -> str:
    """Where the data is kept that lay at `path` when `switch` put back what had been there before."""
    return f"{path}.set-aside-by-switch-{switch}"


def restore(target: str, switch: int) -> list[str]:
    """Put back what `snapshot` has copied for `switch`, wherever that was left; the folders, none without a copy.

    Raises OSError, SwitchError.
    """
    trees = _index(target, switch) or []
    for number, path in enumerate(trees):
        holder = tree.open_folder(os.path.dirname(path))
        try:
            _restore_one(os.path.join(target, str(number)), holder, os.path.basename(path), switch)
            os.fsync(holder)
        finally:
            os.close(holder)
    return trees


def _restore_one(copied: str, holder: int, name: str, switch: int) -> None:
    aside, coming = set_aside(name, switch), f"{name}.restored-by-switch-{switch}"
    # Somebody else may have taken one of these names: what lies there is believed only when it is what was copied.
    noted = _noted(copied)
    if _is_there(coming, holder) and noted != _identity(coming, holder):
        raise SwitchError(f"{coming} was there before {name} could be put back, and has to be taken away")
    if _is_there(aside, holder) and not noted:
        raise SwitchError(f"{aside} was there before {name} could be put back, and has to be taken away")
    if not _is_there(aside, holder):
        if not _is_there(coming, holder):
            tree.remove(f"{coming}.partial", holder)
            tree.copy(copied, f"{coming}.partial", _ALL, sealed=False, folder=holder)
            _note(copied, _identity(f"{coming}.partial", holder))
            os.rename(f"{coming}.partial", coming, src_dir_fd=holder, dst_dir_fd=holder)
        if _is_there(name, holder):
            os.rename(name, aside, src_dir_fd=holder, dst_dir_fd=holder)
        else:
            os.mkdir(aside, 0o700, dir_fd=holder)
    if not _is_there(name, holder):
        os.rename(coming, name, src_dir_fd=holder, dst_dir_fd=holder)
    if _noted(copied) != _identity(name, holder):
        raise SwitchError(f"{name} is not what was put back: somebody else has made {aside} or {name} meanwhile")


def _identity(name: str, folder: int) -> str:
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    return f"{status.st_dev}:{status.st_ino}"


def _note(copied: str, identity: str) -> None:
    """Remember, beside the copy, which folder was made of it."""
    with open(f"{copied}{_NOTE}.partial", "w", encoding="ascii") as file:
        file.write(identity)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{copied}{_NOTE}.partial", f"{copied}{_NOTE}")
    tree.sync_folder(os.path.dirname(copied))


def _noted(copied: str) -> str:
    try:
        with open(f"{copied}{_NOTE}", encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _is_there(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _index(target: str, switch: int) -> list[str] | None:
    """The folders of the copy at `target`; None when there is none, or it was made for another switch."""
    try:
        with open(os.path.join(target, _INDEX), encoding="utf-8") as file:
            values = json.load(file)
    except FileNotFoundError:
        return None
    except ValueError:
        raise SwitchError(f"{target}/{_INDEX} cannot be read: the copy of the data is damaged") from None
    return list(values["trees"]) if values["switch"] == switch else None

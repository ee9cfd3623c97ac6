"""An edit of a profile file: validated before it is in place, atomic under other editors, in force at once.

The new text is written beside the file and exchanged for it. Editors of one user take turns, by a lock in the state
directory: not on the profile itself, which a program in a sandbox may be able to read, and so to lock for ever. Whoever
takes no turns (a text editor, another user) is noticed, and the edit is made again on what was written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.egress.edits import Edit, EditError
from osmoda.host import paths, syscalls
from osmoda.ledger.client import printable
from osmoda.sandbox import egress_force, network_policy, pins, profile_file, recording
from osmoda.sandbox.egress_force import InForce, Running
from osmoda.sandbox.errors import ProfileError, SandboxError
from osmoda.sandbox.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TRIES = 20  # whoever writes this often in between is no editor
_PATIENCE = 60.0  # seconds to wait for the turn: an edit of a hundred thousand names takes a few
_LOOK = 0.01


@dataclass(frozen=True, slots=True)
class Edited:
    """What an edit did: the file, the edit itself, and the running sandboxes that it was for.

    `notes` are sentences about what other files of the profile say, and about what holds from the next start on.
    `silent` are the process ids of gateways that did not answer.
    """

    file: str
    edit: Edit
    reached: tuple[InForce, ...] = ()
    silent: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def everywhere(self) -> bool:
        """Whether it is in force wherever it should be."""
        return not self.silent and not any(one.error for one in self.reached)


def edit(name: str, change: Callable[[str], Edit]) -> Edited:
    """Change the profile `name` (a file, or the name of an installed one).

    Raises SandboxError, ProfileError for one that would not hold; then nothing has changed.
    """
    file = _file(name)
    with _turn():
        for _ in range(_TRIES):
            before, text = _read(file)
            _check_owner(file, before)
            try:
                made = change(text)
            except EditError as error:
                raise SandboxError(f"{file}: {error}") from None
            if made.text == text:
                return Edited(file, made)
            content = made.text.encode()
            running = Running(file)
            old = _loaded(file)
            with profile_file.replaced(file, content):
                new = _validated(file)
                running.compile()
            running.check_broken()
            pins.check_replaceable(file)
            recording.act("edit", _for_ledger(file, text, made))
            if _replace(file, before, content):
                running.put_in_force()
                _sync(os.path.dirname(file))
                # Those that came while the others were served; what comes later has read the new file.
                running.compile()
                running.put_in_force()
                notes = (*egress_force.elsewhere(new, made, file), *egress_force.later(old, new, bool(running.reached)))
                return Edited(file, made, tuple(running.reached), tuple(sorted(running.silent)), notes)
    raise SandboxError(f"{file} is written by something else all the time; nothing was changed")


def _for_ledger(file: str, before: str, made: Edit) -> dict[str, object]:
    changed = [printable(words)[:500] for words in made.changed]
    return {
        "file": printable(file),
        "what": "; ".join(changed[:50]) + ("; …" if len(changed) > 50 else ""),
        "before": _digest(before),
        "sha256": _digest(made.text),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def reload(name: str) -> Edited:
    """Put the profile `name`, as it is on disk, in force in what runs under it. Raises SandboxError, ProfileError."""
    file = _file(name)
    with _turn():
        _validated(file)
        running = Running(file)
        running.compile()
        recording.act("edit", {"file": printable(file), "sha256": _digest(_read(file)[1]), "what": "reload"})
        running.put_in_force()
        return Edited(file, Edit(""), tuple(running.reached), tuple(sorted(running.silent)))


def _file(name: str) -> str:
    """The file, without links, that a profile is read from."""
    path = profile_file.find(name)
    if path is None:
        Profile.load(name)  # says why there is none
        raise SandboxError(f"{name} is no profile file, and cannot be edited")
    return os.path.realpath(path)


def _loaded(file: str) -> Profile | None:
    """The profile before the edit; None where it did not hold, which the edit may mend."""
    try:
        return Profile.load(file)
    except ProfileError:
        return None


def _validated(file: str) -> Profile:
    profile = Profile.load(file)
    try:
        network_policy.policy_of(profile)
    except ValueError as error:
        raise SandboxError(f"{file}: {error}") from None
    return profile


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """One editor of this user at a time, until what it wrote is in force: a later edit must not be overtaken."""
    path = f"{paths.own_directory('state', 'egress')}/edit.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise SandboxError(f"another edit has held {path} for a minute; nothing was changed") from None
            time.sleep(_LOOK)
        yield
    finally:
        os.close(lock)


def _read(file: str) -> tuple[os.stat_result, str]:
    """The file as it is, and its text. Raises SandboxError."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise ProfileError(f"the profile cannot be read: {error.strerror}", file) from None
    with open(fd, "rb") as stream:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise ProfileError("a profile is a regular file, and this is not", file)
        content = stream.read(profile_file.MOST_BYTES + 1)
    if len(content) > profile_file.MOST_BYTES:
        raise ProfileError(f"a profile has at most {profile_file.MOST_BYTES} bytes", file)
    try:
        return before, content.decode()
    except UnicodeDecodeError:
        raise ProfileError("the profile is not UTF-8", file) from None


def _check_owner(file: str, before: os.stat_result) -> None:
    """A file that is replaced becomes the caller's: refused where it is not the caller's to write."""
    if not os.access(file, os.W_OK, effective_ids=True):
        raise SandboxError(f"{file} may only be read by this user; nothing was changed")
    if os.geteuid() not in (0, before.st_uid):
        raise SandboxError(f"{file} belongs to another user, and an edit would make it this one's; nothing was changed")


def _replace(file: str, before: os.stat_result, content: bytes) -> bool:
    """Put `content` in the place of `file`, all or nothing; False when somebody else has written it since `before`."""
    folder, name = os.path.split(file)
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{name[:100]}.", dir=folder)
    except OSError as error:
        raise SandboxError(f"{file} cannot be replaced: {error.strerror}: {folder}") from None
    try:
        with open(fd, "wb") as stream:
            stream.write(content)
            stream.flush()
            _keep_owner(fd, file, before)
            os.fsync(fd)
        if not _same(file, before):
            return False
        return _exchange(temporary, file, before)
    except OSError as error:
        raise SandboxError(f"{file} cannot be replaced: {error.strerror}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _keep_owner(fd: int, file: str, before: os.stat_result) -> None:
    """Give the new file the owner, group, mode and extended attributes of the one before."""
    mine = os.fstat(fd)
    if (mine.st_uid, mine.st_gid) != (before.st_uid, before.st_gid):
        try:
            os.fchown(fd, before.st_uid, before.st_gid)
        except PermissionError:
            raise SandboxError(f"{file}: its group cannot be kept; nothing was changed") from None
    os.fchmod(fd, stat.S_IMODE(before.st_mode))
    # Labels and access lists; where some are not the caller's to set, the new file has those of its folder.
    with contextlib.suppress(OSError):
        for name in os.listxattr(file):
            with contextlib.suppress(OSError):
                os.setxattr(fd, name, os.getxattr(file, name))


def _exchange(temporary: str, file: str, before: os.stat_result) -> bool:
    """Exchange the two, and look at what came out: between a look and a rename somebody could have written."""
    here, there = os.fsencode(temporary), os.fsencode(file)
    try:
        syscalls.renameat2(here, there, syscalls.RENAME_EXCHANGE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        os.rename(temporary, file)  # a file system without it
        return True
    if _same(temporary, before):
        return True
    syscalls.renameat2(here, there, syscalls.RENAME_EXCHANGE)
    return False


def _same(path: str, before: os.stat_result) -> bool:
    try:
        now = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (now.st_ino, now.st_mtime_ns, now.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)


def _sync(folder: str) -> None:
    """Make a rename last (fsync(2)): after what runs has the edit, since a disk may take its time."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""Compiled plans on disk.

An entry is used only if it is this user's own, whole, and still what a compilation would give. Layout of an entry: 32
bytes of SHA-256 over the rest, then the marshalled (key, witnesses, plan). It is a regular file with mode 0600 and
one link, in a directory that only this user can write to.
"""

from __future__ import annotations

import marshal
import posix

from osmoda.host import features, paths
from osmoda.host.frozen import frozen
from osmoda.sandbox import answering
from osmoda.sandbox.errors import refused
from osmoda.sandbox.plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from hashlib import sha256
    from typing import Any
else:
    from _sha2 import sha256

_FORMAT = 1
_MOST_BYTES = 1 << 24  # a hundred thousand names take 4 MB of it
_MOST_ENTRIES = 256
_TOO_MANY = (23, 24)  # open files
_ENVIRONMENT = ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR")
_OWN = ("OSMODA_CONFIG_DIR", "OSMODA_STATE_DIR", "OSMODA_CACHE_DIR", "OSMODA_RUNTIME_DIR")


@frozen
class Witnesses:
    """What a plan was compiled from; one that has changed makes the entry stale.

    `files` pairs a path with the SHA-256 of its content, `absent` are paths that must not exist (a profile of the
    same name there would be found first), `unmoved` pairs a path with (inode, ctime in ns), `same` a declared path
    with where it led.
    """

    files: tuple[tuple[str, str], ...]
    absent: tuple[str, ...]
    unmoved: tuple[tuple[str, int, int], ...]
    same: tuple[tuple[str, str], ...]
    host: tuple[Any, ...]

    def paths(self) -> Iterator[str]:
        """All that `hold` looks at."""
        for path, _ in self.files:
            yield path
        for path, _, _ in self.unmoved:
            yield path
        yield from self.absent
        for pair in self.same:
            yield from pair

    def hold(self) -> bool:
        """Whether a compilation today would have started from the same."""
        try:
            for path, inode, changed in self.unmoved:
                status = posix.stat(path)
                if status.st_ino != inode or status.st_ctime_ns != changed:
                    return False
            for path, digest in self.files:
                if sha256(_content(path)).hexdigest() != digest:
                    return False
            for declared, real in self.same:
                if not _same(declared, real):
                    return False
        except OSError:
            return False
        return self.host == features.fingerprint() and not any(_exists(path) for path in self.absent)


def key(*request: object) -> tuple[Any, ...]:
    """The name of an entry: what was asked for, and the environment that a profile's `~` and its search depend on."""
    return (_FORMAT, *request, *[paths.environment(name) for name in (*_ENVIRONMENT, *_OWN)])


def load(key: tuple[Any, ...]) -> Plan | None:
    """The plan stored under `key`, or None when there is none that can be trusted and still holds.

    Raises LaunchError where that cannot be known, since a file system does not answer.
    """
    body = _read("plans", key)
    if body is None:
        return None
    try:
        stored, values, plan = marshal.loads(body)
        if stored != key:
            return None
        witnesses = Witnesses(*values)
        answering.require(witnesses.paths())
        return Plan.load(plan) if witnesses.hold() else None
    except (ValueError, EOFError, TypeError, LookupError):
        # Written by another version; its digest only says that nobody touched it since.
        return None


def store(key: tuple[Any, ...], plan: Plan, witnesses: Witnesses) -> None:
    """Keep `plan` for the next launch; without a directory to trust, or room, there is just no entry."""
    values = (witnesses.files, witnesses.absent, witnesses.unmoved, witnesses.same, witnesses.host)
    _write("plans", key, marshal.dumps((key, values, plan.dump())))


def load_part(kind: str, key: tuple[Any, ...]) -> bytes | None:
    """A part of plans that was kept under `key`, as `load` trusts a plan; None when there is none."""
    body = _read(kind, key)
    try:
        stored, part = marshal.loads(body) if body is not None else (None, b"")
    except (ValueError, EOFError, TypeError):
        return None
    return part if stored == key and isinstance(part, bytes) else None


def store_part(kind: str, key: tuple[Any, ...], part: bytes) -> None:
    """Keep a part of plans that takes long to make; the key says all that it depends on."""
    _write(kind, key, marshal.dumps((key, part)))


def _read(kind: str, key: tuple[Any, ...]) -> bytes | None:
    """What follows the digest in an entry that can be trusted."""
    try:
        path = _path(kind, key)
        fd = posix.open(path, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK | posix.O_CLOEXEC)
    except (OSError, paths.UntrustedDirectory) as error:
        if isinstance(error, OSError) and error.errno in _TOO_MANY:
            raise refused(error) from None  # a compilation would want more of them
        return None
    try:
        status = posix.fstat(fd)
        if (
            status.st_mode & 0o177777 != 0o100600
            or status.st_uid != posix.geteuid()
            or status.st_nlink != 1
            or status.st_size > _MOST_BYTES
        ):
            return None
        data = posix.read(fd, _MOST_BYTES)
    finally:
        posix.close(fd)
    body = data[32:]
    return body if sha256(body).digest() == data[:32] else None


def _write(kind: str, key: tuple[Any, ...], body: bytes) -> None:
    try:
        path = _path(kind, key)
        temporary = f"{path}.{posix.getpid()}"
        fd = posix.open(
            temporary, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600
        )
    except (OSError, paths.UntrustedDirectory):
        return
    try:
        try:
            complete = posix.write(fd, sha256(body).digest() + body) == 32 + len(body)
        finally:
            posix.close(fd)
        if complete:
            posix.rename(temporary, path)
            temporary = ""
            _prune(path.rpartition("/")[0])
    except OSError:
        return
    finally:
        if temporary:
            posix.unlink(temporary)


def drop(key: tuple[Any, ...]) -> None:
    """Forget the entry, if there is one."""
    try:
        posix.unlink(_path("plans", key))
    except (OSError, paths.UntrustedDirectory):
        return


def witness(
    files: Iterable[tuple[str, str]],
    absent: Iterable[str],
    same: Iterable[tuple[str, str]],
    unmoved: Iterable[str] = (),
) -> Witnesses:
    """The witnesses of a compilation that is made now; `unmoved` are paths besides those that every plan depends on."""
    seen = []
    for path in ("/", "/etc", "/etc/ssl", *_modules(), *unmoved):
        try:
            status = posix.stat(path)
        except FileNotFoundError:
            continue
        # Not the time of modification: a change of owner or mode, too, decides what may be shown.
        seen.append((path, status.st_ino, status.st_ctime_ns))
    return Witnesses(tuple(files), tuple(absent), tuple(seen), tuple(same), features.fingerprint())


def _modules() -> list[str]:
    """The folders of this package's files: another version of the code is another compiler.

    An installer that replaces a file changes its folder, and an edited module, once imported, that of its compiled
    form.
    """
    own = __file__.rpartition("/")[0]
    top = own.rpartition("/")[0]
    folders = (own, f"{own}/operations", f"{top}/egress", f"{top}/host", f"{top}/profiles")
    return [folder + suffix for folder in folders for suffix in ("", "/__pycache__")]


def _path(kind: str, key: tuple[Any, ...]) -> str:
    # Version 2 of the encoding: later ones mark shared objects, so that equal keys could differ. Another installation
    # is another compiler, whose entries are its own.
    named = marshal.dumps((__file__, key), 2)
    return f"{paths.own_directory('cache', kind)}/{sha256(named).hexdigest()[:32]}"


def _prune(folder: str) -> None:
    """Remove the oldest entries beyond the bound."""
    names = posix.listdir(folder)
    if len(names) > _MOST_ENTRIES:
        by_age = sorted(names, key=lambda name: posix.lstat(f"{folder}/{name}").st_mtime_ns)
        for name in by_age[: len(names) - _MOST_ENTRIES]:
            posix.unlink(f"{folder}/{name}")


def _content(path: str) -> bytes:
    fd = posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)
    try:
        return posix.read(fd, _MOST_BYTES)
    finally:
        posix.close(fd)


def _exists(path: str) -> bool:
    try:
        posix.lstat(path)
    except OSError:
        return False
    return True


def _same(declared: str, real: str) -> bool:
    first, second = posix.stat(declared), posix.lstat(real)
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)

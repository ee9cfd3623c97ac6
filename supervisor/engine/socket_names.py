"""Names of listening sockets in the file system, in folders that are held open.

An agent may write the folder that a socket unit names, or one on the way to it. A link that it has put there would have
the daemon make, remove or give away something elsewhere: so no link is followed, and what is done to a name is done in
the folder that was found.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    import socket
    from typing import Self

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class LinkOnTheWay(Exception):
    """A folder on the way to a name is a link; `path` is that one's."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


@final
class SocketName:
    """A name that a socket has, or a link to one. To be closed; the name stays unless it is removed."""

    def __init__(self, path: str, folder: int) -> None:
        self._path = path
        self._folder = folder
        self._name = path.rpartition("/")[2]

    @classmethod
    def within(cls, path: str, mode: int) -> Self:
        """`path` is absolute; folders on the way are made with `mode` where they are missing.

        Raises LinkOnTheWay, OSError.
        """
        *parts, name = _parts(path)
        folder = os.open("/", _FOLDER)
        for number, part in enumerate(parts, 1):
            try:
                below = _entered(folder, part, mode)
            except NotADirectoryError:
                way = "/" + "/".join(parts[:number])
                if os.path.islink(way):
                    raise LinkOnTheWay(way) from None
                raise
            finally:
                os.close(folder)
            folder = below
        return cls("/".join(["", *parts, name]), folder)

    def bind(self, one: socket.socket, mode: int) -> None:
        """Give `one` this name, with this mode. A socket of a daemon that was killed makes room. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(self._status().st_mode):
                self.remove()
        before = os.umask(0o777 & ~mode)
        try:
            one.bind(self._address())
        finally:
            os.umask(before)

    def _address(self) -> str:
        """As bind(2) is told, and whoever asks for the socket's address.

        Of /run no agent is granted anything: what was found there is there still, and the name can be the plain one.
        """
        if self._path.startswith("/run/"):
            return self._path
        return f"/proc/self/fd/{self._folder}/{self._name}"

    def give(self, uid: int, gid: int) -> None:
        """Change the owner of the socket, as chown(2); of nothing that has taken its place. Raises OSError."""
        fd = os.open(self._name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                raise FileExistsError(17, "something else has taken its place", self._path)
            os.chown(f"/proc/self/fd/{fd}", uid, gid)
        finally:
            os.close(fd)

    def link_to(self, path: str) -> None:
        """Be a link to `path`; in place of another link, not of a file. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(self._status().st_mode):
                self.remove()
        os.symlink(path, self._name, dir_fd=self._folder)

    def _status(self) -> os.stat_result:
        return os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)

    def remove(self) -> None:
        """Remove the name, if it is there. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._folder)

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _parts(path: str) -> list[str]:
    """The names on the way. Links that no agent can have made are followed: those in / itself, and /var/run."""
    first, *rest = path.strip("/").split("/")
    if first == "var" and rest[:1] == ["run"] and os.path.realpath("/var/run") == "/run":
        return ["run", *rest[1:]]
    return [*os.path.realpath(f"/{first}").strip("/").split("/"), *rest] if rest else [first]


def _entered(folder: int, name: str, mode: int) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=folder)
        return os.open(name, _FOLDER, dir_fd=folder)

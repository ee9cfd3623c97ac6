"""Where osmoda keeps things: runtime, state, cache and configuration directories.

As root `/run/osmoda`, `/var/lib/osmoda`, `/var/cache/osmoda` and `/etc/osmoda`; otherwise below `$XDG_RUNTIME_DIR`,
`$XDG_STATE_HOME`, `$XDG_CACHE_HOME` and `$XDG_CONFIG_HOME` (XDG Base Directory Specification). `OSMODA_RUNTIME_DIR`,
`OSMODA_STATE_DIR`, `OSMODA_CACHE_DIR` and `OSMODA_CONFIG_DIR` name others. A directory that another user could write
to is never used.
"""

from __future__ import annotations

import posix

_ROOT = {"runtime": "/run", "state": "/var/lib", "cache": "/var/cache", "config": "/etc"}
_XDG = {
    "runtime": ("XDG_RUNTIME_DIR", ""),
    "state": ("XDG_STATE_HOME", "/.local/state"),
    "cache": ("XDG_CACHE_HOME", "/.cache"),
    "config": ("XDG_CONFIG_HOME", "/.config"),
}


class UntrustedDirectory(Exception):
    """A directory that does not belong to this user alone."""


def environment(name: str) -> str:
    """A variable of this process's environment as the process was started, or the empty string."""
    return posix.environ.get(name.encode(), b"").decode("utf-8", "surrogateescape")


def home() -> str:
    """The caller's home: `$HOME`, or for want of it the one in the user database."""
    found = environment("HOME")
    if found.startswith("/"):
        return found.rstrip("/") or "/"
    import pwd

    try:
        return pwd.getpwuid(posix.geteuid()).pw_dir
    except KeyError:
        return "/"


def directory(kind: str) -> str:
    """The path for `kind` (runtime, state, cache, config); it need not exist."""
    named = environment(f"OSMODA_{kind.upper()}_DIR")
    if named.startswith("/"):
        return named
    if posix.geteuid() == 0:
        return _ROOT[kind] + "/osmoda"
    variable, below_home = _XDG[kind]
    base = environment(variable)
    if not base.startswith("/"):
        if not below_home:
            # One level only: in the sticky /tmp nobody else can move it, as they could move what lies in one of theirs.
            return f"/tmp/osmoda-{posix.geteuid()}"
        base = home().rstrip("/") + below_home
    return base + "/osmoda"


def ledger() -> str:
    """Where this user's ledger is, if there is one (`osmoda-ledger init`)."""
    return directory("state") + "/ledger"


def has_ledger() -> bool:
    """Whether this user has one, and so must use it: also where it cannot be looked at."""
    try:
        posix.lstat(ledger())
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def own_directory(kind: str, below: str = "") -> str:
    """The path for `kind`, or `below` in it; made (0700) where missing, and checked to be this user's alone.

    Raises UntrustedDirectory when it is not, OSError when it cannot be made.
    """
    top = directory(kind)
    return _own(f"{_own(top)}/{below}") if below else _own(top)


def own_ledger() -> str:
    """The folder of this user's ledger, checked likewise, and never made: an empty one could not be written.

    Raises UntrustedDirectory, OSError: also where there is none.
    """
    _own(directory("state"))
    return _own(ledger(), make=False)


def _own(path: str, *, make: bool = True) -> str:
    try:
        status = posix.lstat(path)
    except FileNotFoundError:
        if not make:
            raise
        _make(path)
        status = posix.lstat(path)
    if status.st_mode & 0o170000 != 0o040000 or status.st_uid != posix.geteuid() or status.st_mode & 0o022:
        raise UntrustedDirectory(f"{path} is not a directory that only this user can write to; it is not used")
    return path


def _make(path: str) -> None:
    parent = path.rpartition("/")[0]
    if parent:
        try:
            posix.lstat(parent)
        except FileNotFoundError:
            _make(parent)
    try:
        posix.mkdir(path, 0o700)
    except FileExistsError:
        return

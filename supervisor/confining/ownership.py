"""Who could change what a file says: a daemon acts on nothing that somebody else may write."""

from __future__ import annotations

import os
import pwd
import stat


def other_writer(path: str) -> str | None:
    """Why somebody other than root and this user could change the file at `path`; None where nobody could.

    The file is looked at and each folder on the way to it, under the name as given and under its real one. A folder
    with the sticky bit, such as /tmp, keeps others from replacing what is not theirs (unlink(2)).
    """
    names = dict.fromkeys((os.path.abspath(path), os.path.realpath(path)))
    return next((reason for name in names if (reason := other_writer_of_name(name)) is not None), None)


def other_writer_of_name(name: str) -> str | None:
    """The same of what lies at the absolute path `name` itself: of a link, and not of what it leads to."""
    while True:
        reason = _other(name)
        if reason is not None or name in ("/", ""):
            return reason
        name = os.path.dirname(name)


def _other(name: str) -> str | None:
    try:
        found = os.lstat(name)
    except FileNotFoundError:
        return None  # read, and gone since: its folder says who could have put it there
    except OSError as error:
        return f"{name} cannot be looked at: {error.strerror}"
    if found.st_uid not in (0, os.geteuid()):
        return f"{name} belongs to {_user(found.st_uid)}"
    if stat.S_ISLNK(found.st_mode) or (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX):
        return None
    if found.st_mode & stat.S_IWOTH:
        return f"{name} can be written by everybody"
    # A user's own group has nobody else in it (useradd(8), USERGROUPS_ENAB), and root's holds root.
    own = (0,) if os.geteuid() == 0 else (0, os.getegid())
    if found.st_mode & stat.S_IWGRP and found.st_gid not in own:
        return f"{name} can be written by the group {found.st_gid}"
    return None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user {uid}"

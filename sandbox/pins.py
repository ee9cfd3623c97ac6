"""Profiles that a running sandbox could write, were they not pinned: no edit of ours takes a pin away (`covers`)."""

from __future__ import annotations

import contextlib
import os

from osmoda.sandbox import covers, lease, processes
from osmoda.sandbox.errors import SandboxError


def check_replaceable(file: str) -> None:
    """Raise SandboxError where `file`, a path without links, lies in a tree that a running sandbox writes.

    Another file in its place would not be pinned, and the program could write the profile that decides about it.
    """
    for one in processes.running():
        if not _may_write(one.uid, file):
            continue  # whoever could not write it outside, either; and who imitates a sandbox pins what it likes
        try:
            with contextlib.closing(covers.Mounts(one.pid)) as mounts:
                pinned = not mounts.without((os.fsencode(file),))
        except ProcessLookupError:
            continue  # it is ending
        except OSError as error:
            raise SandboxError(
                f"nothing was changed: whether sandbox {one.identity} may write {file} is not known: {error.strerror}"
            ) from None
        if pinned:
            raise SandboxError(
                f"nothing was changed: {file} lies where sandbox {one.identity} may write, and is protected from it "
                "only until it is replaced; end that one first, or keep the profile elsewhere"
            )


def _may_write(uid: int, file: str) -> bool:
    """Whether a program of `uid` might write `file` or put another one in its place, as far as modes say."""
    if uid == os.geteuid() or lease.FIRST_UID <= uid < lease.FIRST_UID + lease.COUNT:
        return True  # of this user's, or of root's
    try:
        found = [os.stat(path) for path in (file, os.path.dirname(file))]
    except OSError:
        return True
    return any(uid in (0, status.st_uid) or status.st_mode & 0o022 for status in found)

"""Places that no proposal grants, whatever the program did there: keys, and what belongs to somebody else.

Whoever means one of them writes it into the profile by hand.
"""

from __future__ import annotations

import os
import pwd

from osmoda.host import paths
from osmoda.sandbox.granted_paths import own_directories, within

# In each home: keys, tokens, and what a shell or a browser remembers.
_IN_HOMES = (
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".kube",
    ".docker/config.json",
    ".config/gcloud",
    ".config/gh",
    ".config/op",
    ".netrc",
    ".git-credentials",
    ".config/git/credentials",
    ".pgpass",
    ".my.cnf",
    ".npmrc",
    ".pypirc",
    ".cargo/credentials",
    ".cargo/credentials.toml",
    ".password-store",
    ".local/share/keyrings",
    ".mozilla",
    ".config/google-chrome",
    ".config/chromium",
    ".bash_history",
    ".zsh_history",
    ".python_history",
    ".vault-token",
    ".terraform.d/credentials.tfrc.json",
)
_OF_THE_SYSTEM = (
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/ssh",
    "/etc/ssl/private",
    "/etc/pki/tls/private",
    "/etc/krb5.keytab",
    "/etc/wireguard",
    "/etc/NetworkManager/system-connections",
    "/etc/machine-id",
    "/var/lib/docker",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/spool/cron",
    "/var/mail",
    "/var/spool/mail",
)
# Folders that hold what many programs keep: a grant of one would be a grant of all of them.
_WIDE = frozenset(
    (
        "/etc/ssl",
        "/etc/default",
        "/usr/local",
        "/usr/share",
        "/var/cache",
        "/var/lib",
        "/var/log",
        "/var/opt",
        "/var/spool",
        "/var/tmp",
        "/var/www",
    )
)
_FIRST_UID = 1000  # of people (login.defs(5), UID_MIN)
_NOBODY = 65534


class PrivatePlaces:
    """What is private on this host, as it is now, to whoever learns."""

    def __init__(self) -> None:
        self.uid = os.geteuid()
        self.home = os.path.realpath(paths.home())
        self._homes = {os.path.realpath(entry.pw_dir) for entry in pwd.getpwall() if _is_person(entry)}
        homes = (*self._homes, self.home, "/root")
        found = [os.path.join(home, name) for home in homes for name in _IN_HOMES]
        self.places = tuple(dict.fromkeys((*_OF_THE_SYSTEM, *found, *own_directories())))

    def holds(self, path: str) -> str | None:
        """Why `path`, a name without links, is private; None when it is not."""
        for place in self.places:
            if within(path, place):
                return "it is where keys, or what a program remembers, are kept"
        owner_home = next((home for home in self._homes if within(path, home)), None)
        if owner_home is not None and not within(path, self.home):
            return f"{owner_home} is the home of somebody else"
        if self.uid != 0:
            try:
                owner = os.lstat(path).st_uid
            except OSError:
                return None  # it is gone, or not to be seen: nothing to keep from anybody
            if owner not in (0, self.uid, _NOBODY):
                return f"it belongs to the user {owner}"
        return None

    def is_place(self, path: str) -> bool:
        """Whether `path` lies in one of the places that hold keys and the like."""
        return any(within(path, place) for place in self.places)

    def wide(self, path: str) -> str | None:
        """Why the folder `path` is too much to grant as a whole; None when it is not."""
        if path.count("/") < 2:
            return "it holds much more than that"
        if path in _WIDE:
            return "many programs keep their files there"
        for home in (*self._homes, self.home):
            if within(home, path):
                return "it is a home directory" if home == path else "it holds home directories"
        if any(within(place, path) and os.path.lexists(place) for place in self.places):
            return "it holds places where keys, or what programs remember, are kept"
        return None


def _is_person(entry: pwd.struct_passwd) -> bool:
    return _FIRST_UID <= entry.pw_uid != _NOBODY and entry.pw_dir.count("/") >= 1 and entry.pw_dir != "/"

"""Secrets that a sandbox may use and not see: where they are kept, and what stands for them inside."""

from __future__ import annotations

import errno
import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

LEAST = 8
"""Characters that a value has at least: what is shorter turns up in other texts by chance."""

MOST = 4096
"""Characters that a value has at most: it goes into a header."""

_RANDOM = 16
"""Characters of a placeholder that are drawn at random, at least."""

_DIGITS = "0123456789"
_LOWER = "abcdefghijklmnopqrstuvwxyz"
_UPPER = _LOWER.upper()
_EVERY = _DIGITS + _LOWER + _UPPER
# What programs recognise the kind of a secret by, and check before they send it.
_PREFIXES = (
    "sk-ant-api03-", "sk-ant-", "sk-proj-", "sk-or-v1-", "sk-", "pk-", "sk_live_", "sk_test_", "rk_live_", "pk_live_",
    "pk_test_", "github_pat_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "glpat-", "xoxb-", "xoxp-", "xoxa-", "xapp-",
    "npm_", "pypi-", "hf_", "gsk_", "r8_", "AKIA", "ASIA", "AIza", "ya29.", "SG.", "dop_v1_", "lin_api_", "ntn_", "eyJ",
    "Bearer ", "Basic ", "tvly-", "pplx-", "xai-",
)  # fmt: skip
_O_FLAGS = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK
_REGULAR, _KIND = 0o100000, 0o170000


class SecretError(Exception):
    """A secret has no value that can be used; the text is one sentence and says why."""


def load(name: str, environment: Mapping[str, str], folder: str) -> str:
    """The value of the secret `name`.

    Looked for in this order: a variable of `environment` with that name, a file of that name in the folder that
    $CREDENTIALS_DIRECTORY names (systemd.exec(5)), and one in `folder`, which only its owner may have access to. One
    newline at the end of a file is not part of the value. Raises SecretError.
    """
    if "/" in name or name in ("", ".", "..") or "\0" in name:
        raise SecretError(f"{name!r} is no name for a secret")
    value = environment.get(name)
    where = f"the variable {name}"
    credentials = environment.get("CREDENTIALS_DIRECTORY", "")
    if value is None and credentials.startswith("/"):
        where = f"{credentials}/{name}"
        value = _read(where, private=False)
    if value is None:
        where = f"{folder}/{name}"
        value = _read(where, private=True)
    if value is None:
        raise SecretError(f"the secret {name} has no value: neither the variable {name} nor the file {where} is there")
    return _checked(name, value, where)


def _checked(name: str, value: str, where: str) -> str:
    if len(value) < LEAST:
        raise SecretError(f"the secret {name} in {where} is shorter than {LEAST} characters")
    if len(value) > MOST:
        raise SecretError(f"the secret {name} in {where} is longer than {MOST} characters")
    if not value.isascii() or not value.isprintable():
        raise SecretError(f"the secret {name} in {where} has characters that a header cannot hold")
    return value


def _read(path: str, *, private: bool) -> str | None:
    """What a file holds; None when it is not there. `private`: it must be this user's, and nobody else's."""
    try:
        fd = posix.open(path, _O_FLAGS)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        why = "it is a symbolic link" if error.errno == errno.ELOOP else posix.strerror(error.errno or 0)
        raise SecretError(f"the secret in {path} cannot be read: {why}") from None
    try:
        status = posix.fstat(fd)
        if status.st_mode & _KIND != _REGULAR:
            raise SecretError(f"the secret in {path} is not in a regular file")
        if private and status.st_uid != posix.geteuid():
            raise SecretError(f"the file {path} with a secret belongs to user {status.st_uid}, not to this one")
        if private and status.st_mode & 0o077:
            raise SecretError(f"the file {path} with a secret is open to other users: chmod 600 {path}")
        content = b""
        while len(content) <= MOST + 1:
            some = posix.read(fd, MOST + 2 - len(content))
            if not some:
                break
            content += some
    except OSError as error:
        raise SecretError(f"the secret in {path} cannot be read: {posix.strerror(error.errno or 0)}") from None
    finally:
        posix.close(fd)
    try:
        return content.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        raise SecretError(f"the secret in {path} is not text") from None


def placeholder(value: str) -> str:
    """What stands for `value` inside: of its shape, so that programs that look at a key take it for one.

    A known prefix and everything but letters and digits stay; each digit, small and capital letter becomes a random one
    of its kind. What would leave fewer than 16 random characters, or too little chance in them, gets more at its end.
    """
    prefix = next((known for known in _PREFIXES if value.startswith(known) and len(value) >= len(known) + LEAST), "")
    made = [prefix]
    chance = 1  # one in how many somebody would guess
    drawn = 0
    for char in value[len(prefix) :]:
        kind = next((kind for kind in (_DIGITS, _LOWER, _UPPER) if char in kind), "")
        made.append(_draw(kind) if kind else char)
        chance *= len(kind) or 1
        drawn += bool(kind)
    while drawn < _RANDOM or chance < 1 << 64:
        made.append(_draw(_EVERY))
        chance *= len(_EVERY)
        drawn += 1
    return "".join(made)


def _draw(kind: str) -> str:
    """One character of `kind`, each as likely as the others."""
    most = 256 - 256 % len(kind)
    while True:
        byte = posix.urandom(1)[0]
        if byte < most:
            return kind[byte % len(kind)]

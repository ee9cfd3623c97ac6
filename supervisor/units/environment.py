"""The environment of an agent, and command lines with its variables put in, as systemd has both.

systemd.exec(5) "Environment", systemd.service(5) "Command lines". The values of a file of variables may be secrets:
messages name its lines and its variables, and show no value.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.host import syscalls
from osmoda.sandbox.granted_paths import within
from osmoda.supervisor.errors import UnitError
from osmoda.supervisor.units.unit import Origin

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from osmoda.supervisor.units.unit import EnvironmentFile, Exec, Unit

LARGEST_FILE = 1 << 20  # bytes of one file of variables
MOST_FILES = 256  # that one pattern may match
_MOST_LINKS = 40  # as the kernel: path_resolution(7)
_OWN = "a link in a tree that the agent writes"
_OTHERS = "a link of another user's to a file that is not that user's"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHELL_NEEDS_ESCAPE = '"\\`$'
# A colon is another syntax, which command lines do not have: it stays as it is.
_VARIABLE = re.compile(r"\$(\$|\{([^}:]*)\})")


@dataclass(frozen=True, slots=True)
class Line:
    """An assignment in a file of variables; `name` may be none that a variable can have."""

    name: str
    value: str
    line: int


def is_name(name: str) -> bool:
    """Whether a variable can be called so."""
    return _NAME.fullmatch(name) is not None


def variables(text: str) -> list[Line]:
    """What a file for EnvironmentFile= assigns, in order: quotes, continuation lines, comments.

    A line without "=" assigns nothing.
    """
    return list(_Reader(text).lines())


class _Reader:
    """The states that systemd's own reader goes through, a letter at a time."""

    def __init__(self, text: str) -> None:
        self._text = text.partition("\0")[0]
        self._at = 0
        self._number = 1

    def lines(self) -> Iterator[Line]:
        while (letter := self._next()) is not None:
            if letter in "#;":
                self._comment()
            elif letter not in " \t\n\r":
                number = self._number
                name = self._name(letter)
                if name is not None:
                    yield Line(name.rstrip(" \t\n\r"), self._value(), number)

    def _next(self) -> str | None:
        if self._at == len(self._text):
            return None
        letter = self._text[self._at]
        self._at += 1
        self._number += letter == "\n"
        return letter

    def _comment(self) -> None:
        """To the end of the line; a backslash does not carry it on (systemd 254)."""
        while (letter := self._next()) is not None and letter not in "\n\r":
            pass

    def _name(self, first: str) -> str | None:
        letters = [first]
        while (letter := self._next()) is not None and letter not in "\n\r":
            if letter == "=":
                return "".join(letters)
            letters.append(letter)
        return None

    def _value(self) -> str:
        """Quoted pieces and what stands behind them; once unquoted text began, quotes are letters."""
        value: list[str] = []
        while (letter := self._next()) is not None and letter not in "\n\r":
            if letter == "'":
                self._single_quoted(value)
            elif letter == '"':
                self._double_quoted(value)
            elif letter not in " \t":
                self._unquoted(letter, value)
                break
        return "".join(value)

    def _single_quoted(self, value: list[str]) -> None:
        while (letter := self._next()) is not None and letter != "'":
            value.append(letter)

    def _double_quoted(self, value: list[str]) -> None:
        while (letter := self._next()) is not None and letter != '"':
            if letter != "\\":
                value.append(letter)
            elif (escaped := self._next()) is not None:
                if escaped in _SHELL_NEEDS_ESCAPE:
                    value.append(escaped)
                elif escaped != "\n":
                    value.append("\\" + escaped)

    def _unquoted(self, first: str, value: list[str]) -> None:
        blanks: list[str] = []  # written only when something follows: a value does not end in them
        letter: str | None = first
        while letter is not None and letter not in "\n\r":
            if letter == "\\":
                value += blanks
                blanks = []
                escaped = self._next()
                if escaped is not None and escaped not in "\n\r":
                    value.append(escaped)
            elif letter in " \t":
                blanks.append(letter)
            else:
                value += [*blanks, letter]
                blanks = []
            letter = self._next()


def read_file(file: EnvironmentFile, ignored: list[str] | None = None, written: Sequence[str] = ()) -> dict[str, str]:
    """The variables of one EnvironmentFile=, which may be a pattern of several files; {} for an optional one not there.

    `written` are trees that the agent itself writes: no link in them is followed, since it could lead to a file that
    only the supervisor may read, whose lines the agent would then be given. A link of another user's leads to files of
    that user's, and to no other.

    A line with a name that no variable can have is left out, as in systemd; `ignored` then gets a sentence. Raises
    UnitError for a file that is missing, unreadable, too large or not UTF-8.
    """
    found: dict[str, str] = {}
    for path in _matching(file):
        try:
            text = _content(path, file, written)
        except UnitError:
            if file.optional:
                continue
            raise
        for line in variables(text):
            if is_name(line.name):
                found[line.name] = line.value
            elif ignored is not None:
                ignored.append(f"{path}:{line.line}: this line is left out, since no variable can have such a name")
    return found


def _matching(file: EnvironmentFile) -> list[str]:
    if not glob.has_magic(file.path):
        return [file.path]
    paths = sorted(glob.iglob(file.path, include_hidden=False))
    if len(paths) > MOST_FILES:
        raise UnitError(f"EnvironmentFile={file.path} matches more than {MOST_FILES} files", file.origin)
    if not paths and not file.optional:
        raise UnitError(f"EnvironmentFile={file.path} matches no file", file.origin)
    return paths


def _open(path: str, flags: int, written: Sequence[str]) -> int:
    """Open to read; a FIFO would hold up whoever waits for its other end."""
    flags |= os.O_NONBLOCK
    settled, owners = _settled(path, [os.path.realpath(tree) for tree in written])
    # A link that has come since is not followed either.
    fd = syscalls.openat2(-100, os.fsencode(settled), flags, syscalls.RESOLVE_NO_SYMLINKS)
    others = owners - {0, os.geteuid()}
    if others and others != {os.fstat(fd).st_uid}:
        os.close(fd)
        raise OSError(errno.ELOOP, _OTHERS, path)
    return fd


def _settled(path: str, trees: Sequence[str]) -> tuple[str, set[int]]:
    """`path` without links, whatever names lead to it, and whose links they were.

    Raises OSError for a link that lies in one of `trees`.
    """
    owners: set[int] = set()
    resolved = "/"
    pending = [*filter(None, reversed(path.split("/")))]
    links = 0
    while pending:
        part = pending.pop()
        if part in (".", ".."):
            resolved = os.path.dirname(resolved) if part == ".." else resolved
            continue
        here = os.path.join(resolved, part)
        if not os.path.islink(here):
            resolved = here
            continue
        links += 1
        if links > _MOST_LINKS or any(within(resolved, tree) for tree in trees):
            raise OSError(errno.ELOOP, _OWN, here)
        target = os.readlink(here)
        owners.add(os.lstat(here).st_uid)
        resolved = "/" if target.startswith("/") else resolved
        pending += filter(None, reversed(target.split("/")))
    return resolved, owners


def _content(path: str, file: EnvironmentFile, written: Sequence[str]) -> str:
    try:
        with open(path, "rb", opener=lambda path, flags: _open(path, flags, written)) as stream:
            content = stream.read(LARGEST_FILE + 1) or b""
    except OSError as error:
        if error.errno == errno.ELOOP:
            through = _OTHERS if error.strerror == _OTHERS else _OWN
            raise UnitError(
                f"EnvironmentFile={path} is reached through {through}, and no such link is followed", file.origin
            ) from None
        raise UnitError(
            f"EnvironmentFile={path} cannot be read: {os.strerror(error.errno or 0)}", file.origin
        ) from None
    if len(content) > LARGEST_FILE:
        raise UnitError(f"EnvironmentFile={path} is longer than {LARGEST_FILE} bytes", file.origin)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnitError(f"EnvironmentFile={path} is not UTF-8", Origin(path, line)) from None


def environment_of(
    unit: Unit, base: Mapping[str, str], ignored: list[str] | None = None, written: Sequence[str] = ()
) -> dict[str, str]:
    """The variables of a unit's processes.

    From the weakest: `base`, which holds what the supervisor itself sets (PATH, HOME, …) and never its own environment;
    PassEnvironment= from the supervisor's environment, Environment=, EnvironmentFile=. UnsetEnvironment= takes from
    all. `ignored` gets a sentence for each line that is left out; `written` is as in `read_file`. Raises UnitError for
    files that cannot be read.
    """
    found = dict(base)
    found |= {name: os.environ[name] for name in unit.pass_environment if name in os.environ}
    found |= unit.environment
    for file in unit.environment_files:
        found |= read_file(file, ignored, written)
    for entry in unit.unset_environment:
        name, equals, value = entry.partition("=")
        if name in found and (not equals or found[name] == value):
            del found[name]
    return found


def expand(command: Exec, environment: Mapping[str, str]) -> list[str]:
    """The arguments, the first being the program's own name, with variables put in.

    A word `$NAME` becomes the words of its value, none when it is not set; `${NAME}` anywhere in a word becomes its
    value; `$$` is a dollar sign.
    """
    if not command.expand_variables:
        return list(command.words)
    arguments: list[str] = []
    for word in command.words:
        if word.startswith("$") and word[1:2] not in ("{", "$"):
            arguments += _split(environment.get(word[1:], ""))
        else:
            arguments.append(_VARIABLE.sub(lambda match: _value(match, environment), word))
    return arguments


def _value(match: re.Match[str], environment: Mapping[str, str]) -> str:
    return "$" if match[1] == "$" else environment.get(match[2], "")


def _split(value: str) -> Sequence[str]:
    """A value at its white space; quotes keep words together, and an unclosed one ends with the value."""
    words: list[str] = []
    word: list[str] | None = None
    quote = ""
    letters = iter(value)
    for letter in letters:
        if letter == "\\":
            word = [*(word or ()), next(letters, "")]
        elif quote:
            if letter == quote:
                quote = ""
            else:
                word = [*(word or ()), letter]
        elif letter in "'\"":
            quote = letter
            word = word or []
        elif letter in " \t\n\r":
            if word is not None:
                words.append("".join(word))
            word = None
        else:
            word = [*(word or ()), letter]
    return [*words, "".join(word)] if word is not None else words

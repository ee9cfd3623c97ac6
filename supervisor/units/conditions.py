"""Conditions of a start (systemd.unit(5) "Conditions and Asserts"): what is asked of the host, and what follows."""

from __future__ import annotations

import fnmatch
import glob
import os
import platform
import re
import socket
import stat
from typing import TYPE_CHECKING

from osmoda.supervisor.units import values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from osmoda.supervisor.units.unit import Directive

type Test = Callable[[str], bool]


def unmet(conditions: Sequence[Directive], kind: str) -> Directive | None:
    """The first of `kind` ("Condition" or "Assert") that does not hold on this host; None when a start may go on.

    All must hold; of those marked "|" one suffices.
    """
    alternatives: list[Directive] = []
    for one in conditions:
        if not one.name.startswith(kind):
            continue
        if one.value.startswith("|"):
            alternatives.append(one)
        elif not holds(one):
            return one
    if alternatives and not any(holds(one) for one in alternatives):
        return alternatives[0]
    return None


def holds(condition: Directive) -> bool:
    """Whether one condition holds on this host, its marks "|" and "!" considered."""
    marks = re.match(r"\|?!?", condition.value)
    assert marks is not None
    name = condition.name.removeprefix("Condition").removeprefix("Assert")
    found = TESTS[name][1](condition.value[marks.end() :])
    return found != ("!" in marks[0])


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _exists(path: str) -> bool:
    return os.access(path, os.F_OK)


def _matches_a_path(pattern: str) -> bool:
    return next(glob.iglob(pattern, include_hidden=False), None) is not None


def _is_directory(path: str) -> bool:
    found = _stat(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _is_writable(path: str) -> bool:
    try:
        return not os.statvfs(path).f_flag & os.ST_RDONLY
    except OSError:
        return False


def _is_not_empty_directory(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def _is_not_empty_file(path: str) -> bool:
    found = _stat(path)
    return found is not None and stat.S_ISREG(found.st_mode) and found.st_size > 0


def _is_executable(path: str) -> bool:
    found = _stat(path)
    return found is not None and stat.S_ISREG(found.st_mode) and bool(found.st_mode & 0o111)


def _is_host(pattern: str) -> bool:
    return fnmatch.fnmatchcase(socket.gethostname().lower(), pattern.lower())


def _is_architecture(name: str) -> bool:
    return name in ("native", {"x86_64": "x86-64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()))


def _has_variable(text: str) -> bool:
    name, equals, value = text.partition("=")
    return name in os.environ and (not equals or os.environ[name] == value)


def _kernel_says(text: str) -> bool:
    try:
        with open("/proc/cmdline", encoding="utf-8", errors="surrogateescape") as file:
            options = file.read().split()
    except OSError:
        return False
    return any(option == text or ("=" not in text and option.startswith(f"{text}=")) for option in options)


def _path(text: str) -> str:
    return values.absolute_path(text)


def _any(text: str) -> str:
    return text


def _architecture(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]+", text):
        raise ValueError("is no architecture")
    return text


# By what stands behind Condition and Assert: the form of a value, and the question.
TESTS: dict[str, tuple[Callable[[str], str], Test]] = {
    "PathExists": (_path, _exists),
    "PathExistsGlob": (_path, _matches_a_path),
    "PathIsDirectory": (_path, _is_directory),
    "PathIsSymbolicLink": (_path, os.path.islink),
    "PathIsMountPoint": (_path, os.path.ismount),
    "PathIsReadWrite": (_path, _is_writable),
    "DirectoryNotEmpty": (_path, _is_not_empty_directory),
    "FileNotEmpty": (_path, _is_not_empty_file),
    "FileIsExecutable": (_path, _is_executable),
    "Host": (_any, _is_host),
    "Architecture": (_architecture, _is_architecture),
    "Environment": (_any, _has_variable),
    "KernelCommandLine": (_any, _kernel_says),
}

"""Values of directives: booleans, times, sizes, signals, exit statuses, modes, paths, names.

systemd.syntax(7), systemd.time(7), systemd.exec(5). Each function takes the text of a value and gives it typed, or
raises ValueError with what is wrong with it and what is allowed, to be read behind the directive's name.
"""

from __future__ import annotations

import math
import re
import signal
import string
from typing import Final

from osmoda.supervisor.units.specifiers import Name

_WHITESPACE = " \t\n\r"
_TRUE = {"1", "yes", "y", "true", "t", "on"}
_FALSE = {"0", "no", "n", "false", "f", "off"}
# In systemd's order, in which the first that a text begins with counts.
_MICROSECONDS: Final = (
    *(("seconds", 1_000_000), ("second", 1_000_000), ("sec", 1_000_000), ("s", 1_000_000)),
    *(("minutes", 60_000_000), ("minute", 60_000_000), ("min", 60_000_000)),
    *(("months", 2_629_800_000_000), ("month", 2_629_800_000_000), ("M", 2_629_800_000_000)),
    *(("msec", 1_000), ("ms", 1_000), ("m", 60_000_000)),
    *(("hours", 3_600_000_000), ("hour", 3_600_000_000), ("hr", 3_600_000_000), ("h", 3_600_000_000)),
    *(("days", 86_400_000_000), ("day", 86_400_000_000), ("d", 86_400_000_000)),
    *(("weeks", 604_800_000_000), ("week", 604_800_000_000), ("w", 604_800_000_000)),
    *(("years", 31_557_600_000_000), ("year", 31_557_600_000_000), ("y", 31_557_600_000_000)),
    *(("usec", 1), ("us", 1), ("\u03bcs", 1), ("\u00b5s", 1)),
)  # fmt: skip
_INFINITY = (1 << 64) - 1  # microseconds: no time is as long
_LARGEST = (1 << 63) - 1  # number in a time span
_NUMBER = re.compile(r"[ \t\n\r]*(\+?[0-9]+)?(\.[0-9]+)?")
_UNITS_OF_SIZE: Final[dict[str, int]] = {
    unit: 1 << 10 * power for power, unit in enumerate(("", "K", "M", "G", "T", "P", "E"))
}

EXIT_STATUSES: Final = {
    "SUCCESS": 0, "FAILURE": 1, "INVALIDARGUMENT": 2, "NOTIMPLEMENTED": 3, "NOPERMISSION": 4, "NOTINSTALLED": 5,
    "NOTCONFIGURED": 6, "NOTRUNNING": 7, "USAGE": 64, "DATAERR": 65, "NOINPUT": 66, "NOUSER": 67, "NOHOST": 68,
    "UNAVAILABLE": 69, "SOFTWARE": 70, "OSERR": 71, "OSFILE": 72, "CANTCREAT": 73, "IOERR": 74, "TEMPFAIL": 75,
    "PROTOCOL": 76, "NOPERM": 77, "CONFIG": 78, "CHDIR": 200, "NICE": 201, "FDS": 202, "EXEC": 203, "MEMORY": 204,
    "LIMITS": 205, "OOM_ADJUST": 206, "SIGNAL_MASK": 207, "STDIN": 208, "STDOUT": 209, "CHROOT": 210,
    "IOPRIO": 211, "TIMERSLACK": 212, "SECUREBITS": 213, "SETSCHEDULER": 214, "CPUAFFINITY": 215, "GROUP": 216,
    "USER": 217, "CAPABILITIES": 218, "CGROUP": 219, "SETSID": 220, "CONFIRM": 221, "STDERR": 222, "PAM": 224,
    "NETWORK": 225, "NAMESPACE": 226, "NO_NEW_PRIVILEGES": 227, "SECCOMP": 228, "SELINUX_CONTEXT": 229,
    "PERSONALITY": 230, "APPARMOR": 231, "ADDRESS_FAMILIES": 232, "RUNTIME_DIRECTORY": 233, "CHOWN": 235,
    "SMACK_PROCESS_LABEL": 236, "KEYRING": 237, "STATE_DIRECTORY": 238, "CACHE_DIRECTORY": 239,
    "LOGS_DIRECTORY": 240, "CONFIGURATION_DIRECTORY": 241, "NUMA_POLICY": 242, "CREDENTIALS": 243, "BPF": 244,
}  # fmt: skip
_SIGNAL_NAMES = (
    *(
        "HUP",
        "INT",
        "QUIT",
        "ILL",
        "TRAP",
        "ABRT",
        "BUS",
        "FPE",
        "KILL",
        "USR1",
        "SEGV",
        "USR2",
        "PIPE",
        "ALRM",
        "TERM",
    ),
    *("STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH"),
    *("IO", "PWR", "SYS"),
)
_SIGNALS = {name: number for number, name in enumerate(_SIGNAL_NAMES, 1)}
SUFFIXES: Final = (
    *(".service", ".socket", ".target", ".timer", ".mount", ".automount", ".swap", ".path", ".slice", ".scope"),
    ".device",
)
_NAME_LETTERS = frozenset(string.ascii_letters + string.digits + ":-_.\\")
LONGEST_NAME = 255


def boolean(text: str) -> bool:
    lowered = text.lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ValueError("is neither yes nor no")


def seconds(text: str) -> float:
    """A time span in seconds: "5min 20s", "1.5", "infinity" (math.inf)."""
    total = microseconds(text)
    return math.inf if total is None else total / 1_000_000


def microseconds(text: str) -> int | None:
    """A time span in microseconds as systemd adds it up; None for "infinity"."""
    wrong = ValueError('is no time span such as "90", "5min 20s" or "infinity"')
    rest = text.strip(_WHITESPACE)
    if rest == "infinity":
        return None
    if not rest:
        raise wrong
    total = 0
    while rest:
        match = _NUMBER.match(rest)
        if match is None or not (match[1] or match[2]):
            raise wrong
        behind = rest[match.end() :]
        after_blanks = behind.lstrip(_WHITESPACE)
        unit, factor = next(
            ((unit, factor) for unit, factor in _MICROSECONDS if after_blanks.startswith(unit)), ("", 1_000_000)
        )
        if unit:
            behind = after_blanks.removeprefix(unit)
        elif behind and behind[0] not in _WHITESPACE:
            raise wrong
        if len(match[1] or "") > 20 or int(match[1] or 0) > _LARGEST:
            raise ValueError("is longer than can be")
        total += int(match[1] or 0) * factor
        part = factor // 10
        for digit in (match[2] or ".")[1:]:
            total += int(digit) * part
            part //= 10
        if total >= _INFINITY:
            raise ValueError("is longer than can be")
        rest = behind.lstrip(_WHITESPACE)
    return total


def size(text: str) -> int:
    """Bytes: a number, with a fraction if need be, and K, M, G, T, P or E (of 1024)."""
    match = re.fullmatch(r"([0-9]{1,20})(\.[0-9]{1,20})?[ \t]*([KMGTPE]?)B?", text)
    if match is None:
        raise ValueError('is no size such as "512M"')
    factor = _UNITS_OF_SIZE[match[3]]
    fraction = match[2] or ".0"
    parts: int = 10 ** (len(fraction) - 1)
    found = int(match[1]) * factor + int(fraction[1:]) * factor // parts
    if found >= 1 << 64:
        raise ValueError("is larger than can be")
    return found


def unsigned(text: str, most: int = 0xFFFFFFFF) -> int:
    """A number as strtoul(3) reads it with systemd's prefixes: decimal, 0x…, 0b…, 0o… or 0…."""
    match = re.fullmatch(
        r"\+?(?:0[xX]([0-9a-fA-F]{1,16})|0[bB]([01]{1,64})|0[oO]?([0-7]{1,22})|([1-9][0-9]{0,19})|(0))", text
    )
    if match is None:
        raise ValueError("is no number")
    for digits, base in zip(match.groups(), (16, 2, 8, 10, 10), strict=True):
        number = int(digits, base) if digits else 0
        if digits is not None and number <= most:
            return number
    raise ValueError(f"is above {most}")


def port(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,5}", text) and 1 <= int(text) <= 65535:
        return int(text)
    raise ValueError("is no port (1 to 65535)")


def mode(text: str) -> int:
    """Permissions, in octal."""
    if not re.fullmatch(r"[0-7]{1,5}", text) or int(text, 8) > 0o7777:
        raise ValueError('is no octal mode such as "0640"')
    return int(text, 8)


def signal_number(text: str) -> int:
    """A signal by its name, with or without SIG, RTMIN+n, RTMAX-n, or by its number."""
    name = text.removeprefix("SIG")
    if re.fullmatch(r"[0-9]{1,3}", name):
        number = int(name)
    elif match := re.fullmatch(r"(RTMIN|RTMAX)(?:([+-])([0-9]{1,2}))?", name):
        base = int(signal.SIGRTMIN if match[1] == "RTMIN" else signal.SIGRTMAX)
        if match[2] and (match[2] == "+") != (match[1] == "RTMIN"):
            raise ValueError("is no signal")
        number = base + int(f"{match[2] or '+'}{match[3] or 0}")
        if not signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            raise ValueError("is no signal")
    else:
        number = _SIGNALS.get(name, 0)
    if not 1 <= number <= signal.SIGRTMAX:
        raise ValueError("is no signal")
    return number


def exit_status(text: str) -> int:
    """An exit code: 0 to 255, or its name (systemd.exec(5) "Process Exit Codes")."""
    if text in EXIT_STATUSES:
        return EXIT_STATUSES[text]
    return unsigned(text, 255)


def absolute_path(text: str) -> str:
    """An absolute path without "..", its repeated slashes and "." removed."""
    if not text.startswith("/"):
        raise ValueError("is no absolute path")
    if any(letter < " " or letter == "\x7f" for letter in text):
        raise ValueError("holds a control character")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError('has ".." in it')
    path = "/" + "/".join(parts)
    if len(path.encode("utf-8", "surrogateescape")) >= 4096 or any(
        len(part.encode("utf-8", "surrogateescape")) > 255 for part in parts
    ):
        raise ValueError("is longer than a path can be")
    return path


def account(text: str) -> str:
    """The name or number of a user or group (systemd's relaxed rules; 65535 and 4294967295 mean "none")."""
    if re.fullmatch(r"[0-9]+", text):
        if not re.fullmatch(r"0|[1-9][0-9]{0,9}", text) or int(text) >= 0xFFFFFFFF or int(text) == 0xFFFF:
            raise ValueError("is no user or group")
        return text
    if (
        not text
        or len(text.encode("utf-8", "surrogateescape")) > 256
        or text in (".", "..")
        or text[0] == "-"
        or text != text.strip(_WHITESPACE)
        or any(
            letter in ":/" or letter < " " or "\x7f" <= letter <= "\x9f" or "\ud800" <= letter <= "\udfff"
            for letter in text
        )
    ):
        raise ValueError("is no user or group")
    return text


def unit_name(text: str) -> Name:
    """A unit's name in its parts."""
    suffix = next((suffix for suffix in SUFFIXES if text.endswith(suffix)), None)
    if suffix is None:
        raise ValueError("is no name of a unit, which ends in .service, .target, .socket or the like")
    stem = text.removesuffix(suffix)
    prefix, at, instance = stem.partition("@")
    if not prefix or len(text) > LONGEST_NAME or not _NAME_LETTERS.issuperset(prefix + instance.replace("@", "")):
        raise ValueError("is no name of a unit: letters, digits, ':', '-', '_', '.', '\\' and one '@'")
    return Name(text, prefix, instance if at else None, suffix)

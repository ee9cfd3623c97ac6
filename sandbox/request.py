"""What `osmoda-sandbox run` is asked to do: its options, read without argparse, which takes longer than the launch."""

from __future__ import annotations

from osmoda.host.frozen import fields_of, frozen


class UsageError(Exception):
    """Options that do not fit together; the message says which and where the help is."""


@frozen
class Request:
    """One run.

    `profile` is a path or a name, empty for the defaults of `tier` (-1: as the profile says, 2 without one).
    `workspace` is a directory, `workspace_mode` one of "", "direct", "overlay", "none"; `timeout` is in seconds, 0
    for none.
    """

    argv: tuple[str, ...]
    profile: str = ""
    tier: int = -1
    workspace: str = ""
    workspace_mode: str = ""
    directory: str = ""
    timeout: float = 0.0
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    set: tuple[tuple[str, str], ...] = ()
    passed: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    agent: str = ""
    pool: bool = False
    dry_run: bool = False
    quiet: bool = False
    json: bool = False

    def without_variables(self) -> Request:
        """The same with none set."""
        values = {name: getattr(self, name) for name in fields_of(self)}
        return Request(**(values | {"set": ()}))

    @property
    def compiled_from(self) -> tuple[object, ...]:
        """What of it decides the plan."""
        # Of the variables only their names: a value may be secret, and plans are kept on disk.
        names = tuple([name for name, _ in self.set])
        return (
            self.profile,
            self.tier,
            self.workspace_mode,
            self.read,
            self.write,
            names,
            self.passed,
            self.allow,
            self.deny,
        )


# option: (field, metavariable, help); the help of `run --help` is made from this table too
OPTIONS: dict[str, tuple[str, str, str]] = {
    "--profile": ("profile", "FILE", "profile file, or the name of an installed one"),
    "--tier": ("tier", "N", "trust tier 0, 1 or 2; with a profile, a tighter ceiling for it"),
    "--workspace": (
        "workspace",
        "DIR",
        "directory to work in, for a profile with a workspace (default: .)",
    ),
    "--workspace-mode": (
        "workspace_mode",
        "MODE",
        "direct, overlay or none; of this and the profile's own mode the tighter holds",
    ),
    "--chdir": ("directory", "DIR", "directory inside to start in"),
    "--timeout": ("timeout", "SECONDS", "end the run after this time, exit code 124 (s, m, h may follow the number)"),
    "--read": ("read", "PATH", "grant reading PATH, within the tier's ceiling (repeatable)"),
    "--write": ("write", "PATH", "grant writing PATH, within the tier's ceiling (repeatable)"),
    "--allow": ("allow", "RULE", "let HOST, *.HOST or HOST:PORT,PORT be reached, within the ceiling (repeatable)"),
    "--deny": ("deny", "RULE", "refuse HOST, *.HOST or HOST:PORT whatever allows it (repeatable)"),
    "--agent": ("agent", "NAME", "the name that other agents reach it by (default: the profile's)"),
    "--env": ("set", "NAME=VALUE", "set a variable inside (repeatable)"),
    "--pass-env": ("passed", "NAME", "pass a variable of the caller on (repeatable)"),
}
FLAGS: dict[str, tuple[str, str]] = {
    "--pool": ("pool", "use a sandbox that `serve`, with the same options, keeps waiting"),
    "--dry-run": ("dry_run", "print what would be applied, and run nothing"),
    "--quiet": ("quiet", "do not summarise refused calls at the end"),
    "--json": ("json", "write the outcome as one JSON line to stderr at the end"),
}
SHORT = {"-p": "--profile", "-t": "--tier", "-w": "--workspace", "-C": "--chdir", "-e": "--env", "-q": "--quiet"}
_REPEATABLE = ("read", "write", "set", "passed", "allow", "deny")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse(arguments: list[str]) -> Request | None:
    """The request, or None when help is asked for. Raises UsageError."""
    values: dict[str, object] = {}
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        if argument == "--":
            position += 1
            break
        if not argument.startswith("-") or argument == "-":
            break
        if argument in ("-h", "--help"):
            return None
        name, equals, inline = argument.partition("=") if argument.startswith("--") else (argument, "", "")
        name = SHORT.get(name, name)
        position += 1
        if name in FLAGS and not equals:
            values[FLAGS[name][0]] = True
            continue
        if name not in OPTIONS:
            raise UsageError(f"run has no option {argument}; see osmoda-sandbox run --help")
        if not equals:
            if position == len(arguments):
                raise UsageError(f"{name} wants {OPTIONS[name][1]}; see osmoda-sandbox run --help")
            inline = arguments[position]
            position += 1
        field = OPTIONS[name][0]
        value = _value(name, field, inline)
        if field in _REPEATABLE:
            earlier = values.get(field, ())
            assert isinstance(earlier, tuple)
            values[field] = (*earlier, value)
        elif field in values:
            raise UsageError(f"{name} is given twice")
        else:
            values[field] = value
    values["argv"] = tuple(arguments[position:])
    if not values["argv"]:
        raise UsageError("there is no command to run; an example: osmoda-sandbox run --tier 2 -- python3 -V")
    return Request(**values)  # type: ignore[arg-type]


def _value(name: str, field: str, text: str) -> object:
    if field == "tier":
        if text not in ("0", "1", "2"):
            raise UsageError(f"{name} {text}: the tiers are 0, 1 and 2")
        return int(text)
    if field == "workspace_mode" and text not in ("direct", "overlay", "none"):
        raise UsageError(f"{name} {text}: the modes are direct, overlay and none")
    if field == "timeout":
        return seconds(name, text)
    if field == "set":
        variable, equals, value = text.partition("=")
        if not equals or not variable:
            raise UsageError(f"{name} {text}: want NAME=VALUE")
        return (variable, value)
    if not text or "\0" in text:
        raise UsageError(f"{name} wants {OPTIONS[name][1]}")
    return text


def seconds(name: str, text: str) -> float:
    """The time that the option `name` gives: a number, `s`, `m` or `h` may follow. Raises UsageError."""
    number, factor = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1.0)
    try:
        found = float(number) * factor
    except ValueError:
        found = -1.0
    if not 0.0 < found < 1e9:
        raise UsageError(f"{name} {text}: want a number of seconds above 0")
    return found

"""systemd's directives on files: what they hide or make read-only, and the places that they ask for."""

from __future__ import annotations

import os
import stat
from functools import partial
from typing import TYPE_CHECKING

from osmoda.host import paths
from osmoda.supervisor.confining import directive_values as values
from osmoda.supervisor.confining import plan_demands as demands
from osmoda.supervisor.confining.directive_rules import Rule, refused, switch, word
from osmoda.supervisor.units.values import absolute_path, boolean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from osmoda.sandbox.verdict import Mode
    from osmoda.supervisor.confining.directive_values import HostPath
    from osmoda.supervisor.confining.narrowing import Narrowing
    from osmoda.supervisor.units.unit import Directive

_SYSTEM = ("/usr", "/boot", "/efi")
_HOMES = ("/home", "/root", "/run/user")
_TMP = ("/tmp", "/var/tmp")


def _spared(narrowing: Narrowing) -> tuple[str, ...]:
    """What ReadWritePaths= and the like take out of a read-only tree."""
    given = narrowing.given("ReadWritePaths", "ReadWriteDirectories")
    bound = (source for _, source in _binds(narrowing.given("BindPaths")))
    return (*(path.path for path in values.paths(given)), *bound)


def _protect_system(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    last = given[-1]
    trees = {"full": (*_SYSTEM, "/etc"), "strict": ("/",)}.get(last.value)
    if trees is None:
        trees = _SYSTEM if last.value and boolean(last.value) else ()
    if not trees:
        return
    narrowing.sandboxed(last)
    spared = _spared(narrowing)
    for tree in trees:
        narrowing.read_only(tree, last, spared)
        narrowing.demand(last, demands.path_refused(tree, "write"))


def _protect_home(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    last = given[-1]
    if not last.value or (last.value not in ("read-only", "tmpfs") and not boolean(last.value)):
        return
    narrowing.sandboxed(last)
    for home in _HOMES:
        if last.value == "read-only":
            narrowing.read_only(home, last, _spared(narrowing))
        else:
            narrowing.deny(home, last.origin)
    narrowing.demand(last, demands.path_refused("/root", "write"))


def _private_tmp(narrowing: Narrowing, last: Directive) -> None:
    for tree in _TMP:
        narrowing.deny(tree, last.origin)


def _existing(narrowing: Narrowing, path: HostPath) -> bool:
    """Whether it is there. One that has to be and is not is refused, as systemd refuses to start the unit."""
    if os.path.lexists(path.path):
        return True
    if not path.optional:
        narrowing.refuse(path.directive, f"{path.path} does not exist; a - in front lets it be missing")
    return False


def _inaccessible(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    for path in values.paths(given):
        narrowing.sandboxed(path.directive)
        if _existing(narrowing, path):
            narrowing.deny(path.path, path.directive.origin)
            narrowing.demand(path.directive, demands.path_refused(path.path, "read", "write"))


def _read_only(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    spared = _spared(narrowing)
    for path in values.paths(given):
        narrowing.sandboxed(path.directive)
        if _existing(narrowing, path):
            narrowing.read_only(path.path, path.directive, spared)
            narrowing.demand(path.directive, demands.path_refused(path.path, "write"))


def _read_write(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    for path in values.paths(given):
        if _existing(narrowing, path):
            narrowing.demand(path.directive, demands.path_granted(path.path, "write"))


def _no_exec(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    for path in values.paths(given):
        narrowing.sandboxed(path.directive)
        if _existing(narrowing, path):
            # What can be read can be run: no mount of a plan is noexec for its files.
            narrowing.demand(path.directive, demands.path_refused(path.path, "read", "exec"))


def _nothing(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    """Only an exception to another directive, whose rule reads it."""
    for path in values.paths(given):
        _existing(narrowing, path)


def _binds(given: Sequence[Directive]) -> list[tuple[values.Item, str]]:
    found = []
    for item in values.items(given):
        source, _, rest = item.text.lstrip("-").partition(":")
        target = rest.partition(":")[0]
        if target and absolute_path(target) != absolute_path(source):
            raise ValueError(f"shows {source} as {target}, and a sandbox shows a path under its own name only")
        found.append((item, absolute_path(source)))
    return found


def _bind(mode: Mode, narrowing: Narrowing, given: Sequence[Directive]) -> None:
    for item, path in _binds(given):
        if not os.path.lexists(path) and item.text.startswith("-"):
            continue
        if mode == "read":
            narrowing.read_only(path, item.directive, _spared(narrowing))
        narrowing.demand(item.directive, demands.path_granted(path, mode))


def _temporary(narrowing: Narrowing, given: Sequence[Directive]) -> None:
    shown = [path for _, path in _binds(narrowing.given("BindPaths", "BindReadOnlyPaths"))]
    for item in values.items(given):
        narrowing.sandboxed(item.directive)
        text, _, options = item.text.partition(":")
        tree = absolute_path(text)
        if tree == "/tmp" and options in ("", "rw"):
            narrowing.deny(tree, item.directive.origin)
            narrowing.demand(item.directive, demands.private_tmp)
        elif "ro" in options.split(","):
            narrowing.hide(tree, item.directive, [path for path in shown if path.startswith(tree + "/")])
        else:
            narrowing.refuse(item.directive, f"a sandbox has no {tree} of its own to write; with :ro it is hidden")


# Directories that systemd makes for a unit

_PLACES: Mapping[str, tuple[str, str, Mode]] = {
    "StateDirectory": ("/var/lib", "STATE_DIRECTORY", "write"),
    "CacheDirectory": ("/var/cache", "CACHE_DIRECTORY", "write"),
    "LogsDirectory": ("/var/log", "LOGS_DIRECTORY", "write"),
    "ConfigurationDirectory": ("/etc", "CONFIGURATION_DIRECTORY", "read"),
}
_BELOW_HOME = {
    "StateDirectory": ("XDG_STATE_HOME", ".local/state"),
    "CacheDirectory": ("XDG_CACHE_HOME", ".cache"),
    "LogsDirectory": ("XDG_STATE_HOME", ".local/state/log"),
    "ConfigurationDirectory": ("XDG_CONFIG_HOME", ".config"),
}


def _base(name: str) -> str:
    """Where systemd puts a directory of this kind: the system's, or a user's (systemd.exec(5))."""
    if os.geteuid() == 0:
        return _PLACES[name][0]
    variable, below = _BELOW_HOME[name]
    named = paths.environment(variable)
    return named if named.startswith("/") else os.path.join(paths.home(), below)


def _directories(name: str, narrowing: Narrowing, given: Sequence[Directive]) -> None:
    """A directory of the unit's own: it has to be there, and to be granted; its variable is set."""
    _, variable, mode = _PLACES[name]
    found = []
    for item in values.items(given):
        if ":" in item.text or ".." in item.text.split("/") or item.text.startswith("/"):
            narrowing.refuse(item.directive, "it is the name of one directory, without links and modes")
        path = os.path.join(_base(name), item.text)
        if not os.path.isdir(path):
            narrowing.refuse(item.directive, f"there is no {path}; make it (mkdir -p {path})")
        narrowing.demand(item.directive, demands.path_granted(path, mode))
        found.append(path)
    if found:
        narrowing.set_variable(variable, ":".join(found), given[-1].origin)


def _mode_of(name: str, narrowing: Narrowing, given: Sequence[Directive]) -> None:
    last = given[-1]
    wanted = int(last.value or "755", 8)
    for item in values.items(narrowing.given(name)):
        narrowing.demand(last, partial(_has_mode, os.path.join(_base(name), item.text), wanted))


def _has_mode(path: str, wanted: int, _built: demands.Built) -> str:
    mode = stat.S_IMODE(os.stat(path).st_mode)
    return "" if mode == wanted else f"{path} has the mode {mode:04o}; change it (chmod {wanted:04o} {path})"


_IMAGES = "a sandbox is made of the host's own files; name the folders in a profile"
_NO_RUN = "/run, where services of the host listen, is granted to no sandbox; use StateDirectory= or the private /tmp"


def _both(*names: str) -> Callable[[Rule], dict[str, Rule]]:
    return lambda rule: dict.fromkeys(names, rule)


RULES: dict[str, Rule] = {
    "ProtectSystem": _protect_system,
    "ProtectHome": _protect_home,
    "PrivateTmp": switch(demands.private_tmp, also=("disconnected",), narrow=_private_tmp),
    "BindLogSockets": refused("no socket of the host is shown; output goes to the log by itself", "no", "false"),
    "PrivateMounts": switch(demands.namespace("mount")),
    "MountAPIVFS": switch(demands.sealed_proc, demands.own_devices),
    "MountFlags": word(
        {
            "private": (demands.namespace("mount"),),
            "slave": (demands.namespace("mount"),),
            "shared": "mounts of a sandbox never reach the host",
        }
    ),
    **_both("InaccessiblePaths", "InaccessibleDirectories")(_inaccessible),
    **_both("ReadOnlyPaths", "ReadOnlyDirectories")(_read_only),
    **_both("ReadWritePaths", "ReadWriteDirectories")(_read_write),
    "NoExecPaths": _no_exec,
    "ExecPaths": _nothing,
    "BindPaths": partial(_bind, "write"),
    "BindReadOnlyPaths": partial(_bind, "read"),
    "TemporaryFileSystem": _temporary,
    **{name: partial(_directories, name) for name in _PLACES},
    **{f"{name}Mode": partial(_mode_of, name) for name in _PLACES},
    "RuntimeDirectory": refused(_NO_RUN),
    "RuntimeDirectoryMode": refused(_NO_RUN, "0755", "755"),
    "RuntimeDirectoryPreserve": refused(_NO_RUN, "no"),
    "RootDirectory": refused(_IMAGES, "/"),
    **dict.fromkeys(
        (
            "RootImage", "RootImageOptions", "RootImagePolicy", "RootHash", "RootHashSignature", "RootVerity",
            "RootEphemeral", "ExtensionDirectories", "ExtensionImages", "ExtensionImagePolicy",
            "MountImages", "MountImagePolicy", "RestrictFileSystems",
        ),
        refused(_IMAGES),
    ),
    "ExecSearchPath": refused("programs are looked for where systemd does by default; write the whole path"),
}  # fmt: skip

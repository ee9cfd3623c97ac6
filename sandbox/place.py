"""Where a run works: the workspace, made canonical and checked."""

from __future__ import annotations

import posix

from osmoda.host import paths
from osmoda.sandbox.errors import LaunchError
from osmoda.sandbox.operations import mounting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from osmoda.sandbox.plan import Plan

# A workspace in, or around, one of these would show or change the host's own parts.
_SYSTEM = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/var/run")


def canonical(path: str) -> str:
    """The name without links of an existing directory. Raises LaunchError."""
    try:
        fd = posix.open(path, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    except OSError as error:
        raise LaunchError(f"the workspace {path} cannot be used: {posix.strerror(error.errno or 0)}") from None
    try:
        return posix.readlink(f"/proc/self/fd/{fd}")
    finally:
        posix.close(fd)


def workspace(plan: Plan, asked: str) -> bytes:
    """The canonical path of the workspace that `plan` works in, empty when it has none of the host's.

    `asked` is the caller's choice, empty for the current directory. Raises LaunchError for one that does not exist or
    that may not be a workspace.
    """
    if plan.workspace == "none" or plan.tier == 0:
        if asked and plan.tier:
            raise LaunchError(
                f'the workspace {asked} is not granted: {plan.name} has workspace = "none"; '
                "with --workspace-mode, or filesystem.workspace in the profile, it can be direct or overlay"
            )
        return b""
    path = canonical(asked or ".")
    protected = [*_SYSTEM, *(_real(paths.directory(kind)) for kind in ("runtime", "state", "cache", "config"))]
    for place in protected:
        if _within(path, place) or _within(place, path):
            raise LaunchError(f"{path} cannot be a workspace: it would reach {place}, which no sandbox may write")
    if plan.tier == 2 and _within(_real(paths.home()), path):
        raise LaunchError(f"{path} cannot be a workspace of tier 2: it holds the home directory; use a folder in it")
    work = path.encode("utf-8", "surrogateescape")
    _refuse_in_denied(plan, work)
    return work


def _refuse_in_denied(plan: Plan, work: bytes) -> None:
    """What is denied or pinned in a workspace is covered there; one that lies in it could not be."""
    fixed: list[tuple[bytes, str]] = []
    for operation in plan.operations:
        if isinstance(operation, mounting.Mask):
            fixed.append((operation.path, f"{operation.origin} denies"))
        elif isinstance(operation, mounting.Pinned):
            fixed.extend([(path, "no sandbox may write") for path in operation.paths])
    for place, why in fixed:
        if (work + b"/").startswith(place + b"/"):
            where, what = (name.decode(errors="backslashreplace") for name in (work, place))
            raise LaunchError(f"{where} cannot be a workspace: it lies in {what}, which {why}")


def _real(path: str) -> str:
    """The name without links of a directory, as far as it exists."""
    try:
        return canonical(path)
    except LaunchError:
        parent, _, name = path.rpartition("/")
        return f"{_real(parent or '/').rstrip('/')}/{name}"


def start_directory(plan: Plan, work: bytes, asked: str) -> bytes:
    """Where the command starts: what was asked for, else the workspace, in tier 0 where the caller is."""
    if asked:
        return asked.encode("utf-8", "surrogateescape")
    if plan.tier == 0:
        return posix.getcwdb()
    return work or b"/workspace"


def _within(path: str, tree: str) -> bool:
    return tree in ("/", path) or path.startswith(tree + "/")


def environment(
    plan: Plan,
    terminal: bool,
    extra: tuple[tuple[str, str], ...],
    caller: Mapping[bytes, bytes] | None = None,
) -> tuple[tuple[str, str], ...]:
    """The command's variables: the plan's, those of `caller` that it passes on, and `extra` values over them.

    In tier 0 all of them are passed on. `caller` is this process's own environment at its start when it is None; what a
    Python program has set or removed since is in `os.environb` alone.
    """
    caller = posix.environ if caller is None else caller
    if plan.tier == 0:
        names = [name.decode("utf-8", "surrogateescape") for name in caller]
    else:
        present = set(caller)  # to ask os.environb for each costs an exception for each that is not there
        names = [name for name in plan.passed if _bytes(name) in present]
    result = {name: _value(caller, name) for name in names} | dict(plan.environment)
    if plan.tier and terminal and b"TERM" in caller:
        result.setdefault("TERM", _value(caller, "TERM"))
    result.update(extra)
    return tuple(result.items())


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _value(caller: Mapping[bytes, bytes], name: str) -> str:
    return caller[_bytes(name)].decode("utf-8", "surrogateescape")

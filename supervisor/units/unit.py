"""The model of a service unit: what its files say, typed, each value with the line that it came from.

Times are seconds (`math.inf` for "infinity"), sizes bytes. Whatever a unit file leaves out has systemd's default here
(systemd.service(5), systemd.exec(5), systemd.kill(5), systemd.unit(5)).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

type ServiceType = Literal["simple", "exec", "notify", "oneshot"]
type RestartWhen = Literal["no", "always", "on-success", "on-failure", "on-abnormal", "on-abort", "on-watchdog"]
type KillMode = Literal["control-group", "mixed"]
type NotifyAccess = Literal["none", "main", "exec", "all"]


@dataclass(frozen=True, slots=True)
class Origin:
    """The line that a value came from; `line` counts from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Exec:
    """One command line. `words` are unquoted and their specifiers resolved; variables are not (systemd.service(5)).

    `program` is what is executed: an absolute path, or a name that is looked for in the usual folders. It is words[0]
    unless the prefix `@` gave the first argument another name.
    """

    program: str
    words: tuple[str, ...]
    ignore_failure: bool
    expand_variables: bool
    origin: Origin


@dataclass(frozen=True, slots=True)
class EnvironmentFile:
    """A file of variables, read when the unit is started; `optional`: it may be missing."""

    path: str
    optional: bool
    origin: Origin


@dataclass(frozen=True, slots=True)
class Directive:
    """A directive of systemd's own sandboxing or resource control, or a condition, as it was written.

    Its specifiers are resolved. They stand in the order of the files; an empty value takes back what earlier ones
    said.
    """

    name: str
    value: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class ExitStatuses:
    """Exit codes and signals that count as one thing (SuccessExitStatus=, RestartPreventExitStatus=, …)."""

    codes: frozenset[int]
    signals: frozenset[int]


@dataclass(frozen=True, slots=True)
class Output:
    """Where a stream goes: `kind` is "journal", "null", "inherit", "file", "append" or "truncate"; `path` of a file.

    Only StandardError= is "inherit": it goes where StandardOutput= does.
    """

    kind: Literal["journal", "null", "inherit", "file", "append", "truncate"]
    path: str = ""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A check of `[X-Osmoda]`: `kind` is "http", "tcp" or "command".

    `target` is a URL without a host (it is the agent itself: "http://:8080/health"), a port, or a command line as it
    was written; that command, run under the agent's own plan, is `command`, None for the other kinds.
    """

    kind: Literal["http", "tcp", "command"]
    target: str
    origin: Origin
    command: Exec | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """When checks are made: all in seconds; `retries` failures in a row make the agent unhealthy."""

    checks: tuple[HealthCheck, ...]
    interval: float
    timeout: float
    start_period: float
    retries: int


@dataclass(frozen=True, slots=True)
class Dependencies:
    """Names of other units, sorted (systemd.unit(5))."""

    after: tuple[str, ...]
    before: tuple[str, ...]
    requires: tuple[str, ...]
    requisite: tuple[str, ...]
    wants: tuple[str, ...]
    binds_to: tuple[str, ...]
    part_of: tuple[str, ...]
    conflicts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Install:
    """What `enable` does. `default_instance` is the instance that stands for a template."""

    wanted_by: tuple[str, ...]
    required_by: tuple[str, ...]
    also: tuple[str, ...]
    alias: tuple[str, ...]
    default_instance: str = ""


@dataclass(frozen=True, slots=True)
class Osmoda:
    """The section `[X-Osmoda]`, which systemd ignores.

    `profile` is a file (absolute) or the name of an installed one, empty when not given; `tier` None when not given;
    `serve` the ports that other agents may reach; `group` names a restart group with its intensity (`group_burst`
    restarts within `group_interval` seconds stop the group; 0 for none); `workspace` is a directory, empty for the
    working directory; `pool` how many sandboxes wait for a restart.
    """

    profile: str
    tier: int | None
    serve: tuple[int, ...]
    health: Health
    group: str
    group_burst: int
    group_interval: float
    workspace: str
    pool: int


@dataclass(frozen=True, slots=True)
class Unit:
    """A service as its files describe it. `name` has its suffix; `files` are the unit's file and its drop-ins in order.

    `origins` maps "Section.Directive" to the line that decided it last; a dependency also as "Unit.After=name".
    `working_directory` is "~" for the home of `user`, and empty where no line says it (systemd: "/", or a user's home).
    `conditions` are those that start makes: Condition… (false: the unit is skipped) and Assert… (false: it fails).
    `sockets` names the units that hand over listening sockets.
    """

    name: str
    files: tuple[str, ...]
    description: str
    documentation: tuple[str, ...]
    default_dependencies: bool
    dependencies: Dependencies
    conditions: tuple[Directive, ...]
    start_limit_interval: float
    start_limit_burst: int

    type: ServiceType
    remain_after_exit: bool
    exec_condition: tuple[Exec, ...]
    exec_start_pre: tuple[Exec, ...]
    exec_start: tuple[Exec, ...]
    exec_start_post: tuple[Exec, ...]
    exec_reload: tuple[Exec, ...]
    exec_stop: tuple[Exec, ...]
    exec_stop_post: tuple[Exec, ...]
    restart: RestartWhen
    restart_sec: float
    restart_steps: int
    restart_max_delay: float
    success: ExitStatuses
    restart_prevent: ExitStatuses
    restart_force: ExitStatuses
    timeout_start: float
    timeout_stop: float
    timeout_abort: float
    runtime_max: float
    watchdog: float
    notify_access: NotifyAccess

    kill_mode: KillMode
    kill_signal: int
    restart_kill_signal: int
    final_kill_signal: int
    send_sighup: bool
    send_sigkill: bool

    working_directory: str
    working_directory_optional: bool
    user: str
    group: str
    environment: Mapping[str, str]
    environment_files: tuple[EnvironmentFile, ...]
    pass_environment: tuple[str, ...]
    unset_environment: tuple[str, ...]
    standard_input: Output
    standard_output: Output
    standard_error: Output
    syslog_identifier: str

    confinement: tuple[Directive, ...]
    sockets: tuple[str, ...]
    install: Install
    osmoda: Osmoda
    origins: Mapping[str, Origin] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Listen:
    """An address to listen at: `kind` is the socket's, `address` a path, "@name" (abstract), or "host:port".

    A bare port listens on all addresses of both families: its address is "[::]:port".
    """

    kind: Literal["stream", "datagram", "sequential-packet"]
    address: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class SocketUnit:
    """Listening sockets that are made before the service, and handed to it (systemd.socket(5), sd_listen_fds(3)).

    `service` is the unit that they activate; `descriptor_name` what it knows them by. `mode` is of a socket that is a
    path, `directory_mode` of the folders on the way that are missing. `user`, `group` own the path; empty: the caller.
    """

    name: str
    files: tuple[str, ...]
    description: str
    dependencies: Dependencies
    conditions: tuple[Directive, ...]
    listen: tuple[Listen, ...]
    service: str
    descriptor_name: str
    backlog: int
    ipv6_only: bool | None
    mode: int
    directory_mode: int
    user: str
    group: str
    symlinks: tuple[str, ...]
    remove_on_stop: bool
    keep_alive: bool
    no_delay: bool
    reuse_port: bool
    free_bind: bool
    pass_credentials: bool
    install: Install
    origins: Mapping[str, Origin] = MappingProxyType({})

"""The model: what a profile grants, with every default filled in.

A `Profile` is immutable and complete: paths are absolute, `extends` is merged, lists are sorted and hold nothing
twice. Two profiles are equal when they mean the same (and are described alike), wherever they were read from.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from osmoda.egress.destinations import ANY_PORT, Rule

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ANY_PORT",
    "Environment",
    "Filesystem",
    "Limits",
    "Mesh",
    "Network",
    "Process",
    "Profile",
    "Rule",
    "Tools",
]

type Tier = Literal[0, 1, 2]
type Workspace = Literal["none", "overlay", "direct"]


@dataclass(frozen=True, slots=True)
class Filesystem:
    """Trees of the host by absolute, normalised path. What may be written may be read. `tmp` is in bytes."""

    read: tuple[str, ...]
    write: tuple[str, ...]
    deny: tuple[str, ...]
    workspace: Workspace
    tmp: int


@dataclass(frozen=True, slots=True)
class Network:
    """Destinations, and the sockets that may be made. An empty `allow` means no network."""

    allow: tuple[Rule, ...]
    deny: tuple[Rule, ...]
    serve: tuple[int, ...]
    connect: tuple[str, ...]
    ask: bool
    loopback: bool
    families: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of each process, in bytes (`open_files`: a count); None means that the caller's own limit stays."""

    open_files: int | None
    file_size: int | None
    address_space: int | None
    stack: int | None
    core: int | None


@dataclass(frozen=True, slots=True)
class Process:
    """System calls as `syscall_groups.expand` takes them, and limits of the whole sandbox.

    `memory` is in bytes, `cpu` in cores, `pids` counts processes and threads. None means no limit.
    """

    syscalls: tuple[str, ...]
    memory: int | None
    cpu: float | None
    pids: int
    limits: Limits


@dataclass(frozen=True, slots=True)
class Environment:
    """Variables that are passed on (the key `pass`), and those that are set. What is set wins."""

    passed: tuple[str, ...]
    set: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Tools:
    """MCP tools, as patterns (see `patterns`); `deny` wins."""

    allow: tuple[str, ...]
    deny: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mesh:
    """Topics of other servers' agents, as patterns (see `patterns`)."""

    send: tuple[str, ...]
    receive: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """What a program may do.

    `file` is the absolute path it was read from, empty for a tier's defaults. `files` holds the path and SHA-256 of
    every file that it was made from: its own first, then those it extends, the tier's own last. `origins` maps the path
    of a key or of an item, such as `("filesystem", "read", 0)` or `("environment", "set", "LANG")`, to `"file:line"`.
    """

    schema: int
    tier: Tier
    description: str
    degrade: tuple[str, ...]
    filesystem: Filesystem
    network: Network
    process: Process
    environment: Environment
    tools: Tools
    mesh: Mesh
    file: str = field(default="", compare=False)
    files: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    origins: Mapping[tuple[str | int, ...], str] = field(default=MappingProxyType({}), compare=False, repr=False)

    @classmethod
    def load(cls, path_or_name: str | os.PathLike[str]) -> Profile:
        """Read a profile by path (with a `/` or ending in `.toml`) or by name.

        Names are looked for in the caller's configuration, in `/etc/osmoda/profiles`, among the shipped agents, and
        last as `tier0`, `tier1`, `tier2`. Raises `ProfileError` for one that is missing, not valid, or above its
        tier's ceiling.
        """
        from osmoda.sandbox import profile_file

        return profile_file.load(os.fspath(path_or_name))

    @classmethod
    def default(cls, tier: int = 2) -> Profile:
        """What holds in `tier` (0, 1 or 2) where nothing is declared; by default, what a missing profile means."""
        from osmoda.sandbox import tiers

        return tiers.default(tier)

    def origin(self, *path: str | int) -> str:
        """`"file:line"` of what declared the key or item at `path`, or `"tier N"` for what nobody wrote."""
        for end in range(len(path), 0, -1):
            found = self.origins.get(path[:end])
            if found is not None:
                return found
            if isinstance(path[end - 1], int) and path[: end - 1] in self.origins:
                break  # an item that nobody wrote, in a list that somebody did
        return f"tier {self.tier}"

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of what the profile means; description and origins play no part."""
        meaning = (
            self.schema,
            self.tier,
            self.degrade,
            self.filesystem,
            self.network,
            self.process,
            self.environment,
            self.tools,
            self.mesh,
        )
        import hashlib
        import json

        import msgspec

        # In ASCII: a path need not be UTF-8.
        return hashlib.sha256(json.dumps(msgspec.to_builtins(meaning)).encode("ascii")).hexdigest()

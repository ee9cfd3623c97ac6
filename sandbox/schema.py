"""The shape of a profile file, as msgspec types, and the JSON Schema that editors read.

The description of a key says what is allowed there; an error quotes it. What a host name, a size or a path must look
like is `declaration`'s part.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

SCHEMA_VERSION = 1

Port = Annotated[int, Meta(ge=1, le=65535, description="a port from 1 to 65535")]
AnyPort = Annotated[str, Meta(pattern=r"^\*$", description='"*": every port (in a tier file)')]
Ports = Annotated[list[Port | AnyPort], Meta(description="a list of ports from 1 to 65535")]
Size = int | str
Strings = list[str]


class RuleTable(Struct, frozen=True, forbid_unknown_fields=True):
    """One destination in table form."""

    host: Annotated[
        str,
        Meta(description='a host name, "*.name" for all names below it, an address, or a network such as "10.0.0.0/8"'),
    ]
    ports: Ports | UnsetType = UNSET
    methods: Annotated[Strings, Meta(description='a list of HTTP methods in capitals, such as ["GET"]')] | UnsetType = (
        UNSET
    )
    paths: (
        Annotated[Strings, Meta(description='a list of URL paths in which * stands for any text, such as ["/v1/*"]')]
        | UnsetType
    ) = UNSET
    secret: (
        Annotated[str, Meta(description="the name of a secret that the gateway puts in for this host")] | UnsetType
    ) = UNSET
    max_body: (
        Annotated[Size, Meta(description='the most bytes of one request body: a number, or text such as "1M"')]
        | UnsetType
    ) = UNSET
    max_bytes: (
        Annotated[Size, Meta(description='the most bytes in both directions while a sandbox lives, such as "10G"')]
        | UnsetType
    ) = UNSET
    max_requests: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=1 << 53,
                description="a number from 1: the most connections, or requests where they are inspected, while a "
                "sandbox lives",
            ),
        ]
        | UnsetType
    ) = UNSET
    ech: (
        Annotated[
            bool, Meta(description="true or false: whether a connection may hide its server name (encrypted hello)")
        ]
        | UnsetType
    ) = UNSET
    addresses: (
        Annotated[
            Strings,
            Meta(
                description="a list of networks that this name may lead to although they are not public, "
                'such as ["10.0.0.0/8"]'
            ),
        ]
        | UnsetType
    ) = UNSET


class FilesystemTable(Struct, frozen=True, forbid_unknown_fields=True):
    """Files of the host. A path is absolute, starts with ~/, or is relative to the profile's own folder."""

    read: Annotated[Strings, Meta(description="a list of paths whose trees may be read")] | UnsetType = UNSET
    write: Annotated[Strings, Meta(description="a list of paths whose trees may be read and written")] | UnsetType = (
        UNSET
    )
    deny: (
        Annotated[Strings, Meta(description="a list of paths that stay hidden whatever grants a tree around them")]
        | UnsetType
    ) = UNSET
    workspace: (
        Annotated[
            str,
            Meta(
                pattern="^(none|overlay|direct)$",
                description='"none" (an empty folder), "overlay" (changes wait for a commit) or "direct"',
            ),
        ]
        | UnsetType
    ) = UNSET
    tmp: (
        Annotated[Size, Meta(description='the size of each private /tmp, /home/agent and /dev/shm, such as "256M"')]
        | UnsetType
    ) = UNSET


class NetworkTable(Struct, frozen=True, forbid_unknown_fields=True):
    """What may be reached. An empty `allow` means no network."""

    allow: (
        Annotated[
            list[str | RuleTable],
            Meta(description='a list of destinations such as "api.openai.com", "*.arxiv.org:80,443", or tables'),
        ]
        | UnsetType
    ) = UNSET
    deny: Annotated[Strings, Meta(description="a list of destinations refused whatever allows them")] | UnsetType = (
        UNSET
    )
    serve: (
        Annotated[list[Port | AnyPort], Meta(description="a list of ports from 1 to 65535 that other agents may reach")]
        | UnsetType
    ) = UNSET
    connect: (
        Annotated[
            Strings,
            Meta(
                description='a list of "agent:NAME:PORT", "mesh:SERVER/AGENT:PORT", "host:PORT" or '
                '"localhost:PORT=agent:NAME:PORT"'
            ),
        ]
        | UnsetType
    ) = UNSET
    ask: (
        Annotated[bool, Meta(description="true or false: hold a connection to an unlisted name until somebody decides")]
        | UnsetType
    ) = UNSET
    loopback: Annotated[bool, Meta(description="true or false: whether the sandbox's own lo is up")] | UnsetType = UNSET
    families: (
        Annotated[Strings, Meta(description='a list of socket families out of "unix", "inet", "inet6", "netlink"')]
        | UnsetType
    ) = UNSET


class LimitsTable(Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of each single process (setrlimit(2))."""

    open_files: (
        Annotated[int, Meta(ge=16, le=1 << 30, description="a number of files from 16 (RLIMIT_NOFILE)")] | UnsetType
    ) = UNSET
    file_size: Annotated[Size, Meta(description='the largest file, such as "4G" (RLIMIT_FSIZE)')] | UnsetType = UNSET
    address_space: (
        Annotated[Size, Meta(description='the largest address space, such as "4G" (RLIMIT_AS)')] | UnsetType
    ) = UNSET
    stack: Annotated[Size, Meta(description='the largest stack, such as "8M" (RLIMIT_STACK)')] | UnsetType = UNSET
    core: Annotated[Size, Meta(description="the largest core file; 0 for none (RLIMIT_CORE)")] | UnsetType = UNSET


class ProcessTable(Struct, frozen=True, forbid_unknown_fields=True):
    """System calls and the resources of the whole sandbox."""

    syscalls: (
        Annotated[
            Strings,
            Meta(description='a list of system calls or groups as systemd names them; "~" in front takes away'),
        ]
        | UnsetType
    ) = UNSET
    memory: Annotated[Size, Meta(description='memory of the whole sandbox, such as "512M"')] | UnsetType = UNSET
    cpu: Annotated[float, Meta(gt=0, le=65536, description="a number of cores above 0, such as 0.5")] | UnsetType = (
        UNSET
    )
    pids: Annotated[int, Meta(ge=1, le=1 << 22, description="a number of processes and threads from 1")] | UnsetType = (
        UNSET
    )
    limits: LimitsTable | UnsetType = UNSET


class EnvironmentTable(Struct, frozen=True, forbid_unknown_fields=True):
    """Environment variables inside."""

    passed: (
        Annotated[Strings, Meta(description="a list of names of the caller's variables that are passed on")] | UnsetType
    ) = field(default=UNSET, name="pass")
    set: Annotated[dict[str, str], Meta(description="a table of names and text values")] | UnsetType = UNSET


class ToolsTable(Struct, frozen=True, forbid_unknown_fields=True):
    """MCP tools, as patterns in which * stands for any text."""

    allow: Annotated[Strings, Meta(description='a list of tool patterns, such as ["file_*"]')] | UnsetType = UNSET
    deny: Annotated[Strings, Meta(description="a list of tool patterns refused whatever allows them")] | UnsetType = (
        UNSET
    )


class MeshTable(Struct, frozen=True, forbid_unknown_fields=True):
    """Topics of other servers' agents, as patterns in which * stands for any text."""

    send: Annotated[Strings, Meta(description="a list of topic patterns that may be sent to")] | UnsetType = UNSET
    receive: Annotated[Strings, Meta(description="a list of topic patterns that may be received")] | UnsetType = UNSET


_Version = Annotated[int, Meta(ge=SCHEMA_VERSION, le=SCHEMA_VERSION, description=f"{SCHEMA_VERSION}")]
_Tier = Annotated[
    int,
    Meta(ge=0, le=2, description="0 (unrestricted), 1 (sandboxed with declared capabilities) or 2 (maximum isolation)"),
]
_Degrade = Annotated[
    Strings,
    Meta(
        description='a list of layers that may be missing on a host, out of "memory", "cpu", "landlock", '
        '"landlock-net", "landlock-scope", "notify", "idmap"'
    ),
]


class _Capabilities(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    degrade: _Degrade | UnsetType = UNSET
    filesystem: FilesystemTable | UnsetType = UNSET
    network: NetworkTable | UnsetType = UNSET
    process: ProcessTable | UnsetType = UNSET
    environment: EnvironmentTable | UnsetType = UNSET
    tools: ToolsTable | UnsetType = UNSET
    mesh: MeshTable | UnsetType = UNSET


class CapabilitiesTable(_Capabilities, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Capabilities without a tier: one half of a tier file."""


class ProfileFile(_Capabilities, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An osmoda profile: a tier and what is declared within its ceiling."""

    schema: _Version
    tier: _Tier | UnsetType = UNSET
    description: Annotated[str, Meta(description="one line of text")] = ""
    extends: (
        Annotated[str | list[str], Meta(description="the name or file of a profile to build on, or a list of them")]
        | UnsetType
    ) = UNSET


class TierFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An osmoda tier: the most that its profiles may declare, and what holds where they declare nothing."""

    schema: _Version
    tier: _Tier
    description: Annotated[str, Meta(description="one line of text")]
    ceiling: CapabilitiesTable
    default: CapabilitiesTable


def json_schema(shape: type[Struct]) -> dict[str, Any]:
    """JSON Schema (2020-12) of a profile or tier file, for editors that read `#:schema` lines."""
    (reference,), definitions = msgspec.json.schema_components([shape], ref_template="#/$defs/{name}")
    top = definitions.pop(reference["$ref"].rpartition("/")[2])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "$defs": definitions}


def schema_text(shape: type[Struct]) -> str:
    """The text of the generated schema file."""
    return msgspec.json.format(msgspec.json.encode(json_schema(shape)), indent=2).decode() + "\n"


def main() -> None:
    """Write the schema files into a folder: `python -m osmoda.sandbox.schema profiles`."""
    import pathlib
    import sys

    folder = pathlib.Path(sys.argv[1])
    for name, shape in (("profile", ProfileFile), ("tier", TierFile)):
        (folder / f"{name}.schema.json").write_text(schema_text(shape))


if __name__ == "__main__":
    main()

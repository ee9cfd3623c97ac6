"""The shape of a profile file: validation with msgspec, and the JSON Schema that editors read.

The description of a key says what is allowed there; an error quotes it. Only shapes are checked here. What a host name,
a size or a path must look like is `declaration`'s part.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

if TYPE_CHECKING:
    from osmoda.sandbox.errors import ProfileError
    from osmoda.sandbox.toml_source import Path, Source

SCHEMA_VERSION = 1

Port = Annotated[int, Meta(ge=1, le=65535, description="a port from 1 to 65535")]
AnyPort = Annotated[str, Meta(pattern=r"^\*$", description='"*": every port (in a tier file)')]
Ports = Annotated[list[Port | AnyPort], Meta(description="a list of ports from 1 to 65535")]
Size = Annotated[
    int | str,
    Meta(description='a number of bytes, or text with a binary suffix: "64K", "512M", "4G", "1T"'),
]
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
            Meta(description='a list of "agent:NAME:PORT", "mesh:SERVER/AGENT:PORT" or "host:PORT"'),
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


_PATH_STEP = re.compile(r"\.([A-Za-z0-9_-]+)|\[(\d+|\.\.\.)\]")
_UNKNOWN = re.compile(r"^Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(.*)`")
_MOST_ERRORS = 20


def validate[S: (ProfileFile, TierFile)](source: Source, shape: type[S]) -> S:
    """The values of `source` as a `shape`. Raises `ProfileError` for the first thing wrong, the rest in `others`."""
    data = source.data
    errors: list[ProfileError] = []
    while True:
        try:
            valid = msgspec.convert(data, shape)
            break
        except msgspec.ValidationError as error:
            if not errors:
                data = copy.deepcopy(dict(data))
            path, found = _locate(str(error), data)
            errors.append(source.error(path, _sentence(str(error), path, found, shape)))
            if len(errors) == _MOST_ERRORS or not _set_aside(str(error), path, data):
                break
    if errors:
        raise_all(errors)
    return valid


def raise_all(errors: list[ProfileError]) -> None:
    """Raise the error that stands first in its file; `others` of it holds the rest, in order."""
    if not errors:
        return
    first, *others = sorted(errors, key=lambda error: (error.file, error.line, error.column))
    first.others = tuple(others)
    raise first


def dotted(path: Path) -> str:
    """`network.allow[1].ports`, as a person writes it."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")


def _locate(message: str, data: Any) -> tuple[Path, Any]:
    """The key path that msgspec means, and the value there. For an unknown key, the key itself."""
    head, separator, tail = message.rpartition(" - at `$")
    if separator:
        message = head
    path: Path = ()
    value = data
    for name, index in _PATH_STEP.findall(tail if separator else ""):
        step: str | int
        if index == "...":  # msgspec leaves out which key of a table it was
            step = next((key for key, item in value.items() if not isinstance(item, str)), "")
        else:
            step = int(index) if index else name
        path = (*path, step)
        value = value[step]
    unknown = _UNKNOWN.match(message)
    if unknown:
        path = (*path, unknown[1])
        value = value[unknown[1]]
    return path, value


def _set_aside(message: str, path: Path, data: Any) -> bool:
    """Take the faulty value out of `data`, so that the next one shows; False where nothing can be taken out."""
    if not path or _MISSING.match(message):
        return False
    parent = data
    for step in path[:-1]:
        parent = parent[step]
    last = path[-1]
    if isinstance(parent, list):
        # Keep the indices of what follows: put a value there that fits every list of its kind.
        parent[last] = 1 if path[-2] in ("ports", "serve") else "x"  # type: ignore[index]
    elif path in (("schema",), ("tier",)):
        parent[last] = 1
    else:
        del parent[last]
    return True


def _sentence(message: str, path: Path, found: Any, shape: type[Struct]) -> str:
    missing = _MISSING.match(message)
    if missing:
        return f"{dotted((*path, missing[1]))} is missing; allowed: {_allowed((*path, missing[1]), shape)}"
    if _UNKNOWN.match(message):
        keys = _keys(path[:-1], shape)
        guess = _nearest(str(path[-1]), keys)
        hint = f'; did you mean "{guess}"?' if guess else ";"
        return f"{dotted(path)} is not a key of a profile{hint} allowed here: {', '.join(keys)}"
    return f"{dotted(path)} is {written(found)}; allowed: {_allowed(path, shape)}"


def written(value: Any) -> str:
    """A found value in TOML's words, cut where it is long."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= 80 else text[:77] + "..."


def _nearest(name: str, keys: list[str]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(name, keys, 1, 0.6)), None)


def _struct_in(hint: Any) -> type[Struct] | None:
    if isinstance(hint, type):
        return hint if issubclass(hint, Struct) else None
    return next((found for part in get_args(hint) if (found := _struct_in(part))), None)


def _hint(path: Path, shape: type[Struct]) -> Any:
    """The annotation of the key that `path` lies in or under, or None where no such key is."""
    hint: Any = shape
    for step in path:
        if isinstance(step, int):
            continue
        struct = _struct_in(hint)
        if struct is None:
            break
        names = {item.encode_name: item.name for item in msgspec.structs.fields(struct)}
        if step not in names:
            return None
        hint = get_type_hints(struct, include_extras=True)[names[step]]
    return hint


def _keys(path: Path, shape: type[Struct]) -> list[str]:
    struct = _struct_in(_hint(path, shape))
    return [item.encode_name for item in msgspec.structs.fields(struct)] if struct else []


def _description(hint: Any) -> str | None:
    for part in get_args(hint):
        if isinstance(part, Meta) and part.description:
            return part.description
    return next((text for part in get_args(hint) if (text := _description(part))), None)


def _allowed(path: Path, shape: type[Struct]) -> str:
    hint = _hint(path, shape)
    text = _description(hint)
    struct = _struct_in(hint)
    if struct is not None and not isinstance(path[-1] if path else "", int) and (text is None or hint is struct):
        return f"a table with the keys {', '.join(_keys(path, shape))}"
    return text or "nothing"


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

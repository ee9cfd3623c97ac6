"""From the token of a running sandbox back to its policy, as its profile says now."""

from __future__ import annotations

import marshal
from typing import Any

from osmoda.sandbox import compilation, network_policy, profile_file
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.opening import TOKEN_VERSION
from osmoda.sandbox.request import Request


def recompile(token: bytes) -> bytes:
    """The policy blob of the run that `token` stands for. Raises SandboxError, also for another version's token."""
    kind, values = _read(token)
    if kind == "file":
        return network_policy.policy_of(profile_file.load(values[0]))
    fields, directory = values
    return network_policy.policy_of(compilation.profile_of(Request(*fields), directory))


def compiled_from(token: bytes) -> object:
    """What of `token` decides the policy: many runs have it in common. Raises SandboxError as `recompile` does."""
    kind, values = _read(token)
    if kind == "file":
        return kind, values[0]
    fields, directory = values
    return kind, Request(*fields).compiled_from, directory


def _read(token: bytes) -> tuple[str, list[Any]]:
    try:
        version, kind, *values = marshal.loads(token)
    except (ValueError, EOFError, TypeError):
        version, kind, values = 0, "", []
    if version != TOKEN_VERSION:
        raise SandboxError("the sandbox was started by another version of osmoda, or from no profile file")
    return kind, values

"""`check` and `diff`: whether profiles hold, and what one grants beyond another."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from osmoda.sandbox import grants
from osmoda.sandbox.compile import compile_profile
from osmoda.sandbox.errors import CompileError, ProfileError
from osmoda.sandbox.profile import Profile

if TYPE_CHECKING:
    from osmoda.host.features import Features


def check(name: str, features: Features) -> dict[str, Any]:
    """Load and compile the profile `name` (a path or a name) for a host with `features`; every error has its place."""
    errors: list[dict[str, Any]] = []
    try:
        profile = Profile.load(name)
        compile_profile(profile, features)
    except ProfileError as error:
        errors.extend(
            {"file": one.file, "line": one.line, "column": one.column, "message": one.message, "sentence": str(one)}
            for one in (error, *error.others)
        )
    except CompileError as error:
        file, _, line = error.origin.rpartition(":")
        known = file and line.isdigit()
        errors.append(
            {
                "file": file if known else error.origin,
                "line": int(line) if known else 0,
                "column": 0,
                "message": error.message,
                "sentence": str(error),
            }
        )
    return {"profile": name, "ok": not errors, "errors": errors}


def diff(first: str, second: str) -> list[dict[str, Any]]:
    """What the profile `first` grants beyond `second`. Raises ProfileError."""
    found = grants.excess(Profile.load(first), Profile.load(second))
    return [asdict(item) | {"path": list(item.path)} for item in found]

"""What a gateway is told of a run: who it is, under which policy, and the secrets it is trusted with."""

from __future__ import annotations

import marshal
import posix

from osmoda.egress.registration import Opening
from osmoda.host import paths
from osmoda.host.frozen import fields_of
from osmoda.sandbox.errors import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from osmoda.sandbox.plan import Plan
    from osmoda.sandbox.request import Request

TOKEN_VERSION = 1


def token_of_request(request: Request, directory: str) -> bytes:
    """What `egress_token.recompile` makes the policy of a command's run from again, after an edit."""
    values = {field: getattr(request, field) for field in fields_of(request)}
    # Of the variables only their names: a value may be secret, and whoever edits the profile reads this.
    values["set"] = tuple([(name, "") for name, _ in request.set])
    return marshal.dumps((TOKEN_VERSION, "request", tuple(values.values()), directory))


def token_of_file(path: str) -> bytes:
    """The same for a profile that was loaded from `path`, empty for one that comes from no file."""
    return marshal.dumps((TOKEN_VERSION, "file", path)) if path else b""


def agent_name(asked: str, profile: str) -> str:
    """The name that other agents reach a run by: the one asked for, else that of its profile (a name or a file)."""
    return asked or profile.rpartition("/")[2].removesuffix(".toml")


def secrets(plan: Plan, caller: Mapping[bytes, bytes] | None = None) -> tuple[tuple[str, str, str], ...]:
    """(name, placeholder, value) of each secret that `plan` names; `caller` is as in `place.environment`.

    Raises LaunchError for one that has no value.
    """
    if not plan.secrets:
        return ()
    from osmoda.egress.secrets import SecretError, load, placeholder

    environment = {
        name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
        for name, value in (posix.environ if caller is None else caller).items()
    }
    found = []
    for name in plan.secrets:
        try:
            value = load(name, environment, f"{paths.directory('config')}/secrets")
            found.append((name, placeholder(value), value))
        except SecretError as error:
            raise LaunchError(f"{error} ({plan.name} names it in network.allow)") from None
    return tuple(found)


def opening(plan: Plan, identity: str, agent: str, token: bytes, held: tuple[tuple[str, str, str], ...]) -> Opening:
    """The whole of it."""
    return Opening(identity, agent, plan.tier, plan.name, token, plan.files, held, plan.egress, plan.inspects)

"""Whether something could be reached under a profile: answered by the code that the gateway decides with."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from osmoda.egress.destinations import canonical_host
from osmoda.egress.inspection.rules import Request, judge
from osmoda.egress.policy import Policy
from osmoda.sandbox import network_policy
from osmoda.sandbox.errors import SandboxError

if TYPE_CHECKING:
    from osmoda.sandbox.profile import Profile

_NO_LENGTH = -1
_PORTS = {"https": 443, "wss": 443, "http": 80, "ws": 80, "ssh": 22, "git": 9418, "ftp": 21, "postgresql": 5432}


@dataclass(frozen=True, slots=True)
class Answer:
    """`how` is "spliced" or "inspected" where it is allowed; `origin` is the line that decides."""

    what: str
    name: str
    port: int
    allowed: bool
    how: str
    layer: str
    origin: str
    reason: str

    def sentence(self) -> str:
        """The answer in one sentence."""
        if not self.allowed:
            return f"{self.what} is refused by {self.layer}: {self.reason}"
        how = "each request is looked at" if self.how == "inspected" else "passed on unopened"
        return f"{self.what} is allowed ({self.origin}); {how}"


def ask(profile: Profile, what: str, method: str) -> Answer:
    """Whether `what` (a URL, HOST or HOST:PORT) could be reached with `method`. Raises SandboxError otherwise."""
    name, port, path = _parts(what)
    blob = network_policy.policy_of(profile)
    place = profile.file or f"tier {profile.tier}"
    if profile.tier == 0:
        return Answer(what, name, port, True, "spliced", "egress", "tier 0", "")
    if not blob:
        reason = f"{place} lists nothing that may be reached"
        return Answer(what, name, port, False, "", "network", place, reason)
    policy = Policy.load(blob)
    address = _address(name)
    verdict = policy.decide(name, port) if address is None else policy.decide_address(address, port)
    allowed, origin, reason = verdict.allowed, verdict.origin, verdict.reason
    how = "inspected" if verdict.inspect else "spliced"
    if allowed and verdict.inspect and path:
        request = Request(method, path.encode(), "HTTP/1.1", (name.encode(),), _NO_LENGTH, "")
        fitting, refusal = judge(request, verdict.grants, name)
        if refusal is not None:
            allowed, origin, reason = False, refusal.rule or origin, refusal.reason
        elif fitting:
            origin = fitting[0].origin
    return Answer(what, name, port, allowed, how if allowed else "", "egress", origin, reason)


def _parts(what: str) -> tuple[str, int, str]:
    """Name, port and path; the path is empty for what is no URL."""
    is_url = "://" in what
    try:
        parts = urlsplit(what if is_url else f"//{what}")
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise SandboxError(f"{what} is no URL, HOST or HOST:PORT: {error}") from None
    if port is None:
        port = _PORTS.get(parts.scheme, 0) if is_url else 443
    if not port:
        raise SandboxError(f"{what}: say the port, as in HOST:PORT")
    if parts.username is not None or parts.password is not None:
        raise SandboxError(f"{what} names a user before the host, which a gateway refuses")
    if _address(host) is None:
        try:
            host = (
                canonical_host(host) if not host.endswith((".agent", ".osmoda", ".mesh")) and host != "host" else host
            )
        except ValueError as error:
            raise SandboxError(f"{what} names no host: {error}") from None
    if not is_url:
        return host, port, ""
    return host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _address(name: str) -> bytes | None:
    try:
        return ipaddress.ip_address(name).packed
    except ValueError:
        return None

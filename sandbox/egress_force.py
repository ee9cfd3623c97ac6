"""What runs under a profile file, and the policy that each sandbox gets when the file is edited."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osmoda.egress.control_client import Client, ControlError, NoSuchSandbox
from osmoda.egress.edits import covers, denies
from osmoda.sandbox import egress_token, network_policy
from osmoda.sandbox.errors import ProfileError, SandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from osmoda.egress.control_client import Served
    from osmoda.egress.edits import Edit
    from osmoda.sandbox.profile import Profile


@dataclass(frozen=True, slots=True)
class InForce:
    """A running sandbox that got a policy; `closed` counts the connections that it no longer allows.

    `error`, where it is not empty, says why the sandbox still has the policy of before.
    """

    identity: str
    agent: str
    closed: int
    error: str = ""


class Running:
    """The sandboxes of this user that run under `file`, or under a profile that extends it.

    Compiled first, so that from the writing of the file to the last sandbox only messages are between.
    """

    def __init__(self, file: str) -> None:
        self.reached: list[InForce] = []
        self.silent: set[int] = set()
        self._file = file
        self._client = Client()
        self._known: set[str] = set()
        self._policies: dict[object, bytes] = {}
        self._ready: list[tuple[Served, bytes]] = []
        self._broken: list[tuple[Served, ProfileError]] = []

    def compile(self) -> None:
        """Compile the policies of sandboxes that have none from here yet, of what the profiles say now."""
        found = self._client.sessions()
        self.silent.update(self._client.silent)
        for served in found:
            if served.identity in self._known or not served.token or not self._concerns(served):
                continue
            self._known.add(served.identity)
            try:
                key = egress_token.compiled_from(served.token)
                if key not in self._policies:
                    self._policies[key] = egress_token.recompile(served.token)
                self._ready.append((served, self._policies[key]))
            except ProfileError as error:
                self._broken.append((served, error))
            except SandboxError as error:
                self.reached.append(InForce(served.identity, served.agent, 0, str(error)))

    def _concerns(self, served: Served) -> bool:
        return self._file in {os.path.realpath(name) for name in served.files}

    def check_broken(self) -> None:
        """Raise SandboxError for a sandbox whose profile holds as it is, and would not after the edit."""
        for served, error in self._broken:
            try:
                egress_token.recompile(served.token)
            except SandboxError:
                continue
            who = f"{served.profile}, under which sandbox {served.identity} runs"
            raise SandboxError(f"nothing was changed, since the edit would break {who}: {error}")

    def put_in_force(self) -> None:
        """Give each its policy."""
        for served, blob in self._ready:
            try:
                # Of a profile without any rule left nothing is compiled: nothing may be reached any more.
                closed = self._client.policy(served.identity, blob or network_policy.nothing(), served.pid)
            except NoSuchSandbox:
                continue  # it has ended meanwhile
            except ControlError as error:
                self.reached.append(InForce(served.identity, served.agent, 0, str(error)))
            else:
                self.reached.append(InForce(served.identity, served.agent, closed))
        self.reached += [InForce(one.identity, one.agent, 0, str(error)) for one, error in self._broken]
        self._ready, self._broken = [], []


def elsewhere(profile: Profile, made: Edit, file: str) -> Iterator[str]:
    """What the whole profile says otherwise than the edit of one of its files may make one think."""
    network = profile.network
    for key, rule in made.added:
        for index, denied in enumerate(network.deny if key == "allow" else ()):
            origin = profile.origin("network", "deny", index)
            if denies(denied, rule) and not origin.startswith(f"{file}:"):
                yield f"{rule} stays refused: the deny of {denied} at {origin} wins"
    for key, rule in made.removed:
        for index, wide in enumerate(network.allow if key == "allow" else network.deny):
            if covers(wide, rule):
                verb = "allowed" if key == "allow" else "refused"
                yield f"{rule} is still {verb}: {wide} at {profile.origin('network', key, index)}"


def later(old: Profile | None, new: Profile, is_running: bool) -> Iterator[str]:
    """What of an edit a sandbox that runs cannot get: it was made at the launch, in namespaces that are closed now."""
    if old is None:
        return
    if not network_policy.policy_of(old) and network_policy.policy_of(new):
        yield "what runs under it without a network has one from its next start on"
    if not is_running:
        return
    for things, words in (
        (network_policy.networks_of, "addresses of networks are routed"),
        (network_policy.local_ports_of, "ports of localhost are redirected"),
        (network_policy.secrets_of, "secrets are read"),
    ):
        more = [str(thing) for thing in things(new) if thing not in things(old)]
        if more:
            yield f"{', '.join(more)}: from the next start on, since {words} at the launch"
    if network_policy.inspects(new) and not network_policy.inspects(old):
        yield "rules that look into requests: from the next start on, which brings the certificates"

"""The gateways of this user, as a command sees them: all of them at once, over their control sockets.

A gateway that does not answer in time is passed over and named in `Client.silent`: what was asked of it may not be so.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import select
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from osmoda.egress import control_messages, memory_file
from osmoda.host import paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SECONDS = 5.0
"""How long gateways have to answer."""

LOADING_SECONDS = 15.0
"""The same for a policy, which may be large."""

_PERIOD = 0.5  # seconds between looks for gateways that have started, while records are watched
_RETRY = 0.01


class ControlError(Exception):
    """What was asked for has not happened; the text says why."""


class NoSuchSandbox(ControlError):
    """No gateway that answers has it: it has ended."""


class GatewaySilent(ControlError):
    """A gateway that might have done it does not answer."""


@dataclass(frozen=True, slots=True)
class Served:
    """A sandbox in a gateway's hands.

    `token` and `files` are as whoever runs it gave them; `pid` is the gateway's; `opened` is in seconds since the
    epoch; `policy` is the digest of the policy in force; `connections` and `pending` count what is open.
    """

    identity: str
    agent: str
    tier: int
    profile: str
    files: tuple[str, ...]
    token: bytes
    pid: int
    opened: float
    connections: int
    policy: str
    ask: bool
    serve: tuple[int, ...]
    pending: int


class Client:
    """Speaks to the gateways whose control sockets lie in `folder`, by default this user's."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = paths.own_directory("runtime", "egress") if folder is None else folder
        self.silent: list[int] = []
        """Process ids of the gateways that did not answer what was asked last."""

    def sessions(self) -> list[Served]:
        """The sandboxes that are served, the oldest first."""
        found = [_served(entry) for answer in self._ask({"verb": "sessions"}) for entry in answer.get("sessions", ())]
        return sorted(found, key=lambda served: served.opened)

    def policy(self, identity: str, blob: bytes, pid: int = 0) -> int:
        """Put a policy in force in the sandbox `identity`: the number of connections that it closed.

        `pid` is the gateway that has it, as far as the caller knows (`Served.pid`): of many only that one is asked.
        Of two policies for one sandbox the one that is sent later stays: whoever compiles them must hold the lock of
        what they are compiled from until this returns. Raises NoSuchSandbox, GatewaySilent, ControlError.
        """
        body = memory_file.create("osmoda-policy", blob)
        try:
            request = {"verb": "policy", "session": identity}
            answers = self._ask(request, (body,), LOADING_SECONDS, pid) if pid else []
            if not pid or (not self.silent and all(answer.get("none") for answer in answers)):
                answers = self._ask(request, (body,), LOADING_SECONDS)
        finally:
            os.close(body)
        answer = self._one(answers, "closed", f"there is no running sandbox {identity}")
        return int(answer["closed"])

    def pending(self) -> list[dict[str, Any]]:
        """The open questions, the oldest first: as `asking.pending` makes them."""
        found = [entry for answer in self._ask({"verb": "pending"}) for entry in answer.get("pending", ())]
        return sorted(found, key=lambda entry: float(entry["asked"]))

    def approve(self, identity: str, how: str) -> tuple[Served, str, int]:
        """Let through what the question `identity` holds ("once"), or all to that name and port in this run ("run").

        Returns the sandbox, the name and the port. Raises NoSuchSandbox when it is answered already, GatewaySilent.
        """
        answer = self._one(
            self._ask({"verb": "decide", "id": identity, "how": how}), "session", f"no question {identity} is open"
        )
        return _served(answer["session"]), str(answer["name"]), int(answer["port"])

    def refuse(self, identity: str) -> tuple[Served, str, int]:
        """Refuse what the question `identity` holds; otherwise as `approve`."""
        return self.approve(identity, "refuse")

    def metrics(self) -> list[dict[str, Any]]:
        """The numbers of each gateway, for `metrics.text`."""
        return [answer["metrics"] for answer in self._ask({"verb": "metrics"}) if "metrics" in answer]

    def stop(self, seconds: float) -> int:
        """End all gateways, open connections in at most `seconds` (0 to 3600). How many have been told."""
        return sum("stopping" in answer for answer in self._ask({"verb": "stop", "seconds": seconds}))

    def watch(self, sandboxes: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        """Records as they are made, of these sandboxes or of all, also of gateways that are still to come.

        `{"event": "missed", "missed": N}` stands for records that this reader was too slow for. Goes on until it is
        closed.
        """
        request: dict[str, Any] = {"verb": "watch"}
        if sandboxes is not None:
            request["sandboxes"] = list(sandboxes)
        watched: dict[int, _Link] = {}
        poll = select.poll()
        try:
            while True:
                known = {link.path for link in watched.values()}
                for link in _connect([path for path in self._paths() if path not in known])[0]:
                    with contextlib.suppress(OSError):
                        link.say(request)
                    watched[link.fileno()] = link
                    poll.register(link.fileno(), select.POLLIN)
                next_look = time.monotonic() + _PERIOD
                while (left := next_look - time.monotonic()) > 0:
                    for fd, _ in poll.poll(left * 1000):
                        record = watched[fd].hear()
                        if record is None or "error" in record:
                            poll.unregister(fd)
                            watched.pop(fd).close()
                        else:
                            yield record
        finally:
            for link in watched.values():
                link.close()

    # --- asking them all ---

    def _paths(self) -> list[str]:
        names = [name for name in os.listdir(self.folder) if name.endswith(control_messages.SUFFIX)]
        return [
            os.path.join(self.folder, name) for name in names if name.removesuffix(control_messages.SUFFIX).isdigit()
        ]

    def _ask(
        self, request: dict[str, Any], descriptors: tuple[int, ...] = (), seconds: float = SECONDS, pid: int = 0
    ) -> list[dict[str, Any]]:
        """What each gateway answers in time, or the one with that process id."""
        end = time.monotonic() + seconds
        waiting: dict[int, _Link] = {}
        answers = []
        poll = select.poll()
        busy = [path for path in self._paths() if pid in (0, _pid_of(path))]
        try:
            while (left := end - time.monotonic()) > 0:
                links, busy = _connect(busy)
                for link in links:
                    waiting[link.fileno()] = link
                    poll.register(link.fileno(), select.POLLIN)
                    with contextlib.suppress(OSError):
                        link.say(request, descriptors)
                if not waiting and not busy:
                    break
                for fd, _ in poll.poll(1000 * (min(left, _RETRY) if busy else left)):
                    poll.unregister(fd)
                    with waiting.pop(fd) as link:
                        answer = link.hear()
                    if answer is not None:
                        answers.append(answer)
        finally:
            self.silent = [*map(_pid_of, busy), *[link.pid for link in waiting.values()]]
            for link in waiting.values():
                link.close()
        return answers

    def _one(self, answers: list[dict[str, Any]], member: str, otherwise: str) -> dict[str, Any]:
        """The answer of the one gateway that is concerned."""
        for answer in answers:
            if member in answer:
                return answer
        reasons = [str(answer.get("error")) for answer in answers if not answer.get("none")]
        if reasons:
            raise ControlError(reasons[0])
        if self.silent:
            pids = ", ".join(map(str, sorted(self.silent)))
            raise GatewaySilent(f"{otherwise} in a gateway that answers; process {pids} does not answer")
        raise NoSuchSandbox(otherwise)


class _Link:
    """A connection to one gateway."""

    def __init__(self, path: str, channel: socket.socket) -> None:
        self.path = path
        self.pid = _pid_of(path)
        self._channel = channel

    def fileno(self) -> int:
        return self._channel.fileno()

    def connect(self) -> int:
        """The errno, 0 when it has."""
        return self._channel.connect_ex(self.path)

    def say(self, request: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        control_messages.say(self._channel, request, descriptors)

    def hear(self) -> dict[str, Any] | None:
        """The next message; None at the end, and for what is no message."""
        try:
            heard = control_messages.hear(self._channel)
        except (OSError, ValueError):
            return None
        if heard is None:
            return None
        control_messages.close(heard[1])
        return heard[0]

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _connect(places: list[str]) -> tuple[list[_Link], list[str]]:
    """Connections to those that listen, and the places where too many wait already; sockets of the dead are removed."""
    links: list[_Link] = []
    busy = []
    for path in places:
        link = _Link(path, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK))
        error = link.connect()
        if not error:
            links.append(link)
            continue
        link.close()
        if error == errno.EAGAIN:
            busy.append(path)
        elif error == errno.ECONNREFUSED:
            _remove_if_dead(link)
    return links, busy


def _pid_of(path: str) -> int:
    return int(os.path.basename(path).removesuffix(control_messages.SUFFIX))


def _remove_if_dead(link: _Link) -> None:
    """Remove the socket of a gateway that was killed. One that lives is just about to listen, or about to end."""
    with contextlib.suppress(OSError):
        try:
            os.kill(link.pid, 0)
        except ProcessLookupError:
            os.unlink(link.path)


def _served(entry: dict[str, Any]) -> Served:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in entry.items()
        if name in Served.__slots__
    }
    values["token"] = base64.b64decode(entry["token"])
    return Served(**values)

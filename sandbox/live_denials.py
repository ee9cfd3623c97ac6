"""What is refused, as it happens: the end of `osmoda-sandbox top`, with the socket that monitors tell (live_feed).

Whoever may write to the folder is this user; a message counts only when the kernel says that it comes from the very
monitor of the sandbox that it is about, and that this is in no sandbox itself.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import re
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from osmoda.host import paths, peer
from osmoda.sandbox import denials, live_feed
from osmoda.sandbox.denials import Denial, Filter
from osmoda.sandbox.errors import SandboxError
from osmoda.sandbox.monitor import Outcome, RawDenial
from osmoda.sandbox.operations import confinement
from osmoda.sandbox.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_OF_ONE = 128
MOST_SANDBOXES = 256
"""How much is kept: the latest refusals of one sandbox, and the sandboxes that have some."""

_IDENTITY = re.compile(r"([0-9a-f]{1,8})-[0-9a-f]{1,16}\Z")
_RAW_TYPES = (float, int, str, int, int, tuple, int)
_CREDENTIALS = 12  # bytes of a `struct ucred`


class Told:
    """One message: refusals of the sandbox `identity`, whose plan is `plan` as far as they are explained by it."""

    __slots__ = ("beyond", "identity", "limits", "plan", "raw")

    def __init__(self, message: bytes) -> None:
        """Raises ValueError for what no monitor of this version wrote."""
        try:
            number, identity, plan, raw, beyond, limits = marshal.loads(message)
            if number != live_feed.FORMAT or _IDENTITY.match(identity) is None:
                raise ValueError("another version's")
            self.identity: str = identity
            self.plan = Plan.load(plan)
            self.raw = tuple(_raw_denial(values) for values in raw)
            self.beyond = int(beyond)
            self.limits = tuple(int(value) for value in limits)
            if len(self.limits) != 3:
                raise ValueError("limits")
        except (ValueError, EOFError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"a message that is none: {error}") from None

    @property
    def monitor(self) -> int:
        """The process that may say so."""
        return int(self.identity.partition("-")[0], 16)


def _raw_denial(values: tuple[Any, ...]) -> RawDenial:
    right = len(values) == len(_RAW_TYPES) and all(map(isinstance, values, _RAW_TYPES))
    if not right or len(values[5]) != 6 or not all(isinstance(register, int) for register in values[5]):
        raise ValueError("a refusal that is none")
    return RawDenial(*values)


class Listener:
    """The socket; `hear` gives what monitors tell, one message after the other."""

    def __init__(self) -> None:
        """Raises SandboxError where there is no place for the socket."""
        try:
            self._folder = paths.own_directory("runtime", live_feed.FOLDER)
            self._name = f"{os.getpid()}{live_feed.SUFFIX}"
            for name in os.listdir(self._folder):
                # Of those that were killed; of this name, of a process that had this one's number before.
                if name.removesuffix(live_feed.SUFFIX).isdigit():
                    live_feed.remove_if_dead(self._folder, name)
            self._path = os.path.join(self._folder, self._name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                self._bind()
            except OSError:
                self._socket.close()
                raise
        except OSError as error:
            raise SandboxError(f"there is no place to be told of refusals: {error.strerror or error}") from None
        self.dropped = 0
        """Messages of senders that may not, and such that are none."""

    def _bind(self) -> None:
        try:
            self._socket.bind(self._path)
        except FileNotFoundError:
            # Another reader was the last to go, just now, and has taken the folder with it.
            paths.own_directory("runtime", live_feed.FOLDER)
            self._socket.bind(self._path)

    def hear(self) -> Told | None:
        """Wait for the next message that counts; None when the socket is closed."""
        while True:
            # No room for descriptors: the kernel keeps what does not fit.
            room = socket.CMSG_SPACE(_CREDENTIALS)
            try:
                message, ancillary, flags, _ = self._socket.recvmsg(live_feed.MOST_BYTES, room)
            except OSError:
                return None
            if not message and not ancillary:
                return None  # shut down
            packed = next((data for _, kind, data in ancillary if kind == socket.SCM_CREDENTIALS), b"")
            try:
                if len(packed) != _CREDENTIALS or flags & socket.MSG_TRUNC:
                    raise ValueError("no credentials")
                pid, uid = peer.credentials(packed)
                # Asked before anything of the message is read.
                reason = peer.refusal_of_sender(pid, uid)
                if reason:
                    raise ValueError(reason)
                told = Told(message)
                if told.monitor != pid:
                    raise ValueError("another sandbox's")
            except ValueError:
                self.dropped += 1
                continue
            return told

    def close(self) -> None:
        """Remove the socket, and the folder with the last of them."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # whoever waits in `hear` goes on
        self._socket.close()
        for remove, path in ((os.unlink, self._path), (os.rmdir, self._folder)):
            with contextlib.suppress(OSError):  # another one's socket is in the folder, or somebody has cleaned up
                remove(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Refusals:
    """The latest refusals of each sandbox, put into words. `missed` counts those that went before anybody asked."""

    def __init__(self) -> None:
        self.missed = 0
        self._kept: dict[str, dict[tuple[object, ...], Denial]] = {}
        self._changed: dict[tuple[str, tuple[object, ...]], None] = {}
        self._words: dict[str, dict[RawDenial, Denial]] = {}

    def take(self, told: Told, now: float) -> None:
        """What a monitor has told, at `now` (seconds since the epoch)."""
        words = self._words.setdefault(told.identity, {})
        seccomp = next((op for op in told.plan.operations if isinstance(op, confinement.Seccomp)), None)
        decided = None
        for raw in told.raw:
            first = RawDenial(0.0, raw.pid, raw.command, raw.number, raw.architecture, raw.arguments, 1)
            if first not in words and seccomp is not None:
                decided = decided or Filter(seccomp, told.plan.tier)
                words[first] = decided.denial(first)
            if first in words:
                key = ("seccomp", raw.number, raw.architecture, raw.arguments[:2])
                moment = raw.time if raw.count == 1 else now
                self._keep(told.identity, key, replace(words[first], time=moment, count=raw.count))
        if told.beyond:
            what, why = "calls beyond the kinds that are told apart", "of each run so many kinds are kept, and no more"
            more = Denial(now, "", 0, "", "seccomp", "other", what, why, False, told.beyond)
            self._keep(told.identity, ("seccomp", "other"), more)
        killed, refused, expired = told.limits
        if any(told.limits):
            outcome = Outcome(0, 0, bool(expired), 0.0, 0.0, 0, 0.0, killed, refused, 0, (), ())
            for denial in denials.interpret(outcome, told.plan):
                self._keep(told.identity, (denial.layer, denial.operation), replace(denial, time=now))

    def take_record(self, record: Mapping[str, Any]) -> None:
        """A record of a gateway's; only what it refused is of interest here."""
        if record.get("event") == "missed":
            self.missed += int(record.get("missed") or 0)
        if record.get("verdict") != "deny":
            return
        identity = str(record.get("sandbox") or "")
        port = record.get("port")
        name = str(record.get("name") or record.get("address") or "")
        reason, rule = str(record.get("reason") or ""), str(record.get("rule") or "")
        operation = str(record.get("method") or ("connect" if port else "resolve"))
        thing = f"{name}:{port}" if port else name
        if record.get("path"):
            thing += str(record["path"])
        key = ("egress", operation, thing, reason)
        earlier = self._kept.get(identity, {}).get(key)
        count = earlier.count + 1 if earlier is not None else 1
        moment = float(record.get("time") or 0.0)
        origin = "" if rule.startswith("tier ") else rule
        self._keep(identity, key, Denial(moment, "", 0, "", "egress", operation, thing, reason, False, count, origin))

    def take_limits(self, identity: str, killed: int, refused: int, now: float) -> None:
        """What the control group of a running sandbox has counted so far."""
        for count, operation, key in ((killed, "memory", "memory"), (refused, "fork", "pids")):
            place = ("cgroup", operation)
            earlier = self._kept.get(identity, {}).get(place)
            if count > (earlier.count if earlier is not None else 0):
                text = f"process.{key} of its profile sets the limit"
                self._keep(
                    identity, place, Denial(now, "", 0, "", "cgroup", operation, "beyond the limit", text, False, count)
                )

    def _keep(self, identity: str, key: tuple[object, ...], denial: Denial) -> None:
        mine = self._kept.setdefault(identity, {})
        earlier = mine.pop(key, None)
        if earlier is not None and earlier.count >= denial.count and earlier.advice == denial.advice:
            mine[key] = earlier  # told twice
            return
        mine[key] = replace(denial, sandbox=identity)
        self._changed[identity, key] = None
        if len(mine) > MOST_OF_ONE:
            self._forget(identity, next(iter(mine)))
        if len(self._kept) > MOST_SANDBOXES:
            oldest = min(self._kept, key=lambda name: max(one.time for one in self._kept[name].values()))
            for earlier_key in tuple(self._kept[oldest]):
                self._forget(oldest, earlier_key)
            del self._kept[oldest]
            self._words.pop(oldest, None)

    def _forget(self, identity: str, key: tuple[object, ...]) -> None:
        del self._kept[identity][key]
        if (identity, key) in self._changed:
            del self._changed[identity, key]
            self.missed += 1  # nobody has seen it

    def changed(self) -> list[Denial]:
        """What has come since this was asked last, the oldest first."""
        places, self._changed = self._changed, {}
        found = [self._kept.get(identity, {}).get(key) for identity, key in places]
        return sorted((one for one in found if one is not None), key=lambda one: one.time)

    def latest(self, count: int, *, habitual: bool = False) -> list[Denial]:
        """The last `count` refusals, the oldest first.

        One sandbox, however much it is refused, leaves the others their share of the list.
        """
        each = [
            sorted((one for one in mine.values() if habitual or not one.habitual), key=lambda one: -one.time)
            for mine in self._kept.values()
        ]
        each = [mine for mine in each if mine]
        share = max(count // max(len(each), 1), 1)
        first = [one for mine in each for one in mine[:share]]
        rest = sorted((one for mine in each for one in mine[share:]), key=lambda one: -one.time)
        first = sorted(first, key=lambda one: -one.time)[:count]
        return sorted((*first, *rest[: max(count - len(first), 0)]), key=lambda one: one.time)

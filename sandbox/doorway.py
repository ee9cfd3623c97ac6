"""The way out of sandboxes, from the side of whoever runs them: to a gateway, and back to it should it be restarted.

The standing service takes them where it runs (`osmoda-egress serve`), else a gateway that this process forks. Whoever
runs a sandbox keeps its sockets, so that a gateway that died costs it the network only until there is one again.
"""

from __future__ import annotations

import _socket
import posix
import select
import time

from osmoda.egress import own
from osmoda.egress.registration import Channel, Opening
from osmoda.host import paths, syscalls
from osmoda.sandbox import errors, inside
from osmoda.sandbox.errors import LaunchError, ProfileEdited, SandboxError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from osmoda.sandbox.monitor import Watched
    from osmoda.sandbox.operations import networking

_READY_SECONDS = 20.0
_ANSWER_SECONDS = 10.0  # less than the monitor gives a set-up
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
_DISTINCT_DENIALS = 512
_NAMESPACES = 2
_JOINED = (syscalls.CLONE_NEWUSER, syscalls.CLONE_NEWNET)
_TICK = 5_000_000  # ns
_DEAD = (32, 104)  # EPIPE, ECONNRESET: the gateway was killed


class Gateways:
    """Where this process finds a gateway."""

    def __init__(self) -> None:
        self._own: own.OwnGateway | None = None
        self.heard = False
        """Whether the gateway of this process has taken a sandbox: one that has not can have nothing to finish."""

    def channel(self) -> tuple[Channel, bool]:
        """A channel for one sandbox, and whether it leads to a gateway of this process's own. Raises OSError."""
        standing = _standing()
        if standing is not None:
            return standing, False
        if self._own is not None:
            try:
                return self._own.admit(), True
            except OSError as error:
                if error.errno not in _DEAD:
                    raise  # this process lacks open files: the gateway lives, and others' networks with it
                self.close()
        self._own = own.OwnGateway()
        self.heard = False
        return self._own.admit(), True

    def dismiss(self) -> None:
        """No sandbox will come any more: the gateway of this process may end, while this one does other things."""
        if self._own is not None:
            self._own.dismiss()

    def close(self) -> None:
        """End the gateway of this process, if there is one, and wait until it has ended."""
        if self._own is not None:
            self._own.close(at_once=not self.heard)
            self._own = None


def _standing() -> Channel | None:
    """A channel to the service of this user, if one runs."""
    try:
        folder = paths.own_directory("runtime", "egress")
        channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    except (OSError, paths.UntrustedDirectory):
        return None
    try:
        # A service that is stopped, and whose queue is full, must not be waited for.
        channel.setblocking(False)
        channel.connect(f"{folder}/service.sock")
        channel.setblocking(True)
    except OSError:
        # There is none, or it has died and left its name.
        channel.close()
        return None
    return Channel(channel)


class Doorway:
    """One sandbox's way out. `denials` are (time, what, port, reason, origin, count) of what the gateway refused."""

    def __init__(self, gateways: Gateways, opening: Opening, since: int = 0) -> None:
        """Tell a gateway of the sandbox to come. Raises LaunchError.

        `since`: when the profile began to be read, in ns since the epoch. Of an edit from then until now the policy is
        made anew; one from now on reaches what is registered, and this sandbox is not yet: it is ended rather than left
        with a policy that holds no more. Raises SandboxError, too, for a profile that does not hold any more.
        """
        self.trust: tuple[int, ...] = ()
        self.denials: dict[tuple[object, ...], tuple[object, ...]] = {}
        self._gateways = gateways
        self._opening = opening
        self._since = since
        self._stamps = self._times_of_change()
        self._sockets: tuple[int, ...] = ()
        self._namespaces: tuple[int, ...] = ()
        self._watched: Watched | None = None
        self._attached = False
        self._started = False
        self._taken = False
        self._pause = _FIRST_PAUSE
        if since:
            self._renew()
        try:
            self._channel, self._is_own = gateways.channel()
        except OSError as error:
            raise errors.refused(error, ": there is no gateway for the network") from None
        try:
            self._channel.open(self._opening)
            if opening.inspects:
                # Its certificates must be there before the program is.
                self._await_certificates()
        except OSError as error:
            self._channel.close()
            raise errors.refused(error, ": the gateway cannot be told of the sandbox") from None
        except LaunchError:
            self._channel.close()
            raise

    def _await_certificates(self) -> None:
        ready = select.poll()
        ready.register(self._channel.fileno(), select.POLLIN)
        if not ready.poll(int(_READY_SECONDS * 1000)):
            raise LaunchError("the gateway has given no certificates in time")
        message = self._channel.hear()
        if message is None:
            raise LaunchError("the gateway has ended")
        kind, values, descriptors = message
        self.trust = tuple(descriptors)
        if kind != "ready":
            self.drop_trust()
            raise LaunchError(f"the gateway refuses the sandbox: {values[0] if values else kind}")
        authority = values[0]
        assert isinstance(authority, bytes)
        self._opening = self._opening.with_authority(authority)
        self._taken = True

    @property
    def authority(self) -> bytes:
        """The CA that was made for the sandbox, empty where there is none."""
        return self._opening.authority

    def drop_trust(self) -> None:
        """The child has its copy."""
        for fd in self.trust:
            posix.close(fd)
        self.trust = ()

    def watch(self, watched: Watched) -> None:
        """From now on the monitor's loop hears the gateway."""
        self._watched = watched
        watched.monitor.register(self._channel.fileno(), self._hear)

    def attach(self, descriptors: list[int], names: networking.NamesOnly) -> None:
        """The sockets have come from inside, and with `serve` the namespaces they were made in."""
        count = len(descriptors) - (_NAMESPACES if names.serve else 0)
        self._sockets, self._namespaces = tuple(descriptors[:count]), tuple(descriptors[count:])
        self._hand_over()

    def _hand_over(self) -> None:
        try:
            self._channel.say("attach", descriptors=self._sockets)
        except OSError:
            return  # it has died, which the loop will hear
        if self._is_own or self._taken:
            # It has the policy, or is this process's copy and lets nothing through before it has: the program need not
            # wait for its sockets to be in place, only its first connection.
            self._may_start()
        elif self._watched is not None and not self._started:
            self._watched.monitor.call_at(time.monotonic() + _ANSWER_SECONDS, self._not_in_time, self._watched)

    def _not_in_time(self) -> None:
        if not self._started and self._watched is not None:
            self._watched.fail(LaunchError(f"the gateway has not answered within {_ANSWER_SECONDS:g} seconds"))

    def _may_start(self) -> None:
        if not self._started:
            self._started = True
            assert self._watched is not None
            self._watched.may_start("gateway")

    def _hear(self) -> None:
        watched = self._watched
        assert watched is not None
        try:
            message = self._channel.hear(_socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            message = None
        if message is None:
            self._lost(watched)
            return
        kind, values, descriptors = message
        for fd in descriptors:
            posix.close(fd)
        if kind == "ready":
            self._taken = True
            if self._sockets:
                self._may_start()
        elif kind == "attached":
            self._pause = _FIRST_PAUSE
            edited = self._edited()
            if edited and self._attached and self._opening.token:
                self._lost(watched)  # and back with what it says now
                return
            if edited and not self._attached:
                watched.fail(ProfileEdited(f"{edited} was edited while the sandbox was started; run it again"))
                return
            self._attached = True
            self._gateways.heard = self._gateways.heard or self._is_own
            self._may_start()
        elif kind == "refused" and not self._attached:
            watched.fail(LaunchError(f"the gateway refuses the sandbox: {values[0]}"))
        elif kind == "want" and self._namespaces and isinstance(values[0], int):
            self._provide(min(values[0], 64))
        elif kind == "denial":
            self._note(values)

    def refusals(self) -> tuple[tuple[object, ...], ...]:
        """What the gateway refused, also what it has just said."""
        while self._watched is not None and self._watched.monitor.watches(self._channel.fileno()):
            ready = select.poll()
            ready.register(self._channel.fileno(), select.POLLIN)
            if not ready.poll(0):
                break
            self._hear()
        return tuple(self.denials.values())

    def _edited(self) -> str:
        """A file of the profile that has changed since it was read; empty for none."""
        since = self._since
        if not since:
            return ""
        for path, before, changed in zip(self._opening.files, self._stamps, self._times_of_change(), strict=True):
            # The clock of file systems is behind by up to a tick; and one that was set back stamps what is new as old.
            if changed < 0 or changed > since - _TICK or changed != before:
                return path
        return ""

    def _times_of_change(self) -> list[int]:
        """Of each file of the profile, in ns since the epoch; -1 where there is none."""
        return [_time_of_change(path) for path in self._opening.files]

    def _note(self, values: tuple[object, ...]) -> None:
        moment, *what = values
        key = tuple(what)
        earlier = self.denials.get(key)
        if earlier is not None:
            count = earlier[-1]
            assert isinstance(count, int)
            self.denials[key] = (*earlier[:-1], count + 1)
        elif len(self.denials) < _DISTINCT_DENIALS:
            self.denials[key] = (moment, *what, 1)

    def _lost(self, watched: Watched) -> None:
        """The gateway has died: nothing gets out, until another one has the sockets."""
        watched.monitor.unregister(self._channel.fileno())
        self._channel.close()
        if not self._started:
            watched.fail(LaunchError("the gateway has ended before the sandbox could start"))
            return
        watched.monitor.call_at(time.monotonic() + self._pause, self._return, watched)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _return(self) -> None:
        watched = self._watched
        assert watched is not None
        try:
            self._renew()
            self._channel, self._is_own = self._gateways.channel()
        except (OSError, SandboxError):
            # Under a profile that no longer holds there is no network, until it does.
            watched.monitor.call_at(time.monotonic() + self._pause, self._return, watched)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            return
        watched.monitor.register(self._channel.fileno(), self._hear)
        try:
            self._channel.open(self._opening)
        except OSError:
            return  # the end of file will be heard
        self._hand_over()

    def _renew(self) -> None:
        """Take the policy that the profile has now: edits reach what a gateway has, and not what is kept here."""
        if not self._opening.token or (self._since and not self._edited()):
            return
        # Slow to load, and needed by few: where a plan is older than an edit, or a gateway has died after one.
        from osmoda.sandbox import egress_token, network_policy

        since, stamps = time.time_ns(), self._times_of_change()
        try:
            policy = egress_token.recompile(self._opening.token)
        except ValueError as error:
            raise LaunchError(f"the edited profile cannot be put in force: {error}") from None
        self._opening = self._opening.with_policy(policy or network_policy.nothing())
        self._since, self._stamps = since, stamps

    def _provide(self, count: int) -> None:
        """Make TCP sockets in the sandbox's namespaces and pass them on, for what it serves."""
        made = inside.sockets(tuple(zip(self._namespaces, _JOINED, strict=True)), count)
        try:
            self._channel.say("inner", descriptors=tuple(made))
        except OSError:
            return  # as above
        finally:
            for fd in made:
                posix.close(fd)

    def close(self) -> None:
        """The sandbox has ended, or could not start: its network namespace goes when nobody holds a socket of it."""
        if self._watched is not None and self._channel.fileno() >= 0:
            self._watched.monitor.unregister(self._channel.fileno())
        self._channel.close()
        self.drop_trust()
        for fd in (*self._sockets, *self._namespaces):
            posix.close(fd)
        self._sockets, self._namespaces = (), ()


def _time_of_change(path: str) -> int:
    try:
        return posix.stat(path).st_ctime_ns
    except OSError:
        return -1

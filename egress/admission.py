"""The gateway's end of a registration: one sandbox on one channel, from its greeting to its end (`registration`)."""

from __future__ import annotations

import posix

from osmoda.egress import registration
from osmoda.egress.policy import Policy
from osmoda.egress.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from osmoda.egress.gateway import Gateway
    from osmoda.egress.policy import Loader
    from osmoda.egress.registration import Channel, Opening

_EPOLLIN = 1


class Admission:
    """Listens to `channel`, which is this object's to close, and owns the session that is opened on it."""

    __slots__ = ("channel", "gateway", "session")

    def __init__(self, gateway: Gateway, channel: Channel) -> None:
        self.gateway = gateway
        self.channel = channel
        self.session: Session | None = None
        gateway.loop.register(channel.fileno(), _EPOLLIN, self._heard)

    def _heard(self, _: int) -> None:
        try:
            message = self.channel.hear()
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            self._refuse(str(error))
            return
        if message is None:
            self.close()
            return
        kind, _values, descriptors = message
        try:
            if kind == "open" and self.session is None and len(descriptors) == 1:
                self._open(descriptors[0])
            elif kind == "attach" and self.session is not None:
                self.session.attach(descriptors)
                self.channel.say("attached")
            elif kind == "inner" and self.session is not None:
                self.session.provide(descriptors)
            else:
                for fd in descriptors:
                    posix.close(fd)
                raise ValueError(f"{kind} cannot come now")
        except (OSError, ValueError) as error:
            self._refuse(str(error))

    def _open(self, body: int) -> None:
        try:
            opening = registration.read_opening(body)
        finally:
            posix.close(body)
        if self.gateway.draining:
            raise ValueError("this gateway is about to end")
        if opening.identity in self.gateway.sessions:
            raise ValueError(f"there is a sandbox {opening.identity} already")
        loader = Policy.loader(opening.policy)
        policy = loader.step()
        if policy is not None:
            self._serve(opening, policy)
            return
        # A list so long would keep everybody's connections waiting: what is said next waits until it is read instead.
        self.gateway.loop.unregister(self.channel.fileno())
        self.gateway.loop.call_soon(lambda: self._go_on(opening, loader))

    def _go_on(self, opening: Opening, loader: Loader) -> None:
        try:
            policy = loader.step()
            if policy is None:
                self.gateway.loop.call_soon(lambda: self._go_on(opening, loader))
                return
            self.gateway.loop.register(self.channel.fileno(), _EPOLLIN, self._heard)
            self._serve(opening, policy)
        except (OSError, ValueError) as error:
            self._refuse(str(error))

    def _serve(self, opening: Opening, policy: Policy) -> None:
        session = Session(self.gateway, self.channel, opening, policy)
        authority = b""
        stores: tuple[int, ...] = ()
        if opening.inspects:
            from osmoda.egress import trust

            authority, stores = trust.prepare(session, opening.authority)
            self.gateway.inspector().prewarm()
        try:
            self.channel.say("ready", authority, descriptors=stores)
        finally:
            for fd in stores:
                posix.close(fd)
        self.session = session
        self.gateway.sessions[session.identity] = session

    def _refuse(self, text: str) -> None:
        try:
            self.channel.say("refused", text)
        except OSError:
            return  # it is gone, and so is what it wanted
        finally:
            self.close()

    def close(self) -> None:
        """The sandbox has ended, or was refused, or the gateway ends."""
        if self.session is not None:
            self.gateway.sessions.pop(self.session.identity, None)
            self.session.close()
        elif self.channel.fileno() >= 0:
            self.gateway.loop.unregister(self.channel.fileno())
            self.channel.close()
        self.gateway.departed(self)

"""Sandboxes given to a gateway and taken away: in order, once, and never half."""

from __future__ import annotations

import json
import os
import select
import socket
import time

import pytest

from osmoda.egress import registration
from osmoda.egress.gateway import Gateway
from osmoda.egress.policy import Policy
from osmoda.egress.records import Log
from osmoda.egress.registration import SOCKETS, Channel, Opening
from tests.egress_fakes import policy


class Tried:
    """A gateway, and channels to it."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.gateway = Gateway(Log(str(folder)))
        self.channels: list[Channel] = []

    def channel(self) -> Channel:
        channel, theirs = registration.pair()
        self.gateway.admit(theirs)
        self.channels.append(channel)
        return channel

    def until(self, condition) -> None:
        """Let the gateway work until `condition` holds."""
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, "it did not come"
            self.gateway.loop.call_later(0.005, self.gateway.loop.stop)
            self.gateway.loop.run()

    def heard(self, channel: Channel):
        """The next message that the gateway sends: kind and values; None at the end."""
        ready = select.poll()
        ready.register(channel.fileno(), select.POLLIN)
        self.until(lambda: ready.poll(0))
        message = channel.hear()
        return message if message is None else (message[0], message[1])

    def silent(self, channel: Channel) -> bool:
        ready = select.poll()
        ready.register(channel.fileno(), select.POLLIN)
        return not ready.poll(0)

    def open(self, identity: str = "1-1", channel: Channel | None = None, **options) -> Channel:
        channel = channel or self.channel()
        channel.open(opening(identity, **options))
        return channel

    def opened(self, **options) -> Channel:
        channel = self.open(**options)
        assert self.heard(channel) == ("ready", (b"",))
        return channel

    def records(self):
        self.gateway.log.flush()
        return [json.loads(line) for line in (self.folder / "connections.jsonl").read_text().splitlines()]


@pytest.fixture
def tried(tmp_path):
    one = Tried(tmp_path)
    yield one
    for channel in one.channels:
        channel.close()
    one.gateway.loop.stop()
    one.gateway.run()


def opening(identity: str = "1-1", **options) -> Opening:
    rules = {"allow": {"a.example": "t.toml:4", "*.wild.example": "t.toml:5"}, **options}
    return Opening(identity, "agent", 2, "t.toml", b"", ("/p/t.toml",), (), policy(**rules), False)


def sockets() -> list[socket.socket]:
    made = []
    for name in SOCKETS:
        family = socket.AF_INET6 if name.endswith("6") else socket.AF_INET
        kind = socket.SOCK_DGRAM if name.startswith("udp") else socket.SOCK_STREAM
        one = socket.socket(family, kind)
        one.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            one.listen()
        made.append(one)
    return made


def attach(tried: Tried, channel: Channel, made: list[socket.socket]) -> None:
    channel.say("attach", descriptors=tuple(one.fileno() for one in made))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_sandbox_is_opened_attached_and_gone_with_its_channel(tried):
    channel = tried.opened()
    made = sockets()
    attach(tried, channel, made)
    assert tried.heard(channel) == ("attached", ())
    assert set(tried.gateway.sessions) == {"1-1"}
    before = open_files()
    channel.close()
    tried.until(lambda: tried.gateway.sessions == {} and before - open_files() >= len(SOCKETS) + 2)
    for one in made:
        one.close()


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5])
def test_half_of_the_sockets_are_refused_and_closed(tried, count):
    channel = tried.opened()
    made = sockets()
    before = open_files()
    attach(tried, channel, made[:count])
    kind, (reason,) = tried.heard(channel)
    assert kind == "refused"
    assert "all of them" in reason
    assert tried.heard(channel) is None
    tried.until(lambda: open_files() < before)
    for one in made:
        one.close()


def test_what_comes_out_of_order_is_refused(tried):
    made = sockets()
    channel = tried.channel()
    attach(tried, channel, made)
    assert tried.heard(channel) == ("refused", ("attach cannot come now",))
    again = tried.opened()
    again.open(opening("1-2"))
    assert tried.heard(again) == ("refused", ("open cannot come now",))
    tried.until(lambda: tried.gateway.sessions == {})
    for one in made:
        one.close()


def test_one_identity_is_one_sandbox(tried):
    tried.opened(identity="1-1")
    other = tried.open("1-1")
    assert tried.heard(other) == ("refused", ("there is a sandbox 1-1 already",))
    assert set(tried.gateway.sessions) == {"1-1"}


def test_a_policy_that_is_none_is_refused(tried):
    channel = tried.channel()
    good = opening()
    values = [getattr(good, name) for name in Opening.__fields__]
    values[Opening.__fields__.index("policy")] = b"nonsense"
    channel.open(Opening(*values))
    assert tried.heard(channel)[0] == "refused"
    assert tried.gateway.sessions == {}


def test_a_gateway_that_drains_takes_nothing_new(tried):
    tried.opened(identity="1-1")
    tried.gateway.draining = True
    late = tried.open("1-2")
    assert tried.heard(late) == ("refused", ("this gateway is about to end",))


def test_a_long_policy_is_read_between_the_others_events_and_what_comes_meanwhile_waits(tried):
    names = {f"n{number}.example": "t.toml:4" for number in range(20_000)}
    channel = tried.open(allow=names)
    made = sockets()
    attach(tried, channel, made)
    assert tried.heard(channel) == ("ready", (b"",))
    assert tried.heard(channel) == ("attached", ())
    (session,) = tried.gateway.sessions.values()
    assert session.policy.decide("n19999.example", 443).allowed
    for one in made:
        one.close()


# Names


def session_of(tried, **options):
    tried.opened(**options)
    (session,) = tried.gateway.sessions.values()
    return session


def test_a_listed_name_gets_an_address_of_its_own_and_keeps_it(tried):
    session = session_of(tried)
    first, other = session.look_up("a.example"), session.look_up("x.wild.example")
    assert first.ipv4 != other.ipv4
    assert session.look_up("a.example") == first
    assert session.table.name_of(first.ipv4) == session.table.name_of(first.ipv6) == "a.example"


def test_an_unlisted_name_is_told_to_whoever_runs_it_and_noted_once_a_second(tried):
    session = session_of(tried)
    (channel,) = tried.channels
    for _ in range(5):
        refused = session.look_up("evil.example")
    assert (refused.rcode, refused.code) == ("NXDOMAIN", 15)
    assert "evil.example is not in network.allow of t.toml" in refused.text
    kind, (_, name, port, reason, origin) = tried.heard(channel)
    assert (kind, name, port, origin) == ("denial", "evil.example", 0, "t.toml")
    assert reason == refused.text
    assert tried.silent(channel)
    assert session.unnoted == 4
    assert [record["name"] for record in tried.records()] == ["evil.example"]


def test_names_below_a_wildcard_have_a_budget(tried):
    session = session_of(tried)
    answers = [session.look_up(f"x{number}.wild.example") for number in range(300)]
    refused = [answer for answer in answers if hasattr(answer, "rcode")]
    assert 0 < len(refused) < 300
    assert {(answer.rcode, answer.code) for answer in refused} == {("REFUSED", 18)}
    assert hasattr(session.look_up("a.example"), "ipv4")


def test_with_ask_an_unlisted_name_gets_an_address_and_a_denied_one_does_not(tried):
    session = session_of(tried, ask=True, deny={"evil.example": "t.toml:7"})
    assert hasattr(session.look_up("other.example"), "ipv4")
    assert "t.toml:7" in session.look_up("evil.example").text


def test_a_name_that_could_not_be_resolved_is_unknown_inside_too(tried):
    session = session_of(tried)
    tried.gateway.upstream.known_failure = lambda name: f"{name} does not exist" if name == "a.example" else ""
    refused = session.look_up("a.example")
    assert (refused.rcode, refused.code) == ("NXDOMAIN", 23)


# Sockets inside


def test_inner_sockets_are_asked_for_and_given_to_whoever_waits(tried):
    session = session_of(tried)
    (channel,) = tried.channels
    given: list[int] = []
    session.take_inner_socket(given.append)
    session.take_inner_socket(given.append)
    kind, (count,) = tried.heard(channel)
    assert kind == "want"
    assert tried.silent(channel)
    made = [socket.socket() for _ in range(count)]
    channel.say("inner", descriptors=tuple(one.fileno() for one in made))
    tried.until(lambda: len(given) == 2)
    assert all(fd >= 0 for fd in given)
    for fd in given:
        os.close(fd)
    for one in made:
        one.close()


def test_whoever_waits_for_a_socket_is_told_when_there_is_none(tried):
    session = session_of(tried)
    given: list[int] = []
    session.take_inner_socket(given.append)
    session.provide([])
    session.take_inner_socket(given.append)
    session.close()
    assert given == [-1, -1]
    session.take_inner_socket(given.append)
    assert given == [-1, -1, -1]


# Faults of our own


def test_a_mistake_in_one_callback_is_noted_and_costs_nobody_else(tried):
    class Faulty:
        cut = False

        def ready(self, events):
            raise ZeroDivisionError("a mistake")

        def fault(self):
            self.cut = True

    faulty = Faulty()
    one, other = socket.socketpair()
    with one, other:
        tried.gateway.loop.register(one.fileno(), 1, faulty.ready)
        other.send(b"x")
        tried.until(lambda: faulty.cut)
        tried.gateway.loop.unregister(one.fileno())
    assert tried.gateway.counters.faults
    reason, *_ = [record["reason"] for record in tried.records() if record["event"] == "fault"]
    assert "ZeroDivisionError('a mistake') at test_gateway.py:" in reason
    tried.opened()
    assert tried.gateway.sessions


def test_an_edit_is_in_force_for_the_next_question(tried):
    session = session_of(tried)
    assert hasattr(session.look_up("a.example"), "ipv4")
    assert session.replace_policy(Policy.load(policy(allow={"b.example": "t.toml:4"}))) == 0
    assert not hasattr(session.look_up("a.example"), "ipv4")
    assert hasattr(session.look_up("b.example"), "ipv4")

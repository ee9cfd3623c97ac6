"""The way to a gateway, from the side of whoever runs a sandbox: an edit in between, and what it hears."""

from __future__ import annotations

import marshal
import os
import time
from types import SimpleNamespace

import pytest

from osmoda.egress import registration
from osmoda.egress.policy import Policy
from osmoda.egress.registration import Channel, Opening
from osmoda.sandbox import doorway, egress_token
from osmoda.sandbox.doorway import Doorway
from osmoda.sandbox.errors import LaunchError, ProfileEdited, SandboxError
from osmoda.sandbox.opening import TOKEN_VERSION

PROFILE = 'schema = 1\ntier = 2\n[network]\nallow = ["a.example"]\n'


class Gateways:
    """One channel, of which the test holds the other end."""

    def __init__(self, *, own=False):
        self.heard = False
        self.own = own
        self.other = None

    def channel(self):
        channel, theirs = registration.pair()
        self.other = Channel(theirs)
        return channel, self.own


class Watched:
    """What a doorway does to the sandbox that it belongs to."""

    def __init__(self):
        self.started = []
        self.error = None
        self.timers = []
        self.monitor = SimpleNamespace(
            register=lambda *_: None,
            unregister=lambda *_: None,
            watches=lambda _: False,
            call_at=lambda when, callback, owner: self.timers.append((when, callback)),
        )

    def may_start(self, thing):
        self.started.append(thing)

    def fail(self, error):
        self.error = self.error or error


def opening(*files, inspects=False):
    return Opening("1-1", "a", 2, "t.toml", b"", files, (), b"policy", inspects)


@pytest.fixture
def made():
    every = []

    def make(*files, since=0, own=False):
        gateways = Gateways(own=own)
        one = Doorway(gateways, opening(*files), since)
        watched = Watched()
        one.watch(watched)
        every.append((one, gateways))
        return one, gateways.other, watched

    yield make
    for one, gateways in every:
        one.close()
        gateways.other.close()


def attach(one):
    pipe = os.pipe()
    one.attach([*pipe], SimpleNamespace(serve=()))


def test_the_program_starts_when_the_gateway_has_its_policy_and_the_sockets_are_on_their_way(made):
    one, other, watched = made()
    attach(one)
    assert watched.started == []
    other.say("ready", b"")
    one._hear()
    assert watched.started == ["gateway"]
    other.say("attached")
    one._hear()
    assert watched.started == ["gateway"]


def test_beside_an_own_gateway_it_starts_at_once(made):
    one, _, watched = made(own=True)
    attach(one)
    assert watched.started == ["gateway"]
    assert watched.timers == []


def test_a_service_that_does_not_answer_is_not_waited_for_for_ever(made):
    one, _, watched = made()
    before = time.monotonic()
    attach(one)
    ((when, late),) = watched.timers
    assert 0 < when - before < 20
    late()
    assert "the gateway has not answered within" in str(watched.error)
    assert watched.started == []


def test_one_that_has_answered_is_no_longer_waited_for(made):
    one, other, watched = made()
    attach(one)
    other.say("ready", b"")
    one._hear()
    ((_, late),) = watched.timers
    late()
    assert watched.error is None
    assert watched.started == ["gateway"]


def test_a_refusal_before_the_start_ends_it(made):
    one, other, watched = made()
    other.say("refused", "there is no room")
    one._hear()
    assert isinstance(watched.error, LaunchError)
    assert "the gateway refuses the sandbox: there is no room" in str(watched.error)
    assert watched.started == []


def test_a_gateway_that_dies_before_the_start_ends_it(made):
    one, other, watched = made()
    other.close()
    one._hear()
    assert "has ended before" in str(watched.error)


def test_a_profile_that_was_edited_meanwhile_ends_it(made, tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text("schema = 1\n")
    since = time.time_ns()
    one, other, watched = made(str(file), since=since)
    # Whatever the clock of the file system makes of it, an edit from here on is later than the tick before `since`.
    file.write_text("schema = 1\ntier = 2\n")
    attach(one)
    other.say("ready", b"")
    one._hear()
    other.say("attached")
    one._hear()
    assert isinstance(watched.error, ProfileEdited)
    assert f"{file} was edited while" in str(watched.error)


def test_a_profile_that_was_not_edited_does_not(made, tmp_path, monkeypatch):
    file = tmp_path / "agent.toml"
    file.write_text("schema = 1\n")
    one, other, watched = made(str(file), since=file.stat().st_ctime_ns + doorway._TICK + 1)
    attach(one)
    for kind in (("ready", b""), ("attached",)):
        other.say(*kind)
        one._hear()
    assert watched.error is None


def test_refusals_are_counted_each_and_no_more_than_so_many(made, monkeypatch):
    monkeypatch.setattr(doorway, "_DISTINCT_DENIALS", 2)
    one, other, _ = made()
    for name in ("a.example", "b.example", "a.example", "c.example"):
        other.say("denial", 1.5, name, 443, "why", "t.toml:4")
        one._hear()
    assert [(entry[1], entry[-1]) for entry in one.refusals()] == [("a.example", 2), ("b.example", 1)]


# Back to a gateway


class Clock:
    """What a doorway wants to be called for, later."""

    def __init__(self, watched):
        self.calls = []
        watched.monitor.call_at = lambda moment, function, owner: self.calls.append(function)

    def run(self):
        self.calls.pop(0)()


def policy_of(channel):
    """The policy of the registration that has come."""
    kind, _, (body,) = channel.hear()
    assert kind == "open"
    try:
        return Policy.load(registration.read_opening(body).policy)
    finally:
        os.close(body)


@pytest.fixture
def served(tmp_path):
    """A sandbox that a gateway has; its profile, and the doorway, its gateways and what waits."""
    file = tmp_path / "agent.toml"
    file.write_text(PROFILE)
    gateways = Gateways()
    token = marshal.dumps((TOKEN_VERSION, "file", str(file)))
    policy = egress_token.recompile(token)
    since = file.stat().st_ctime_ns + doorway._TICK + 1
    one = Doorway(gateways, Opening("1-1", "a", 2, "t.toml", token, (str(file),), (), policy, False), since)
    watched = Watched()
    clock = Clock(watched)
    one.watch(watched)
    attach(one)
    for kind in (("ready", b""), ("attached",)):
        gateways.other.say(*kind)
        one._hear()
    clock.run()  # it has answered in time
    assert policy_of(gateways.other).decide("a.example", 443).allowed
    yield file, one, gateways, clock
    one.close()
    gateways.other.close()


def test_a_plan_that_is_older_than_an_edit_gets_the_policy_of_now(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text(PROFILE)
    token = marshal.dumps((TOKEN_VERSION, "file", str(file)))
    old = egress_token.recompile(token)
    file.write_text(PROFILE.replace("a.example", "b.example"))
    gateways = Gateways()
    one = Doorway(gateways, Opening("1-1", "a", 2, "t.toml", token, (str(file),), (), old, False), 1)
    policy = policy_of(gateways.other)
    assert not policy.decide("a.example", 443).allowed
    assert policy.decide("b.example", 443).allowed
    one.close()
    gateways.other.close()


def test_a_plan_whose_profile_does_not_hold_any_more_is_refused(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text("nonsense = 1\n")
    token = marshal.dumps((TOKEN_VERSION, "file", str(file)))
    with pytest.raises(SandboxError, match="nonsense"):
        Doorway(Gateways(), Opening("1-1", "a", 2, "t.toml", token, (str(file),), (), b"policy", False), 1)


def lose(one, gateways):
    gateways.other.close()
    one._hear()


def test_the_next_gateway_has_the_policy_that_the_profile_says_now(served):
    file, one, gateways, clock = served
    file.write_text(PROFILE.replace("a.example", "b.example"))
    lose(one, gateways)
    clock.run()
    policy = policy_of(gateways.other)
    assert not policy.decide("a.example", 443).allowed
    assert policy.decide("b.example", 443).allowed


def test_a_profile_without_a_rule_left_leaves_nothing(served):
    file, one, gateways, clock = served
    file.write_text("schema = 1\n")
    lose(one, gateways)
    clock.run()
    assert not policy_of(gateways.other).decide("a.example", 443).allowed


def test_without_an_edit_nothing_is_compiled(served, monkeypatch):
    _, one, gateways, clock = served
    monkeypatch.setattr(egress_token, "recompile", None)
    lose(one, gateways)
    clock.run()
    assert policy_of(gateways.other).decide("a.example", 443).allowed


def test_under_a_profile_that_does_not_hold_there_is_no_network_until_it_does(served):
    file, one, gateways, clock = served
    file.write_text("nonsense = 1\n")
    dead = gateways.other
    lose(one, gateways)
    clock.run()
    assert gateways.other is dead
    file.write_text(PROFILE)
    clock.run()
    assert gateways.other is not dead
    assert policy_of(gateways.other).decide("a.example", 443).allowed


def test_an_edit_that_is_stamped_as_old_is_not_missed(made, tmp_path):
    """The clock was set back by an hour when the doorway was there; only the stamp itself tells."""
    file = tmp_path / "agent.toml"
    file.write_text("schema = 1\n")
    one, other, watched = made(str(file), since=time.time_ns() + 3_600_000_000_000)
    before = file.stat().st_ctime_ns
    while file.stat().st_ctime_ns == before:
        file.write_text("schema = 1\ntier = 2\n")
    attach(one)
    for kind in (("ready", b""), ("attached",)):
        other.say(*kind)
        one._hear()
    assert isinstance(watched.error, ProfileEdited)


def test_an_edit_on_the_way_back_is_not_missed(served):
    file, one, gateways, clock = served
    lose(one, gateways)
    clock.run()
    policy_of(gateways.other)
    os.utime(file)  # its own time of change is now, whatever the clock of the file system makes of it
    one._since = file.stat().st_ctime_ns
    file.write_text(PROFILE.replace("a.example", "b.example"))
    for kind in (("ready", b""), ("attached",)):
        gateways.other.say(*kind)
    one._hear()
    one._hear()
    gateways.other.close()
    clock.run()
    assert not policy_of(gateways.other).decide("a.example", 443).allowed

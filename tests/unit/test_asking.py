"""Connections that wait for somebody's answer."""

from __future__ import annotations

import pytest

from osmoda.egress import asking
from osmoda.egress.policy import Policy
from tests import egress_fakes
from tests.egress_fakes import Gateway, Session


@pytest.fixture
def gateway():
    gateway = Gateway()
    yield gateway
    for session in gateway.sessions.values():
        asking.session_ended(session)
    gateway.close()


@pytest.fixture
def session(gateway):
    return Session(gateway, "box", "research", ask=True, deny={"evil.com": "t.toml:7"})


class Held:
    """A connection that waits."""

    def __init__(self, session, name="new.example.com", port=443):
        self.session = session
        self.answers = []
        self.question = asking.ask(session, name, port, self.done)

    def done(self, allowed, reason):
        self.answers.append((allowed, reason))

    def answer(self):
        self.session.gateway.turn_until(lambda: self.answers)
        assert len(self.answers) == 1
        return self.answers[0]


def ids(gateway):
    return [entry["id"] for entry in asking.pending(gateway.sessions.values())]


def decide(gateway, identity, how):
    return asking.decide(gateway.sessions.values(), identity, how)


def actions(gateway):
    return [(record["name"], record["action"]) for record in gateway.records]


def test_a_question_says_who_asks_for_what(gateway, session):
    held = Held(session)
    (entry,) = asking.pending(gateway.sessions.values())
    assert entry == {
        "id": held.question.id,
        "sandbox": "box",
        "agent": "research",
        "profile": "research.toml",
        "name": "new.example.com",
        "port": 443,
        "asked": held.question.asked,
        "until": held.question.asked + 60,
        "connections": 1,
    }
    assert gateway.records[0]["event"] == "ask"
    assert gateway.records[0]["rule"] == "t.toml:1"
    assert held.answers == []


@pytest.mark.parametrize("how", ["once", "run"])
def test_an_approval_lets_through_all_that_wait(how, gateway, session):
    held, also = Held(session), Held(session)
    assert held.question is also.question
    assert asking.pending(gateway.sessions.values())[0]["connections"] == 2
    assert decide(gateway, held.question.id, how) == (session, held.question)
    reason = {"once": "approved once", "run": "approved for this run"}[how]
    assert held.answer() == also.answer() == (True, reason)
    assert ids(gateway) == []
    assert actions(gateway) == [("new.example.com", "held"), ("new.example.com", "approved")]


def test_once_is_for_what_waits_and_no_more(gateway, session):
    decide(gateway, Held(session).question.id, "once")
    later = Held(session)
    assert ids(gateway) == [later.question.id]


def test_for_this_run_is_for_that_name_and_port(gateway, session):
    decide(gateway, Held(session).question.id, "run")
    assert Held(session).answer() == (True, "approved for this run")
    assert ids(gateway) == []
    Held(session, port=80)
    Held(session, "other.example.com")
    assert len(ids(gateway)) == 2


def test_not_for_another_sandbox(gateway, session):
    other = Session(gateway, "box2", "writer", ask=True)
    mine, theirs = Held(session), Held(other)
    decide(gateway, mine.question.id, "run")
    assert mine.answer()[0]
    assert theirs.answers == []
    assert ids(gateway) == [theirs.question.id]


def test_a_refusal(gateway, session):
    held, also = Held(session), Held(session)
    decide(gateway, held.question.id, "refuse")
    assert held.answer() == also.answer() == (False, "it was asked about and refused")
    assert actions(gateway)[-1] == ("new.example.com", "refused")


def test_what_was_refused_is_not_asked_about_again_at_once(gateway, session):
    decide(gateway, Held(session).question.id, "refuse")
    allowed, reason = Held(session).answer()
    assert not allowed
    assert "a moment ago" in reason
    assert ids(gateway) == []
    gateway.loop.now += 11
    Held(session)
    assert len(ids(gateway)) == 1


def test_a_question_is_answered_once(gateway, session):
    held = Held(session)
    assert decide(gateway, held.question.id, "once") is not None
    assert decide(gateway, held.question.id, "refuse") is None
    assert decide(gateway, "1-1000", "once") is None


def test_nobody_answers(gateway, session, monkeypatch):
    monkeypatch.setattr(asking, "SECONDS", 0.05)
    held = Held(session)
    assert held.answer() == (False, "nobody approved it within 0.05 s")
    assert actions(gateway)[-1] == ("new.example.com", "expired")
    assert ids(gateway) == []


def test_whoever_hangs_up_takes_the_question_along_when_nobody_else_waits(gateway, session):
    held, also = Held(session), Held(session)
    held.question.withdraw(held.done)
    held.question.withdraw(held.done)
    assert len(ids(gateway)) == 1
    also.question.withdraw(also.done)
    assert ids(gateway) == []
    assert actions(gateway)[-1] == ("new.example.com", "withdrawn")
    again = Held(session)
    assert again.question.id != held.question.id
    decide(gateway, again.question.id, "once")
    assert again.answer()[0]
    assert held.answers == also.answers == []


def test_whoever_hangs_up_between_decision_and_answer_is_not_called(gateway, session):
    held, also = Held(session), Held(session)
    decide(gateway, held.question.id, "once")
    held.question.withdraw(held.done)
    assert also.answer()[0]
    assert held.answers == []


def test_a_connection_that_fails_at_its_answer_costs_the_others_nothing(gateway, session):
    def fail(allowed, reason):
        raise ZeroDivisionError

    asking.ask(session, "new.example.com", 443, fail)
    held = Held(session)
    errors = []
    gateway.loop.on_error = lambda callback, error: errors.append(error)
    decide(gateway, held.question.id, "once")
    assert held.answer()[0]
    assert [type(error) for error in errors] == [ZeroDivisionError]


# What is never asked


def test_what_is_denied_is_never_asked_about(gateway, session):
    allowed, reason = Held(session, "evil.com").answer()
    assert not allowed
    assert "t.toml:7" in reason
    assert gateway.records == []


@pytest.mark.parametrize("name", ["writer.agent", "host.osmoda", "a.b.mesh"])
def test_names_of_ours_are_never_asked_about(name, gateway, session):
    assert not Held(session, name).answer()[0]
    assert ids(gateway) == []


def test_without_ask_nothing_is_asked(gateway):
    session = Session(gateway, "box", "research")
    allowed, reason = Held(session).answer()
    assert not allowed
    assert reason == "new.example.com is not in network.allow of t.toml"


def test_at_most_32_questions_of_a_sandbox(gateway, session):
    for number in range(32):
        Held(session, f"n{number}.example.com")
    allowed, reason = Held(session, "n32.example.com").answer()
    assert not allowed
    assert "too many open questions" in reason
    assert len(ids(gateway)) == 32
    assert Held(session, "n7.example.com").answers == []
    other = Session(gateway, "box2", "writer", ask=True)
    Held(other)
    assert len(ids(gateway)) == 33


def test_at_most_4_kib_of_text(gateway, session):
    label = "x" * 60
    names = [f"{number:02}.{label}.{label}.{label}.{label[:50]}.com" for number in range(20)]
    held = [Held(session, name) for name in names]
    asked = len(ids(gateway))
    assert asked == 4096 // len(names[0]) < 20
    assert not held[asked].answer()[0]


def test_at_most_64_questions_a_minute(gateway, session):
    """Of a program that hangs up at once, and asks for the next name."""
    for number in range(64):
        held = Held(session, f"n{number}.example.com")
        held.question.withdraw(held.done)
    allowed, reason = Held(session).answer()
    assert not allowed
    assert "too much was asked in the last minute" in reason
    gateway.loop.now += 61
    Held(session)
    assert len(ids(gateway)) == 1


def test_what_is_remembered_of_refusals_is_bounded(gateway, session, monkeypatch):
    monkeypatch.setattr(asking, "MOST_NEW", 1000)
    for number in range(300):
        decide(gateway, Held(session, f"n{number}.example.com").question.id, "refuse")
    assert len(session.desk._refused) == 256
    gateway.loop.now += 11
    decide(gateway, Held(session, "later.example.com").question.id, "refuse")
    assert len(session.desk._refused) == 1


# Edits and ends


def test_an_edit_answers_what_it_allows_or_denies(gateway, session):
    allowed, denied, open_still = Held(session), Held(session, "b.example.com"), Held(session, "c.example.com")
    session.policy = Policy.load(
        egress_fakes.policy(
            allow={"new.example.com": "t.toml:9"},
            deny={"b.example.com": "t.toml:10"},
            ask=True,
        )
    )
    asking.policy_changed(session)
    assert allowed.answer() == (True, "t.toml:9 allows it")
    assert not denied.answer()[0]
    assert "t.toml:10" in denied.answer()[1]
    assert ids(gateway) == [open_still.question.id]


def test_an_edit_that_ends_asking_refuses(gateway, session):
    held = Held(session)
    session.policy = Policy.load(egress_fakes.policy())
    asking.policy_changed(session)
    assert not held.answer()[0]


def test_the_end_of_the_sandbox_ends_its_questions(gateway, session):
    held = Held(session)
    asking.session_ended(session)
    assert held.answer() == (False, "the sandbox has ended")
    assert ids(gateway) == []


def test_sessions_without_questions(gateway):
    session = Session(gateway, "box", "research")
    asking.policy_changed(session)
    asking.session_ended(session)
    assert ids(gateway) == []

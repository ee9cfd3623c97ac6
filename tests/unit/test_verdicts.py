from __future__ import annotations

from osmoda.egress.destinations import Rule
from osmoda.egress.policy import Policy
from osmoda.egress.policy_source import compile_policy
from osmoda.egress.verdicts import FIELDS, Grant, Verdict


def test_a_grant_is_the_same_wherever_it_is_written_and_counted_by_what_it_is_about():
    grant = Grant("a.b", max_requests=5, origin="p:1")
    moved, raised = Grant("a.b", max_requests=5, origin="p:2"), Grant("a.b", max_requests=9, origin="p:1")
    assert grant != moved
    assert grant.key == moved.key
    assert grant.key != raised.key
    assert grant.scope == raised.scope != Grant("a.b", (80,)).scope
    assert {grant, Grant("a.b", max_requests=5, origin="p:1")} == {grant}
    assert grant != "a.b"


def test_each_field_counts():
    other = {
        "ports": (80,),
        "methods": ("GET",),
        "paths": ("/",),
        "secret": "S",
        "max_body": 0,
        "max_bytes": 0,
        "max_requests": 1,
        "ech": True,
        "addresses": ("10.0.0.0/8",),
    }
    assert tuple(other) == FIELDS
    grants = [Grant("a.b"), Grant("b.b"), *(Grant("a.b", **{name: value}) for name, value in other.items())]
    assert len({grant.key for grant in grants}) == len(grants)
    for grant, (name, value) in zip(grants[2:], other.items(), strict=True):
        assert getattr(grant, name) == value
        assert grant.inspected == (name in ("methods", "paths", "secret", "max_body"))
    assert Grant("a.b", *other.values(), "p:1") == Grant("a.b", **other, origin="p:1")


def test_one_that_a_policy_made_is_like_any_other():
    blob = compile_policy(
        allow=[(Rule("a.b", max_requests=5), "p:1")],
        deny=(),
        connect=(),
        serve=(),
        ask=False,
        ask_origin="",
        default_origin="p",
    )
    (grant,) = Policy.load(blob).decide("a.b", 443).grants
    assert grant == Grant("a.b", max_requests=5, origin="p:1")
    assert hash(grant) == hash(Grant("a.b", max_requests=5, origin="p:1"))


def test_what_an_unread_connection_rests_on():
    unread, read = Grant("a.b", ech=True, origin="p:1"), Grant("*.b", methods=("GET",), origin="p:2")
    verdict = Verdict(True, (read, unread))
    assert verdict.spliced == (unread,)
    assert verdict.origin == "p:2"
    assert Verdict(True, (), "p:3", "approved").origin == "p:3"
    assert Verdict(False).origin == ""


def test_in_a_log():
    assert repr(Grant("a.b", origin="p:1")) == (
        "Grant(host='a.b', ports=(443,), methods=(), paths=(), secret='', max_body=-1, max_bytes=-1, max_requests=-1, "
        "ech=False, addresses=(), origin='p:1')"
    )
    assert repr(Verdict(False, reason="no")) == (
        "Verdict(allowed=False, grants=(), origin='', reason='no', inspect=False, target='')"
    )

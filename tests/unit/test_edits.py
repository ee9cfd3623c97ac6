"""Edits of `[network]`: what was there stays as it was written, and what is added means what was asked for."""

from __future__ import annotations

import re
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmoda.egress.destinations import Rule
from osmoda.egress.edits import EditError, Entry, allow, covers, deny, remove

PROFILE = """\
schema = 1   # the version
tier = 2

[network]
# what it needs
allow = [
  "api.openai.com",                                        # 443
  '*.arxiv.org:80,443',   # papers
  { host = "github.com", ports = [22, 443] },  # code
  { host = "api.example", methods = ["GET"], paths = ["/v1/*"], max_body = "1M" },
]  # no more
deny = ["evil.arxiv.org"]

[environment]
set = { A = "1" }
"""


def rule(text, *ports, **more):
    return Entry(text, ports, more)


def allowed(text):
    return tomllib.loads(text)["network"]["allow"]


def test_a_rule_goes_to_the_end_of_the_list_in_its_layout():
    made = allow(PROFILE, [rule("pypi.org")])
    assert made.changed == ("pypi.org added to network.allow",)
    assert made.text == PROFILE.replace("]  # no more", '  "pypi.org",\n]  # no more')
    assert made.added == (("allow", Rule("pypi.org")),)


def test_a_rule_with_more_to_say_becomes_a_table():
    made = allow(PROFILE, [rule("a.example:8443", methods=["GET"], paths=["/v1/*"], secret="KEY", max_body="1M")])
    written = '  { host = "a.example", ports = [8443], methods = ["GET"], paths = ["/v1/*"], secret = "KEY", '
    assert f'{written}max_body = "1M" }},\n]  # no more' in made.text
    assert len(made.changed) == 1


def test_ports_apart_are_written_as_one_text():
    made = allow(PROFILE, [rule("a.example", 443, 22), rule("2001:db8::/32", 443), rule("b.example", 443)])
    assert allowed(made.text)[4:] == ["a.example:22,443", "[2001:db8::/32]:443", "b.example:443"]


@pytest.mark.parametrize(
    "entry",
    [
        rule("api.openai.com"),
        rule("API.OpenAI.com"),
        rule("x.arxiv.org"),
        rule("x.arxiv.org:80"),
        rule("github.com:22"),
        rule("github.com", 22),
        rule("api.example", methods=["GET"], paths=["/v1/items"], max_body=1000),
    ],
)
def test_what_is_covered_is_not_added_again(entry):
    made = allow(PROFILE, [entry])
    assert made.text == PROFILE
    assert made.changed == ()
    assert "already" in made.kept[0]


@pytest.mark.parametrize(
    "entry",
    [
        rule("api.openai.com:80"),
        rule("arxiv.org"),
        rule("api.openai.com", secret="KEY"),
        rule("api.openai.com", addresses=["10.0.0.0/8"]),
        rule("api.openai.com", ech=True),
        rule("api.example", methods=["GET", "POST"], paths=["/v1/*"]),
        rule("api.example", methods=["GET"]),
        rule("api.example", methods=["GET"], paths=["/v1/*"]),
        rule("api.example", methods=["GET"], paths=["/v2/*"], max_body="1K"),
    ],
)
def test_what_grants_more_is_added(entry):
    assert allow(PROFILE, [entry]).changed


def test_a_limit_beside_a_rule_without_one_would_limit_nothing_and_that_is_said():
    for more in ({"methods": ["GET"]}, {"max_bytes": "1G"}, {"max_requests": 5}):
        made = allow(PROFILE, [rule("api.openai.com", **more)])
        assert made.changed == ()
        assert "remove that to limit it" in made.kept[0]


def test_the_same_rule_twice_is_added_once():
    made = allow(PROFILE, [rule("a.example"), rule("A.example."), rule("a.example:443")])
    assert len(made.changed) == 1
    assert len(made.kept) == 2


def test_a_denial_wins_and_that_is_said():
    made = allow(PROFILE, [rule("evil.arxiv.org:22")])
    assert made.changed
    assert made.kept == ("evil.arxiv.org:22 stays refused: network.deny has evil.arxiv.org:*, and deny wins",)
    again = allow(made.text, [rule("evil.arxiv.org:22")])
    assert not again.changed
    assert "deny wins" in again.kept[1]
    some = allow(PROFILE.replace("evil.arxiv.org", "evil.arxiv.org:443"), [rule("evil.arxiv.org:22,443")])
    assert "stays refused at port 443" in some.kept[0]


def test_deny_means_every_port_unless_it_says_which():
    made = deny(PROFILE, [rule("bad.example")])
    assert tomllib.loads(made.text)["network"]["deny"] == ["evil.arxiv.org", "bad.example"]
    assert deny(made.text, [rule("bad.example:80")]).changed == ()


def test_the_table_and_the_list_are_made_where_they_are_missing():
    made = allow("schema = 1\n", [rule("a.example")])
    assert tomllib.loads(made.text) == {"schema": 1, "network": {"allow": ["a.example"]}}
    made = allow("schema = 1\n[network]\nloopback = true\n", [rule("a.example")])
    assert tomllib.loads(made.text)["network"] == {"loopback": True, "allow": ["a.example"]}


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        (["api.openai.com"], 3),
        (["*.arxiv.org"], 3),
        (["*.arxiv.org:80,443"], 3),
        (["*.arxiv.org:443,80"], 3),
        (["github.com"], 3),
        (["GitHub.com:22,443"], 3),
        (["api.openai.com:443"], 3),
        (["api.example:443 with methods GET and paths /v1/* and bodies of at most 1048576 bytes"], 3),
        (["api.example", "github.com", "*.arxiv.org"], 1),
    ],
)
def test_a_rule_is_removed_by_its_host_or_as_it_is_listed(wanted, left):
    made = remove(PROFILE, wanted)
    assert len(allowed(made.text)) == left
    assert len(made.changed) == len(made.removed) == 4 - left
    for comment in ("# the version", "# what it needs", "# no more"):
        assert comment in made.text


@pytest.mark.parametrize("wanted", ["github.com:22", "other.example", "openai.com", "nonsense!", "*.arxiv.org:80"])
def test_what_is_not_there_cannot_be_removed(wanted):
    with pytest.raises(EditError, match="has a rule"):
        remove(PROFILE, [wanted])
    with pytest.raises(EditError, match="has a rule"):
        remove(PROFILE, ["api.openai.com", wanted])


def test_a_name_that_a_wider_rule_allows_is_denied_not_removed():
    with pytest.raises(EditError, match=r"\*\.arxiv\.org:80,443 is what allows it, and deny would take it away"):
        remove(PROFILE, ["x.arxiv.org"])


@pytest.mark.parametrize("wanted", ["evil.arxiv.org", "evil.arxiv.org:*"])
def test_a_denial_is_removed_too(wanted):
    assert tomllib.loads(remove(PROFILE, [wanted]).text)["network"]["deny"] == []


def test_what_is_in_both_lists_goes_from_both():
    made = remove(allow(PROFILE, [rule("evil.arxiv.org:22")]).text, ["evil.arxiv.org"])
    assert [key for key, _ in made.removed] == ["allow", "deny"]


def test_an_item_that_is_no_rule_can_be_removed_as_it_is_written():
    broken = PROFILE.replace('"api.openai.com"', '"a..b"')
    assert len(allowed(remove(broken, ["a..b"]).text)) == 3


@pytest.mark.parametrize(
    "entry",
    [
        *map(rule, ["[evil.com]", "a..b", "host:70000", "host:0443", "a b", "", "x@y", "2130706433", "\udcff"]),
        rule("a.example:22", 443),
        rule("a.example", 70000),
        rule("a.example", methods=["get"]),
        rule("a.example", paths=["v1"]),
        rule("a.example", paths=["/\udcff"]),
        rule("a.example", max_body="lots"),
        rule("a.example", secret="a-b"),
        rule("a.example", addresses=["localhost"]),
    ],
)
def test_what_is_no_rule_is_refused(entry):
    with pytest.raises(EditError, match="is no rule"):
        allow(PROFILE, [entry])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[network", "is not TOML"),
        ("a = " + "[" * 10000, "nested too deeply"),
        ("network = 1", "no table"),
        ("[network]\nallow = 1", "no list"),
        ('[[network.allow]]\nhost = "a"', "by hand"),
    ],
)
def test_a_profile_that_cannot_be_edited_is_left(text, reason):
    with pytest.raises(EditError, match=reason):
        allow(text, [rule("a.example")])


PARTS = {
    "ports": st.sampled_from([(443,), (80, 443), (0,)]),
    "methods": st.sampled_from([(), ("GET",), ("GET", "POST")]),
    "paths": st.sampled_from([(), ("/v1/*",), ("/v1/a",)]),
    "secret": st.sampled_from([None, "K"]),
    "max_body": st.sampled_from([None, 10, 20]),
    "max_bytes": st.sampled_from([None, 10]),
    "ech": st.booleans(),
    "addresses": st.sampled_from([(), ("10.0.0.0/8",), ("10.1.0.0/16",)]),
}
RULES = st.builds(Rule, host=st.sampled_from(["*", "*.example", "a.example", "b.example"]), **PARTS)


@given(RULES, RULES, RULES)
def test_covering_is_an_order(one, two, three):
    assert covers(one, one)
    if covers(one, two) and covers(two, three):
        assert covers(one, three)


NAMES = st.lists(st.from_regex(r"[a-z]{1,8}\.example", fullmatch=True), min_size=1, max_size=6, unique=True)
LAYOUTS = st.sampled_from(
    [
        "[{}]", "[ {} ]", "[{},]", "[\n  {},\n]", "[\n    {}\n]", "[ # why\n\t{}, # so\n]", "[\n {} # so\n]",
        "[\n {} # so\n # end\n]", "[\n {}, # so\n\n # end\n\n ]", "[ {}\n]", "[\n  { host = \"c.x\" }, # so\n  {}]",
    ]
)  # fmt: skip
AROUND = "# top\nschema = 1 # a\n[network] # b\nallow = ARRAY  # end\nask = true\n\n# c\n[process]  # d\npids = 64\n"


def comments(text):
    return sorted(line.partition("#")[2].strip() for line in text.splitlines() if "#" in line)


@given(NAMES, NAMES, LAYOUTS, st.sampled_from(["\n", "\r\n"]), st.data())
def test_an_edit_keeps_comments_and_all_else_in_any_layout(before, more, layout, newline, data):
    separator = ",\n  " if "\n" in layout else ", "
    array = layout.replace("{}", separator.join(repr(name) for name in before))
    text = AROUND.replace("ARRAY", array).replace("\n", newline)
    more = [name for name in more if name not in before]
    was = allowed(text)
    added = allow(text, [rule(name) for name in more])
    assert allowed(added.text) == [*was, *more]
    gone = data.draw(st.lists(st.sampled_from(before + more), min_size=1, unique=True))
    left = remove(added.text, gone)
    assert allowed(left.text) == [value for value in [*was, *more] if value not in gone]
    head, tail = text.partition("allow = ")[0], text.partition("  # end")[2]
    assert comments(added.text) == comments(text)
    # An item's own comment, behind it on its line, goes with it.
    assert [one for one in comments(left.text) if one != "so"] == [one for one in comments(text) if one != "so"]
    for edited in (added.text, left.text):
        assert edited.startswith(head)
        assert edited.endswith(tail)
        assert newline == "\n" or "\n" not in edited.replace("\r\n", "")
    if more:
        back = remove(added.text, more).text
        assert bare(back) == bare(text)


def bare(text):
    """Without white space, and without the comma that may stand behind a last item."""
    return re.sub(r",?(#so)?((?:#end)?\])", r"\1\2", re.sub(r"\s", "", text))

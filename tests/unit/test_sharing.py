"""Which directories agents share, by their grants."""

from __future__ import annotations

import pytest

from osmoda.sandbox import profile_file
from osmoda.supervisor.confining.confinement import Confined
from osmoda.supervisor.sharing.directories import Grants, grants_of, shared, writers


def agent(name, read=(), write=()):
    return Grants(name, tuple(read), tuple(write))


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (agent("a", write=["/opt/shared"]), agent("b", read=["/opt/shared"]), ("/opt/shared",)),
        (agent("a", write=["/opt/shared"]), agent("b", write=["/opt/shared"]), ("/opt/shared",)),
        (agent("a", write=["/opt/shared/x"]), agent("b", read=["/opt/shared"]), ("/opt/shared/x",)),
        (agent("a", write=["/opt/shared"]), agent("b", read=["/opt/shared/x", "/opt/shared"]), ("/opt/shared",)),
        (agent("a", write=["/opt/shared"]), agent("b", read=["/opt/shared/x"]), ("/opt/shared/x",)),
        (agent("a", read=["/opt/shared"]), agent("b", read=["/opt/shared"]), ()),
        (agent("a", write=["/opt/shared"]), agent("b", read=["/opt/share"]), ()),
    ],
)
def test_what_one_writes_and_another_sees(one, other, found):
    assert shared([one, other]) == found
    assert shared([other, one]) == found
    assert shared([one]) == ()


def test_who_may_write_a_path():
    agents = [agent("b", write=["/s"]), agent("a", write=["/s/x"]), agent("c", read=["/s"])]
    assert writers(agents, "/s/x/file") == ("a", "b")
    assert writers(agents, "/s/y") == ("b",)
    assert writers(agents, "/elsewhere") == ()


@pytest.mark.parametrize(("mode", "write"), [("direct", ("/w", "/work")), ("overlay", ("/w",))])
def test_a_workspace_that_is_written_in_place_counts(mode, write):
    text = f'schema = 1\ntier = 1\n[filesystem]\nread = ["/r"]\nwrite = ["/w"]\nworkspace = "{mode}"\n'
    found = grants_of("a", Confined(profile_file.load_text(text, "a.toml", "/"), "/work", ()))
    assert found == Grants("a", ("/r",), write)


def test_tier_0_declares_nothing():
    found = grants_of("a", Confined(profile_file.load_text("schema = 1\ntier = 0\n", "a.toml", "/"), "", ()))
    assert found == Grants("a", (), ())

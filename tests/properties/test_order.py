"""`extends` does not ask for order, and "grants no more than" is an order: for whole profiles as they are loaded."""

from __future__ import annotations

from copy import deepcopy
from itertools import permutations
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from osmoda.sandbox.errors import ProfileError
from osmoda.sandbox.grants import excess
from osmoda.sandbox.profile import Profile
from tests.generated_profiles import Table, examples, loaded, tables, text, with_value


def read(tables_: dict[str, Table], folder: Path) -> tuple[Profile | None, str]:
    """The profile `top.toml` of these files, or what is wrong with them."""
    for name, table in tables_.items():
        (folder / name).write_text(text(table))
    try:
        return Profile.load(str(folder / "top.toml")), ""
    except ProfileError as error:
        return None, str(error)


@examples
@given(own=tables(1, 2), first=tables(1, 2), second=tables(1, 2))
def test_the_order_of_extends_changes_nothing(own: Table, first: Table, second: Table, files: Path) -> None:
    bases = {"first.toml": first, "second.toml": second}
    found = []
    for order in permutations(bases):
        profile, wrong = read({**bases, "top.toml": own | {"extends": list(order)}}, files)
        found.append((profile, wrong, profile and (profile.digest, dict(profile.origins), {*profile.files[1:]})))
    assert found[0] == found[1]
    profile, _, _ = found[0]
    if profile is not None:
        denials_hold(profile, own, first, second, files=files)
    # One after the other; but the nearer file may say which of two values a variable has.
    if not any(table.get("environment", {}).get("set") for table in (own, first, second)):
        bases["first.toml"] = first | {"extends": "second.toml"}
        chain, _ = read({**bases, "top.toml": own | {"extends": "first.toml"}}, files)
        assert chain == profile


def denials_hold(profile: Profile, *tables_: Table, files: Path) -> None:
    """What each of the files takes away is taken away."""
    for table in tables_:
        alone = loaded(table, files)
        assert {*alone.filesystem.deny} <= {*profile.filesystem.deny}
        assert {*alone.network.deny} <= {*profile.network.deny}
        assert {*alone.tools.deny} <= {*profile.tools.deny}
        taken = {entry for entry in table.get("process", {}).get("syscalls", ()) if entry.startswith("~")}
        assert taken <= {*profile.process.syscalls}
        assert profile.tier >= alone.tier


# The order


@st.composite
def with_less(draw: st.DrawFn, table: Table) -> Table:
    """The profile with some grants taken out, or some denials put in."""
    found = deepcopy(table)
    for section, key in GRANTS:
        items = found.get(section, {}).get(key)
        if items and draw(st.booleans()):
            del items[draw(st.integers(0, len(items) - 1))]
    for key, values in DENIALS:
        if draw(st.integers(0, 5)) == 0:
            found = with_value(found, key, [draw(st.sampled_from(values))])
    return found


GRANTS = (
    *(("filesystem", "read"), ("filesystem", "write"), ("network", "allow"), ("network", "serve")),
    *(("network", "connect"), ("network", "families"), ("environment", "pass"), ("tools", "allow"), ("mesh", "send")),
)
DENIALS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("filesystem.deny", ("a/b", "w/x", "/usr/share", "ws/secret")),
    ("network.deny", ("*.example.com", "a.example.com:443", "*", "10.1.0.0/16")),
    ("tools.deny", ("file_*", "mem_read")),
)


@examples
@given(data=st.data())
def test_granting_no_more_is_an_order(data: st.DataObject, files: Path) -> None:
    widest = data.draw(tables(1, 2))
    middle = data.draw(with_less(widest))
    least = data.draw(with_less(middle))
    a, b, c = (loaded(table, files) for table in (least, middle, widest))
    assert excess(a, a) == excess(a, b) == excess(b, c) == excess(a, c) == ()
    # And with one that has nothing to do with them.
    other = loaded(data.draw(tables(1, 2)), files)
    for one, two, three in permutations((a, c, other)):
        if not excess(one, two) and not excess(two, three):
            assert excess(one, three) == ()


ADDED: dict[int, tuple[tuple[str, list[Any]], ...]] = {
    1: (
        ("filesystem.read", ["a/d"]),
        ("filesystem.write", ["w2"]),
        ("network.allow", ["new.net:9"]),
        ("network.serve", [7]),
        ("network.connect", ["agent:other:9"]),
        ("environment.pass", ["NEW"]),
        ("mesh.send", ["new"]),
        ("degrade", ["landlock-net"]),
    ),
    2: (
        ("network.allow", ["new.net:9"]),
        ("network.serve", [7]),
        ("network.connect", ["agent:other:9"]),
        ("environment.pass", ["NO_COLOR"]),
        ("mesh.receive", ["new"]),
        ("degrade", ["landlock-net"]),
    ),
}


@examples
@given(data=st.data())
def test_a_grant_more_is_reported_and_nothing_else(data: st.DataObject, files: Path) -> None:
    table = data.draw(tables(1, 2))
    key, value = data.draw(st.sampled_from(ADDED[table["tier"]]))
    before, after = loaded(table, files), loaded(with_value(table, key, value), files)
    was_declared = key.partition(".")[2] in table.get(key.partition(".")[0], {}) or key in table
    if was_declared or key in ("filesystem.read", "filesystem.write", "network.allow", "network.serve"):
        assert excess(before, after) == ()
    assert {item.kind for item in excess(after, before)} <= {key}
    if not excess(after, before):
        # Then it was there already, or within what was, or a denial leaves nothing of it.
        assert before == after or not value_is_new(before, key)
    assert excess(after, after) == ()


def value_is_new(profile: Profile, key: str) -> bool:
    """Whether what ADDED has for `key` lies outside of all that the profile grants, and no denial meets it."""
    files, network = profile.filesystem, profile.network
    match key:
        case "filesystem.read":
            trees = (*files.read, *files.write)
            return not any(tree.endswith(("/a", "/a/d")) for tree in trees) and not files.deny
        case "filesystem.write":
            return not any(tree.endswith("/w2") for tree in files.write)
        case "network.allow":
            return not network.deny and not any(rule.host == "*" for rule in network.allow)
        case "mesh.send":
            return "*" not in profile.mesh.send
        case "mesh.receive":
            return "*" not in profile.mesh.receive
        case "environment.pass":
            return "NEW" not in profile.environment.passed and "NO_COLOR" not in profile.environment.passed
        case "degrade":
            return "landlock-net" not in profile.degrade
    return not network.deny

"""The Landlock half of a plan, for each ABI that there is (landlock(7); linux/landlock.h)."""

from __future__ import annotations

import pytest

from osmoda.sandbox import landlock_rules
from osmoda.sandbox.errors import CompileError
from osmoda.sandbox.operations import confinement
from tests.compiled import compiled

ABIS = range(1, 8)
ALL_MISSING = 'degrade = ["landlock", "landlock-net", "landlock-scope"]\n'

# What the kernel's documentation lists, right by right, with the ABI that brought it.
RIGHTS = {
    1: 0b1_1111_1111_1111,  # execute to make_sym
    2: 1 << 13,  # refer
    3: 1 << 14,  # truncate
    5: 1 << 15,  # ioctl_dev
}


def rules(abi, text="", **changed):
    _, plan = compiled(f"tier = 2\n{ALL_MISSING}{text}", landlock=abi, **changed)
    found = [op for op in plan if isinstance(op, confinement.Landlock)]
    return (found[0] if found else None), {entry.layer: entry for entry in plan.degraded}


def known(abi):
    return sum(rights for since, rights in RIGHTS.items() if since <= abi)


@pytest.mark.parametrize("abi", ABIS)
def test_every_right_that_the_abi_has_is_handled(abi):
    landlock, _ = rules(abi)
    assert landlock is not None
    assert landlock.abi == abi
    assert landlock.handled_fs == known(abi)
    assert landlock.handled_net == (3 if abi >= 4 else 0)
    assert landlock.scoped == (3 if abi >= 6 else 0)


@pytest.mark.parametrize("abi", ABIS)
def test_no_rule_gives_a_right_that_is_not_handled(abi):
    """The kernel refuses such a rule with EINVAL."""
    landlock, _ = rules(abi, '[filesystem]\nworkspace = "direct"\n')
    assert landlock is not None
    assert landlock.paths
    for _, given in landlock.paths:
        assert given
        assert given & ~landlock.handled_fs == 0


@pytest.mark.parametrize("abi", ABIS)
def test_what_an_older_abi_lacks_is_a_degradation(abi):
    _, degraded = rules(abi)
    expected = {layer for layer, since in (("landlock-net", 4), ("landlock-scope", 6)) if abi < since}
    assert degraded.keys() == expected
    assert all(entry.origin == "/p/agent.toml:3" for entry in degraded.values())


def test_without_landlock_there_are_no_rules():
    landlock, degraded = rules(0)
    assert landlock is None
    assert degraded.keys() == {"landlock"}


@pytest.mark.parametrize(
    ("abi", "layer"),
    [(0, "landlock"), (1, "landlock-net"), (3, "landlock-net"), (4, "landlock-scope"), (5, "landlock-scope")],
)
def test_what_is_missing_without_leave_stops_the_compilation(abi, layer):
    with pytest.raises(
        CompileError, match=rf'tier 2: .*; the launch stops, unless the profile says degrade = \["{layer}"\]'
    ):
        compiled("tier = 2", landlock=abi)


@pytest.mark.parametrize("abi", [1, 3, 7])
def test_with_a_loopback_ports_are_not_ruled_and_not_missed(abi):
    landlock, degraded = rules(abi, "[network]\nloopback = true\n")
    assert landlock is not None
    assert (landlock.handled_net, landlock.bind, landlock.connect) == (0, (), ())
    assert "landlock-net" not in degraded


def test_declared_ports_are_ruled():
    landlock, _ = rules(7, '[network]\nserve = [8081, 80]\nallow = ["a.example.org:80,443", "b.example.org"]\n')
    assert landlock is not None
    # Where connections lead to the gateway it decides, which an edit reaches and Landlock's rules do not.
    assert (landlock.handled_net, landlock.bind, landlock.connect) == (1, (80, 8081), ())


def test_nothing_declared_binds_and_connects_nothing():
    landlock, _ = rules(7)
    assert landlock is not None
    assert (landlock.handled_net, landlock.bind, landlock.connect) == (3, (), ())


@pytest.fixture
def grants(tmp_path):
    for name in ("read", "write"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.file").write_text("")
    text = f"""tier = 1
[filesystem]
read = ["{tmp_path}/read", "{tmp_path}/read.file"]
write = ["{tmp_path}/write", "{tmp_path}/write.file"]
workspace = "direct"
"""
    _, plan = compiled(text)
    landlock = next(op for op in plan if isinstance(op, confinement.Landlock))
    return {name.decode().removeprefix(str(tmp_path)): rights for name, rights in landlock.paths}


READING = landlock_rules.EXECUTE | landlock_rules.READ_FILE | landlock_rules.READ_DIR
DEVICES = landlock_rules.MAKE_CHAR | landlock_rules.MAKE_BLOCK
ON_FILES = (
    landlock_rules.EXECUTE
    | landlock_rules.WRITE_FILE
    | landlock_rules.READ_FILE
    | landlock_rules.TRUNCATE
    | landlock_rules.IOCTL_DEV
)


def test_what_is_read_is_not_written(grants):
    assert grants["/read"] == READING
    assert grants["/read.file"] == READING & ON_FILES
    for path in ("/usr", "/", "/etc", "/proc"):
        assert grants[path] & ~READING == 0


def test_what_is_written_makes_no_devices(grants):
    for path in ("/write", "/tmp", "/home/agent", "/dev/shm", ""):
        assert grants[path] == known(7) & ~DEVICES & ~landlock_rules.IOCTL_DEV
    assert grants["/write.file"] == grants["/write"] & ON_FILES


def test_no_file_gets_a_right_that_only_folders_have(grants):
    """The kernel refuses such a rule with EINVAL."""
    for path in ("/read.file", "/write.file"):
        assert grants[path] & ~ON_FILES == 0


def test_devices_are_used_and_not_made(grants):
    assert grants["/dev"] & DEVICES == 0
    assert grants["/dev"] & landlock_rules.IOCTL_DEV
    assert grants["/dev"] & landlock_rules.EXECUTE == 0


def test_a_system_tree_that_is_denied_has_no_rule():
    from osmoda.sandbox import system_view

    others = [path for path in system_view.trees() if not path.startswith(("/usr", "/etc"))]
    landlock, _ = rules(7, '[filesystem]\ndeny = ["/usr"]\n')
    assert landlock is not None
    names = {name.decode() for name, _ in landlock.paths}
    assert "/usr" not in names
    assert {*others} <= names

"""Every operation: said in a line, kept on disk, and the same in reports as in the launch."""

from __future__ import annotations

import marshal

import pytest

from osmoda.host.frozen import fields_of, values_of
from osmoda.sandbox import plan as plans
from osmoda.sandbox.operations import (
    Operation,
    Setup,
    confinement,
    isolation,
    mounting,
    networking,
    observation,
    supervision,
    trust_store,
)
from tests.compiled import compiled

ABSTRACT = {Operation, mounting.Grant}


def subclasses(base):
    for found in base.__subclasses__():
        yield found
        yield from subclasses(found)


CLASSES = sorted({*subclasses(Operation)} - ABSTRACT, key=lambda cls: cls.__name__)

# Those of a run that `learn` looks on at. Such a plan is made for one run and never kept.
TRIAL = (
    observation.Throwaway("tier 1", b"/opt", (b"secret",), (b"hosts",), (b"tmp",), 64 << 20, True),
    observation.Composed("tier 1", b"/srv", (b"data",), 0o755, 64 << 20),
    observation.Reported("tier 1", bytes(80)),
)

# One of each; a class that is not here fails a test.
ODD = b"/opt/\xff"
EXAMPLES = (
    isolation.Namespaces("tier 2", ("user", "mount", "pid")),
    isolation.Identity("tier 2", 1000, 1000, True),
    isolation.Identity("tier 2", 1000, 1000, False),
    isolation.Hostname("tier 2", "sandbox"),
    isolation.Loopback("tier 2", True),
    isolation.Loopback("tier 2", False),
    networking.NamesOnly("a.toml:7", False, True, ("10.0.0.0/8",), (8081,), (9000,), (b"link",), (b"rule",)),
    networking.NamesOnly("a.toml:7", True, False, (), (), (), (b"link",), (b"rule",)),
    networking.ShortTracking("tier 2"),
    trust_store.TrustStore("tier 2", (b"/etc/ssl/cert.pem",), (b"/etc/ssl/certs/java/cacerts",)),
    supervision.NotifySocket("the supervisor"),
    supervision.HostListeners("the supervisor", bytes(8)),
    mounting.Root("tier 2"),
    mounting.Skeleton("tier 2", (b"etc",), ((b"bin", b"usr/bin"),), ((b"etc/hosts", b"x"), (b".denied", b""))),
    mounting.SystemTree("tier 2", b"/usr"),
    mounting.SystemTreeWithout("a.toml:3", b"/usr", (b"share/x",)),
    mounting.Scratch("tier 2", b"/tmp", 256 << 20, 0o1777),
    mounting.Proc("tier 2"),
    mounting.Devices("tier 2", (b"null", b"zero")),
    mounting.ReadFile("a.toml:3", b"/opt/file"),
    mounting.ReadMounts("a.toml:3", b"/opt"),
    mounting.ReadTree("a.toml:3", b"/opt", ()),
    mounting.ReadTree("a.toml:3", b"/opt", (b"a", b"b/c")),
    mounting.WriteTree("a.toml:4", b"/srv"),
    mounting.DirectWorkspace("a.toml:5"),
    mounting.OverlayWorkspace("a.toml:5", (b"/w/.env",)),
    mounting.Alias("a.toml:3", b"/opt/current", b"/opt/v1"),
    mounting.Mask("a.toml:6", b"/srv/.env", True),
    mounting.Pinned("tier 1", (b"/p/agent.toml",), (b"/srv",)),
    mounting.Seal("tier 2", True),
    confinement.Terminal("tier 2"),
    confinement.NoNestedNamespaces("tier 2"),
    confinement.Capabilities("tier 2", 40),
    *(confinement.ProcessLimit("tier 2", name, 64) for name in confinement.RLIMIT),
    confinement.NoCoreDumps("tier 2", bytes(8)),
    confinement.Scheduling("tier 2"),
    confinement.Landlock("tier 2", 0xFFFF, 3, 3, 7, ((b"/usr", 0xD), (b"/tmp", 2), (b"", 2)), (80,), (443,)),
    confinement.Landlock("tier 2", 0xFFFF, 0, 0, 1, (), (), ()),
    confinement.Landlock("tier 2", 0xFFFF, 1, 3, 7, (), (80,), ()),
    confinement.Seccomp("tier 2", bytes(80), 300, True),
    confinement.Seccomp("tier 2", bytes(80), 300, False),
    *TRIAL,
)


def test_each_class_has_an_example_here():
    assert {type(example) for example in EXAMPLES} == set(CLASSES)


def test_each_class_of_a_profile_can_be_kept_and_none_of_a_trial():
    trial = {type(example) for example in TRIAL}
    assert all(plans.operation_class(cls.__name__) is cls for cls in CLASSES if cls not in trial)
    for cls in trial:
        with pytest.raises(KeyError):
            plans.operation_class(cls.__name__)


@pytest.mark.parametrize("operation", EXAMPLES, ids=repr)
def test_its_description_is_one_line(operation):
    text = operation.describe()
    assert text
    assert text.isprintable()
    assert len(text) < 250
    assert not text.endswith(".")


@pytest.mark.parametrize("operation", EXAMPLES, ids=repr)
def test_it_belongs_to_a_layer_and_says_where_it_is_from(operation):
    from osmoda.sandbox.explain import LAYERS

    assert operation.layer in LAYERS or operation in TRIAL
    assert fields_of(operation)[0] == "origin"


@pytest.mark.parametrize("operation", EXAMPLES, ids=repr)
def test_its_fields_come_back_from_disk(operation):
    values = marshal.loads(marshal.dumps(values_of(operation)))
    assert type(operation)(*values) == operation
    assert list(map(type, values)) == list(map(type, values_of(operation)))


@pytest.mark.parametrize("operation", EXAMPLES, ids=repr)
def test_each_field_makes_a_difference(operation):
    """Two that differ are not equal, or a stale plan would pass for a new one."""
    for name in fields_of(operation):
        other = [object() if field == name else getattr(operation, field) for field in fields_of(operation)]
        assert type(operation)(*other) != operation


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_it_says_and_does_something_of_its_own(cls):
    assert cls.describe is not Operation.describe
    assert cls.apply is not Operation.apply


def test_the_class_of_all_does_nothing():
    with pytest.raises(NotImplementedError):
        Operation("tier 2").describe()
    with pytest.raises(NotImplementedError):
        Operation("tier 2").apply(Setup(b"", b"", 0, 0, False))


def test_names_that_are_no_text_can_be_described():
    for operation in (
        mounting.ReadTree("a:1", ODD, (b"\xff",)),
        mounting.WriteTree("a:1", ODD),
        mounting.Mask("a:1", ODD, True),
        mounting.Alias("a:1", b"/x", ODD),
        confinement.Landlock("a:1", 0xFFFF, 0, 0, 7, ((ODD, 2),), (), ()),
    ):
        assert operation.describe().isprintable()


# What the words must say, since a person relies on them.


def test_landlock_names_all_that_may_be_written():
    text = compiled('tier = 1\n[filesystem]\nworkspace = "direct"\n')[1].operations
    landlock = next(op for op in text if isinstance(op, confinement.Landlock))
    assert "writing only below /tmp, /home/agent, /dev/shm, the workspace;" in landlock.describe()


def test_ports_are_named_where_they_are_ruled():
    ruled, not_ruled, only_bound = (op for op in EXAMPLES if isinstance(op, confinement.Landlock))
    assert "TCP bind 80; connect 443" in ruled.describe()
    assert "TCP" not in not_ruled.describe()
    assert "TCP bind 80" in only_bound.describe()
    assert "connect" not in only_bound.describe()


@pytest.mark.parametrize(
    ("value", "words"), [(1 << 30, "1G"), (3 << 20, "3M"), (2048, "2K"), (1000, "1000 bytes"), (0, "0 bytes")]
)
def test_sizes_are_exact(value, words):
    assert confinement.ProcessLimit("a", "file_size", value).describe() == f"file size of each process at most {words}"


def test_pid_1_is_not_counted_for_the_person():
    assert "at most 64 processes" in confinement.ProcessLimit("a", "processes", 65).describe()


@pytest.mark.parametrize(("abi", "left"), [(2, ("truncating", "ioctl")), (3, ("ioctl",)), (4, ("ioctl",)), (5, ())])
def test_landlock_names_what_an_older_kernel_leaves_to_the_mounts(abi, left):
    _, plan = compiled("tier = 2\ndegrade = ['landlock-net', 'landlock-scope']", landlock=abi)
    (rules,) = [op for op in plan if isinstance(op, confinement.Landlock)]
    said = [
        part.split("(")[0].split()[0] for part in rules.describe().split("; ") if part.endswith("left to the mounts")
    ]
    assert tuple(said) == left


# The launch and every report walk the plan's own list.


def test_what_is_explained_is_what_is_applied(monkeypatch):
    import _socket

    from osmoda.sandbox import explain, init

    _, plan = compiled("tier = 2")
    applied, described = [], []

    def note_apply(self, setup):
        applied.append(self)

    def note_describe(self):
        described.append(self)
        return "x"

    for cls in CLASSES:
        monkeypatch.setattr(cls, "apply", note_apply)
        monkeypatch.setattr(cls, "describe", note_describe)

    class Over(BaseException):
        pass

    def over(*_):
        raise Over

    # `init.enter` as far as the command, in this process: it must not touch it.
    monkeypatch.setattr(init.syscalls, "prctl", lambda *_: 0)
    monkeypatch.setattr(init, "_take_stdio", lambda *_: None)
    monkeypatch.setattr(init, "_retitle", lambda *_: None)
    monkeypatch.setattr(init, "_send", lambda *_: None)
    monkeypatch.setattr(init, "spawn", over)
    monkeypatch.setattr(init, "_report", lambda *_: None)
    monkeypatch.setattr(init.posix, "_exit", over)
    monkeypatch.setattr(init._socket, "socket", lambda *_: here)
    here, there = _socket.socketpair()
    command = init.Command(("true",), (), b"/", 0, 1, 2, ())
    try:
        with pytest.raises(Over):
            init.enter(plan.operations, Setup(b"", b"", 0, 0, False), command, here, (), (), False, b"")
    finally:
        here.close()
        there.close()
    assert list(map(id, applied)) == list(map(id, plan.operations))

    from osmoda.sandbox import dry_run
    from osmoda.sandbox.request import Request

    monkeypatch.setattr(dry_run.plans, "for_request", lambda request, folder: (plan, True))
    dry_run.rehearse(Request(("true",)))
    assert list(map(id, described)) == list(map(id, plan.operations))

    profile, _ = compiled("tier = 2")
    lines = [line.text for layer in explain._layers(profile, plan) for line in layer.lines]
    assert len(lines) >= len({op.layer for op in plan})
    assert {*map(id, described[len(plan.operations) :])} <= {*map(id, plan.operations)}

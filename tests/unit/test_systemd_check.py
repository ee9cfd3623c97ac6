"""Before systemd starts a unit: whether systemd, as it has loaded it, would lead it into its sandbox."""

from __future__ import annotations

import asyncio

import pytest

from osmoda.supervisor.systemd import drop_ins as systemd_drop_ins
from osmoda.supervisor.systemd import engine as systemd_engine
from osmoda.supervisor.systemd import files as systemd_files
from osmoda.supervisor.systemd.engine import SystemdEngine
from osmoda.supervisor.units.loading import Loader

PROGRAM = "/usr/bin/osmoda-watch"
UNIT = "[Service]\nExecStart=/usr/bin/true\nEnvironmentFile=-/srv/agent/.env\n[X-Osmoda]\nTier=1\n"


class Manager:
    """Stands in for systemd's: `loaded` units, with these drop-ins, which lead into the sandbox as they should."""

    def __init__(self, folder, *loaded, drop_ins=()):
        self.loader = Loader([str(folder)])
        self.loaded = loaded
        self.drop_ins = [str(path) for path in drop_ins]

    async def properties(self, name):
        unit = self.loader.load(name)
        argv = [PROGRAM, "exec", "start", "0", systemd_drop_ins.fingerprint(unit), unit.name]
        return {"ExecStart": [[PROGRAM, argv, False]], "DropInPaths": self.drop_ins}

    async def units(self, patterns):
        assert patterns == ["*@*.service"]
        return [*self.loaded]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(systemd_engine, "systemd_path", lambda: [str(tmp_path)])
    monkeypatch.setattr(systemd_files, "folder", lambda: str(tmp_path))
    monkeypatch.setattr(systemd_files, "program", lambda: PROGRAM)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("zzzz.conf", "[Service]\nEnvironmentFile=/srv/agent/.env\n", "EnvironmentFile= comes after"),
        ("zzzz.conf", "[Service]\nEnvironment=LD_PRELOAD=/srv/agent/x.so\n", "Environment= comes after"),
        ("zzzz.conf", "[Unit]\nDescription=harmless\n", ""),
        ("10.conf", "[Service]\nEnvironmentFile=/srv/agent/.env\n", ""),
    ],
)
def test_what_comes_after_the_drop_in_decides_nothing_outside(folder, name, text, why):
    """A file of variables that the agent writes would be that of root's process beside it: LD_PRELOAD= among them."""
    (folder / "agent.service").write_text(UNIT)
    own, other = folder / "agent.service.d" / "zzz-osmoda.conf", folder / "agent.service.d" / name
    own.parent.mkdir()
    own.write_text("")
    other.write_text(text)
    engine = SystemdEngine(Manager(folder, drop_ins=sorted([own, other])))
    said = asyncio.run(engine.problem_of(Loader([str(folder)]).load("agent.service"), PROGRAM))
    assert why in said
    assert said.startswith(f"{other}:2: ") or not why
    assert bool(said) is bool(why)


def test_instances_that_run_outside_are_named(folder):
    (folder / "worker@.service").write_text(UNIT)
    (folder / "plain@.service").write_text("[Service]\nExecStart=/usr/bin/true\n")
    own = folder / "worker@1.service.d" / "zzz-osmoda.conf"
    own.parent.mkdir()
    own.write_text("")
    manager = Manager(folder, "worker@1.service", "worker@2.service", "plain@1.service", drop_ins=[own])
    found = {one["unit"]: one for one in asyncio.run(SystemdEngine(manager).check())}
    assert {*found} == {"worker@1.service", "worker@2.service"}
    assert found["worker@1.service"]["ok"]
    assert "outside a sandbox" in found["worker@2.service"]["text"]
